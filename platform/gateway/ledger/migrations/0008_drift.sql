-- For databases that come from here: most of it is replaced by 0009 to 0015, which have the text in force.

-- Do counters say what the ledger says? Compared in one statement, so in one snapshot: what is under way moves the
-- ledger and its counters together, and is in neither. So a difference stays the same until it is repaired, and a
-- repair adds the difference, and needs to hold nobody up.

-- The counters that must be right: of rules that apply to their owner, open or closed a short while ago (late
-- settlements go there). Keep in step with limits.facts.load_rules and limits_forget (limits migrations).
CREATE VIEW ledger_watched_counter AS
SELECT l.id, l.rule_id, l.owner_id, l.window_start, l.window_end, l.used, l.held, l.slots, l.slot_at,
    ledger_kind_of(r.metric, r.per) AS kind
FROM limits_limitcounter l JOIN limits_limitrule r ON r.id = l.rule_id
WHERE r.enabled AND (l.window_end IS NULL OR l.window_end > now() - interval '2 days')
    AND (r.plan_id IS NULL OR (
        EXISTS (SELECT FROM limits_planmembership m WHERE m.plan_id = r.plan_id AND m.tenant_id = l.owner_id)
        AND NOT EXISTS (SELECT FROM limits_limitrule o WHERE o.tenant_id = l.owner_id AND o.enabled
            AND o.metric = r.metric AND o.per = r.per AND o.tokens = r.tokens
            AND o.model_id IS NOT DISTINCT FROM r.model_id)));

-- Of a sliding minute: used is what its live slots hold, and seconds and amounts are what is missing in them.
CREATE TYPE ledger_drift AS (
    counter bigint, rule bigint, owner bigint, starts timestamptz, ends timestamptz, kind text,
    used numeric, held numeric, true_used numeric, true_held numeric, seconds bigint[], amounts numeric[]
);

CREATE FUNCTION ledger_compare_limits(p_counters bigint[]) RETURNS SETOF ledger_drift LANGUAGE sql STABLE AS $$
    SELECT w.id, w.rule_id, w.owner_id, w.window_start, w.window_end, w.kind,
        CASE WHEN w.kind = 'm' THEN slot.mine ELSE w.used END, w.held,
        CASE WHEN w.kind = 'm' THEN slot.own ELSE t.used END, t.held, slot.seconds, slot.amounts
    FROM ledger_watched_counter w,
        LATERAL (SELECT greatest(w.slot_at, floor(extract(epoch FROM now()))::bigint) AS at) n,
        LATERAL ledger_limit_truth(w.rule_id, w.owner_id, w.window_start, w.window_end, w.kind, n.at) t,
        LATERAL (
            SELECT sum(s.mine) AS mine, sum(s.own) AS own,
                array_agg(n.at - (((n.at - (s.n - 1)) % 61 + 61) % 61)) FILTER (WHERE s.mine <> s.own) AS seconds,
                array_agg(s.own::numeric - s.mine) FILTER (WHERE s.mine <> s.own) AS amounts
            FROM unnest(ledger_slots_add(w.slots, w.slot_at, NULL, NULL, n.at), t.slots) WITH ORDINALITY
                AS s (mine, own, n)
            WHERE w.kind = 'm') slot
    WHERE w.id = ANY (p_counters)
$$;

-- Returns what it found; nothing if there is no such counter any more.
CREATE FUNCTION ledger_repair_limit(p_counter bigint) RETURNS SETOF ledger_drift LANGUAGE plpgsql AS $$
DECLARE
    d ledger_drift;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ledger_drift'));
    -- First, and locked until we commit: a hold that the ledger counts and that knows nothing of this counter.
    PERFORM ledger_adopt_holds(w.rule_id, w.owner_id, w.window_start, w.window_end, w.kind)
    FROM ledger_watched_counter w WHERE w.id = p_counter;
    FOR d IN SELECT * FROM ledger_compare_limits(ARRAY[p_counter]) LOOP
        UPDATE limits_limitcounter l SET
            used = CASE WHEN d.kind = 'm' THEN l.used ELSE l.used + d.true_used - d.used END,
            held = l.held + d.true_held - d.held,
            slots = CASE WHEN d.amounts IS NULL THEN l.slots
                ELSE ledger_slots_add(l.slots, l.slot_at, d.seconds, d.amounts, l.slot_at) END
        WHERE l.id = d.counter
            AND (d.used <> d.true_used OR d.held <> d.true_held OR d.amounts IS NOT NULL);
        RETURN NEXT d;
    END LOOP;
END $$;

-- What a person's correction moves: the counters of the windows in which the request was admitted. In the desk's
-- order: the caller has locked the lifetime counters, and adds the adjustment after this.
CREATE FUNCTION ledger_adjust_limits(
    p_tenant bigint, p_key bigint, p_model bigint, p_currency text, p_at timestamptz,
    p_tokens_in bigint, p_tokens_out bigint, p_charge bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    claims ledger_claim[];
BEGIN
    -- Whoever makes a counter for everybody waits for us (ledger_make_counter), or we find it.
    LOCK TABLE ledger_hold IN ROW EXCLUSIVE MODE;
    SELECT array_agg(c) INTO claims FROM ledger_counted(p_tenant, p_key, p_model, p_currency, p_at) c;
    IF claims IS NULL THEN
        RETURN;
    END IF;
    PERFORM ledger_lock_limits(claims);
    PERFORM ledger_move_limits(array_agg(ROW((c).rule, (c).owner, (c).starts, (c).kind, 0,
        CASE (c).measure WHEN 'q' THEN 0
            ELSE ledger_measure((c).measure, p_tokens_in, p_tokens_out, p_charge) END,
        floor(extract(epoch FROM p_at))::bigint)::ledger_change))
    FROM unnest(claims) c;
END $$;

-- Closes the credits of a prepaid limit that have expired: what of each was unused is gone, and what was paid with
-- it stays paid. What is used takes first from the credit that expires first. Use is by when a request started;
-- what still runs counts with what it holds. Returns how many were closed.
CREATE FUNCTION ledger_close_credits(p_rule bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    ends timestamptz[];
    begins timestamptz[];
    rest numeric[];
    moments timestamptz[];
    units numeric;
    taken numeric;
    closed integer := 0;
BEGIN
    PERFORM id FROM limits_credit WHERE rule_id = p_rule ORDER BY id FOR UPDATE;
    IF NOT EXISTS (SELECT FROM limits_credit WHERE rule_id = p_rule AND closed_at IS NULL AND expires_at <= now()) THEN
        RETURN 0;
    END IF;
    SELECT array_agg(id ORDER BY expires_at, id), array_agg(created_at ORDER BY expires_at, id),
        array_agg(expires_at ORDER BY expires_at, id), array_agg(amount::numeric ORDER BY expires_at, id)
    INTO ids, begins, ends, rest FROM limits_credit WHERE rule_id = p_rule AND expires_at IS NOT NULL;
    SELECT array_agg(m ORDER BY m) INTO moments FROM (
        SELECT DISTINCT m FROM unnest(begins || ends) m WHERE m <= now()) u;
    FOR i IN 1 .. array_length(moments, 1) - 1 LOOP
        SELECT COALESCE(sum(f.used + f.held), 0) INTO units
        FROM ledger_limit_facts(p_rule, 0, moments[i], moments[i + 1]) f;
        FOR n IN 1 .. array_length(ids, 1) LOOP
            CONTINUE WHEN units <= 0 OR begins[n] > moments[i] OR ends[n] <= moments[i];
            taken := least(units, rest[n]);
            rest[n] := rest[n] - taken;
            units := units - taken;
        END LOOP;
    END LOOP;
    UPDATE limits_credit c SET closed_at = now(), expired_amount = r.rest
    FROM unnest(ids, rest) AS r (id, rest)
    WHERE c.id = r.id AND c.closed_at IS NULL AND c.expires_at <= now();
    GET DIAGNOSTICS closed = ROW_COUNT;
    RETURN closed;
END $$;
