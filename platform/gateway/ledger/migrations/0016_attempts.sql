-- Each call of a provider that a request has made, where there were several or the one failed; and the model that
-- served, where it was not the one that was asked for.

ALTER TYPE ledger_item ADD ATTRIBUTE served_model text, ADD ATTRIBUTE attempts jsonb;
ALTER TABLE ledger_usagerecord ADD COLUMN served_model varchar(200) NOT NULL DEFAULT '';
ALTER TABLE ledger_hold ADD COLUMN served_model varchar(200) NOT NULL DEFAULT '';

-- As the usage records: partitioned by month on the UUIDv7 of the request, append-only.
CREATE TABLE ledger_attempt (
    id bigserial NOT NULL,
    request_id uuid NOT NULL,
    number smallint NOT NULL CHECK (number > 0),
    tenant_id bigint NOT NULL,
    model varchar(200) NOT NULL,
    deployment_id bigint NOT NULL,
    provider_id bigint NOT NULL,
    started_at timestamptz NOT NULL,
    first_byte_at timestamptz,
    ended_at timestamptz NOT NULL,
    outcome varchar(32) NOT NULL,
    http_status smallint NOT NULL,
    served boolean NOT NULL,
    input_tokens bigint NOT NULL CHECK (input_tokens >= 0),
    cached_input_tokens bigint NOT NULL CHECK (cached_input_tokens >= 0),
    cache_write_tokens bigint NOT NULL CHECK (cache_write_tokens >= 0),
    output_tokens bigint NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens bigint NOT NULL CHECK (reasoning_tokens >= 0),
    estimated boolean NOT NULL,
    cost bigint CHECK (cost >= 0),
    cost_currency varchar(3) NOT NULL,
    cost_price_id bigint,
    recorded_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (request_id, number)
) PARTITION BY RANGE (request_id);

CREATE INDEX attempt_id ON ledger_attempt (id);
CREATE INDEX attempt_tenant ON ledger_attempt (tenant_id, request_id);
CREATE INDEX attempt_deployment ON ledger_attempt (deployment_id, request_id);
CREATE INDEX attempt_provider ON ledger_attempt (provider_id, request_id);
CREATE INDEX attempt_outcome ON ledger_attempt (outcome, request_id);

CREATE TRIGGER append_only_rows BEFORE UPDATE OR DELETE ON ledger_attempt
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER append_only_table BEFORE TRUNCATE ON ledger_attempt
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only();

-- The net under a clock that is far off, as for the records.
CREATE TABLE ledger_attempt_other PARTITION OF ledger_attempt DEFAULT;
CREATE TRIGGER append_only_table BEFORE TRUNCATE ON ledger_attempt_other
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only();

-- Makes the partitions of this month and the next p_months. The application's role owns no table, so this
-- runs as the owner. Each partition gets its own TRUNCATE trigger: the parent's does not cover it. It wants the
-- table for itself, and everybody queues behind it while it waits for a long read: so it gives up, until next time.
CREATE OR REPLACE FUNCTION ledger_ensure_partitions(p_months integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '1s' AS $$
DECLARE
    month timestamptz;
    ledger text;
    part text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ledger_ensure_partitions'));
    FOR month IN
        SELECT m AT TIME ZONE 'UTC' FROM generate_series(
            date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 month',
            date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => p_months),
            interval '1 month') AS m
    LOOP
        FOREACH ledger IN ARRAY ARRAY['ledger_usagerecord', 'ledger_attempt'] LOOP
            part := ledger || '_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
            CONTINUE WHEN to_regclass('public.' || part) IS NOT NULL;
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', part, ledger,
                ledger_uuid_at(month),
                ledger_uuid_at((month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'));
            EXECUTE format('CREATE TRIGGER append_only_table BEFORE TRUNCATE ON %I
                FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only()', part);
            EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', part);
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;

SELECT ledger_ensure_partitions(3);

-- As 0013, with the model that serves.
CREATE OR REPLACE FUNCTION ledger_hold_items(
    p_process uuid, p_admits ledger_item[], p_decisions ledger_decision[], p_instant timestamptz
) RETURNS uuid[] LANGUAGE sql AS $$
    WITH held AS (
        INSERT INTO ledger_hold (request_id, process_id, tenant_id, key_id, model, started_at, local_date,
            charge_currency, cost_currency, catalogue_model_id, deployment_id, provider_id, endpoint, stream,
            input_tokens, output_tokens, amount, charge_price_id, cost_price_id, client_request_id, end_user, claims,
            decided, served_model)
        SELECT i.request_id, p_process, i.tenant_id, i.key_id, i.model, p_instant,
            (p_instant AT TIME ZONE i.timezone)::date, i.charge_currency, i.cost_currency, i.catalogue_model_id,
            i.deployment_id, i.provider_id, i.endpoint, i.stream, i.input_tokens, i.output_tokens, i.amount,
            i.charge_price_id, i.cost_price_id, i.client_request_id, i.end_user, COALESCE(i.claims, '{}'),
            COALESCE(d.decided, '{}'), COALESCE(i.served_model, '')
        FROM unnest(p_admits) i LEFT JOIN unnest(p_decisions) d ON d.request_id = i.request_id
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id
    )
    SELECT array_agg(request_id) FROM held
$$;

-- As 0014, with what was tried and the model that served.
CREATE OR REPLACE FUNCTION ledger_settle(p_process uuid, p_items ledger_item[], p_gives ledger_ask[],
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
    tried boolean;
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
            charge, cost, charge_price_id, cost_price_id, lines, client_request_id, end_user, decided,
            served_model)
        SELECT i.request_id, i.tenant_id, i.key_id, i.model, i.started_at, i.local_date,
            i.charge_currency, i.cost_currency, p_process, i.catalogue_model_id, i.deployment_id, i.provider_id,
            i.endpoint, i.stream, i.status, i.estimated, i.http_status, i.error_code, now(), i.first_byte_ms,
            i.input_tokens, i.cached_input_tokens, i.cache_write_tokens, i.output_tokens, i.reasoning_tokens,
            i.charge, i.cost, i.charge_price_id, i.cost_price_id, i.lines, i.client_request_id, i.end_user,
            COALESCE(d.decided, '{}'), COALESCE(i.served_model, '')
        FROM unnest(p_items) i LEFT JOIN unnest(held_decided) d ON d.request_id = i.request_id WHERE i.op = 's'
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id, tenant_id, charge
    ), queued AS (
        INSERT INTO ledger_workitem (request_id, kind, tenant_id, created_at)
        SELECT request_id, 'unpriced', tenant_id, now() FROM booked WHERE charge IS NULL
        ON CONFLICT DO NOTHING
    )
    SELECT array_agg(b.request_id) INTO booked FROM booked b;
    SELECT count(*), bool_or(i.attempts IS NOT NULL), array_agg(ROW(i.tenant_id, i.key_id, i.charge_currency, 1, i.input_tokens + i.cached_input_tokens
            + i.cache_write_tokens + i.output_tokens + i.reasoning_tokens, COALESCE(i.charge, 0), 0, 0, i.shard
        )::ledger_delta) FILTER (WHERE i.op = 's' AND i.request_id = ANY (booked))
    INTO wanted, tried, settled FROM unnest(p_items) i WHERE i.op IN ('s', 'r');
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

    -- What was tried, kept with the record; or late, if the sweeper had made the record.
    IF tried THEN
        INSERT INTO ledger_attempt (request_id, number, tenant_id, model, deployment_id, provider_id, started_at,
            first_byte_at, ended_at, outcome, http_status, served, input_tokens, cached_input_tokens,
            cache_write_tokens, output_tokens, reasoning_tokens, estimated, cost, cost_currency, cost_price_id)
        SELECT i.request_id, a.number, i.tenant_id, a.model, a.deployment_id, a.provider_id,
            i.started_at + a.started_ms * interval '1 ms', i.started_at + a.first_byte_ms * interval '1 ms',
            i.started_at + a.ended_ms * interval '1 ms', a.outcome, a.http_status, a.served, a.input_tokens,
            a.cached_input_tokens, a.cache_write_tokens, a.output_tokens, a.reasoning_tokens, a.estimated, a.cost,
            a.cost_currency, a.cost_price_id
        FROM unnest(p_items) i, jsonb_to_recordset(i.attempts) AS a (number smallint, model text,
            deployment_id bigint, provider_id bigint, started_ms bigint, first_byte_ms bigint, ended_ms bigint,
            outcome text, http_status smallint, served boolean, input_tokens bigint, cached_input_tokens bigint,
            cache_write_tokens bigint, output_tokens bigint, reasoning_tokens bigint, estimated boolean, cost bigint,
            cost_currency text, cost_price_id bigint)
        WHERE i.op = 's' AND (i.request_id = ANY (booked) OR EXISTS (
                SELECT FROM ledger_usagerecord r WHERE r.request_id = i.request_id AND r.status = 'unknown'))
            AND NOT EXISTS (SELECT FROM ledger_attempt t WHERE t.request_id = i.request_id)
        ON CONFLICT (request_id, number) DO NOTHING;
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
            charge, cost, charge_price_id, cost_price_id, lines, client_request_id, end_user, decided,
            served_model)
        SELECT request_id, tenant_id, key_id, model, started_at, local_date, charge_currency, cost_currency,
            process_id, catalogue_model_id, deployment_id, provider_id, endpoint, stream, 'unknown', true, 0,
            'process_died', now(), input_tokens, 0, 0, output_tokens, 0, 0, 0, charge_price_id, cost_price_id,
            '[]', client_request_id, end_user, decided, served_model
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
