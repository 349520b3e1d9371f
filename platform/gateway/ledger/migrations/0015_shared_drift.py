"""Drift of counters in several rows."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0014_settlement")]
    operations = [migrations.RunSQL(SQL)]
