-- Claims in numbers. A claim is what a request asks of one limit: a row of bigint
-- [rule, owner, kind, measure, enforce, starts, ends, amount, ask, everybody, shard] (limits/claims.py writes it);
-- kind and measure as ascii codes, instants as epoch seconds, -1 for no end; everybody: a model's own limit, whose
-- row all tenants share; shard: which of the counter's rows (0010). JSON objects in their place cost four times the
-- CPU of everything else that the desk does.

ALTER TYPE ledger_item ADD ATTRIBUTE claims bigint[], ADD ATTRIBUTE shard smallint, ADD ATTRIBUTE whole boolean;
ALTER TYPE ledger_delta ADD ATTRIBUTE shard smallint;  -- null: all rows of this owner

ALTER TABLE ledger_hold ADD COLUMN claims bigint[] NOT NULL DEFAULT '{}';
UPDATE ledger_hold h SET claims = (
    SELECT array_agg(ARRAY[(l ->> 'rule')::bigint, (l ->> 'owner')::bigint, ascii(l ->> 'kind'),
        ascii(l ->> 'measure'), (l ->> 'enforce')::boolean::integer,
        floor(extract(epoch FROM (l ->> 'starts')::timestamptz))::bigint,
        COALESCE(floor(extract(epoch FROM (l ->> 'ends')::timestamptz))::bigint, -1),
        (l ->> 'amount')::bigint, (l ->> 'ask')::bigint, 0, 0])
    FROM jsonb_array_elements(h.limits) l)
WHERE h.limits <> '[]';

CREATE FUNCTION ledger_claim_rows(p_claims bigint[])
RETURNS TABLE (rule bigint, owner bigint, kind bigint, measure bigint, enforce boolean, starts bigint, ends bigint,
    amount bigint, ask bigint, everybody boolean, shard bigint)
LANGUAGE sql IMMUTABLE AS $$
    SELECT p_claims[s][1], p_claims[s][2], p_claims[s][3], p_claims[s][4], p_claims[s][5] = 1, p_claims[s][6],
        p_claims[s][7], p_claims[s][8], p_claims[s][9], p_claims[s][10] = 1, p_claims[s][11]
    FROM generate_series(1, array_length(p_claims, 1)) s
$$;

-- The claims of a batch, each with the row of its counter; kept in order: by item, then by rule.
-- n: which item; real: what was really used, of one that has ended; counter: null if the row is still to be made.
CREATE TYPE ledger_ask AS (n integer, request_id uuid, tenant bigint, rule bigint, owner bigint, kind integer,
    measure integer, enforce boolean, starts bigint, ends bigint, amount bigint, ask bigint, everybody boolean,
    shard smallint, whole boolean, real numeric, second bigint, counter bigint);

CREATE FUNCTION ledger_measure(p_measure integer, p_tokens_in bigint, p_tokens_out bigint, p_charge bigint)
RETURNS numeric LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE chr(p_measure) WHEN 'q' THEN 1 WHEN 'i' THEN p_tokens_in WHEN 'o' THEN p_tokens_out
        WHEN 'b' THEN p_tokens_in + p_tokens_out WHEN 's' THEN COALESCE(p_charge, 0) ELSE 0 END
$$;

-- What is asked.
CREATE FUNCTION ledger_asks(p_items ledger_item[]) RETURNS ledger_ask[] LANGUAGE sql STABLE AS $$
    SELECT array_agg(ROW(i.ordinality, i.request_id, i.tenant_id, c.rule, c.owner, c.kind, c.measure, c.enforce,
        c.starts, c.ends, c.amount, c.ask, c.everybody, c.shard, COALESCE(i.whole, false), 0, NULL,
        l.id)::ledger_ask ORDER BY i.ordinality, c.rule)
    FROM unnest(p_items) WITH ORDINALITY i, ledger_claim_rows(i.claims) c
    LEFT JOIN limits_limitcounter l ON l.rule_id = c.rule AND l.owner_id = c.owner
        AND l.window_start = to_timestamp(c.starts) AND l.shard = c.shard
    WHERE i.op = 'a' AND i.claims IS NOT NULL
$$;

-- Of an ended request without a hold of its own: the counters that count it now, or will have to.
CREATE FUNCTION ledger_counted_asks(
    p_request uuid, p_tenant bigint, p_key bigint, p_model bigint, p_currency text, p_at timestamptz,
    p_requests integer, p_tokens_in bigint, p_tokens_out bigint, p_charge bigint
) RETURNS SETOF ledger_ask LANGUAGE sql STABLE AS $$
    SELECT ROW(0, p_request, p_tenant, l.rule_id, l.owner_id, ascii(k.kind), ascii(k.measure), false,
        floor(extract(epoch FROM l.window_start)), COALESCE(floor(extract(epoch FROM l.window_end)), -1), 0, 0, false,
        0, false, CASE k.measure WHEN 'q' THEN p_requests
            ELSE ledger_measure(ascii(k.measure), p_tokens_in, p_tokens_out, p_charge) END,
        floor(extract(epoch FROM p_at)), l.id)::ledger_ask
    FROM limits_limitrule r JOIN limits_limitcounter l ON l.rule_id = r.id AND l.shard = 0,
        LATERAL (SELECT ledger_kind_of(r.metric, r.per) AS kind, ledger_measure_of(r.metric, r.tokens) AS measure) k
    WHERE l.window_start <= p_at AND (l.window_end IS NULL OR p_at < l.window_end)
        AND (r.tenant_id = p_tenant OR r.key_id = p_key OR (r.plan_id IS NOT NULL AND l.owner_id = p_tenant)
             OR (r.tenant_id IS NULL AND r.key_id IS NULL AND r.plan_id IS NULL))
        AND (r.model_id IS NULL OR r.model_id = p_model)
        AND (r.metric <> 'spend' OR r.currency = p_currency) AND r.metric <> 'in_flight'
$$;

-- The first row of a counter.
CREATE FUNCTION ledger_first_row(p_rule bigint, p_owner bigint, p_starts bigint) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT id FROM limits_limitcounter
    WHERE rule_id = p_rule AND owner_id = p_owner AND window_start = to_timestamp(p_starts) AND shard = 0
$$;

-- What is given back by those that end: their holds' claims (if the row is no more, since the counter was made anew,
-- to the first one); without a hold, to have them locked, the counters that count it now. A request that has ended
-- stays one request of its minute, which needs no row.
CREATE FUNCTION ledger_gives(p_items ledger_item[]) RETURNS ledger_ask[] LANGUAGE sql STABLE AS $$
    SELECT array_agg(g.ask)
    FROM unnest(p_items) WITH ORDINALITY i LEFT JOIN ledger_hold h ON h.request_id = i.request_id, LATERAL (
        SELECT ROW(i.ordinality, i.request_id, i.tenant_id, c.rule, c.owner, c.kind, c.measure, false, c.starts,
            c.ends, c.amount, c.ask, c.everybody, c.shard, false, CASE i.op WHEN 's' THEN ledger_measure(
                c.measure::integer, i.input_tokens + i.cached_input_tokens + i.cache_write_tokens,
                i.output_tokens + i.reasoning_tokens, i.charge) ELSE 0 END, floor(extract(epoch FROM h.started_at)),
            CASE WHEN l.id IS NULL AND c.shard > 0 THEN ledger_first_row(c.rule, c.owner, c.starts) ELSE l.id END
            )::ledger_ask AS ask
        FROM ledger_claim_rows(h.claims) c LEFT JOIN limits_limitcounter l ON l.rule_id = c.rule
            AND l.owner_id = c.owner AND l.window_start = to_timestamp(c.starts) AND l.shard = c.shard
        WHERE i.op = 'r' OR NOT (c.kind = ascii('m') AND c.measure = ascii('q'))
        UNION ALL
        SELECT a FROM ledger_counted_asks(i.request_id, i.tenant_id, i.key_id, i.catalogue_model_id,
            i.charge_currency, i.started_at, 0, 0, 0, 0) a WHERE h.request_id IS NULL AND i.op = 's') g
    WHERE i.op IN ('s', 'r')
$$;

-- Sums over the window, or by second, of what the ledger has: as in 0005, with the holds' claims in numbers.
CREATE OR REPLACE FUNCTION ledger_limit_facts(
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
            SELECT f.started_at, 0, COALESCE((SELECT c.ask FROM ledger_claim_rows(f.claims) c WHERE c.rule = $7
                LIMIT 1), (%2$s)::numeric)
            FROM (SELECT tenant_id, key_id, catalogue_model_id, started_at, charge_currency, 1 AS requests,
                      input_tokens AS input, output_tokens AS output, amount AS charge, claims
                  FROM ledger_hold) f
            WHERE %3$s
        ) s %4$s
        $facts$,
        CASE WHEN p_seconds THEN 'floor(extract(epoch FROM s.started_at))::bigint' ELSE 'NULL::bigint' END,
        units, watched, CASE WHEN p_seconds THEN 'GROUP BY 1' ELSE '' END)
    USING p_from, p_to, COALESCE(r.tenant_id, p_owner), r.key_id, r.model_id, r.currency, p_rule;
END $$;

-- Holds that are older than the counter have been counted into it: their settlement must find it.
CREATE OR REPLACE FUNCTION ledger_adopt_holds(
    p_rule bigint, p_owner bigint, p_starts timestamptz, p_ends timestamptz, p_kind text
) RETURNS void LANGUAGE sql AS $$
    UPDATE ledger_hold h SET claims = h.claims || ARRAY[[p_rule, p_owner, ascii(p_kind), ascii(m.measure), 0,
        floor(extract(epoch FROM p_starts))::bigint, COALESCE(floor(extract(epoch FROM p_ends))::bigint, -1), 0,
        CASE m.measure WHEN 'q' THEN 1 WHEN 'f' THEN 1
            WHEN 's' THEN CASE WHEN h.charge_currency = r.currency THEN h.amount ELSE 0 END
            WHEN 'i' THEN h.input_tokens WHEN 'o' THEN h.output_tokens ELSE h.input_tokens + h.output_tokens END,
        (r.tenant_id IS NULL AND r.key_id IS NULL AND r.plan_id IS NULL)::integer, 0]]
    FROM limits_limitrule r, LATERAL (SELECT ledger_measure_of(r.metric, r.tokens) AS measure) m
    WHERE r.id = p_rule AND h.started_at >= p_starts AND (p_ends IS NULL OR h.started_at < p_ends)
        AND h.tenant_id = COALESCE(r.tenant_id, NULLIF(p_owner, 0), h.tenant_id)
        AND h.key_id = COALESCE(r.key_id, h.key_id)
        AND (r.model_id IS NULL OR h.catalogue_model_id = r.model_id)
        AND NOT EXISTS (SELECT FROM ledger_claim_rows(h.claims) c WHERE c.rule = p_rule)
$$;
ALTER TABLE ledger_hold DROP COLUMN limits;
