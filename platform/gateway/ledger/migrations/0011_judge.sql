-- Who is admitted: one after the other, in the order in which they came, with the rows locked.

DROP FUNCTION ledger_judge(ledger_item[], timestamptz);
DROP FUNCTION ledger_decisions(ledger_item[], timestamptz);
DROP FUNCTION ledger_take(ledger_item[], timestamptz);
DROP FUNCTION ledger_states(ledger_item[], timestamptz);

-- Each decision has what it was decided on, one row per limit: [rule, owner, kind, measure, enforce, starts, ends,
-- amount, ask, used, held] (ledger/decisions.py reads it). Of a minute, what runs is in used. fits: null if the share
-- of this process did not do, so that the request has to come again, with all rows locked. short: some do not fit.
CREATE FUNCTION ledger_judge(
    p_locked bigint[], p_asks ledger_ask[], p_instant timestamptz, OUT decisions ledger_decision[], OUT short boolean
) LANGUAGE plpgsql AS $$
DECLARE
    minute constant integer := ascii('m');
    a ledger_ask;
    ids bigint[];
    firsts bigint[];
    used numeric[];
    held numeric[];
    room numeric[];
    share_of bigint[];
    k integer;
    p integer;
    mine integer := 0;  -- how many claims of this request have been looked at
    rows integer[] := '{}';
    asked bigint[] := '{}';
    slots boolean[] := '{}';
    current uuid;
    verdict boolean;
    decided numeric[];
BEGIN
    decisions := '{}';
    short := false;
    SELECT array_agg(s.id), array_agg(s.first), array_agg(s.used), array_agg(s.held), array_agg(s.room),
        array_agg(s.share_of)
    INTO ids, firsts, used, held, room, share_of
    FROM ledger_window_states(p_locked, floor(extract(epoch FROM p_instant))::bigint) s;
    FOREACH a IN ARRAY p_asks || NULL::ledger_ask LOOP
        IF a.request_id IS DISTINCT FROM current THEN
            IF current IS NOT NULL THEN
                decisions := decisions || ROW(current, decided, verdict)::ledger_decision;
                short := short OR verdict IS NOT TRUE;
                FOR n IN 1 .. CASE WHEN verdict THEN 0 ELSE mine END LOOP  -- all or none
                    k := rows[n];
                    p := array_position(ids, firsts[k]);
                    IF slots[n] THEN
                        used[p] := used[p] - asked[n];
                    ELSE
                        held[p] := held[p] - asked[n];
                    END IF;
                    room[k] := room[k] + asked[n];
                END LOOP;
            END IF;
            EXIT WHEN a.request_id IS NULL;
            current := a.request_id;
            verdict := true;
            decided := '{}';
            mine := 0;
        END IF;
        CONTINUE WHEN a.counter IS NULL;  -- its rule is no more
        k := array_position(ids, a.counter);
        p := CASE WHEN firsts[k] = a.counter THEN k ELSE array_position(ids, firsts[k]) END;
        decided := decided || ARRAY[[a.rule, a.owner, a.kind, a.measure, a.enforce::integer, a.starts, a.ends,
            a.amount, a.ask, used[p], held[p]]];
        IF room[k] IS NOT NULL AND NOT a.whole AND (share_of[k] IS NULL OR (a.enforce AND (share_of[k] <> a.amount
            OR room[k] < a.ask OR used[p] + held[p] + a.ask > a.amount)))
        THEN
            verdict := CASE WHEN verdict THEN NULL ELSE verdict END;
        ELSIF a.enforce AND used[p] + held[p] + a.ask > a.amount THEN
            verdict := false;
        END IF;
        mine := mine + 1;
        rows[mine] := k;
        asked[mine] := a.ask;
        slots[mine] := a.kind = minute;
        IF a.kind = minute THEN
            used[p] := used[p] + a.ask;
        ELSE
            held[p] := held[p] + a.ask;
        END IF;
        IF room[k] IS NOT NULL THEN
            room[k] := room[k] - a.ask;
        END IF;
    END LOOP;
END $$;

-- A prepaid limit was short, and has credit that has expired and that nobody has closed yet: what was paid with it
-- stays paid. It is closed, and those requests ask again.
CREATE FUNCTION ledger_close_short_credits(p_refusals ledger_decision[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    rules bigint[];
    stale uuid[];
BEGIN
    SELECT array_agg(DISTINCT c.rule_id), array_agg(DISTINCT d.request_id) INTO rules, stale
    FROM unnest(p_refusals) d, generate_series(1, array_length(d.decided, 1)) n
    JOIN limits_credit c ON c.closed_at IS NULL AND c.expires_at <= now()
    WHERE c.rule_id = d.decided[n][1];
    PERFORM ledger_close_credits(r) FROM unnest(rules) r;
    RETURN COALESCE(stale, '{}');
END $$;

-- In how many milliseconds so much will have left a minute that holds p_taken; null: nothing has to, or so much is not
-- there. What is in no slot yet came with the same batch, in this second.
CREATE FUNCTION ledger_minute_wait(p_rule bigint, p_owner bigint, p_excess numeric, p_taken numeric,
    p_instant timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_excess <= p_taken THEN greatest(1, ceil((COALESCE((
        SELECT f.t FROM (
            SELECT u.t, sum(u.v) OVER (ORDER BY u.t) AS freed FROM (
                SELECT sum(s.v) AS v, l.slot_at - (((l.slot_at - (s.n - 1)) % 61 + 61) % 61) AS t
                FROM limits_limitcounter l, unnest(l.slots) WITH ORDINALITY AS s (v, n)
                WHERE l.rule_id = p_rule AND l.owner_id = p_owner GROUP BY 2) u
            WHERE u.v > 0 AND u.t > floor(extract(epoch FROM p_instant))::bigint - 61) f
        WHERE f.freed >= p_excess ORDER BY f.t LIMIT 1
    ), floor(extract(epoch FROM p_instant))) + 61 - extract(epoch FROM p_instant)) * 1000))::bigint END
$$;

-- What the client is told: [request_id, "limited", instant, null, [{claim and state}, …]]; wait_ms: until it fits, if
-- nobody else takes what becomes free; reset_ms: until nothing of it is used.
CREATE FUNCTION ledger_refusals(p_refusals ledger_decision[], p_instant timestamptz) RETURNS json[]
LANGUAGE sql STABLE AS $$
    SELECT array_agg(json_build_array(d.request_id, 'limited', p_instant, NULL, w.detail))
    FROM unnest(p_refusals) d, LATERAL (
        SELECT json_agg(json_build_object('rule', c.rule, 'kind', chr(c.kind), 'measure', chr(c.measure),
            'amount', c.amount, 'ask', c.ask, 'enforce', c.enforce = 1, 'starts', to_timestamp(c.starts),
            'ends', CASE WHEN c.ends >= 0 THEN to_timestamp(c.ends) END, 'used', c.used, 'held', c.held,
            'taken', c.used + c.held, 'fits', c.used + c.held + c.ask <= c.amount,
            'wait_ms', CASE WHEN c.used + c.held + c.ask > c.amount THEN
                CASE WHEN c.kind = ascii('m') THEN ledger_minute_wait(c.rule, c.owner,
                    c.used + c.ask - c.amount, c.used, p_instant) ELSE c.left_ms END END,
            'reset_ms', CASE WHEN c.kind = ascii('m') THEN
                ledger_minute_wait(c.rule, c.owner, nullif(c.used, 0), c.used, p_instant) ELSE c.left_ms END))
        AS detail
        FROM (SELECT d.decided[n][1]::bigint AS rule, d.decided[n][2]::bigint AS owner,
                  d.decided[n][3]::integer AS kind, d.decided[n][4]::integer AS measure, d.decided[n][5] AS enforce,
                  d.decided[n][6]::bigint AS starts, d.decided[n][7]::bigint AS ends, d.decided[n][8] AS amount,
                  d.decided[n][9] AS ask, d.decided[n][10] AS used, d.decided[n][11] AS held,
                  CASE WHEN d.decided[n][7] >= 0 THEN
                      ceil((d.decided[n][7] - extract(epoch FROM p_instant)) * 1000) END AS left_ms
              FROM generate_series(1, array_length(d.decided, 1)) n) c) w
$$;

-- As in 0006; but where several of a key in this batch stand for others, those are not lost with the rows that are not
-- kept.
CREATE OR REPLACE FUNCTION ledger_keep_refusals(p_items ledger_item[], p_refusals ledger_decision[], p_instant timestamptz)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO limits_refusal (request_id, tenant_id, key_id, model, rule_id, at, input_tokens, output_tokens,
        decided, stands_for)
    SELECT r.request_id, r.tenant_id, r.key_id, r.model, tightest.rule, p_instant, r.input_tokens, r.output_tokens,
        r.decided, CASE WHEN r.n = 1 THEN r.total - r.others ELSE r.keep END
    FROM (SELECT u.*, COALESCE(sum(u.keep) FILTER (WHERE u.n IN (2, 3)) OVER (PARTITION BY u.key_id), 0) AS others
          FROM (SELECT i.request_id, i.tenant_id, i.key_id, i.model, i.input_tokens, i.output_tokens, i.keep, d.decided,
                    row_number() OVER (PARTITION BY i.key_id ORDER BY i.request_id) AS n,
                    sum(i.keep) OVER (PARTITION BY i.key_id) AS total
                FROM unnest(p_items) i JOIN unnest(p_refusals) d ON d.request_id = i.request_id
                WHERE i.keep IS NOT NULL) u) r,
        LATERAL (
            SELECT r.decided[n][1] AS rule FROM generate_series(1, array_length(r.decided, 1)) AS n
            WHERE r.decided[n][5] = 1 AND r.decided[n][10] + r.decided[n][11] + r.decided[n][9] > r.decided[n][8]
            -- money first, then what can never fit, then what takes longest to end
            ORDER BY r.decided[n][4] = ascii('s') DESC, r.decided[n][9] > r.decided[n][8] DESC,
                r.decided[n][7] DESC, r.decided[n][1] LIMIT 1) tightest
    WHERE r.n <= 3
    ON CONFLICT (request_id) DO UPDATE SET rule_id = EXCLUDED.rule_id, at = EXCLUDED.at,
        output_tokens = EXCLUDED.output_tokens, decided = EXCLUDED.decided
$$;
