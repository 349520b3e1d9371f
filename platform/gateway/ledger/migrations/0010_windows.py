"""Counters of limits: made, locked, moved and shared out."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0009_claims")]
    operations = [migrations.RunSQL(SQL)]
