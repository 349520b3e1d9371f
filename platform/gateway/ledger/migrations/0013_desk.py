"""The desk."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0012_owners")]
    operations = [migrations.RunSQL(SQL)]
