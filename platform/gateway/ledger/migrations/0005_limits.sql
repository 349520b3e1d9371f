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

CREATE FUNCTION ledger_limit_facts(p_rule bigint, p_owner bigint, p_from timestamptz, p_to timestamptz)
RETURNS TABLE (started_at timestamptz, used numeric, held numeric) LANGUAGE sql STABLE AS $$
    WITH r AS (SELECT * FROM limits_limitrule WHERE id = p_rule), facts AS (
        SELECT u.tenant_id, u.key_id, u.model, u.started_at, u.charge_currency, 1 AS requests,
            u.input_tokens + u.cached_input_tokens + u.cache_write_tokens AS input,
            u.output_tokens + u.reasoning_tokens AS output, COALESCE(u.charge, 0)::numeric AS charge, false AS open,
            '[]'::jsonb AS limits
        FROM ledger_usagerecord u, r WHERE u.request_id >= ledger_uuid_at(greatest(p_from, 'epoch') - interval '1 hour')
            AND u.started_at >= p_from AND (p_to IS NULL OR u.started_at < p_to)
            AND u.tenant_id = COALESCE(r.tenant_id, NULLIF(p_owner, 0), u.tenant_id)
            AND u.key_id = COALESCE(r.key_id, u.key_id)
        UNION ALL
        SELECT a.tenant_id, a.key_id, a.model, a.started_at, a.charge_currency, 0,
            a.input_tokens + a.cached_input_tokens + a.cache_write_tokens, a.output_tokens + a.reasoning_tokens,
            a.charge, false, '[]'
        FROM ledger_adjustment a, r WHERE a.started_at >= p_from AND (p_to IS NULL OR a.started_at < p_to)
            AND a.tenant_id = COALESCE(r.tenant_id, NULLIF(p_owner, 0), a.tenant_id)
            AND a.key_id = COALESCE(r.key_id, a.key_id)
        UNION ALL
        SELECT h.tenant_id, h.key_id, h.model, h.started_at, h.charge_currency, 1, h.input_tokens, h.output_tokens,
            h.amount, true, h.limits
        FROM ledger_hold h, r WHERE h.started_at >= p_from AND (p_to IS NULL OR h.started_at < p_to)
            AND h.tenant_id = COALESCE(r.tenant_id, NULLIF(p_owner, 0), h.tenant_id)
            AND h.key_id = COALESCE(r.key_id, h.key_id)
    ), measured AS (
        SELECT f.started_at, f.open, CASE r.metric
            WHEN 'requests' THEN f.requests WHEN 'in_flight' THEN f.requests
            WHEN 'spend' THEN CASE WHEN f.charge_currency = r.currency THEN f.charge ELSE 0 END
            ELSE CASE r.tokens WHEN 'input' THEN f.input WHEN 'output' THEN f.output ELSE f.input + f.output END
            END AS units,
            (SELECT (l ->> 'ask')::numeric FROM jsonb_array_elements(f.limits) l
             WHERE (l ->> 'rule')::bigint = p_rule LIMIT 1) AS asked
        FROM facts f, r WHERE r.model_id IS NULL OR f.model = (SELECT public_id FROM catalogue_model WHERE id = r.model_id)
    )
    SELECT started_at, CASE WHEN open THEN 0 ELSE units END, CASE WHEN open THEN COALESCE(asked, units) ELSE 0 END
    FROM measured
$$;

-- Makes the rows that are missing, in (rule, owner, window) order, and locks all of them in id order.
CREATE FUNCTION ledger_lock_limits(p_claims ledger_claim[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c record;
    made bigint;
    at bigint;
BEGIN
    FOR c IN
        SELECT DISTINCT u.rule, u.owner, u.starts, u.ends, u.kind FROM unnest(p_claims) u
        WHERE NOT EXISTS (SELECT FROM limits_limitcounter l
                          WHERE l.rule_id = u.rule AND l.owner_id = u.owner AND l.window_start = u.starts)
        ORDER BY 1, 2, 3
    LOOP
        INSERT INTO limits_limitcounter (rule_id, owner_id, window_start, window_end, used, held)
        VALUES (c.rule, c.owner, c.starts, c.ends, 0, 0) ON CONFLICT DO NOTHING RETURNING id INTO made;
        CONTINUE WHEN made IS NULL;
        IF c.kind = 'm' THEN
            at := floor(extract(epoch FROM clock_timestamp()));
            UPDATE limits_limitcounter SET slot_at = at, slots = ledger_slots_add(NULL, at, f.seconds, f.amounts, at)
            FROM (SELECT array_agg(floor(extract(epoch FROM started_at))::bigint) AS seconds,
                         array_agg(used + held) AS amounts
                  FROM ledger_limit_facts(c.rule, c.owner, now() - interval '61 seconds', NULL)) f
            WHERE id = made;
        ELSIF c.kind = 'f' THEN
            UPDATE limits_limitcounter SET held = f.held
            FROM (SELECT COALESCE(sum(held), 0) AS held FROM ledger_limit_facts(c.rule, c.owner, c.starts, c.ends)) f
            WHERE id = made;
        ELSE
            UPDATE limits_limitcounter SET used = f.used, held = f.held
            FROM (SELECT COALESCE(sum(used), 0) AS used, COALESCE(sum(held), 0) AS held
                  FROM ledger_limit_facts(c.rule, c.owner, c.starts, c.ends)) f
            WHERE id = made;
        END IF;
        PERFORM ledger_adopt_holds(c.rule, c.owner, c.starts, c.ends, c.kind);
    END LOOP;
    PERFORM l.id FROM limits_limitcounter l JOIN (SELECT DISTINCT u.rule, u.owner, u.starts FROM unnest(p_claims) u) w
        ON l.rule_id = w.rule AND l.owner_id = w.owner AND l.window_start = w.starts
    ORDER BY l.id FOR UPDATE OF l;
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
    FROM limits_limitrule r, LATERAL (SELECT CASE r.metric WHEN 'requests' THEN 'q' WHEN 'in_flight' THEN 'f'
        WHEN 'spend' THEN 's' ELSE CASE r.tokens WHEN 'input' THEN 'i' WHEN 'output' THEN 'o' ELSE 'b' END
        END AS measure) m
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
