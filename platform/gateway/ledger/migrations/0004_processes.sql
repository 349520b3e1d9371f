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
