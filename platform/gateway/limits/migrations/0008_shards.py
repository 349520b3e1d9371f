"""A counter that many processes want at once has a row for each of them: `shard` is the process's number, 0 the first
row, and `share` how much of the amount `share_of` may be taken in this row (ledger migrations, 0010).
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("limits", "0007_credit_accounts")]
    operations = [
        migrations.AddField("limitcounter", "shard", models.SmallIntegerField(default=0, db_default=0)),
        migrations.AddField(
            "limitcounter", "share", models.DecimalField(decimal_places=0, max_digits=38, null=True)
        ),
        migrations.AddField("limitcounter", "share_of", models.BigIntegerField(null=True)),
        migrations.AddField("limitcounter", "live", models.BigIntegerField(null=True)),
        migrations.AddField("limitcounter", "moved_at", models.BigIntegerField(null=True)),
        migrations.AddField("limitcounter", "stepped_to", models.BigIntegerField(null=True)),
        migrations.RemoveConstraint("limitcounter", "limitcounter_unique"),
        migrations.AddConstraint(
            "limitcounter",
            models.UniqueConstraint(
                fields=["rule_id", "owner_id", "window_start", "shard"], name="limitcounter_unique"
            ),
        ),
    ]
