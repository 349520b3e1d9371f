-- What the desk is asked to do, and the lifetime counters of tenants and keys that it moves (0006 is the desk).

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
