-- The rows of limits' counters: made, locked, moved, and shared out between processes.
--
-- One row per limit and window (shard 0) is enough until many processes want it at once: locks span the commit's
-- flush. A process that has waited long for a row (ledger/heat.py) makes one of its own, shard n, and decides there.
-- Still exact: each row has a share, nothing is taken beyond it, and the shares never add up to more than the amount.
-- Where a share does not do, the request comes again and all rows of the window are locked: only then it may be
-- refused, and what is left is shared out anew (ledger_share).


-- A locked row. Of a window in several rows: first is the first locked one of them, used and held are those of all
-- (of a minute: what all slots hold, and 0), room is what is left of this row's own share, without what others have
-- taken beyond theirs (real use may be more than was held); null: one row has all.
CREATE TYPE ledger_window AS (id bigint, first bigint, used numeric, held numeric, room numeric, share_of bigint);
-- Somebody waited: for a tenant's row, or (tenant 0) for that of a rule for everybody.
CREATE TYPE ledger_wait AS (tenant bigint, rule bigint, ms integer);
-- What is added to a row.
CREATE TYPE ledger_shift AS (counter bigint, kind integer, held numeric, used numeric, second bigint);

UPDATE limits_limitcounter SET live = ledger_slots_sum(slots, slot_at, slot_at) WHERE slots IS NOT NULL;
-- Hot rows: room for HOT updates on the page, and vacuum that keeps up with them.
ALTER TABLE limits_limitcounter SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 500);

-- What a minute holds at a second, which is not before slot_at. Cheap, since few seconds have passed as a rule.
CREATE FUNCTION ledger_slots_live(slots bigint[], slot_at bigint, live bigint, at bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF slots IS NULL THEN
        RETURN 0;
    ELSIF live IS NULL OR at - slot_at >= 20 THEN
        RETURN ledger_slots_sum(slots, slot_at, at);
    END IF;
    FOR t IN slot_at + 1 .. at LOOP
        live := live - slots[((t % 61) + 61) % 61 + 1];
    END LOOP;
    RETURN live;
END $$;

-- Adds amounts at seconds and moves on to `at`; what has left the minute by then, or is still to come, is dropped.
CREATE FUNCTION ledger_slots_move(
    INOUT slots bigint[], INOUT slot_at bigint, INOUT live bigint, seconds bigint[], amounts numeric[], at bigint
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    i integer;
BEGIN
    IF slots IS NULL OR live IS NULL OR at - slot_at >= 20 THEN
        slots := ledger_slots_add(slots, slot_at, seconds, amounts, at);
        live := ledger_slots_sum(slots, at, at);
    ELSE
        FOR t IN slot_at + 1 .. at LOOP
            i := t % 61 + 1;
            live := live - slots[i];
            slots[i] := 0;
        END LOOP;
        FOR n IN 1 .. array_length(seconds, 1) LOOP
            IF seconds[n] > at - 61 AND seconds[n] <= at THEN
                i := seconds[n] % 61 + 1;
                slots[i] := slots[i] + amounts[n];
                live := live + amounts[n];
            END IF;
        END LOOP;
    END IF;
    slot_at := at;
END $$;

-- The same ages, so many seconds earlier.
CREATE FUNCTION ledger_slots_shift(slots bigint[], back bigint) RETURNS bigint[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(slots[(i + back) % 61 + 1] ORDER BY i) FROM generate_series(0, 60) AS i
$$;

-- The clock was put back by more than a minute: what these rows have is as old as it was, so that they neither let more
-- through nor say no for longer than a minute. (By less it does not matter: new seconds still fall among the slots.)
CREATE FUNCTION ledger_step_back(p_ids bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    at bigint := floor(extract(epoch FROM clock_timestamp()));
BEGIN
    UPDATE limits_limitcounter l SET slots = ledger_slots_shift(l.slots, l.slot_at - at), slot_at = at,
        stepped_to = greatest(l.stepped_to, l.slot_at)
    WHERE l.id = ANY (p_ids) AND l.slot_at > at;
END $$;

-- Makes the rows that are missing, in an order that all keep. A row beside the first one begins with nothing.
CREATE FUNCTION ledger_make_windows(p_asks ledger_ask[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT DISTINCT a.everybody, a.rule, a.owner, a.starts, a.ends, a.kind, a.tenant
        FROM unnest(p_asks) a JOIN limits_limitrule r ON r.id = a.rule
        WHERE a.counter IS NULL AND NOT EXISTS (SELECT FROM limits_limitcounter l WHERE l.rule_id = a.rule
            AND l.owner_id = a.owner AND l.window_start = to_timestamp(a.starts) AND l.shard = 0)
        ORDER BY a.everybody DESC, a.rule, a.owner, a.starts
    LOOP
        PERFORM ledger_make_window(c.rule, c.owner, to_timestamp(c.starts),
            CASE WHEN c.ends >= 0 THEN to_timestamp(c.ends) END, chr(c.kind), c.everybody OR ledger_is_sharded(c.tenant));
    END LOOP;
    INSERT INTO limits_limitcounter (rule_id, owner_id, window_start, window_end, used, held, live, slots, slot_at,
        shard, share)
    SELECT DISTINCT a.rule, a.owner, to_timestamp(a.starts), CASE WHEN a.ends >= 0 THEN to_timestamp(a.ends) END, 0, 0,
        CASE chr(a.kind) WHEN 'm' THEN 0 END, CASE chr(a.kind) WHEN 'm' THEN array_fill(0::bigint, ARRAY[61]) END,
        CASE chr(a.kind) WHEN 'm' THEN floor(extract(epoch FROM clock_timestamp()))::bigint END, a.shard, 0
    FROM unnest(p_asks) a JOIN limits_limitrule r ON r.id = a.rule
    WHERE a.counter IS NULL AND a.shard > 0 AND a.second IS NULL
    ORDER BY 1, 2, 3, 10 ON CONFLICT DO NOTHING;
END $$;

-- Has some process a lifetime row of its own for this tenant? Then they do not keep each other in order.
CREATE FUNCTION ledger_is_sharded(p_tenant bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM ledger_counter WHERE scope = 'tenant' AND owner_id = p_tenant AND shard > 0)
$$;

-- In the middle of a window it starts from the ledger. A tenant's or a key's desks are kept in order by their
-- lifetime counters. Where they are not (p_alone), what is under way elsewhere must end first, or it would be neither
-- in the ledger that we read, nor find the counter.
CREATE FUNCTION ledger_make_window(
    p_rule bigint, p_owner bigint, p_starts timestamptz, p_ends timestamptz, p_kind text, p_alone boolean
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    made bigint;
    at bigint;
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
    at := floor(extract(epoch FROM clock_timestamp()));
    UPDATE limits_limitcounter SET used = t.used, held = t.held, slots = t.slots,
        slot_at = CASE WHEN p_kind = 'm' THEN at END, live = ledger_slots_sum(t.slots, at, at)
    FROM ledger_limit_truth(p_rule, p_owner, p_starts, p_ends, p_kind, at) t WHERE id = made;
END $$;

CREATE FUNCTION ledger_find_windows(p_asks ledger_ask[]) RETURNS ledger_ask[] LANGUAGE sql STABLE AS $$
    SELECT array_agg(ROW(a.n, a.request_id, a.tenant, a.rule, a.owner, a.kind, a.measure, a.enforce, a.starts, a.ends,
        a.amount, a.ask, a.everybody, a.shard, a.whole, a.real, a.second,
        CASE WHEN l.id IS NULL AND a.second IS NOT NULL THEN ledger_first_row(a.rule, a.owner, a.starts)
            ELSE l.id END)::ledger_ask ORDER BY a.ordinality)
    FROM unnest(p_asks) WITH ORDINALITY a LEFT JOIN limits_limitcounter l ON l.rule_id = a.rule
        AND l.owner_id = a.owner AND l.window_start = to_timestamp(a.starts) AND l.shard = a.shard
$$;

-- Locks the rows of what is asked and given back in id order, after making those that are asked of and missing; of a
-- request that comes again, all rows of its windows. Afterwards all asks have their counters, but for those of rules
-- that are no more. What is given back to a counter that is no more needs none: who makes it anew finds the record.
CREATE FUNCTION ledger_lock_windows(
    INOUT asks ledger_ask[], INOUT gives ledger_ask[], p_whole boolean, OUT locked bigint[], OUT waits ledger_wait[]
) LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    times timestamptz[];
    astray bigint[];
    missing boolean;
    before timestamptz;
BEGIN
    LOOP
        SELECT array_agg(DISTINCT a.counter) FILTER (WHERE a.counter IS NOT NULL), bool_or(a.counter IS NULL
            AND a.second IS NULL AND EXISTS (SELECT FROM limits_limitrule r WHERE r.id = a.rule))
        INTO ids, missing FROM unnest(asks || gives) a;
        IF missing THEN
            PERFORM ledger_make_windows(asks);
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

-- The states of these locked rows at a second, in id order.
CREATE FUNCTION ledger_window_states(p_ids bigint[], p_at bigint) RETURNS SETOF ledger_window
LANGUAGE sql STABLE AS $$
    SELECT ROW(l.id, CASE WHEN l.share IS NULL THEN l.id ELSE
            min(l.id) OVER (PARTITION BY l.rule_id, l.owner_id, l.window_start) END,
        l.used + own.live + COALESCE(o.used, 0), l.held + COALESCE(o.held, 0),
        l.share - l.used - l.held - own.live - COALESCE(o.owed, 0), l.share_of)::ledger_window
    FROM limits_limitcounter l,
        LATERAL (SELECT CASE WHEN l.slots IS NULL THEN 0 WHEN l.slot_at >= p_at AND l.live IS NOT NULL THEN l.live
            ELSE ledger_slots_live(l.slots, l.slot_at, l.live, greatest(l.slot_at, p_at)) END AS live) own,
        LATERAL (
            SELECT sum(k.used + m.live) AS used, sum(k.held) AS held,
                sum(greatest(k.used + k.held + m.live - k.share, 0)) AS owed
            FROM limits_limitcounter k, ledger_slots_live(k.slots, k.slot_at, k.live, greatest(k.slot_at, p_at)) AS m (live)
            WHERE l.share IS NOT NULL AND k.rule_id = l.rule_id
                AND k.owner_id = l.owner_id AND k.window_start = l.window_start AND k.id <> l.id) o
    WHERE l.id = ANY (p_ids)
    ORDER BY l.id
$$;

-- Adds to the locked rows, in one turn: what is admitted and what has ended.
CREATE FUNCTION ledger_move_windows(p_shifts ledger_shift[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    at bigint := floor(extract(epoch FROM clock_timestamp()));
BEGIN
    UPDATE limits_limitcounter l SET (used, held, slots, slot_at, live, moved_at) = (
        SELECT l.used + d.used, l.held + d.held, l.slots, l.slot_at, l.live, at WHERE d.seconds IS NULL
        UNION ALL
        SELECT l.used, l.held, m.slots, m.slot_at, m.live, at
        FROM ledger_slots_move(l.slots, l.slot_at, l.live, d.seconds, d.amounts, greatest(l.slot_at, at)) m
        WHERE d.seconds IS NOT NULL)
    FROM (SELECT s.counter, sum(s.held) AS held, sum(s.used) AS used,
              array_agg(s.second) FILTER (WHERE s.kind = ascii('m')) AS seconds,
              array_agg(s.held + s.used) FILTER (WHERE s.kind = ascii('m')) AS amounts
          FROM unnest(p_shifts) s WHERE s.held <> 0 OR s.used <> 0 GROUP BY 1) d
    WHERE l.id = d.counter;
END $$;

-- Shares out what is left of the windows of these requests, which have all rows of them locked: to the rows that were
-- used of late, theirs among them. Below nothing too: then rows owe, until some of it has gone by.
CREATE FUNCTION ledger_share(p_asks ledger_ask[]) RETURNS void LANGUAGE sql AS $$
    WITH n AS (SELECT floor(extract(epoch FROM clock_timestamp()))::bigint AS at),
    wanted AS (
        SELECT a.rule, a.owner, a.starts, min(a.amount) AS amount, array_agg(a.counter) AS mine
        FROM unnest(p_asks) a WHERE a.whole GROUP BY 1, 2, 3
    ), states AS (
        SELECT l.id, w.rule, w.owner, w.starts, w.amount, l.id = ANY (w.mine) OR l.moved_at > n.at - 10 AS active,
            l.used + l.held + ledger_slots_live(l.slots, l.slot_at, l.live, greatest(l.slot_at, n.at)) AS taken
        FROM n, wanted w JOIN limits_limitcounter l ON l.rule_id = w.rule AND l.owner_id = w.owner
            AND l.window_start = to_timestamp(w.starts)
    ), shared AS (
        SELECT s.id, s.active, s.taken, s.amount, count(*) OVER w AS rows, count(*) FILTER (WHERE s.active) OVER w AS n,
            s.amount - sum(s.taken) OVER w AS rest
        FROM states s WINDOW w AS (PARTITION BY s.rule, s.owner, s.starts)
    )
    UPDATE limits_limitcounter l SET share_of = s.amount,
        share = s.taken + CASE WHEN s.active THEN floor(s.rest / s.n) ELSE 0 END
    FROM shared s WHERE l.id = s.id AND s.rows > 1
$$;

-- As in limits' 0004, but nobody is at the counters meanwhile: a row that is being made beside them would be overlooked,
-- and would stay without the first one, which knows of all that was used.
CREATE OR REPLACE FUNCTION limits_forget(p_rule bigint, p_owner bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE ledger_hold IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM limits_limitcounter WHERE rule_id = p_rule AND owner_id = COALESCE(p_owner, owner_id)
        AND (window_end IS NULL OR window_end > now() - interval '3 days');
END $$;
