"""The sweeper's look: whose process died."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0003_counters")]
    operations = [migrations.RunSQL(SQL)]
