"""A changed rule counts from the next request on: it bumps the version of whom it limits."""

from django.db import migrations

FORWARD = """
CREATE FUNCTION limits_bump(p_plan bigint, p_tenant bigint, p_key bigint, p_model bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_plan IS NOT NULL THEN
        UPDATE tenants_tenant SET version = version + 1
        WHERE id IN (SELECT tenant_id FROM limits_planmembership WHERE plan_id = p_plan);
    ELSIF p_tenant IS NOT NULL THEN
        UPDATE tenants_tenant SET version = version + 1 WHERE id = p_tenant;
    ELSIF p_key IS NOT NULL THEN
        UPDATE tenants_apikey SET version = version + 1 WHERE id = p_key;
    ELSE
        UPDATE catalogue_catalogueversion SET version = version + 1;
    END IF;
END $$;

CREATE FUNCTION limits_rule_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM limits_bump(OLD.plan_id, OLD.tenant_id, OLD.key_id, OLD.model_id);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM limits_bump(NEW.plan_id, NEW.tenant_id, NEW.key_id, NEW.model_id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER limitrule_version AFTER INSERT OR UPDATE OR DELETE ON limits_limitrule
    FOR EACH ROW EXECUTE FUNCTION limits_rule_changed();

CREATE FUNCTION limits_membership_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tenants_tenant SET version = version + 1
    WHERE id IN (COALESCE(NEW.tenant_id, OLD.tenant_id), COALESCE(OLD.tenant_id, NEW.tenant_id));
    RETURN NULL;
END $$;
CREATE TRIGGER planmembership_version AFTER INSERT OR UPDATE OR DELETE ON limits_planmembership
    FOR EACH ROW EXECUTE FUNCTION limits_membership_changed();

CREATE FUNCTION limits_credit_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM limits_bump(r.plan_id, r.tenant_id, r.key_id, r.model_id)
    FROM limits_limitrule r WHERE r.id = COALESCE(NEW.rule_id, OLD.rule_id);
    RETURN NULL;
END $$;
CREATE TRIGGER credit_version AFTER INSERT OR UPDATE OR DELETE ON limits_credit
    FOR EACH ROW EXECUTE FUNCTION limits_credit_changed();
"""

BACKWARD = """
DROP TRIGGER credit_version ON limits_credit;
DROP TRIGGER planmembership_version ON limits_planmembership;
DROP TRIGGER limitrule_version ON limits_limitrule;
DROP FUNCTION limits_credit_changed();
DROP FUNCTION limits_membership_changed();
DROP FUNCTION limits_rule_changed();
DROP FUNCTION limits_bump(bigint, bigint, bigint, bigint);
"""


class Migration(migrations.Migration):
    dependencies = [("limits", "0001_initial"), ("catalogue", "0002_versions"), ("tenants", "0002_versions")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
