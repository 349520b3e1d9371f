-- Drift, where a counter may have several rows: compared as their sum, by its first row, and repaired there.

DROP FUNCTION ledger_repair_limit(bigint);
DROP FUNCTION ledger_compare_limits(bigint[]);
CREATE OR REPLACE VIEW ledger_watched_counter AS
SELECT l.id, l.rule_id, l.owner_id, l.window_start, l.window_end, l.used, l.held, l.slots, l.slot_at,
    ledger_kind_of(r.metric, r.per) AS kind, l.shard
FROM limits_limitcounter l JOIN limits_limitrule r ON r.id = l.rule_id
WHERE r.enabled AND (l.window_end IS NULL OR l.window_end > now() - interval '2 days')
    AND (r.plan_id IS NULL OR (
        EXISTS (SELECT FROM limits_planmembership m WHERE m.plan_id = r.plan_id AND m.tenant_id = l.owner_id)
        AND NOT EXISTS (SELECT FROM limits_limitrule o WHERE o.tenant_id = l.owner_id AND o.enabled
            AND o.metric = r.metric AND o.per = r.per AND o.tokens = r.tokens
            AND o.model_id IS NOT DISTINCT FROM r.model_id)));

-- In one statement, so in one snapshot (0008). Of a sliding minute: used is what its live slots hold, and seconds and
-- amounts are what is missing in them.
CREATE FUNCTION ledger_compare_limits(p_counters bigint[]) RETURNS SETOF ledger_drift LANGUAGE sql STABLE AS $$
    SELECT w.id, w.rule_id, w.owner_id, w.window_start, w.window_end, w.kind,
        CASE WHEN w.kind = 'm' THEN slot.mine ELSE a.used END, a.held,
        CASE WHEN w.kind <> 'm' THEN t.used WHEN a.stepped THEN slot.mine ELSE slot.own END, t.held,
        CASE WHEN NOT a.stepped THEN slot.seconds END, CASE WHEN NOT a.stepped THEN slot.amounts END
    FROM ledger_watched_counter w,
        LATERAL (SELECT sum(l.used) AS used, sum(l.held) AS held,
                greatest(max(l.slot_at), floor(extract(epoch FROM now()))::bigint) AS at,
                -- The clock was put back: time that is repeated is twice in the ledger and once in the slots.
                COALESCE(greatest(max(l.stepped_to) + 61, max(l.slot_at) - 60) > extract(epoch FROM now()), false)
                    AS stepped
            FROM limits_limitcounter l WHERE l.rule_id = w.rule_id AND l.owner_id = w.owner_id
                AND l.window_start = w.window_start) a,
        LATERAL ledger_limit_truth(w.rule_id, w.owner_id, w.window_start, w.window_end, w.kind, a.at) t,
        LATERAL (
            SELECT sum(s.mine) AS mine, sum(s.own) AS own,
                array_agg(a.at - (((a.at - (s.n - 1)) % 61 + 61) % 61)) FILTER (WHERE s.mine <> s.own) AS seconds,
                array_agg(s.own::numeric - s.mine) FILTER (WHERE s.mine <> s.own) AS amounts
            FROM (SELECT o.n, o.own, (
                      SELECT sum((ledger_slots_add(l.slots, l.slot_at, NULL, NULL, a.at))[o.n]) FROM limits_limitcounter l
                      WHERE l.rule_id = w.rule_id AND l.owner_id = w.owner_id AND l.window_start = w.window_start) AS mine
                  FROM unnest(t.slots) WITH ORDINALITY AS o (own, n)) s
            WHERE w.kind = 'm') slot
    WHERE w.id = ANY (p_counters) AND w.shard = 0
$$;

-- Returns what it found; nothing if there is no such counter any more.
CREATE FUNCTION ledger_repair_limit(p_counter bigint) RETURNS SETOF ledger_drift LANGUAGE plpgsql AS $$
DECLARE
    d ledger_drift;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ledger_drift'));
    -- First, and locked until we commit: a hold that the ledger counts and that knows nothing of this counter.
    PERFORM ledger_adopt_holds(w.rule_id, w.owner_id, w.window_start, w.window_end, w.kind)
    FROM ledger_watched_counter w WHERE w.id = p_counter;
    FOR d IN SELECT * FROM ledger_compare_limits(ARRAY[p_counter]) LOOP
        UPDATE limits_limitcounter l SET
            used = CASE WHEN d.kind = 'm' THEN l.used ELSE l.used + d.true_used - d.used END,
            held = l.held + d.true_held - d.held
        WHERE l.id = d.counter AND (d.used <> d.true_used OR d.held <> d.true_held);
        IF d.amounts IS NOT NULL THEN
            UPDATE limits_limitcounter l SET live = NULL,  -- worked out when it is next moved
                slots = ledger_slots_add(l.slots, l.slot_at, d.seconds, d.amounts, l.slot_at)
            WHERE l.id = d.counter;
        END IF;
        RETURN NEXT d;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION ledger_dead_processes(p_lease interval) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
    -- The clock was put back: a heartbeat of the future says nothing, and neither does a suspicion.
    UPDATE ledger_process p SET heartbeat_at = least(p.heartbeat_at, now()), suspected_at = NULL
    WHERE p.ended_at IS NULL AND greatest(p.heartbeat_at, p.suspected_at) > now() + interval '1 minute';

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
