"""The lifetime counters of tenants and keys."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0011_judge")]
    operations = [migrations.RunSQL(SQL)]
