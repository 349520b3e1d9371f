"""A counter is right as long as its rule applies to its owner without a break. Whatever begins, ends or changes that
deletes the open counters concerned: the desk makes them anew when they are next needed, from the ledger, so that
nothing that was used is lost. At commit, so that a long change holds no counter up.

What a rule counts (subject, metric, window, tokens, model, currency) never changes: that would be another rule.
"""

from django.db import migrations

FORWARD = """
CREATE FUNCTION limits_forget(p_rule bigint, p_owner bigint) RETURNS void LANGUAGE sql AS $$
    DELETE FROM limits_limitcounter WHERE rule_id = p_rule AND owner_id = COALESCE(p_owner, owner_id)
        AND (window_end IS NULL OR window_end > now() - interval '3 days')
$$;

-- The counters of a tenant under the rules of its plans, those it has left included.
CREATE FUNCTION limits_forget_plans(p_tenant bigint) RETURNS void LANGUAGE sql AS $$
    SELECT limits_forget(r.id, p_tenant) FROM limits_limitrule r
    WHERE r.plan_id IS NOT NULL AND EXISTS (
        SELECT FROM limits_limitcounter l WHERE l.rule_id = r.id AND l.owner_id = p_tenant)
$$;

CREATE FUNCTION limits_rule_applies_anew() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM limits_limitcounter WHERE rule_id = OLD.id;
    ELSIF TG_OP = 'UPDATE' THEN
        IF NEW.enabled = OLD.enabled AND NEW.fiscal_day = OLD.fiscal_day THEN
            RETURN NULL;
        END IF;
        PERFORM limits_forget(NEW.id, NULL);
    END IF;
    -- A tenant's own rule takes the place of its plan's.
    IF COALESCE(NEW.tenant_id, OLD.tenant_id) IS NOT NULL THEN
        PERFORM limits_forget_plans(COALESCE(NEW.tenant_id, OLD.tenant_id));
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER limitrule_applies AFTER INSERT OR UPDATE OR DELETE ON limits_limitrule
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION limits_rule_applies_anew();

CREATE FUNCTION limits_plan_applies_anew() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM limits_forget_plans(t) FROM unnest(ARRAY[NEW.tenant_id, OLD.tenant_id]) t WHERE t IS NOT NULL;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER planmembership_applies AFTER INSERT OR UPDATE OR DELETE ON limits_planmembership
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION limits_plan_applies_anew();

-- Other days, or another currency: other windows.
CREATE FUNCTION limits_tenant_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM limits_forget_plans(NEW.id);
    PERFORM limits_forget(r.id, NULL) FROM limits_limitrule r
    WHERE r.tenant_id = NEW.id OR r.key_id IN (SELECT id FROM tenants_apikey WHERE tenant_id = NEW.id);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER tenant_moved AFTER UPDATE ON tenants_tenant DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.timezone IS DISTINCT FROM NEW.timezone OR OLD.currency IS DISTINCT FROM NEW.currency)
    EXECUTE FUNCTION limits_tenant_moved();

CREATE FUNCTION limits_rule_keeps_its_meaning() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what a limit counts does not change: delete the rule and make another one'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'limit_keeps_its_meaning', TABLE = 'limits_limitrule';
END $$;
CREATE TRIGGER limitrule_meaning BEFORE UPDATE ON limits_limitrule FOR EACH ROW
    WHEN (ROW(OLD.plan_id, OLD.tenant_id, OLD.key_id, OLD.model_id, OLD.metric, OLD.per, OLD.tokens, OLD.currency)
          IS DISTINCT FROM
          ROW(NEW.plan_id, NEW.tenant_id, NEW.key_id, NEW.model_id, NEW.metric, NEW.per, NEW.tokens, NEW.currency))
    EXECUTE FUNCTION limits_rule_keeps_its_meaning();

CREATE INDEX limitcounter_end ON limits_limitcounter (window_end);
"""

BACKWARD = """
DROP INDEX limitcounter_end;
DROP TRIGGER limitrule_meaning ON limits_limitrule;
DROP TRIGGER tenant_moved ON tenants_tenant;
DROP TRIGGER planmembership_applies ON limits_planmembership;
DROP TRIGGER limitrule_applies ON limits_limitrule;
DROP FUNCTION limits_rule_keeps_its_meaning();
DROP FUNCTION limits_tenant_moved();
DROP FUNCTION limits_plan_applies_anew();
DROP FUNCTION limits_rule_applies_anew();
DROP FUNCTION limits_forget_plans(bigint);
DROP FUNCTION limits_forget(bigint, bigint);
"""


class Migration(migrations.Migration):
    dependencies = [("limits", "0003_refusals"), ("tenants", "0002_versions")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
