"""A counter that is made in the middle of its window, and the holds that it counts."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0016_attempts")]
    operations = [migrations.RunSQL(SQL)]
