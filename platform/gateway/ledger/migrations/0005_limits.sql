-- For databases that come from here: most of it is replaced by 0009 to 0015, which have the text in force.

-- Limits are decided here, in the batch, with their counter rows locked: admitted means counted. A request that
-- several limits watch takes from all of them or from none. The rules' own words are in gateway/limits; what
-- reaches this file are claims: which row, how much is asked of it, how much it may hold.

ALTER TYPE ledger_item ADD ATTRIBUTE limits jsonb;
-- keep: if this is refused, keep the refusal; it stands for so many (a flood's are not all kept; limits.refusals_log).
-- lowered: the completion's cap that a limit has left, when a refused request asks again (on_shortage: fit).
ALTER TYPE ledger_item ADD ATTRIBUTE keep integer, ADD ATTRIBUTE lowered integer;
ALTER TABLE ledger_hold ADD COLUMN limits jsonb NOT NULL DEFAULT '[]';

-- What a request was decided on, one row per limit (ledger_decisions in 0006), for explanations; from the hold it
-- goes into the record. Compact, since every record carries it.
ALTER TABLE ledger_hold ADD COLUMN decided numeric[] NOT NULL DEFAULT '{}';
ALTER TABLE ledger_usagerecord ADD COLUMN decided numeric[] NOT NULL DEFAULT '{}';

-- kind: c = calendar window or total (used + held), m = sliding minute (61 one-second slots), f = in flight (held).
-- measure: q requests, i input tokens, o output tokens, b both, s charge, f requests in flight.
CREATE TYPE ledger_claim AS (
    rule bigint, owner bigint, starts timestamptz, ends timestamptz, kind text, measure text,
    amount numeric, ask numeric, enforce boolean
);

-- ---- the sliding minute: slot i holds the newest second t <= slot_at with t mod 61 = i --------------------------
-- 60 slots would not do: the second of now and the second 60 ago are both partly within the last 60 s.

CREATE FUNCTION ledger_slots_sum(slots bigint[], slot_at bigint, at bigint) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT COALESCE(sum(v), 0) FROM unnest(slots) WITH ORDINALITY AS s (v, n)
    WHERE v <> 0 AND slot_at - (((slot_at - (n - 1)) % 61 + 61) % 61) > at - 61
$$;

-- Adds amounts at seconds; what has left the minute by then is dropped. The newest second becomes slot_at.
CREATE FUNCTION ledger_slots_add(slots bigint[], slot_at bigint, seconds bigint[], amounts numeric[], at bigint)
RETURNS bigint[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(
        CASE WHEN slots IS NULL OR old.t IS NULL OR old.t <= at - 61 OR old.t <> new.t THEN 0 ELSE slots[i + 1] END
        + COALESCE((SELECT sum(a)::bigint FROM unnest(seconds, amounts) AS d (t, a) WHERE d.t = new.t), 0)
        ORDER BY i)
    FROM generate_series(0, 60) AS i,
        LATERAL (SELECT slot_at - (((slot_at - i) % 61 + 61) % 61) AS t) old,
        LATERAL (SELECT at - (((at - i) % 61 + 61) % 61) AS t) new
$$;

-- In how many milliseconds so much will have left the minute; null: never.
CREATE FUNCTION ledger_slots_wait(slots bigint[], slot_at bigint, excess numeric, instant timestamptz)
RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT greatest(1, ceil((t + 61 - extract(epoch FROM instant)) * 1000))::bigint FROM (
        SELECT t, sum(v) OVER (ORDER BY t) AS freed FROM (
            SELECT v, slot_at - (((slot_at - (n - 1)) % 61 + 61) % 61) AS t
            FROM unnest(slots) WITH ORDINALITY AS s (v, n)) u
        WHERE v > 0 AND t > floor(extract(epoch FROM instant))::bigint - 61) f
    WHERE freed >= excess ORDER BY t LIMIT 1
$$;

-- ---- what a rule's window has used, by the ledger: for rows that are made late, and for the drift check ---------
-- The ledger stays the truth; a counter that is made in the middle of a window starts from it.

CREATE FUNCTION ledger_kind_of(p_metric text, p_per text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN p_metric = 'in_flight' THEN 'f' WHEN p_per = 'minute' THEN 'm' ELSE 'c' END
$$;

CREATE FUNCTION ledger_measure_of(p_metric text, p_tokens text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE p_metric WHEN 'requests' THEN 'q' WHEN 'in_flight' THEN 'f' WHEN 'spend' THEN 's'
        ELSE CASE p_tokens WHEN 'input' THEN 'i' WHEN 'output' THEN 'o' ELSE 'b' END END
$$;

-- Sums over the window, or by second. Records and adjustments are used, holds held: with what they asked of this
-- rule, or what they would have asked. Planned anew at each call, for the subject's own index.
CREATE FUNCTION ledger_limit_facts(
    p_rule bigint, p_owner bigint, p_from timestamptz, p_to timestamptz, p_seconds boolean DEFAULT false
) RETURNS TABLE (second bigint, used numeric, held numeric) LANGUAGE plpgsql STABLE AS $$
DECLARE
    r limits_limitrule;
    watched text := 'f.started_at >= $1 AND ($2 IS NULL OR f.started_at < $2)';
    units text;
BEGIN
    SELECT * INTO r FROM limits_limitrule WHERE id = p_rule;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF r.key_id IS NOT NULL THEN
        watched := watched || ' AND f.key_id = $4';
    ELSIF r.tenant_id IS NOT NULL OR p_owner <> 0 THEN
        watched := watched || ' AND f.tenant_id = $3';
    END IF;
    IF r.model_id IS NOT NULL THEN
        watched := watched || ' AND f.catalogue_model_id = $5';
    END IF;
    units := CASE ledger_measure_of(r.metric, r.tokens) WHEN 'q' THEN 'f.requests' WHEN 'f' THEN 'f.requests'
        WHEN 's' THEN 'CASE WHEN f.charge_currency = $6 THEN COALESCE(f.charge, 0) ELSE 0 END'
        WHEN 'i' THEN 'f.input' WHEN 'o' THEN 'f.output' ELSE 'f.input + f.output' END;
    RETURN QUERY EXECUTE format($facts$
        SELECT %1$s AS second, COALESCE(sum(s.used), 0), COALESCE(sum(s.held), 0) FROM (
            SELECT f.started_at, (%2$s)::numeric AS used, 0::numeric AS held FROM (
                SELECT request_id, tenant_id, key_id, catalogue_model_id, started_at, charge_currency, 1 AS requests,
                    input_tokens + cached_input_tokens + cache_write_tokens AS input,
                    output_tokens + reasoning_tokens AS output, charge
                FROM ledger_usagerecord) f
            WHERE %3$s AND f.request_id >= ledger_uuid_at(greatest($1 - interval '1 hour', 'epoch'))
            UNION ALL
            SELECT f.started_at, (%2$s)::numeric, 0 FROM (
                SELECT a.tenant_id, a.key_id, a.started_at, a.charge_currency, 0 AS requests,
                    a.input_tokens + a.cached_input_tokens + a.cache_write_tokens AS input,
                    a.output_tokens + a.reasoning_tokens AS output, a.charge,
                    (SELECT u.catalogue_model_id FROM ledger_usagerecord u WHERE u.request_id = a.request_id)
                        AS catalogue_model_id
                FROM ledger_adjustment a) f
            WHERE %3$s
            UNION ALL
            SELECT f.started_at, 0, COALESCE((SELECT (l ->> 'ask')::numeric FROM jsonb_array_elements(f.limits) l
                WHERE (l ->> 'rule')::bigint = $7 LIMIT 1), (%2$s)::numeric)
            FROM (SELECT tenant_id, key_id, catalogue_model_id, started_at, charge_currency, 1 AS requests,
                      input_tokens AS input, output_tokens AS output, amount AS charge, limits
                  FROM ledger_hold) f
            WHERE %3$s
        ) s %4$s
        $facts$,
        CASE WHEN p_seconds THEN 'floor(extract(epoch FROM s.started_at))::bigint' ELSE 'NULL::bigint' END,
        units, watched, CASE WHEN p_seconds THEN 'GROUP BY 1' ELSE '' END)
    USING p_from, p_to, COALESCE(r.tenant_id, p_owner), r.key_id, r.model_id, r.currency, p_rule;
END $$;
CREATE INDEX adjustment_started ON ledger_adjustment (tenant_id, started_at);

-- What a counter should say. Of a sliding minute: its slots, the newest of them second p_at.
CREATE FUNCTION ledger_limit_truth(
    p_rule bigint, p_owner bigint, p_from timestamptz, p_to timestamptz, p_kind text, p_at bigint
) RETURNS TABLE (used numeric, held numeric, slots bigint[]) LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_kind = 'm' THEN
        RETURN QUERY SELECT 0::numeric, 0::numeric, ledger_slots_add(NULL, p_at, f.seconds, f.amounts, p_at)
        FROM (SELECT array_agg(t.second) AS seconds, array_agg(t.used + t.held) AS amounts
              FROM ledger_limit_facts(p_rule, p_owner, to_timestamp(p_at - 60), NULL, true) t) f;
    ELSE
        RETURN QUERY SELECT CASE WHEN p_kind = 'f' THEN 0 ELSE COALESCE(sum(t.used), 0) END,
            COALESCE(sum(t.held), 0), NULL::bigint[]
        FROM ledger_limit_facts(p_rule, p_owner, p_from, p_to) t;
    END IF;
END $$;

-- The counters that have counted a request, or will have to: for what is booked on it without a hold of its own.
CREATE FUNCTION ledger_counted(p_tenant bigint, p_key bigint, p_model bigint, p_currency text, p_at timestamptz)
RETURNS SETOF ledger_claim LANGUAGE sql STABLE AS $$
    SELECT l.rule_id, l.owner_id, l.window_start, l.window_end, ledger_kind_of(r.metric, r.per),
        ledger_measure_of(r.metric, r.tokens), 0::numeric, 0::numeric, false
    FROM limits_limitrule r JOIN limits_limitcounter l ON l.rule_id = r.id
    WHERE l.window_start <= p_at AND (l.window_end IS NULL OR p_at < l.window_end)
        AND (r.tenant_id = p_tenant OR r.key_id = p_key OR (r.plan_id IS NOT NULL AND l.owner_id = p_tenant)
             OR (r.tenant_id IS NULL AND r.key_id IS NULL AND r.plan_id IS NULL))
        AND (r.model_id IS NULL OR r.model_id = p_model)
        AND (r.metric <> 'spend' OR r.currency = p_currency) AND r.metric <> 'in_flight'
$$;

-- Makes the rows that are missing, in (rule, owner, window) order, and locks all of them in id order. Whoever
-- changes to whom a rule applies deletes its rows (limits migrations): then they are made anew, from the ledger.
CREATE FUNCTION ledger_lock_limits(p_claims ledger_claim[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c record;
    wanted integer;
    locked integer;
BEGIN
    LOOP
        FOR c IN
            SELECT u.*, r.tenant_id IS NULL AND r.key_id IS NULL AND r.plan_id IS NULL AS everybody
            FROM (SELECT DISTINCT v.rule, v.owner, v.starts, v.ends, v.kind FROM unnest(p_claims) v
                  WHERE NOT EXISTS (SELECT FROM limits_limitcounter l
                                    WHERE l.rule_id = v.rule AND l.owner_id = v.owner AND l.window_start = v.starts)) u
            JOIN limits_limitrule r ON r.id = u.rule
            ORDER BY everybody DESC, u.rule, u.owner, u.starts
        LOOP
            PERFORM ledger_make_counter(c.rule, c.owner, c.starts, c.ends, c.kind, c.everybody);
        END LOOP;
        WITH w AS (SELECT DISTINCT u.rule, u.owner, u.starts FROM unnest(p_claims) u),
            l AS (SELECT k.id FROM limits_limitcounter k
                  JOIN w ON k.rule_id = w.rule AND k.owner_id = w.owner AND k.window_start = w.starts
                  ORDER BY k.id FOR UPDATE OF k)
        SELECT (SELECT count(*) FROM w), (SELECT count(*) FROM l) INTO wanted, locked;
        -- Fewer: one was deleted while we waited for it, or its rule is no more.
        EXIT WHEN locked = wanted OR NOT EXISTS (
            SELECT FROM unnest(p_claims) v JOIN limits_limitrule r ON r.id = v.rule
            WHERE NOT EXISTS (SELECT FROM limits_limitcounter l
                              WHERE l.rule_id = v.rule AND l.owner_id = v.owner AND l.window_start = v.starts));
    END LOOP;
END $$;

CREATE FUNCTION ledger_make_counter(
    p_rule bigint, p_owner bigint, p_starts timestamptz, p_ends timestamptz, p_kind text, p_everybody boolean
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    made bigint;
    at bigint;
BEGIN
    -- A tenant's or a key's desks are kept in order by their lifetime counters. Whom everybody moves is another
    -- matter: what is under way elsewhere must end first, or it would be neither in the ledger that we read, nor
    -- find the counter.
    IF p_everybody THEN
        LOCK TABLE ledger_hold IN SHARE ROW EXCLUSIVE MODE;
    END IF;
    INSERT INTO limits_limitcounter (rule_id, owner_id, window_start, window_end, used, held)
    VALUES (p_rule, p_owner, p_starts, p_ends, 0, 0) ON CONFLICT DO NOTHING RETURNING id INTO made;
    IF made IS NULL THEN
        RETURN;
    END IF;
    PERFORM ledger_adopt_holds(p_rule, p_owner, p_starts, p_ends, p_kind);
    at := floor(extract(epoch FROM clock_timestamp()));
    UPDATE limits_limitcounter SET used = t.used, held = t.held, slots = t.slots,
        slot_at = CASE WHEN p_kind = 'm' THEN at END
    FROM ledger_limit_truth(p_rule, p_owner, p_starts, p_ends, p_kind, at) t WHERE id = made;
END $$;

-- Holds that are older than the counter have been counted into it: their settlement must find it.
CREATE FUNCTION ledger_adopt_holds(
    p_rule bigint, p_owner bigint, p_starts timestamptz, p_ends timestamptz, p_kind text
) RETURNS void LANGUAGE sql AS $$
    UPDATE ledger_hold h SET limits = h.limits || jsonb_build_array(jsonb_build_object(
        'rule', p_rule, 'owner', p_owner, 'starts', p_starts, 'ends', p_ends, 'kind', p_kind, 'enforce', false,
        'amount', 0, 'measure', m.measure, 'ask', CASE m.measure WHEN 'q' THEN 1 WHEN 'f' THEN 1
            WHEN 's' THEN CASE WHEN h.charge_currency = r.currency THEN h.amount ELSE 0 END
            WHEN 'i' THEN h.input_tokens WHEN 'o' THEN h.output_tokens ELSE h.input_tokens + h.output_tokens END))
    FROM limits_limitrule r, LATERAL (SELECT ledger_measure_of(r.metric, r.tokens) AS measure) m
    WHERE r.id = p_rule AND h.started_at >= p_starts AND (p_ends IS NULL OR h.started_at < p_ends)
        AND h.tenant_id = COALESCE(r.tenant_id, NULLIF(p_owner, 0), h.tenant_id)
        AND h.key_id = COALESCE(r.key_id, h.key_id)
        AND (r.model_id IS NULL OR h.catalogue_model_id = r.model_id)
        AND NOT h.limits @> jsonb_build_array(jsonb_build_object('rule', p_rule))
$$;

-- Adds to the locked rows. Each change: how much is held more or less, used more, and in which second.
CREATE TYPE ledger_change AS (rule bigint, owner bigint, starts timestamptz, kind text,
    held numeric, used numeric, second bigint);

CREATE FUNCTION ledger_move_limits(p_changes ledger_change[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    at bigint := floor(extract(epoch FROM clock_timestamp()));
BEGIN
    UPDATE limits_limitcounter l SET held = l.held + d.held, used = l.used + d.used
    FROM (SELECT c.rule, c.owner, c.starts, sum(c.held) AS held, sum(c.used) AS used
          FROM unnest(p_changes) c WHERE c.kind <> 'm' GROUP BY 1, 2, 3) d
    WHERE l.rule_id = d.rule AND l.owner_id = d.owner AND l.window_start = d.starts;
    IF EXISTS (SELECT FROM unnest(p_changes) c WHERE c.kind = 'm' AND c.held + c.used <> 0) THEN
        UPDATE limits_limitcounter l SET slot_at = greatest(l.slot_at, at),
            slots = ledger_slots_add(l.slots, l.slot_at, d.seconds, d.amounts, greatest(l.slot_at, at))
        FROM (SELECT c.rule, c.owner, c.starts, array_agg(c.second) AS seconds, array_agg(c.held + c.used) AS amounts
              FROM unnest(p_changes) c WHERE c.kind = 'm' AND c.held + c.used <> 0 GROUP BY 1, 2, 3) d
        WHERE l.rule_id = d.rule AND l.owner_id = d.owner AND l.window_start = d.starts;
    END IF;
END $$;
