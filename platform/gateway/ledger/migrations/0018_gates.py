"""A deployment's own limits, decided in the desk's batch."""

from pathlib import Path

import django.contrib.postgres.fields
from django.db import migrations, models

SQL = Path(__file__).with_suffix(".sql").read_text()


def slots() -> django.contrib.postgres.fields.ArrayField:  # type: ignore[type-arg]
    return django.contrib.postgres.fields.ArrayField(base_field=models.BigIntegerField(), size=None)


class Migration(migrations.Migration):
    dependencies = [("ledger", "0017_made_windows")]
    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(SQL)],
            state_operations=[
                migrations.CreateModel(
                    name="Gate",
                    fields=[
                        ("deployment_id", models.BigIntegerField(primary_key=True, serialize=False)),
                        ("requests", slots()),
                        ("requests_live", models.BigIntegerField()),
                        ("tokens", slots()),
                        ("tokens_live", models.BigIntegerField()),
                        ("slot_at", models.BigIntegerField()),
                    ],
                ),
            ],
        )
    ]
