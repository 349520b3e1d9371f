"""The drift check's own tables, and the functions that compare and repair."""

from pathlib import Path

from django.db import migrations, models

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0007_settlement"), ("limits", "0004_forgetting")]
    operations = [
        migrations.CreateModel(
            name="DriftCheck",
            fields=[
                ("name", models.CharField(max_length=8, primary_key=True, serialize=False)),
                ("position", models.BigIntegerField(default=0)),
                ("compared", models.IntegerField(default=0)),
                ("skipped", models.IntegerField(default=0)),
                ("found", models.IntegerField(default=0)),
                ("checked_at", models.DateTimeField(null=True)),
                ("last_compared", models.IntegerField(default=0)),
                ("last_skipped", models.IntegerField(default=0)),
                ("last_found", models.IntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="DriftFinding",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                ("scope", models.CharField(max_length=6)),
                ("owner_id", models.BigIntegerField()),
                ("rule_id", models.BigIntegerField(null=True)),
                ("window_start", models.DateTimeField(null=True)),
                ("currency", models.CharField(blank=True, max_length=3)),
                ("name", models.CharField(max_length=20)),
                ("said", models.DecimalField(decimal_places=0, max_digits=38)),
                ("right", models.DecimalField(decimal_places=0, max_digits=38)),
                ("repaired", models.BooleanField()),
            ],
            options={
                "ordering": ["-at", "-id"],
                "indexes": [models.Index(fields=["-at"], name="driftfinding_at")],
            },
        ),
        migrations.RunSQL(SQL),
    ]
