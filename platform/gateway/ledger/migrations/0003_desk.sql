-- The desk: one call decides, books and commits a whole batch (design.md 2). No other code writes holds,
-- records and counters but the sweeper below and ledger/books.py. Rules that order everything here:
--   * counters are locked before holds, both in id order, by everybody: no deadlocks;
--   * lock first, then look, in a later statement (READ COMMITTED): a repeated batch finds what it did before;
--   * an item says all that its record needs, so that a settlement survives the loss of its hold.

-- One item of a batch. op: a = admit, s = settle, r = release (admitted, but nobody waits), c = check versions.
CREATE TYPE ledger_item AS (
    op text, request_id uuid,
    tenant_id bigint, key_id bigint, tenant_version bigint, key_version bigint, catalogue_version bigint,
    timezone text, charge_currency text, cost_currency text,
    model text, catalogue_model_id bigint, deployment_id bigint, provider_id bigint,
    endpoint text, stream boolean, amount bigint, charge_price_id bigint, cost_price_id bigint, first_use bigint[],
    input_tokens bigint, cached_input_tokens bigint, cache_write_tokens bigint, output_tokens bigint,
    reasoning_tokens bigint,
    status text, estimated boolean, http_status smallint, error_code text, started_at timestamptz, local_date date,
    first_byte_ms integer, charge bigint, cost bigint, lines jsonb, client_request_id text, end_user text
);

-- What an item or a swept hold adds to the counters of its tenant and of its key.
CREATE TYPE ledger_delta AS (
    tenant_id bigint, key_id bigint, currency text,
    requests bigint, tokens bigint, charge numeric, held_requests bigint, held numeric
);

CREATE FUNCTION ledger_move_counters(p_deltas ledger_delta[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger_counter c SET
        requests = c.requests + d.requests, tokens = c.tokens + d.tokens, charge = c.charge + d.charge,
        held_requests = c.held_requests + d.held_requests, held = c.held + d.held, last_at = now()
    FROM (
        SELECT s.scope, s.owner_id, i.currency, sum(i.requests) AS requests, sum(i.tokens) AS tokens,
            sum(i.charge) AS charge, sum(i.held_requests) AS held_requests, sum(i.held) AS held
        FROM unnest(p_deltas) i,
            LATERAL (VALUES ('tenant', i.tenant_id), ('key', i.key_id)) AS s (scope, owner_id)
        GROUP BY 1, 2, 3
    ) d
    WHERE c.scope = d.scope AND c.owner_id = d.owner_id AND c.currency = d.currency;
END $$;

-- Locks the counters of these owners in id order, after making those that are missing. With p_skip, rows that
-- somebody else has locked are left out; returns the ids that are locked.
CREATE FUNCTION ledger_lock_counters(p_owners ledger_delta[], p_skip boolean) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    found integer;
    wanted integer;
BEGIN
    LOOP
        SELECT count(*), count(c.id), array_agg(c.id ORDER BY c.id) INTO wanted, found, ids
        FROM (
            SELECT DISTINCT s.scope, s.owner_id, i.currency FROM unnest(p_owners) i,
                LATERAL (VALUES ('tenant', i.tenant_id), ('key', i.key_id)) AS s (scope, owner_id)
        ) w LEFT JOIN ledger_counter c USING (scope, owner_id, currency);
        EXIT WHEN found = wanted;
        INSERT INTO ledger_counter (scope, owner_id, currency, requests, tokens, charge, held_requests, held)
        SELECT DISTINCT s.scope, s.owner_id, i.currency, 0, 0, 0, 0, 0 FROM unnest(p_owners) i,
            LATERAL (VALUES ('tenant', i.tenant_id), ('key', i.key_id)) AS s (scope, owner_id)
        ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING;
    END LOOP;
    IF p_skip THEN
        SELECT array_agg(id) INTO ids FROM (
            SELECT c.id FROM ledger_counter c WHERE c.id = ANY (ids) ORDER BY c.id FOR UPDATE SKIP LOCKED) l;
    ELSE
        PERFORM c.id FROM ledger_counter c WHERE c.id = ANY (ids) ORDER BY c.id FOR UPDATE;
    END IF;
    RETURN COALESCE(ids, '{}');
END $$;

-- p_skip: do not wait for locked rows; items that need one answer "blocked" and nothing of them is done.
-- p_retry: an earlier try of this batch may have been committed without our knowing.
-- Returns [[request_id, verdict, started_at, local_date], …]; verdicts: ok, stale, suspended, refused, blocked,
-- swept (settled by an adjustment, since the sweeper had already taken the hold).
CREATE FUNCTION ledger_desk(p_process uuid, p_items json, p_skip boolean, p_retry boolean) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    items ledger_item[];
    admits ledger_item[];
    checked ledger_item[];
    owners ledger_delta[];
    locked bigint[];
    blocked uuid[] := '{}';
    refused json[] := '{}';
    swept uuid[] := '{}';
    catalogue bigint;
    deltas ledger_delta[];
    more ledger_delta[];
    answer json;
BEGIN
    SELECT array_agg(i) INTO items FROM json_populate_recordset(NULL::ledger_item, p_items) i;

    SELECT array_agg(ROW(i.tenant_id, i.key_id, i.charge_currency, 0, 0, 0, 0, 0)::ledger_delta)
    INTO owners FROM (
        SELECT DISTINCT u.tenant_id, u.key_id, u.charge_currency FROM unnest(items) u WHERE u.op <> 'c') i;
    IF owners IS NOT NULL THEN
        locked := ledger_lock_counters(owners, p_skip);
        IF p_skip THEN
            SELECT COALESCE(array_agg(i.request_id), '{}') INTO blocked FROM unnest(items) i
            WHERE i.op <> 'c' AND (
                SELECT count(*) FROM ledger_counter c WHERE c.id = ANY (locked) AND c.currency = i.charge_currency
                AND ((c.scope = 'tenant' AND c.owner_id = i.tenant_id) OR (c.scope = 'key' AND c.owner_id = i.key_id))
            ) < 2;
        END IF;
    END IF;

    -- Prices that are used for the first time become immutable here. An admin may be editing one just now.
    IF EXISTS (SELECT FROM unnest(items) i WHERE i.first_use IS NOT NULL) THEN
        UPDATE catalogue_price p SET first_used_at = now()
        FROM (SELECT q.id FROM catalogue_price q
              WHERE q.id IN (SELECT unnest(i.first_use) FROM unnest(items) i WHERE i.op = 'a')
                AND q.first_used_at IS NULL
              ORDER BY q.id FOR UPDATE SKIP LOCKED) s
        WHERE p.id = s.id;
        SELECT blocked || COALESCE(array_agg(i.request_id), '{}') INTO blocked FROM unnest(items) i
        WHERE i.op = 'a' AND EXISTS (
            SELECT FROM catalogue_price p WHERE p.id = ANY (i.first_use) AND p.first_used_at IS NULL);
    END IF;
    IF blocked <> '{}' THEN
        SELECT array_agg(i) INTO items FROM unnest(items) i WHERE i.request_id <> ALL (blocked);
    END IF;

    -- Admissions and checks: are the facts that they were prepared with still the facts?
    SELECT version INTO catalogue FROM catalogue_catalogueversion;
    SELECT array_agg(i) FILTER (WHERE v.verdict = 'ok'),
        COALESCE(array_agg(json_build_array(i.request_id, v.verdict)) FILTER (WHERE v.verdict <> 'ok'), '{}')
    INTO checked, refused
    FROM unnest(items) i
    LEFT JOIN tenants_tenant t ON t.id = i.tenant_id
    LEFT JOIN tenants_apikey k ON k.id = i.key_id,
    LATERAL (SELECT CASE
        -- The first decision stands: the hold is durable, and nobody would release it.
        WHEN p_retry AND i.op = 'a' AND EXISTS (SELECT FROM ledger_hold h WHERE h.request_id = i.request_id) THEN 'ok'
        WHEN t.version IS DISTINCT FROM i.tenant_version OR k.version IS DISTINCT FROM i.key_version
            OR catalogue IS DISTINCT FROM i.catalogue_version THEN 'stale'
        WHEN k.status <> 'active' OR k.expires_at <= now() THEN 'refused'
        WHEN t.status <> 'active' THEN 'suspended'
        ELSE 'ok' END AS verdict) v
    WHERE i.op IN ('a', 'c');

    -- A batch that is sent again may have been settled or swept already: then there is nothing to admit anew.
    SELECT array_agg(i) INTO admits FROM unnest(checked) i WHERE i.op = 'a'
        AND NOT (p_retry AND EXISTS (SELECT FROM ledger_usagerecord r WHERE r.request_id = i.request_id));
    WITH held AS (
        INSERT INTO ledger_hold (request_id, process_id, tenant_id, key_id, model, started_at, local_date,
            charge_currency, cost_currency, catalogue_model_id, deployment_id, provider_id, endpoint, stream,
            input_tokens, output_tokens, amount, charge_price_id, cost_price_id, client_request_id, end_user)
        SELECT i.request_id, p_process, i.tenant_id, i.key_id, i.model, now(), (now() AT TIME ZONE i.timezone)::date,
            i.charge_currency, i.cost_currency, i.catalogue_model_id, i.deployment_id, i.provider_id, i.endpoint,
            i.stream, i.input_tokens, i.output_tokens, i.amount, i.charge_price_id, i.cost_price_id,
            i.client_request_id, i.end_user
        FROM unnest(admits) i
        ON CONFLICT (request_id) DO NOTHING
        RETURNING tenant_id, key_id, charge_currency, amount
    )
    SELECT array_agg(ROW(tenant_id, key_id, charge_currency, 0, 0, 0, 1, amount)::ledger_delta)
    INTO deltas FROM held;

    -- Settlements and releases take their holds; whoever deletes the hold books the request.
    IF EXISTS (SELECT FROM unnest(items) i WHERE i.op IN ('s', 'r')) THEN
        SELECT * INTO more, swept FROM ledger_settle(p_process, items);
        deltas := deltas || more;
    END IF;
    IF deltas IS NOT NULL THEN
        PERFORM ledger_move_counters(deltas);
    END IF;

    SELECT json_agg(a.row) INTO answer FROM (
        SELECT json_build_array(i.request_id, 'ok', h.started_at, h.local_date) AS row
            FROM unnest(checked) i LEFT JOIN ledger_hold h ON h.request_id = i.request_id
        UNION ALL SELECT unnest(refused)
        UNION ALL SELECT json_build_array(b, 'blocked') FROM unnest(blocked) b
        UNION ALL SELECT json_build_array(i.request_id, CASE WHEN i.request_id = ANY (swept) THEN 'swept' ELSE 'ok' END)
            FROM unnest(items) i WHERE i.op IN ('s', 'r')
    ) a;
    RETURN answer;
END $$;

-- The counters of these items are locked. Exactly once: a hold that is there becomes the record; a record of
-- the sweeper's is corrected by an adjustment; any other record means that this was done before.
CREATE FUNCTION ledger_settle(p_process uuid, p_items ledger_item[], OUT deltas ledger_delta[], OUT swept uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    late ledger_delta[];
    settled ledger_delta[];
BEGIN
    WITH gone AS (
        DELETE FROM ledger_hold h USING unnest(p_items) i
        WHERE h.request_id = i.request_id AND i.op IN ('s', 'r')
        RETURNING h.tenant_id, h.key_id, h.charge_currency, h.amount
    )
    SELECT array_agg(ROW(tenant_id, key_id, charge_currency, 0, 0, 0, -1, -amount)::ledger_delta)
    INTO deltas FROM gone;

    WITH booked AS (
        INSERT INTO ledger_usagerecord (request_id, tenant_id, key_id, model, started_at, local_date,
            charge_currency, cost_currency, process_id, catalogue_model_id, deployment_id, provider_id, endpoint,
            stream, status, estimated, http_status, error_code, ended_at, first_byte_ms,
            input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
            charge, cost, charge_price_id, cost_price_id, lines, client_request_id, end_user)
        SELECT i.request_id, i.tenant_id, i.key_id, i.model, i.started_at, i.local_date,
            i.charge_currency, i.cost_currency, p_process, i.catalogue_model_id, i.deployment_id, i.provider_id,
            i.endpoint, i.stream, i.status, i.estimated, i.http_status, i.error_code, now(), i.first_byte_ms,
            i.input_tokens, i.cached_input_tokens, i.cache_write_tokens, i.output_tokens, i.reasoning_tokens,
            i.charge, i.cost, i.charge_price_id, i.cost_price_id, i.lines, i.client_request_id, i.end_user
        FROM unnest(p_items) i WHERE i.op = 's'
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id, tenant_id, key_id, charge_currency, charge,
            input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens AS tokens
    ), queued AS (
        INSERT INTO ledger_workitem (request_id, kind, tenant_id, created_at)
        SELECT request_id, 'unpriced', tenant_id, now() FROM booked WHERE charge IS NULL
        ON CONFLICT DO NOTHING
    )
    SELECT array_agg(ROW(tenant_id, key_id, charge_currency, 1, tokens, COALESCE(charge, 0), 0, 0)::ledger_delta)
    INTO settled FROM booked;
    deltas := deltas || settled;

    -- Rare: the sweeper had taken us for dead. One adjustment turns its estimate into the real usage; of a request
    -- that was given up before anything was sent, into nothing.
    IF COALESCE(array_length(settled, 1), 0) < (SELECT count(*) FROM unnest(p_items) i WHERE i.op IN ('s', 'r')) THEN
        WITH corrected AS (
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
            RETURNING request_id, tenant_id, key_id, charge_currency, charge,
                input_tokens + cached_input_tokens + cache_write_tokens + output_tokens + reasoning_tokens AS tokens
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
            array_agg(request_id)
        INTO late, swept FROM corrected;
        deltas := deltas || late;
    END IF;
END $$;
