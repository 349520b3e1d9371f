"""The sweeper's functions: whose process died, and what becomes of its holds."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0003_desk")]
    operations = [migrations.RunSQL(SQL)]
