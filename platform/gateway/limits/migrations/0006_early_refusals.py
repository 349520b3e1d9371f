"""Refusals before any counter is looked at are kept too, with their reason."""

from pathlib import Path

from django.db import migrations, models

SQL = Path(__file__).with_suffix(".sql").read_text()
BACKWARD = """
DROP FUNCTION ledger_keep_early_refusals(ledger_item[], timestamptz);
ALTER TYPE ledger_item DROP ATTRIBUTE reason, DROP ATTRIBUTE decided;
"""


class Migration(migrations.Migration):
    dependencies = [("limits", "0005_warnings"), ("ledger", "0008_drift")]
    operations = [
        migrations.AddField(
            model_name="refusal",
            name="reason",
            field=models.CharField(blank=True, db_default="", default="", max_length=32),
        ),
        migrations.AddIndex(
            model_name="refusal",
            index=models.Index(fields=["rule_id", "tenant", "at"], name="refusal_rule"),
        ),
        migrations.RunSQL(SQL, BACKWARD),
    ]
