-- Settling and sweeping, with claims in numbers: as 0007, which says why.

DROP FUNCTION ledger_settle(uuid, ledger_item[]);
-- The counters of these items are locked, and gives are what they give back and have used (ledger_gives). Exactly
-- once: a hold that is there becomes the record; a record of the sweeper's is corrected by an adjustment; any other
-- record means that this was done before.
CREATE FUNCTION ledger_settle(p_process uuid, p_items ledger_item[], p_gives ledger_ask[],
    OUT deltas ledger_delta[], OUT shifts ledger_shift[], OUT swept uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    late ledger_delta[];
    late_shifts ledger_shift[];
    settled ledger_delta[];
    gone uuid[];
    booked uuid[];
    held_decided ledger_decision[];
    wanted integer;
BEGIN
    WITH gone AS (
        DELETE FROM ledger_hold h USING unnest(p_items) i
        WHERE h.request_id = i.request_id AND i.op IN ('s', 'r')
        RETURNING h.request_id, h.tenant_id, h.key_id, h.charge_currency, h.amount, h.decided, i.shard
    )
    SELECT array_agg(ROW(g.tenant_id, g.key_id, g.charge_currency, 0, 0, 0, -1, -g.amount, g.shard)::ledger_delta),
        array_agg(g.request_id),
        array_agg(ROW(g.request_id, g.decided, true)::ledger_decision) FILTER (WHERE g.decided <> '{}')
    INTO deltas, gone, held_decided FROM gone g;

    WITH booked AS (
        INSERT INTO ledger_usagerecord (request_id, tenant_id, key_id, model, started_at, local_date,
            charge_currency, cost_currency, process_id, catalogue_model_id, deployment_id, provider_id, endpoint,
            stream, status, estimated, http_status, error_code, ended_at, first_byte_ms,
            input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
            charge, cost, charge_price_id, cost_price_id, lines, client_request_id, end_user, decided)
        SELECT i.request_id, i.tenant_id, i.key_id, i.model, i.started_at, i.local_date,
            i.charge_currency, i.cost_currency, p_process, i.catalogue_model_id, i.deployment_id, i.provider_id,
            i.endpoint, i.stream, i.status, i.estimated, i.http_status, i.error_code, now(), i.first_byte_ms,
            i.input_tokens, i.cached_input_tokens, i.cache_write_tokens, i.output_tokens, i.reasoning_tokens,
            i.charge, i.cost, i.charge_price_id, i.cost_price_id, i.lines, i.client_request_id, i.end_user,
            COALESCE(d.decided, '{}')
        FROM unnest(p_items) i LEFT JOIN unnest(held_decided) d ON d.request_id = i.request_id WHERE i.op = 's'
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id, tenant_id, charge
    ), queued AS (
        INSERT INTO ledger_workitem (request_id, kind, tenant_id, created_at)
        SELECT request_id, 'unpriced', tenant_id, now() FROM booked WHERE charge IS NULL
        ON CONFLICT DO NOTHING
    )
    SELECT array_agg(b.request_id) INTO booked FROM booked b;
    SELECT count(*), array_agg(ROW(i.tenant_id, i.key_id, i.charge_currency, 1, i.input_tokens + i.cached_input_tokens
            + i.cache_write_tokens + i.output_tokens + i.reasoning_tokens, COALESCE(i.charge, 0), 0, 0, i.shard
        )::ledger_delta) FILTER (WHERE i.op = 's' AND i.request_id = ANY (booked))
    INTO wanted, settled FROM unnest(p_items) i WHERE i.op IN ('s', 'r');
    deltas := deltas || settled;

    -- As a rule all holds were there, and all records are new.
    SELECT array_agg(ROW(g.counter, g.kind, -g.ask,
        CASE WHEN g.kind = ascii('f') THEN 0 ELSE g.real END, g.second)::ledger_shift) INTO shifts
    FROM unnest(p_gives) g WHERE g.counter IS NOT NULL AND (cardinality(gone) = wanted OR g.request_id = ANY (gone));

    -- Rare: the sweeper had taken us for dead. One adjustment turns its estimate into the real usage; of a request
    -- that was given up before anything was sent, into nothing. Or a hold of which we know nothing: then the counters
    -- that count such a request are moved.
    IF COALESCE(cardinality(booked), 0) < wanted OR COALESCE(cardinality(gone), 0) < wanted THEN
        WITH late_items AS (
            SELECT i.request_id, i.catalogue_model_id, i.shard FROM unnest(p_items) i WHERE i.op IN ('s', 'r')
        ), inserted AS (
            INSERT INTO ledger_adjustment (id, request_id, kind, tenant_id, key_id, model, started_at, local_date,
                charge_currency, cost_currency, input_tokens, cached_input_tokens, cache_write_tokens,
                output_tokens, reasoning_tokens, charge, cost, lines, reason, created_at)
            SELECT gen_random_uuid(), r.request_id, 'late_settlement', r.tenant_id, r.key_id, r.model, r.started_at,
                r.local_date, r.charge_currency, i.cost_currency,
                u.input - r.input_tokens, u.cached_input - r.cached_input_tokens,
                u.cache_write - r.cache_write_tokens, u.output - r.output_tokens, u.reasoning - r.reasoning_tokens,
                u.charge - COALESCE(r.charge, 0), u.cost - COALESCE(r.cost, 0),
                COALESCE(i.lines, '[]'), CASE i.op WHEN 'r' THEN 'given up before anything was sent to the provider'
                    ELSE 'settled after its process had been taken for dead: ' || i.status END, now()
            FROM unnest(p_items) i JOIN ledger_usagerecord r ON r.request_id = i.request_id,
                LATERAL (SELECT COALESCE(i.charge, 0) AS charge, COALESCE(i.cost, 0) AS cost,
                    CASE i.op WHEN 's' THEN i.input_tokens ELSE 0 END AS input,
                    CASE i.op WHEN 's' THEN i.cached_input_tokens ELSE 0 END AS cached_input,
                    CASE i.op WHEN 's' THEN i.cache_write_tokens ELSE 0 END AS cache_write,
                    CASE i.op WHEN 's' THEN i.output_tokens ELSE 0 END AS output,
                    CASE i.op WHEN 's' THEN i.reasoning_tokens ELSE 0 END AS reasoning) u
            WHERE i.op IN ('s', 'r') AND r.status = 'unknown'
            -- a person who resolved it first has decided; both would count twice
            AND NOT EXISTS (SELECT FROM ledger_adjustment a
                            WHERE a.request_id = r.request_id AND a.kind = 'resolution')
            ON CONFLICT DO NOTHING
            RETURNING request_id, tenant_id, key_id, charge_currency, charge, started_at,
                input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens AS tokens,
                output_tokens + reasoning_tokens AS tokens_out
        ), corrected AS (
            SELECT * FROM inserted JOIN late_items USING (request_id)
        ), queued AS (
            -- A missing price is not zero, late or not.
            INSERT INTO ledger_workitem (request_id, kind, tenant_id, created_at)
            SELECT c.request_id, 'unpriced', c.tenant_id, now() FROM corrected c
            WHERE EXISTS (SELECT FROM unnest(p_items) i
                          WHERE i.request_id = c.request_id AND i.op = 's' AND i.charge IS NULL)
            ON CONFLICT DO NOTHING
        ), resolved AS (
            UPDATE ledger_workitem w SET resolved_at = now() FROM corrected c
            WHERE w.request_id = c.request_id AND w.kind = 'unknown' AND w.resolved_at IS NULL
        )
        SELECT array_agg(ROW(tenant_id, key_id, charge_currency, 0, tokens, charge, 0, 0, shard)::ledger_delta),
            array_agg(request_id),
            (SELECT array_agg(ROW(a.counter, a.kind, 0, a.real, a.second)::ledger_shift)
             FROM corrected k, LATERAL ledger_counted_asks(k.request_id, k.tenant_id, k.key_id, k.catalogue_model_id,
                k.charge_currency, k.started_at, 0, (k.tokens - k.tokens_out)::bigint, k.tokens_out::bigint,
                k.charge::bigint) a)
        INTO late, swept, late_shifts FROM corrected;
        deltas := deltas || late;
        shifts := shifts || late_shifts;
        SELECT array_agg(ROW(a.counter, a.kind, 0, a.real, a.second)::ledger_shift) INTO late_shifts
        FROM unnest(p_items) i, LATERAL ledger_counted_asks(i.request_id, i.tenant_id, i.key_id, i.catalogue_model_id,
            i.charge_currency, i.started_at, 1, i.input_tokens + i.cached_input_tokens + i.cache_write_tokens,
            i.output_tokens + i.reasoning_tokens, i.charge) a
        WHERE i.op = 's' AND i.request_id = ANY (booked) AND (gone IS NULL OR i.request_id <> ALL (gone));
        shifts := shifts || late_shifts;

        -- Where a person has decided, nothing is booked; but what really happened is kept for somebody to compare.
        INSERT INTO ledger_deadletter (request_id, payload, error, created_at)
        SELECT i.request_id, jsonb_strip_nulls(to_jsonb(i)), 'settled after a person had resolved it: nothing was'
            ' booked; compare it with the resolution, and correct the record if they differ', now()
        FROM unnest(p_items) i JOIN ledger_usagerecord r ON r.request_id = i.request_id
        WHERE i.op = 's' AND r.status = 'unknown'
            AND EXISTS (SELECT FROM ledger_adjustment a
                        WHERE a.request_id = r.request_id AND a.kind = 'resolution')
            AND NOT EXISTS (SELECT FROM ledger_adjustment a
                            WHERE a.request_id = r.request_id AND a.kind = 'late_settlement')
        ON CONFLICT (request_id) DO NOTHING;
    END IF;
END $$;

-- Takes at most p_limit holds of a dead process in one short transaction; returns how many.
CREATE OR REPLACE FUNCTION ledger_sweep(p_process uuid, p_limit integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    ids uuid[];
    gone uuid[];
    booked uuid[];
    owners ledger_delta[];
    deltas ledger_delta[];
    gives ledger_ask[];
BEGIN
    SELECT array_agg(request_id),
        array_agg(DISTINCT ROW(tenant_id, key_id, charge_currency, 0, 0, 0, 0, 0, NULL)::ledger_delta)
    INTO ids, owners
    FROM (SELECT * FROM ledger_hold WHERE process_id = p_process ORDER BY request_id LIMIT p_limit) h;
    IF ids IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM ledger_lock_counters(owners, false);
    LOCK TABLE ledger_hold IN ROW EXCLUSIVE MODE;  -- before limits: see ledger_desk
    -- It may have come back to life while we waited.
    IF EXISTS (SELECT FROM ledger_process WHERE id = p_process AND ended_at IS NULL AND suspected_at IS NULL) THEN
        RETURN 0;
    END IF;
    SELECT array_agg(ROW(0, h.request_id, h.tenant_id, c.rule, c.owner, c.kind, c.measure, false, c.starts, c.ends,
        c.amount, c.ask, c.everybody, c.shard, false, CASE WHEN c.kind = ascii('f') THEN 0 ELSE
            ledger_measure(c.measure::integer, h.input_tokens, h.output_tokens, 0) END,
        floor(extract(epoch FROM h.started_at)), NULL)::ledger_ask)
    INTO gives FROM ledger_hold h, ledger_claim_rows(h.claims) c WHERE h.request_id = ANY (ids);
    IF gives IS NOT NULL THEN
        gives := ledger_find_windows(gives);
        SELECT l.gives INTO gives FROM ledger_lock_windows(NULL, gives, false) l;
    END IF;
    WITH gone AS (
        DELETE FROM ledger_hold WHERE request_id = ANY (ids) RETURNING *
    ), booked AS (
        INSERT INTO ledger_usagerecord (request_id, tenant_id, key_id, model, started_at, local_date,
            charge_currency, cost_currency, process_id, catalogue_model_id, deployment_id, provider_id, endpoint,
            stream, status, estimated, http_status, error_code, ended_at,
            input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
            charge, cost, charge_price_id, cost_price_id, lines, client_request_id, end_user, decided)
        SELECT request_id, tenant_id, key_id, model, started_at, local_date, charge_currency, cost_currency,
            process_id, catalogue_model_id, deployment_id, provider_id, endpoint, stream, 'unknown', true, 0,
            'process_died', now(), input_tokens, 0, 0, output_tokens, 0, 0, 0, charge_price_id, cost_price_id,
            '[]', client_request_id, end_user, decided
        FROM gone ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id, tenant_id, input_tokens + output_tokens AS tokens
    ), queued AS (
        INSERT INTO ledger_workitem (request_id, kind, tenant_id, created_at)
        SELECT request_id, 'unknown', tenant_id, now() FROM booked ON CONFLICT DO NOTHING
    )
    SELECT array_agg(ROW(g.tenant_id, g.key_id, g.charge_currency, CASE WHEN b.request_id IS NULL THEN 0 ELSE 1 END,
        COALESCE(b.tokens, 0), 0, -1, -g.amount, 0)::ledger_delta), array_agg(g.request_id), array_agg(b.request_id)
    INTO deltas, gone, booked FROM gone g LEFT JOIN booked b ON b.request_id = g.request_id;
    IF deltas IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM ledger_move_windows(array_agg(ROW(g.counter, g.kind, -g.ask,
        CASE WHEN g.request_id = ANY (booked) THEN g.real ELSE 0 END, g.second)::ledger_shift))
    FROM unnest(gives) g WHERE g.counter IS NOT NULL AND g.request_id = ANY (gone) HAVING count(*) > 0;
    PERFORM ledger_move_counters(deltas);
    RETURN cardinality(deltas);
END $$;

-- What a person's correction moves: the counters of the windows in which the request was admitted. In the desk's
-- order: the caller has locked the lifetime counters, and adds the adjustment after this.
CREATE OR REPLACE FUNCTION ledger_adjust_limits(
    p_tenant bigint, p_key bigint, p_model bigint, p_currency text, p_at timestamptz,
    p_tokens_in bigint, p_tokens_out bigint, p_charge bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moved ledger_ask[];
BEGIN
    -- Whoever makes a counter for everybody waits for us (ledger_make_window), or we find it.
    LOCK TABLE ledger_hold IN ROW EXCLUSIVE MODE;
    SELECT array_agg(a) INTO moved FROM ledger_counted_asks(NULL, p_tenant, p_key, p_model, p_currency, p_at, 0,
        p_tokens_in, p_tokens_out, p_charge) a;
    IF moved IS NULL THEN
        RETURN;
    END IF;
    SELECT l.gives INTO moved FROM ledger_lock_windows(NULL, moved, false) l;
    PERFORM ledger_move_windows(array_agg(ROW(a.counter, a.kind, 0, a.real, a.second)::ledger_shift))
    FROM unnest(moved) a WHERE a.counter IS NOT NULL;
END $$;

-- A person's correction, seen from Python (books.py, services.py): it locks all rows of the tenant and the key, and
-- moves their first ones.
CREATE FUNCTION ledger_lock_owner(p_tenant bigint, p_key bigint, p_currency text) RETURNS void LANGUAGE sql AS $$
    SELECT ledger_lock_counters(ARRAY[ROW(p_tenant, p_key, p_currency, 0, 0, 0, 0, 0, NULL)::ledger_delta], false)
$$;
CREATE FUNCTION ledger_move_owner(p_tenant bigint, p_key bigint, p_currency text, p_tokens bigint, p_charge bigint)
RETURNS void LANGUAGE sql AS $$
    SELECT ledger_move_counters(ARRAY[ROW(p_tenant, p_key, p_currency, 0, p_tokens, p_charge, 0, 0, 0)::ledger_delta])
$$;

-- What nobody calls any more.
DROP FUNCTION ledger_lock_limits(ledger_claim[]);
DROP FUNCTION ledger_make_counter(bigint, bigint, timestamptz, timestamptz, text, boolean);
DROP FUNCTION ledger_move_limits(ledger_change[]);
DROP FUNCTION ledger_counted(bigint, bigint, bigint, text, timestamptz);
DROP FUNCTION ledger_measure(text, bigint, bigint, bigint);
DROP TYPE ledger_change;
DROP TYPE ledger_claim;
