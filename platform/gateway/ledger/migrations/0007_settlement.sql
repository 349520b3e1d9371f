-- For databases that come from here: most of it is replaced by 0009 to 0015, which have the text in force.

-- Settling and sweeping: a hold becomes a record, and what it took from its windows what was really used.

-- The counters of these items are locked. Exactly once: a hold that is there becomes the record; a record of
-- the sweeper's is corrected by an adjustment; any other record means that this was done before.
CREATE FUNCTION ledger_settle(p_process uuid, p_items ledger_item[], OUT deltas ledger_delta[], OUT swept uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    late ledger_delta[];
    settled ledger_delta[];
    held_limits jsonb;
    held_decided ledger_decision[];
    changes ledger_change[];
    more ledger_change[];
BEGIN
    WITH gone AS (
        DELETE FROM ledger_hold h USING unnest(p_items) i
        WHERE h.request_id = i.request_id AND i.op IN ('s', 'r')
        RETURNING h.request_id, h.tenant_id, h.key_id, h.charge_currency, h.amount, h.limits, h.started_at, h.decided
    )
    SELECT array_agg(ROW(tenant_id, key_id, charge_currency, 0, 0, 0, -1, -amount)::ledger_delta),
        jsonb_object_agg(request_id, limits),
        array_agg(ROW(request_id, decided, true)::ledger_decision) FILTER (WHERE decided <> '{}'),
        (SELECT array_agg(ROW((c).rule, (c).owner, (c).starts, (c).kind, -(c).ask, 0,
                floor(extract(epoch FROM g.started_at))::bigint)::ledger_change)
         FROM gone g, LATERAL jsonb_populate_recordset(NULL::ledger_claim, g.limits) c)
    INTO deltas, held_limits, held_decided, changes FROM gone;

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
        RETURNING request_id, tenant_id, key_id, charge_currency, charge, started_at,
            input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens AS tokens,
            output_tokens + reasoning_tokens AS tokens_out
    ), queued AS (
        INSERT INTO ledger_workitem (request_id, kind, tenant_id, created_at)
        SELECT request_id, 'unpriced', tenant_id, now() FROM booked WHERE charge IS NULL
        ON CONFLICT DO NOTHING
    )
    SELECT array_agg(ROW(tenant_id, key_id, charge_currency, 1, tokens, COALESCE(charge, 0), 0, 0)::ledger_delta),
        (SELECT array_agg(ROW((c).rule, (c).owner, (c).starts, (c).kind, 0,
                ledger_measure((c).measure, b.tokens - b.tokens_out, b.tokens_out, b.charge),
                floor(extract(epoch FROM b.started_at))::bigint)::ledger_change)
         FROM booked b JOIN unnest(p_items) i ON i.request_id = b.request_id,
            LATERAL ledger_claims_of(held_limits -> b.request_id::text, i) c
         WHERE (c).kind <> 'f')
    INTO settled, more FROM booked;
    deltas := deltas || settled;
    changes := changes || more;

    -- Rare: the sweeper had taken us for dead. One adjustment turns its estimate into the real usage; of a request
    -- that was given up before anything was sent, into nothing.
    IF COALESCE(array_length(settled, 1), 0) < (SELECT count(*) FROM unnest(p_items) i WHERE i.op IN ('s', 'r')) THEN
        WITH late_items AS (
            SELECT i.request_id, i.catalogue_model_id FROM unnest(p_items) i WHERE i.op IN ('s', 'r')
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
        SELECT array_agg(ROW(tenant_id, key_id, charge_currency, 0, tokens, charge, 0, 0)::ledger_delta),
            array_agg(request_id),
            (SELECT array_agg(ROW((c).rule, (c).owner, (c).starts, (c).kind, 0, CASE (c).measure WHEN 'q' THEN 0
                    ELSE ledger_measure((c).measure, k.tokens - k.tokens_out, k.tokens_out, k.charge) END,
                    floor(extract(epoch FROM k.started_at))::bigint)::ledger_change)
             FROM corrected k, LATERAL ledger_counted(k.tenant_id, k.key_id, k.catalogue_model_id, k.charge_currency,
                k.started_at) c)
        INTO late, swept, more FROM corrected;
        deltas := deltas || late;
        changes := changes || more;

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
    IF changes IS NOT NULL THEN
        PERFORM ledger_move_limits(changes);
    END IF;
END $$;

-- Takes at most p_limit holds of a dead process in one short transaction; returns how many.
CREATE FUNCTION ledger_sweep(p_process uuid, p_limit integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    ids uuid[];
    owners ledger_delta[];
    deltas ledger_delta[];
    claims ledger_claim[];
    changes ledger_change[];
BEGIN
    SELECT array_agg(request_id), array_agg(DISTINCT ROW(tenant_id, key_id, charge_currency, 0, 0, 0, 0, 0)::ledger_delta)
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
    SELECT array_agg(c) INTO claims FROM ledger_hold h, LATERAL jsonb_populate_recordset(NULL::ledger_claim, h.limits) c
    WHERE h.request_id = ANY (ids);
    IF claims IS NOT NULL THEN
        PERFORM ledger_lock_limits(claims);
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
        COALESCE(b.tokens, 0), 0, -1, -g.amount)::ledger_delta),
        (SELECT array_agg(ROW((c).rule, (c).owner, (c).starts, (c).kind, -(c).ask,
                CASE WHEN (c).kind = 'f' OR NOT EXISTS (SELECT FROM booked k WHERE k.request_id = h.request_id) THEN 0
                    ELSE ledger_measure((c).measure, h.input_tokens, h.output_tokens, 0) END,
                floor(extract(epoch FROM h.started_at))::bigint)::ledger_change)
         FROM gone h, LATERAL jsonb_populate_recordset(NULL::ledger_claim, h.limits) c)
    INTO deltas, changes FROM gone g LEFT JOIN booked b ON b.request_id = g.request_id;
    IF deltas IS NULL THEN
        RETURN 0;
    END IF;
    IF changes IS NOT NULL THEN
        PERFORM ledger_move_limits(changes);
    END IF;
    PERFORM ledger_move_counters(deltas);
    RETURN array_length(deltas, 1);
END $$;
