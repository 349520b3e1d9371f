"""Attempts, and the model that served. The partitioned tables are made in SQL: Django cannot say them."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

SQL = Path(__file__).with_suffix(".sql").read_text()


def served_model() -> models.CharField:  # type: ignore[type-arg]
    return models.CharField(max_length=200, blank=True, default="", db_default="")


class Migration(migrations.Migration):
    dependencies = [("ledger", "0015_shared_drift"), ("tenants", "0002_versions")]
    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(SQL)],
            state_operations=[
                migrations.AddField("hold", "served_model", served_model()),
                migrations.AddField("usagerecord", "served_model", served_model()),
                migrations.CreateModel(
                    name="Attempt",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("request_id", models.UUIDField()),
                        ("number", models.SmallIntegerField()),
                        ("model", models.CharField(max_length=200)),
                        ("deployment_id", models.BigIntegerField()),
                        ("provider_id", models.BigIntegerField()),
                        ("started_at", models.DateTimeField()),
                        ("first_byte_at", models.DateTimeField(null=True)),
                        ("ended_at", models.DateTimeField()),
                        ("outcome", models.CharField(max_length=32)),
                        ("http_status", models.SmallIntegerField()),
                        ("served", models.BooleanField()),
                        ("input_tokens", models.BigIntegerField()),
                        ("cached_input_tokens", models.BigIntegerField()),
                        ("cache_write_tokens", models.BigIntegerField()),
                        ("output_tokens", models.BigIntegerField()),
                        ("reasoning_tokens", models.BigIntegerField()),
                        ("estimated", models.BooleanField()),
                        ("cost", models.BigIntegerField(null=True)),
                        ("cost_currency", models.CharField(blank=True, max_length=3)),
                        ("cost_price_id", models.BigIntegerField(null=True)),
                        (
                            "tenant",
                            models.ForeignKey(
                                db_constraint=False,
                                db_index=False,
                                on_delete=django.db.models.deletion.PROTECT,
                                related_name="+",
                                to="tenants.tenant",
                            ),
                        ),
                    ],
                    options={"ordering": ["-request_id", "number"]},
                ),
            ],
        )
    ]
