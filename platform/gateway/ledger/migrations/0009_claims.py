"""Claims as rows of numbers; each process may have counters of its own."""

from pathlib import Path

from django.db import migrations, models

SQL = Path(__file__).with_suffix(".sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("ledger", "0008_drift"), ("limits", "0008_shards")]
    operations = [
        migrations.AddField("counter", "shard", models.SmallIntegerField(default=0, db_default=0)),
        migrations.RemoveConstraint("counter", "counter_unique"),
        migrations.AddConstraint(
            "counter",
            models.UniqueConstraint(fields=["scope", "owner_id", "currency", "shard"], name="counter_unique"),
        ),
        migrations.RunSQL(SQL),
    ]
