"""A counter that is made anew starts in its first row: what runs gives back to that."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0017_gates")]
    operations = [migrations.RunSQL(SQL)]
