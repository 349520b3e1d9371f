"""Versions that admission compares: bumped by triggers, so that bulk updates and plain SQL count too."""

from django.db import migrations

FORWARD = """
CREATE FUNCTION tenants_bump_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- last_used_at is written by a background task all the time and decides nothing.
    IF to_jsonb(NEW) - 'version' - 'last_used_at' IS DISTINCT FROM to_jsonb(OLD) - 'version' - 'last_used_at' THEN
        NEW.version := OLD.version + 1;
    ELSIF NEW.version < OLD.version THEN
        NEW.version := OLD.version;  -- a stale instance was saved
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER tenant_version BEFORE UPDATE ON tenants_tenant
    FOR EACH ROW EXECUTE FUNCTION tenants_bump_version();
CREATE TRIGGER apikey_version BEFORE UPDATE ON tenants_apikey
    FOR EACH ROW EXECUTE FUNCTION tenants_bump_version();

CREATE FUNCTION tenants_bump_key_of_secret() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tenants_apikey SET version = version + 1 WHERE id = COALESCE(NEW.key_id, OLD.key_id);
    RETURN NULL;
END $$;

CREATE TRIGGER keysecret_version AFTER INSERT OR UPDATE OR DELETE ON tenants_keysecret
    FOR EACH ROW EXECUTE FUNCTION tenants_bump_key_of_secret();
"""

BACKWARD = """
DROP TRIGGER keysecret_version ON tenants_keysecret;
DROP TRIGGER apikey_version ON tenants_apikey;
DROP TRIGGER tenant_version ON tenants_tenant;
DROP FUNCTION tenants_bump_key_of_secret();
DROP FUNCTION tenants_bump_version();
"""


class Migration(migrations.Migration):
    dependencies = [("tenants", "0001_initial")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
