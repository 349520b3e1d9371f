"""Limits in the database: claims, sliding minutes, counters that start from the ledger."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0004_processes"), ("limits", "0003_refusals")]
    operations = [migrations.RunSQL(SQL)]
