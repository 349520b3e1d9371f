-- A counter that is made in the middle of its window starts from the ledger: all that was used and is held is in its first
-- row. Two kinds of holds did not know that. One that another row had lent before: if that row was made again too, it was
-- given back there what it had never lent; the rows added up all the same. And one from before the limit, if it ended in
-- the very batch that made the counter: what it held stayed in it, until drift was looked for.

-- Claims, of which that of this window is given back to the first row.
CREATE FUNCTION ledger_first_row_claims(claims bigint[], p_rule bigint, p_owner bigint, p_starts bigint) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    FOR s IN 1 .. array_length(claims, 1) LOOP
        IF claims[s][1] = p_rule AND claims[s][2] = p_owner AND claims[s][6] = p_starts THEN
            claims[s][11] := 0;
        END IF;
    END LOOP;
    RETURN claims;
END $$;

-- As in 0010; and what is held is told of the first row. Nobody else is giving it back just then: see there.
CREATE OR REPLACE FUNCTION ledger_make_window(
    p_rule bigint, p_owner bigint, p_starts timestamptz, p_ends timestamptz, p_kind text, p_alone boolean
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    made bigint;
    at bigint;
    first bigint := floor(extract(epoch FROM p_starts));
BEGIN
    IF p_alone THEN
        LOCK TABLE ledger_hold IN SHARE ROW EXCLUSIVE MODE;
    END IF;
    INSERT INTO limits_limitcounter (rule_id, owner_id, window_start, window_end, used, held)
    VALUES (p_rule, p_owner, p_starts, p_ends, 0, 0) ON CONFLICT DO NOTHING RETURNING id INTO made;
    IF made IS NULL THEN
        RETURN;
    END IF;
    PERFORM ledger_adopt_holds(p_rule, p_owner, p_starts, p_ends, p_kind);
    UPDATE ledger_hold h SET claims = ledger_first_row_claims(h.claims, p_rule, p_owner, first)
    WHERE EXISTS (SELECT FROM ledger_claim_rows(h.claims) c
        WHERE c.rule = p_rule AND c.owner = p_owner AND c.starts = first AND c.shard > 0);
    at := floor(extract(epoch FROM clock_timestamp()));
    UPDATE limits_limitcounter SET used = t.used, held = t.held, slots = t.slots,
        slot_at = CASE WHEN p_kind = 'm' THEN at END, live = ledger_slots_sum(t.slots, at, at)
    FROM ledger_limit_truth(p_rule, p_owner, p_starts, p_ends, p_kind, at) t WHERE id = made;
END $$;

-- As in 0010; and says whether some were made: those count all that is held, also what this batch gives back and did not
-- know of them before. So gives are looked up anew then.
DROP FUNCTION ledger_lock_windows(ledger_ask[], ledger_ask[], boolean);
CREATE FUNCTION ledger_lock_windows(
    INOUT asks ledger_ask[], INOUT gives ledger_ask[], p_whole boolean, OUT locked bigint[], OUT waits ledger_wait[],
    OUT made boolean
) LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    times timestamptz[];
    astray bigint[];
    missing boolean;
    before timestamptz;
BEGIN
    made := false;
    LOOP
        SELECT array_agg(DISTINCT a.counter) FILTER (WHERE a.counter IS NOT NULL), bool_or(a.counter IS NULL
            AND a.second IS NULL AND EXISTS (SELECT FROM limits_limitrule r WHERE r.id = a.rule))
        INTO ids, missing FROM unnest(asks || gives) a;
        IF missing THEN
            PERFORM ledger_make_windows(asks);
            made := true;
            asks := ledger_find_windows(asks);
            gives := ledger_find_windows(gives);
            CONTINUE;
        END IF;
        IF p_whole THEN
            SELECT array_agg(DISTINCT u.id) INTO ids FROM (
                SELECT unnest(ids) AS id UNION ALL
                SELECT l.id FROM unnest(asks) a JOIN limits_limitcounter l ON l.rule_id = a.rule
                    AND l.owner_id = a.owner AND l.window_start = to_timestamp(a.starts) WHERE a.whole) u;
        END IF;
        before := clock_timestamp();
        -- Each row's time is when we had it: the projection is above the locks, and is made row by row.
        SELECT array_agg(l.id), array_agg(clock_timestamp()),
            array_agg(l.id) FILTER (WHERE l.slot_at > extract(epoch FROM clock_timestamp()) + 60)
        INTO locked, times, astray FROM (
            SELECT c.id, c.slot_at FROM limits_limitcounter c WHERE c.id = ANY (ids) ORDER BY c.id FOR UPDATE) l;
        IF times[array_length(times, 1)] > before + interval '1 ms' THEN
            SELECT waits || array_agg(ROW(CASE WHEN a.everybody THEN 0 ELSE a.tenant END,
                CASE WHEN a.everybody THEN a.rule ELSE 0 END, w.ms)::ledger_wait) INTO waits
            FROM (SELECT locked[n] AS id, (1000 * extract(epoch FROM times[n]
                      - CASE WHEN n = 1 THEN before ELSE times[n - 1] END))::integer AS ms
                  FROM generate_series(1, array_length(locked, 1)) n) w,
                LATERAL (SELECT u.* FROM unnest(asks || gives) u WHERE u.counter = w.id LIMIT 1) a
            WHERE w.ms >= 1;
        END IF;
        -- Fewer: one was deleted while we waited for it. Or somebody has made a row and given it a share, before we had
        -- the others. Then all of it again, with what there is now.
        EXIT WHEN COALESCE(array_length(locked, 1), 0) = COALESCE(array_length(ids, 1), 0) AND NOT (p_whole AND EXISTS (
            SELECT FROM unnest(asks) a JOIN limits_limitcounter l ON l.rule_id = a.rule AND l.owner_id = a.owner
                AND l.window_start = to_timestamp(a.starts) WHERE a.whole AND l.id <> ALL (locked)));
        asks := ledger_find_windows(asks);
        gives := ledger_find_windows(gives);
    END LOOP;
    IF astray IS NOT NULL THEN
        PERFORM ledger_step_back(astray);
    END IF;
END $$;
