"""The group Finance: may read the books, over HTTP and in the admin, and change nothing."""

from django.db import migrations

PERMISSIONS = [
    ("ledger", "usagerecord", "view_usagerecord", "Can view usage record"),
    ("ledger", "adjustment", "view_adjustment", "Can view adjustment"),
    ("ledger", "workitem", "view_workitem", "Can view work item"),
    # The filters of those lists look tenants and keys up.
    ("tenants", "tenant", "view_tenant", "Can view tenant"),
    ("tenants", "apikey", "view_apikey", "Can view API key"),
]


def make_group(apps, schema_editor):
    # Django makes permissions after all migrations; made here under the same names, it finds them there.
    content_type = apps.get_model("contenttypes", "ContentType").objects
    permission = apps.get_model("auth", "Permission").objects
    group, _ = apps.get_model("auth", "Group").objects.get_or_create(name="Finance")
    for app, model, codename, name in PERMISSIONS:
        of, _ = content_type.get_or_create(app_label=app, model=model)
        found, _ = permission.get_or_create(codename=codename, content_type=of, defaults={"name": name})
        group.permissions.add(found)


class Migration(migrations.Migration):
    dependencies = [
        ("ledger", "0001_initial"),
        ("tenants", "0001_initial"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]
    operations = [migrations.RunPython(make_group, migrations.RunPython.noop)]
