"""Kept content is compressed and encrypted before it comes here: PostgreSQL need not try to compress it again."""

from django.db import migrations

FORWARD = "ALTER TABLE replies_keptreply ALTER COLUMN content SET STORAGE EXTERNAL"
BACKWARD = "ALTER TABLE replies_keptreply ALTER COLUMN content SET STORAGE EXTENDED"


class Migration(migrations.Migration):
    dependencies = [("replies", "0001_initial")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
