"""What the desk is asked to do, and the lifetime counters that it moves."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0002_tables"), ("catalogue", "0002_versions")]
    operations = [migrations.RunSQL(SQL)]
