-- The lifetime counters of tenants and keys: where they are busy, each process moves rows of its own (0010). They decide
-- nothing, so their sum is all that counts; whoever needs a tenant's desks to stand still locks all of its rows.

-- The lifetime rows of these owners' shards; of an owner without a shard (null) all rows.
CREATE FUNCTION ledger_owner_rows(p_owners ledger_delta[])
RETURNS TABLE (scope text, owner_id bigint, currency text, shard smallint, tenant bigint)
LANGUAGE sql IMMUTABLE AS $$
    SELECT DISTINCT s.scope, s.owner_id, i.currency, i.shard, i.tenant_id FROM unnest(p_owners) i,
        LATERAL (VALUES ('tenant', i.tenant_id), ('key', i.key_id)) AS s (scope, owner_id)
$$;

DROP FUNCTION ledger_lock_counters(ledger_delta[], boolean);
-- Locks the lifetime counters of these owners in id order, after making those that are missing. With p_skip, rows that
-- somebody else has locked are left out. Returns the ids that are locked, and for whom we have waited.
CREATE FUNCTION ledger_lock_counters(p_owners ledger_delta[], p_skip boolean, OUT ids bigint[], OUT waits ledger_wait[])
LANGUAGE plpgsql AS $$
DECLARE
    missing boolean;
    made boolean := false;
    times timestamptz[];
    before timestamptz;
BEGIN
    LOOP
        SELECT array_agg(c.id), bool_or(c.id IS NULL) INTO ids, missing
        FROM ledger_owner_rows(p_owners) w LEFT JOIN ledger_counter c ON c.scope = w.scope AND c.owner_id = w.owner_id
            AND c.currency = w.currency AND c.shard = COALESCE(w.shard, c.shard);
        EXIT WHEN NOT missing;
        -- The first row too: the sweeper and corrections move that one.
        INSERT INTO ledger_counter (scope, owner_id, currency, shard, requests, tokens, charge, held_requests, held)
        SELECT DISTINCT w.scope, w.owner_id, w.currency, s, 0, 0, 0, 0, 0
        FROM ledger_owner_rows(p_owners) w, unnest(ARRAY[0, COALESCE(w.shard, 0)]) s
        ORDER BY 1, 2, 3, 4 ON CONFLICT DO NOTHING;
        made := true;
    END LOOP;
    -- From now on its rows do not keep this tenant's desks in order (ledger_is_sharded). Whoever goes by the first row
    -- has ended before we begin, or waits until we have.
    IF made THEN
        SELECT ids || array_agg(c.id) INTO ids FROM ledger_owner_rows(p_owners) w JOIN ledger_counter c
            ON c.scope = w.scope AND c.owner_id = w.owner_id AND c.currency = w.currency AND c.shard = 0
        WHERE w.shard > 0;
    END IF;
    IF p_skip AND NOT made THEN
        SELECT array_agg(id) INTO ids FROM (
            SELECT c.id FROM ledger_counter c WHERE c.id = ANY (ids) ORDER BY c.id FOR UPDATE SKIP LOCKED) l;
    ELSE
        before := clock_timestamp();
        -- Each row's time is when we had it: the projection is above the locks, and is made row by row.
        SELECT array_agg(l.id), array_agg(clock_timestamp()) INTO ids, times FROM (
            SELECT c.id FROM ledger_counter c WHERE c.id = ANY (ids) ORDER BY c.id FOR UPDATE) l;
        IF times[array_length(times, 1)] > before + interval '1 ms' THEN
            SELECT array_agg(ROW(CASE c.scope WHEN 'tenant' THEN c.owner_id ELSE
                (SELECT o.tenant_id FROM unnest(p_owners) o WHERE o.key_id = c.owner_id LIMIT 1) END, 0, w.ms)::ledger_wait)
            INTO waits
            FROM (SELECT ids[n] AS id, (1000 * extract(epoch FROM times[n]
                      - CASE WHEN n = 1 THEN before ELSE times[n - 1] END))::integer AS ms
                  FROM generate_series(1, array_length(ids, 1)) n) w JOIN ledger_counter c ON c.id = w.id
            WHERE w.ms >= 1;
        END IF;
    END IF;
    ids := COALESCE(ids, '{}');
END $$;

CREATE OR REPLACE FUNCTION ledger_move_counters(p_deltas ledger_delta[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger_counter c SET
        requests = c.requests + d.requests, tokens = c.tokens + d.tokens, charge = c.charge + d.charge,
        held_requests = c.held_requests + d.held_requests, held = c.held + d.held, last_at = now()
    FROM (
        SELECT s.scope, s.owner_id, i.currency, COALESCE(i.shard, 0) AS shard, sum(i.requests) AS requests,
            sum(i.tokens) AS tokens, sum(i.charge) AS charge, sum(i.held_requests) AS held_requests,
            sum(i.held) AS held
        FROM unnest(p_deltas) i,
            LATERAL (VALUES ('tenant', i.tenant_id), ('key', i.key_id)) AS s (scope, owner_id)
        GROUP BY 1, 2, 3, 4
    ) d
    WHERE c.scope = d.scope AND c.owner_id = d.owner_id AND c.currency = d.currency AND c.shard = d.shard;
END $$;
