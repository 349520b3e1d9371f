-- The sweeper: processes that did not beat in two looks a lease apart are dead; their holds become records
-- with status `unknown`, charged nothing, for a person to resolve.

-- One look. Returns the processes whose holds may be taken now, oldest first.
CREATE FUNCTION ledger_dead_processes(p_lease interval) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
    -- A hold whose process never registered counts as a process that never beat.
    INSERT INTO ledger_process (id, kind, host, pid, started_at, heartbeat_at)
    SELECT h.process_id, 'server', '', 0, min(h.started_at), min(h.started_at)
    FROM ledger_hold h WHERE NOT EXISTS (SELECT FROM ledger_process p WHERE p.id = h.process_id)
    GROUP BY h.process_id ON CONFLICT DO NOTHING;

    RETURN QUERY SELECT p.id FROM ledger_process p
    WHERE (p.ended_at IS NOT NULL OR p.suspected_at < now() - p_lease)
      AND (p.ended_at IS NOT NULL OR p.heartbeat_at < p.suspected_at)
      AND EXISTS (SELECT FROM ledger_hold h WHERE h.process_id = p.id)
    ORDER BY p.heartbeat_at;

    UPDATE ledger_process p SET suspected_at = now()
    WHERE p.ended_at IS NULL AND p.suspected_at IS NULL AND p.heartbeat_at < now() - p_lease;
    UPDATE ledger_process p SET ended_at = now()
    WHERE p.ended_at IS NULL AND p.suspected_at < now() - p_lease AND p.heartbeat_at < p.suspected_at
      AND NOT EXISTS (SELECT FROM ledger_hold h WHERE h.process_id = p.id);
END $$;

-- Takes at most p_limit holds of a dead process in one short transaction; returns how many.
CREATE FUNCTION ledger_sweep(p_process uuid, p_limit integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    ids uuid[];
    owners ledger_delta[];
    deltas ledger_delta[];
BEGIN
    SELECT array_agg(request_id), array_agg(DISTINCT ROW(tenant_id, key_id, charge_currency, 0, 0, 0, 0, 0)::ledger_delta)
    INTO ids, owners
    FROM (SELECT * FROM ledger_hold WHERE process_id = p_process ORDER BY request_id LIMIT p_limit) h;
    IF ids IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM ledger_lock_counters(owners, false);
    -- It may have come back to life while we waited.
    IF EXISTS (SELECT FROM ledger_process WHERE id = p_process AND ended_at IS NULL AND suspected_at IS NULL) THEN
        RETURN 0;
    END IF;
    WITH gone AS (
        DELETE FROM ledger_hold WHERE request_id = ANY (ids) RETURNING *
    ), booked AS (
        INSERT INTO ledger_usagerecord (request_id, tenant_id, key_id, model, started_at, local_date,
            charge_currency, cost_currency, process_id, catalogue_model_id, deployment_id, provider_id, endpoint,
            stream, status, estimated, http_status, error_code, ended_at,
            input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
            charge, cost, charge_price_id, cost_price_id, lines, client_request_id, end_user)
        SELECT request_id, tenant_id, key_id, model, started_at, local_date, charge_currency, cost_currency,
            process_id, catalogue_model_id, deployment_id, provider_id, endpoint, stream, 'unknown', true, 0,
            'process_died', now(), input_tokens, 0, 0, output_tokens, 0, 0, 0, charge_price_id, cost_price_id,
            '[]', client_request_id, end_user
        FROM gone ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id, tenant_id, input_tokens + output_tokens AS tokens
    ), queued AS (
        INSERT INTO ledger_workitem (request_id, kind, tenant_id, created_at)
        SELECT request_id, 'unknown', tenant_id, now() FROM booked ON CONFLICT DO NOTHING
    )
    SELECT array_agg(ROW(g.tenant_id, g.key_id, g.charge_currency, CASE WHEN b.request_id IS NULL THEN 0 ELSE 1 END,
        COALESCE(b.tokens, 0), 0, -1, -g.amount)::ledger_delta)
    INTO deltas FROM gone g LEFT JOIN booked b ON b.request_id = g.request_id;
    IF deltas IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM ledger_move_counters(deltas);
    RETURN array_length(deltas, 1);
END $$;
