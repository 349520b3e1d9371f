"""The catalogue's one version row, bumped by triggers; prices that were used can no longer change."""

from django.db import migrations

FORWARD = """
INSERT INTO catalogue_catalogueversion (version) VALUES (1);

CREATE FUNCTION catalogue_bump_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE catalogue_catalogueversion SET version = version + 1;
    RETURN NULL;
END $$;

CREATE TRIGGER provider_version AFTER INSERT OR UPDATE OR DELETE ON catalogue_provider
    FOR EACH STATEMENT EXECUTE FUNCTION catalogue_bump_version();
CREATE TRIGGER model_version AFTER INSERT OR UPDATE OR DELETE ON catalogue_model
    FOR EACH STATEMENT EXECUTE FUNCTION catalogue_bump_version();
CREATE TRIGGER deployment_version AFTER INSERT OR UPDATE OR DELETE ON catalogue_deployment
    FOR EACH STATEMENT EXECUTE FUNCTION catalogue_bump_version();
-- Not on first_used_at: the desk sets it, and must not wait for an admin's open transaction on the version row.
CREATE TRIGGER price_version AFTER INSERT OR DELETE OR UPDATE OF
    model_id, side, tenant_id, provider_id, effective_from, currency, input, cached_input, cache_write, output,
    reasoning, request ON catalogue_price
    FOR EACH STATEMENT EXECUTE FUNCTION catalogue_bump_version();

-- Imported secrets are all in memory; this tells the processes to read them again.
CREATE FUNCTION catalogue_bump_for_imported() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF COALESCE(NEW.imported, OLD.imported) THEN
        UPDATE catalogue_catalogueversion SET version = version + 1;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER imported_version AFTER INSERT OR UPDATE OR DELETE ON tenants_keysecret
    FOR EACH ROW EXECUTE FUNCTION catalogue_bump_for_imported();

CREATE FUNCTION catalogue_price_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.first_used_at IS NOT NULL AND
       (TG_OP = 'DELETE' OR to_jsonb(NEW) IS DISTINCT FROM to_jsonb(OLD)) THEN
        RAISE EXCEPTION 'price % has been used since % and cannot change; add one with a later effective_from',
            OLD.id, OLD.first_used_at USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER price_immutable BEFORE UPDATE OR DELETE ON catalogue_price
    FOR EACH ROW EXECUTE FUNCTION catalogue_price_is_immutable();
"""

BACKWARD = """
DROP TRIGGER price_immutable ON catalogue_price;
DROP TRIGGER imported_version ON tenants_keysecret;
DROP TRIGGER price_version ON catalogue_price;
DROP TRIGGER deployment_version ON catalogue_deployment;
DROP TRIGGER model_version ON catalogue_model;
DROP TRIGGER provider_version ON catalogue_provider;
DROP FUNCTION catalogue_price_is_immutable();
DROP FUNCTION catalogue_bump_for_imported();
DROP FUNCTION catalogue_bump_version();
DELETE FROM catalogue_catalogueversion;
"""


class Migration(migrations.Migration):
    dependencies = [("catalogue", "0001_initial"), ("tenants", "0002_versions")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
