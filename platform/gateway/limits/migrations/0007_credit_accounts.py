"""A credit has one account: a plan's limit is counted per tenant, and no one could say whose credit expired unused.

A limit's plan, metric and window never change (limit_keeps_its_meaning), so it is enough to look when a credit is made.
"""

from django.db import migrations

FORWARD = """
CREATE FUNCTION limits_credit_has_one_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM limits_limitrule r WHERE r.id = NEW.rule_id AND r.plan_id IS NULL
                   AND r.metric = 'spend' AND r.per = 'total') THEN
        RAISE EXCEPTION 'credit tops up a limit of spend in total that is not a plan''s'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_has_one_account', TABLE = 'limits_credit';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER credit_account BEFORE INSERT OR UPDATE OF rule_id ON limits_credit
    FOR EACH ROW EXECUTE FUNCTION limits_credit_has_one_account();
"""

BACKWARD = """
DROP TRIGGER credit_account ON limits_credit;
DROP FUNCTION limits_credit_has_one_account();
"""


class Migration(migrations.Migration):
    dependencies = [("limits", "0006_early_refusals")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
