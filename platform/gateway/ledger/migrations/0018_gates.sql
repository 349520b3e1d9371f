-- A deployment's own limits: requests and tokens of the last sixty seconds, and requests in flight, exact across
-- processes. They are decided with the gate's row locked, which comes before all other locks, in id order, and is not
-- touched by a batch without candidates. What runs is not counted anywhere: it is the holds of those who came through,
-- so that nothing has to be given back, whoever settles, releases or sweeps them. Limits count from when they are set.

-- candidates: [[deployment, provider, rpm, tpm, in_flight], …], best first; 0: not limited. gated: has, or may have,
-- come through a gate. move: which further attempt (op m). gate_second, gate_tokens: what it took of its gate, and when
-- (set here).
ALTER TYPE ledger_item ADD ATTRIBUTE candidates bigint[], ADD ATTRIBUTE gated boolean, ADD ATTRIBUTE move smallint,
    ADD ATTRIBUTE gate_second bigint, ADD ATTRIBUTE gate_tokens bigint;

-- gate_second: null, unless its deployment is limited; gate_tokens: null, unless in tokens.
ALTER TABLE ledger_hold ADD COLUMN gate_second bigint, ADD COLUMN gate_tokens bigint,
    ADD COLUMN gate_moves smallint NOT NULL DEFAULT 0;
CREATE INDEX hold_gate ON ledger_hold (deployment_id) WHERE gate_second IS NOT NULL;

-- Slots of one second, as in limits' counters (0010).
CREATE TABLE ledger_gate (
    deployment_id bigint PRIMARY KEY,
    requests bigint[] NOT NULL,
    requests_live bigint NOT NULL,
    tokens bigint[] NOT NULL,
    tokens_live bigint NOT NULL,
    slot_at bigint NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 500);

CREATE TYPE ledger_full AS (request_id uuid, wait_ms bigint);
-- What is added to a gate at a second.
CREATE TYPE ledger_turn AS (gate bigint, requests bigint, tokens bigint, second bigint);

-- The gates that these items may change: of their candidates, and where they came through before. A settlement has
-- only tokens to put right, and none that have left the minute.
CREATE FUNCTION ledger_gates_of(p_items ledger_item[]) RETURNS TABLE (request_id uuid, gate bigint)
LANGUAGE sql STABLE AS $$
    SELECT i.request_id, i.candidates[s][1] FROM unnest(p_items) i, generate_subscripts(i.candidates, 1) s
    WHERE i.op IN ('a', 'm') AND i.candidates[s][3] + i.candidates[s][4] + i.candidates[s][5] > 0
    UNION ALL
    SELECT i.request_id, h.deployment_id FROM unnest(p_items) i JOIN ledger_hold h ON h.request_id = i.request_id
    WHERE i.gated AND i.op IN ('m', 's', 'r') AND h.gate_second IS NOT NULL AND (i.op <> 's'
        OR (h.gate_tokens IS NOT NULL AND h.gate_second > extract(epoch FROM now()) - 62))
$$;

-- Locks them in id order, after making those that are missing. Only desks lock gates, and for a batch: so p_skip waits,
-- too, as long as any lock may be waited for; then it does without. Returns whose gates are not locked.
CREATE FUNCTION ledger_lock_gates(p_items ledger_item[], p_skip boolean) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    locked bigint[];
BEGIN
    SELECT array_agg(DISTINCT n.gate) INTO ids FROM ledger_gates_of(p_items) n;
    IF ids IS NULL THEN
        RETURN '{}';
    END IF;
    INSERT INTO ledger_gate (deployment_id, requests, requests_live, tokens, tokens_live, slot_at)
    SELECT u.id, array_fill(0::bigint, ARRAY[61]), 0, array_fill(0::bigint, ARRAY[61]), 0,
        floor(extract(epoch FROM clock_timestamp()))
    FROM unnest(ids) AS u (id) WHERE NOT EXISTS (SELECT FROM ledger_gate g WHERE g.deployment_id = u.id)
    ORDER BY u.id ON CONFLICT DO NOTHING;
    IF NOT p_skip THEN
        PERFORM FROM ledger_gate g WHERE g.deployment_id = ANY (ids) ORDER BY g.deployment_id FOR UPDATE;
        RETURN '{}';
    END IF;
    BEGIN
        PERFORM FROM ledger_gate g WHERE g.deployment_id = ANY (ids) ORDER BY g.deployment_id FOR UPDATE;
        RETURN '{}';
    EXCEPTION WHEN lock_not_available THEN
        SELECT COALESCE(array_agg(l.id), '{}') INTO locked FROM (
            SELECT g.deployment_id AS id FROM ledger_gate g WHERE g.deployment_id = ANY (ids)
            ORDER BY g.deployment_id FOR UPDATE SKIP LOCKED) l;
    END;
    RETURN (SELECT COALESCE(array_agg(DISTINCT n.request_id), '{}') FROM ledger_gates_of(p_items) n
            WHERE n.gate <> ALL (locked));
END $$;

-- In how many milliseconds so much will have left these slots. What is in no slot yet came with the same batch.
CREATE FUNCTION ledger_slots_wait(p_slots bigint[], p_slot_at bigint, p_excess bigint, p_instant timestamptz)
RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT greatest(1, ceil((COALESCE((
        SELECT f.t FROM (
            SELECT u.t, sum(u.v) OVER (ORDER BY u.t) AS freed FROM (
                SELECT s.v, p_slot_at - (((p_slot_at - (s.n - 1)) % 61 + 61) % 61) AS t
                FROM unnest(p_slots) WITH ORDINALITY AS s (v, n)) u
            WHERE u.v > 0 AND u.t > floor(extract(epoch FROM p_instant))::bigint - 61) f
        WHERE f.freed >= p_excess ORDER BY f.t LIMIT 1
    ), floor(extract(epoch FROM p_instant))) + 61 - extract(epoch FROM p_instant)) * 1000))::bigint
$$;

-- When the first of these candidates will have room for so much, if nobody else takes it. Null: when something that
-- runs ends, or never.
CREATE FUNCTION ledger_gates_wait(p_candidates bigint[], p_ask bigint, p_ids bigint[], p_requests bigint[],
    p_tokens bigint[], p_running bigint[], p_instant timestamptz) RETURNS bigint LANGUAGE sql AS $$
    SELECT min(greatest(
        CASE WHEN c.rpm > 0 AND p_requests[k] >= c.rpm THEN
            ledger_slots_wait(g.requests, g.slot_at, p_requests[k] + 1 - c.rpm, p_instant) END,
        CASE WHEN c.tpm > 0 AND p_tokens[k] + p_ask > c.tpm THEN
            ledger_slots_wait(g.tokens, g.slot_at, p_tokens[k] + p_ask - c.tpm, p_instant) END))
    FROM (SELECT p_candidates[s][1] AS id, p_candidates[s][3] AS rpm, p_candidates[s][4] AS tpm,
              p_candidates[s][5] AS in_flight FROM generate_subscripts(p_candidates, 1) s) c
    JOIN ledger_gate g ON g.deployment_id = c.id, LATERAL array_position(p_ids, c.id) AS k
    WHERE (c.in_flight = 0 OR p_running[k] < c.in_flight) AND (c.tpm = 0 OR p_ask <= c.tpm)
$$;

-- For each of these items, in order, the first candidate with room, put into its deployment_id, provider_id and
-- gate_*. turns: what movers give back of the tokens of the gate that they leave.
CREATE FUNCTION ledger_pass(
    p_items ledger_item[], p_instant timestamptz, OUT passed ledger_item[], OUT crowded ledger_full[],
    OUT turns ledger_turn[]
) LANGUAGE plpgsql AS $$
DECLARE
    at bigint := floor(extract(epoch FROM p_instant));
    i ledger_item;
    h ledger_hold;
    ids bigint[];
    requests bigint[];
    tokens bigint[];
    running bigint[];
    parallel bigint[];  -- whose requests in flight are limited
    ask bigint;
    back bigint;
    k integer;
    c bigint[];
    chosen integer;
BEGIN
    SELECT array_agg(DISTINCT n.gate) INTO ids FROM ledger_gates_of(p_items) n;
    SELECT array_agg(DISTINCT u.candidates[n][1]) INTO parallel
    FROM unnest(p_items) u, generate_subscripts(u.candidates, 1) n WHERE u.candidates[n][5] > 0;
    IF EXISTS (SELECT FROM ledger_gate g WHERE g.deployment_id = ANY (ids) AND g.slot_at > at + 60) THEN
        -- The clock was put back: as ledger_step_back.
        UPDATE ledger_gate g SET requests = ledger_slots_shift(g.requests, g.slot_at - at), slot_at = at,
            tokens = ledger_slots_shift(g.tokens, g.slot_at - at)
        WHERE g.deployment_id = ANY (ids) AND g.slot_at > at + 60;
    END IF;
    SELECT array_agg(g.deployment_id),
        array_agg(ledger_slots_live(g.requests, g.slot_at, g.requests_live, greatest(g.slot_at, at))),
        array_agg(ledger_slots_live(g.tokens, g.slot_at, g.tokens_live, greatest(g.slot_at, at))),
        array_agg(CASE WHEN g.deployment_id = ANY (parallel) THEN (SELECT count(*) FROM ledger_hold r
            WHERE r.deployment_id = g.deployment_id AND r.gate_second IS NOT NULL) ELSE 0 END)
    INTO ids, requests, tokens, running FROM ledger_gate g WHERE g.deployment_id = ANY (ids);
    FOREACH i IN ARRAY COALESCE(p_items, '{}') LOOP
        ask := i.input_tokens + i.output_tokens;
        chosen := NULL;
        back := NULL;
        h := NULL;
        IF i.op = 'm' THEN
            SELECT * INTO h FROM ledger_hold r WHERE r.request_id = i.request_id;
            IF NOT FOUND THEN  -- swept: the books take it for ended
                crowded := crowded || ROW(i.request_id, NULL)::ledger_full;
                CONTINUE;
            END IF;
            IF h.gate_moves >= i.move THEN  -- an earlier try of this batch was committed
                i.deployment_id := h.deployment_id;
                i.provider_id := h.provider_id;
                i.move := NULL;
                passed := passed || i;
                CONTINUE;
            END IF;
            IF h.gate_second IS NOT NULL THEN
                back := array_position(ids, h.deployment_id);
                running[back] := running[back] - 1;
                IF h.gate_second > at - 61 THEN
                    tokens[back] := tokens[back] - COALESCE(h.gate_tokens, 0);
                END IF;
            END IF;
        END IF;
        FOR s IN 1 .. array_length(i.candidates, 1) LOOP
            k := array_position(ids, i.candidates[s][1]);
            IF (i.candidates[s][3] = 0 OR requests[k] < i.candidates[s][3])
                AND (i.candidates[s][4] = 0 OR tokens[k] + ask <= i.candidates[s][4])
                AND (i.candidates[s][5] = 0 OR running[k] < i.candidates[s][5])
            THEN
                chosen := s;
                EXIT;
            END IF;
        END LOOP;
        IF chosen IS NULL THEN
            crowded := crowded || ROW(i.request_id, ledger_gates_wait(i.candidates, ask, ids, requests, tokens, running,
                p_instant))::ledger_full;
            IF back IS NOT NULL THEN
                running[back] := running[back] + 1;
                IF h.gate_second > at - 61 THEN
                    tokens[back] := tokens[back] + COALESCE(h.gate_tokens, 0);
                END IF;
            END IF;
            CONTINUE;
        END IF;
        IF back IS NOT NULL AND h.gate_tokens IS NOT NULL THEN
            turns := turns || ROW(h.deployment_id, 0, -h.gate_tokens, h.gate_second)::ledger_turn;
        END IF;
        i.deployment_id := i.candidates[chosen][1];
        i.provider_id := i.candidates[chosen][2];
        IF chosen > 1 OR i.op = 'm' THEN  -- perhaps one of a fallback model
            i.served_model := (SELECT m.public_id FROM catalogue_deployment d JOIN catalogue_model m ON m.id = d.model_id
                               WHERE d.id = i.deployment_id AND m.id <> i.catalogue_model_id);
        END IF;
        i.gate_second := NULL;
        i.gate_tokens := NULL;
        IF i.candidates[chosen][3] + i.candidates[chosen][4] + i.candidates[chosen][5] > 0 THEN
            i.gate_second := at;
            requests[k] := requests[k] + 1;
            running[k] := running[k] + 1;
            IF i.candidates[chosen][4] > 0 THEN
                i.gate_tokens := ask;
                tokens[k] := tokens[k] + ask;
            END IF;
        END IF;
        passed := passed || i;
    END LOOP;
END $$;

-- Moves the holds of further attempts; returns all that this batch adds to gates. Of what ends: its real tokens for
-- those that it was counted with; of what is given up before anything was sent, nothing stays.
CREATE FUNCTION ledger_turns(
    p_items ledger_item[], p_admits ledger_item[], p_moves ledger_item[], p_turns ledger_turn[]
) RETURNS ledger_turn[] LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger_hold h SET deployment_id = m.deployment_id, provider_id = m.provider_id,
        served_model = COALESCE(m.served_model, ''), gate_second = m.gate_second, gate_tokens = m.gate_tokens,
        gate_moves = m.move
    FROM unnest(p_moves) m WHERE h.request_id = m.request_id AND m.move IS NOT NULL;
    RETURN p_turns || (
        SELECT array_agg(ROW(i.deployment_id, 1, i.gate_tokens, i.gate_second)::ledger_turn)
        FROM unnest(p_admits || p_moves) i
        WHERE i.gate_second IS NOT NULL AND (i.op = 'a' OR i.move IS NOT NULL)
    ) || (
        SELECT array_agg(ROW(h.deployment_id, CASE i.op WHEN 'r' THEN -1 ELSE 0 END, CASE i.op WHEN 'r' THEN 0 ELSE
            i.input_tokens + i.cached_input_tokens + i.cache_write_tokens + i.output_tokens + i.reasoning_tokens END
            - h.gate_tokens, h.gate_second)::ledger_turn)
        FROM unnest(p_items) i JOIN ledger_hold h ON h.request_id = i.request_id
        WHERE i.gated AND i.op IN ('s', 'r') AND h.gate_second IS NOT NULL
            AND (i.op = 'r' OR h.gate_tokens IS NOT NULL)
    );
END $$;

-- Adds to the locked gates, in one turn.
CREATE FUNCTION ledger_move_gates(p_turns ledger_turn[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    at bigint := floor(extract(epoch FROM clock_timestamp()));
BEGIN
    UPDATE ledger_gate g SET (requests, requests_live, tokens, tokens_live, slot_at) = (
        SELECT r.slots, r.live, t.slots, t.live, r.slot_at
        FROM ledger_slots_move(g.requests, g.slot_at, g.requests_live, d.seconds, d.requests,
                greatest(g.slot_at, at)) r,
            ledger_slots_move(g.tokens, g.slot_at, g.tokens_live, d.seconds, d.tokens, greatest(g.slot_at, at)) t)
    FROM (SELECT s.gate, array_agg(s.second) AS seconds, array_agg(s.requests::numeric) AS requests,
              array_agg(COALESCE(s.tokens, 0)::numeric) AS tokens
          FROM unnest(p_turns) s WHERE s.second > at - 61 GROUP BY 1) d
    WHERE g.deployment_id = d.gate;
END $$;

-- As 0016, with the gate that it came through.
CREATE OR REPLACE FUNCTION ledger_hold_items(
    p_process uuid, p_admits ledger_item[], p_decisions ledger_decision[], p_instant timestamptz
) RETURNS uuid[] LANGUAGE sql AS $$
    WITH held AS (
        INSERT INTO ledger_hold (request_id, process_id, tenant_id, key_id, model, started_at, local_date,
            charge_currency, cost_currency, catalogue_model_id, deployment_id, provider_id, endpoint, stream,
            input_tokens, output_tokens, amount, charge_price_id, cost_price_id, client_request_id, end_user, claims,
            decided, served_model, gate_second, gate_tokens)
        SELECT i.request_id, p_process, i.tenant_id, i.key_id, i.model, p_instant,
            (p_instant AT TIME ZONE i.timezone)::date, i.charge_currency, i.cost_currency, i.catalogue_model_id,
            i.deployment_id, i.provider_id, i.endpoint, i.stream, i.input_tokens, i.output_tokens, i.amount,
            i.charge_price_id, i.cost_price_id, i.client_request_id, i.end_user, COALESCE(i.claims, '{}'),
            COALESCE(d.decided, '{}'), COALESCE(i.served_model, ''), i.gate_second, i.gate_tokens
        FROM unnest(p_admits) i LEFT JOIN unnest(p_decisions) d ON d.request_id = i.request_id
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id
    )
    SELECT array_agg(request_id) FROM held
$$;

-- As 0013, with gates.
-- p_skip: do not wait for locked rows; items that need one answer "blocked" and nothing of them is done.
-- p_retry: an earlier try of this batch may have been committed without our knowing.
-- Returns [[request_id, verdict, started_at, local_date, decided], …]; verdicts: ok, stale, suspended, refused,
-- blocked, window (the caller's clock is in another window than ours), limited, again (a share did not do: with
-- `whole` it is decided on all rows), full (no candidate has room; with the milliseconds until one has, if it is
-- known), swept (settled by an adjustment, since the sweeper had already taken the hold). Where there are candidates,
-- the one that was taken is at the end of the row: deployment, provider.
-- One row more if somebody has been waited for: ["", "waits", [[tenant, rule, milliseconds], …]].
CREATE OR REPLACE FUNCTION ledger_desk(p_process uuid, p_items json, p_skip boolean, p_retry boolean) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE
    items ledger_item[];
    admits ledger_item[];
    checked ledger_item[];
    owners ledger_delta[];
    locked bigint[];
    blocked uuid[] := '{}';
    gated boolean;
    moves ledger_item[];
    passed ledger_item[];
    crowded ledger_full[];
    turns ledger_turn[];
    refused json[] := '{}';
    no uuid[] := '{}';
    held uuid[];
    known boolean := p_retry;
    swept uuid[] := '{}';
    deltas ledger_delta[];
    more ledger_delta[];
    asks ledger_ask[];
    gives ledger_ask[];
    shifts ledger_shift[];
    more_shifts ledger_shift[];
    decisions ledger_decision[];
    refusals ledger_decision[];
    waits ledger_wait[];
    more_waits ledger_wait[];
    instant timestamptz := now();
    begins boolean;
    alone boolean := false;
    whole boolean := false;
    made boolean;
    short boolean;
    latest bigint;  -- begin and earliest end of the claims' windows
    earliest bigint;
    ids bigint[];
    ends boolean;
    first_use boolean;
    lowered boolean;
    early boolean;
    answer json;
BEGIN
    SELECT array_agg(i), COALESCE(bool_or(i.op IN ('s', 'r')), false), COALESCE(bool_or(i.op IN ('a', 'c')), false),
        bool_or(i.first_use IS NOT NULL), bool_or(i.lowered IS NOT NULL), bool_or(i.op = 'c' AND i.keep IS NOT NULL),
        bool_or(i.gated)
    INTO items, ends, begins, first_use, lowered, early, gated FROM json_populate_recordset(NULL::ledger_item, p_items) i;

    IF gated THEN
        blocked := ledger_lock_gates(items, p_skip);
    END IF;
    SELECT array_agg(ROW(i.tenant_id, i.key_id, i.charge_currency, 0, 0, 0, 0, 0, i.shard)::ledger_delta)
    INTO owners FROM (
        SELECT DISTINCT u.tenant_id, u.key_id, u.charge_currency, COALESCE(u.shard, 0::smallint) AS shard
        FROM unnest(items) u WHERE u.op NOT IN ('c', 'm')) i;
    IF owners IS NOT NULL THEN
        SELECT * INTO locked, waits FROM ledger_lock_counters(owners, p_skip);
        IF p_skip THEN
            SELECT blocked || COALESCE(array_agg(i.request_id), '{}') INTO blocked FROM unnest(items) i
            WHERE i.op NOT IN ('c', 'm') AND (
                SELECT count(*) FROM ledger_counter c WHERE c.id = ANY (locked) AND c.currency = i.charge_currency
                AND c.shard = COALESCE(i.shard, 0)
                AND ((c.scope = 'tenant' AND c.owner_id = i.tenant_id) OR (c.scope = 'key' AND c.owner_id = i.key_id))
            ) < 2;
        END IF;
    END IF;

    -- Prices that are used for the first time become immutable here. An admin may be editing one just now.
    IF first_use THEN
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

    -- Whoever makes a counter whose use the lifetime rows do not keep in order has the holds to itself
    -- (ledger_make_window). All others enter here: before they lock limits, which it may wait for; and before they
    -- look at versions, so that whoever has not heard of the new limit is waited for, and is in the ledger that the
    -- counter starts from.
    IF begins THEN
        asks := ledger_asks(items);
        -- Whoever finds only its own row missing makes that beside the others. But if the first one is missing too, as
        -- for all processes at once when a window begins, nobody may enter in the weaker mode and then ask for more.
        SELECT COALESCE(bool_or(a.counter IS NULL AND (a.everybody OR ledger_is_sharded(a.tenant))
                AND (a.shard = 0 OR ledger_first_row(a.rule, a.owner, a.starts) IS NULL)), false),
            max(a.starts), min(a.ends) FILTER (WHERE a.ends >= 0), COALESCE(bool_or(a.whole), false)
        INTO alone, latest, earliest, whole FROM unnest(asks) a;
    END IF;
    IF owners IS NOT NULL THEN
        IF alone THEN
            LOCK TABLE ledger_hold IN SHARE ROW EXCLUSIVE MODE;
        ELSE
            LOCK TABLE ledger_hold IN ROW EXCLUSIVE MODE;
        END IF;
    END IF;

    IF begins THEN
        -- The caller's clock was in another window than ours: it asks again, with our time.
        IF extract(epoch FROM now()) < latest OR extract(epoch FROM now()) >= earliest THEN
            SELECT COALESCE(array_agg(a.request_id), '{}') INTO no FROM unnest(asks) a
            WHERE extract(epoch FROM now()) < a.starts OR (a.ends >= 0 AND extract(epoch FROM now()) >= a.ends);
        END IF;
        -- Admissions and checks: are the facts that they were prepared with still the facts?
        SELECT array_agg(i) FILTER (WHERE v.verdict = 'ok'),
            array_agg(i) FILTER (WHERE v.verdict = 'ok' AND i.op = 'a'),
            COALESCE(array_agg(json_build_array(i.request_id, v.verdict, now())) FILTER (WHERE v.verdict <> 'ok'), '{}')
        INTO checked, admits, refused
        FROM (SELECT version AS catalogue FROM catalogue_catalogueversion) s, unnest(items) i
        LEFT JOIN tenants_tenant t ON t.id = i.tenant_id
        LEFT JOIN tenants_apikey k ON k.id = i.key_id,
        LATERAL (SELECT CASE
            -- The first decision stands: the hold is durable, and nobody would release it.
            WHEN p_retry AND i.op = 'a' AND EXISTS (SELECT FROM ledger_hold h WHERE h.request_id = i.request_id) THEN 'ok'
            WHEN t.version IS DISTINCT FROM i.tenant_version OR k.version IS DISTINCT FROM i.key_version
                OR s.catalogue IS DISTINCT FROM i.catalogue_version THEN 'stale'
            WHEN i.limits IS NOT NULL THEN 'stale'  -- of a server from before 0009: its limits say nothing to us
            WHEN k.status <> 'active' OR k.expires_at <= now() THEN 'refused'
            WHEN t.status <> 'active' THEN 'suspended'
            WHEN i.request_id = ANY (no) THEN 'window'
            ELSE 'ok' END AS verdict) v
        WHERE i.op IN ('a', 'c');

        IF early THEN
            PERFORM ledger_keep_early_refusals(checked, instant);
        END IF;
        -- A batch that is sent again may have been admitted, settled or swept already: then nothing is decided anew.
        IF p_retry THEN
            SELECT array_agg(i) INTO admits FROM unnest(admits) i
            WHERE NOT EXISTS (SELECT FROM ledger_usagerecord r WHERE r.request_id = i.request_id)
                AND NOT EXISTS (SELECT FROM ledger_hold h WHERE h.request_id = i.request_id);
        END IF;
        IF cardinality(refused) > 0 OR p_retry THEN
            SELECT array_agg(a) INTO asks FROM unnest(asks) a
            WHERE EXISTS (SELECT FROM unnest(admits) i WHERE i.request_id = a.request_id);
        END IF;
    END IF;
    -- Twice where counters were made: those have what our own holds held, which did not know of them (0017).
    LOOP
        IF ends THEN
            gives := ledger_gives(items);
        END IF;
        EXIT WHEN asks IS NULL AND gives IS NULL;
        SELECT * INTO asks, gives, ids, more_waits, made FROM ledger_lock_windows(asks, gives, whole);
        waits := waits || more_waits;
        EXIT WHEN NOT made;
    END LOOP;
    IF asks IS NOT NULL THEN
        -- Decided now that the rows are ours, and so it starts now, to the second in which it is counted. If we
        -- waited into another window it asks again.
        instant := clock_timestamp();
        no := '{}';
        IF extract(epoch FROM instant) >= earliest THEN
            SELECT COALESCE(array_agg(DISTINCT a.request_id), '{}') INTO no FROM unnest(asks) a
            WHERE a.ends >= 0 AND extract(epoch FROM instant) >= a.ends;
            SELECT refused || COALESCE(array_agg(json_build_array(r, 'window', instant)), '{}') INTO refused FROM unnest(no) r;
            SELECT array_agg(a) INTO asks FROM unnest(asks) a WHERE a.request_id <> ALL (no);
        END IF;
    END IF;
    -- Which deployment, before the limits are judged: where none has room, nothing is asked of them.
    IF gated THEN
        IF asks IS NULL THEN
            instant := clock_timestamp();
        END IF;
        SELECT array_agg(i) INTO moves FROM unnest(items) i WHERE i.op = 'm';
        SELECT moves || array_agg(i) INTO moves FROM unnest(admits) i WHERE i.candidates IS NOT NULL AND i.request_id <> ALL (no);
        SELECT * INTO passed, crowded, turns FROM ledger_pass(moves, instant);
        SELECT array_agg(i) FILTER (WHERE i.op = 'm') INTO moves FROM unnest(passed) i;
        SELECT array_agg(CASE WHEN p.request_id IS NULL THEN i ELSE p END) INTO admits
        FROM unnest(admits) i LEFT JOIN unnest(passed) p ON p.request_id = i.request_id AND p.op = 'a';
        IF crowded IS NOT NULL THEN
            SELECT no || array_agg(f.request_id) INTO no FROM unnest(crowded) f;
            SELECT array_agg(a) INTO asks FROM unnest(asks) a WHERE a.request_id <> ALL (no);
        END IF;
    END IF;
    IF asks IS NOT NULL THEN
        SELECT * INTO decisions, short FROM ledger_judge(ids, asks, instant);
        IF short THEN
            SELECT array_agg(d) INTO refusals FROM unnest(decisions) d WHERE NOT d.fits;
            SELECT no || array_agg(d.request_id), refused || COALESCE(array_agg(json_build_array(d.request_id, 'again'))
                FILTER (WHERE d.fits IS NULL), '{}')
            INTO no, refused FROM unnest(decisions) d WHERE d.fits IS NOT TRUE;
            IF refusals IS NOT NULL THEN
                swept := ledger_close_short_credits(refusals);
                IF swept <> '{}' THEN
                    SELECT refused || array_agg(json_build_array(r, 'stale', instant)) INTO refused FROM unnest(swept) r;
                    SELECT array_agg(d) INTO refusals FROM unnest(refusals) d WHERE d.request_id <> ALL (swept);
                    swept := '{}';
                END IF;
                refused := refused || ledger_refusals(refusals, instant);
                PERFORM ledger_keep_refusals(items, refusals, instant);
            END IF;
        END IF;
    END IF;
    IF no <> '{}' THEN
        -- Full for want of what somebody in this batch had taken, who was then refused: that is asked again.
        IF crowded IS NOT NULL THEN
            SELECT refused || array_agg(CASE WHEN EXISTS (
                    SELECT FROM unnest(passed) p WHERE p.gate_second IS NOT NULL AND p.request_id = ANY (no))
                THEN json_build_array(f.request_id, 'again') ELSE json_build_array(f.request_id, 'full', f.wait_ms) END)
            INTO refused FROM unnest(crowded) f;
        END IF;
        SELECT array_agg(i) INTO admits FROM unnest(admits) i WHERE i.request_id <> ALL (no);
        SELECT array_agg(i) INTO checked FROM unnest(checked) i WHERE i.request_id <> ALL (no);
    END IF;

    IF admits IS NOT NULL THEN
        held := ledger_hold_items(p_process, admits, decisions, instant);
        IF COALESCE(cardinality(held), 0) < cardinality(admits) THEN  -- admitted before: the first decision stands
            SELECT array_agg(i) INTO admits FROM unnest(admits) i WHERE i.request_id = ANY (held);
            SELECT array_agg(a) INTO asks FROM unnest(asks) a WHERE a.request_id = ANY (held);
            known := true;
        END IF;
        SELECT array_agg(ROW(i.tenant_id, i.key_id, i.charge_currency, 0, 0, 0, 1, i.amount, i.shard)::ledger_delta)
        INTO deltas FROM unnest(admits) i;
        SELECT array_agg(ROW(a.counter, a.kind, a.ask, 0, floor(extract(epoch FROM instant)))::ledger_shift) INTO shifts
        FROM unnest(asks) a WHERE a.counter IS NOT NULL AND a.request_id <> ALL (no);
        -- Refused at first, lowered by a limit of on_shortage: fit, and admitted now.
        IF lowered THEN
            UPDATE limits_refusal r SET lowered_to = i.lowered FROM unnest(admits) i
            WHERE i.lowered IS NOT NULL AND r.request_id = i.request_id;
        END IF;
    END IF;
    IF gated THEN
        PERFORM ledger_move_gates(ledger_turns(items, admits, moves, turns));
    END IF;

    -- Settlements and releases take their holds; whoever deletes the hold books the request.
    IF ends THEN
        SELECT * INTO more, more_shifts, swept FROM ledger_settle(p_process, items, gives);
        deltas := deltas || more;
        shifts := shifts || more_shifts;
    END IF;
    IF deltas IS NOT NULL THEN
        PERFORM ledger_move_counters(deltas);
    END IF;
    IF shifts IS NOT NULL THEN
        PERFORM ledger_move_windows(shifts);
    END IF;
    IF whole THEN
        PERFORM ledger_share(asks);
    END IF;

    SELECT json_agg(a.row) INTO answer FROM (
        -- What it was decided on: with its own ask, the state after this request, however many came with it.
        SELECT CASE WHEN i.gated THEN json_build_array(i.request_id, 'ok', instant,
                (instant AT TIME ZONE i.timezone)::date, d.decided, i.deployment_id, i.provider_id)
            ELSE json_build_array(i.request_id, 'ok', instant, (instant AT TIME ZONE i.timezone)::date, d.decided)
            END AS row
            FROM unnest(admits) i LEFT JOIN unnest(decisions) d ON d.request_id = i.request_id
        UNION ALL SELECT json_build_array(i.request_id, 'ok', h.started_at, h.local_date, h.decided,
                h.deployment_id, h.provider_id)
            FROM unnest(checked) i LEFT JOIN ledger_hold h ON h.request_id = i.request_id
            WHERE i.op = 'c' OR (known AND NOT EXISTS (SELECT FROM unnest(admits) u WHERE u.request_id = i.request_id))
        UNION ALL SELECT unnest(refused)
        UNION ALL SELECT json_build_array(i.request_id, 'ok', i.deployment_id, i.provider_id) FROM unnest(moves) i
        UNION ALL SELECT json_build_array(b, 'blocked') FROM unnest(blocked) b
        UNION ALL SELECT json_build_array(i.request_id, CASE WHEN i.request_id = ANY (swept) THEN 'swept' ELSE 'ok' END)
            FROM unnest(items) i WHERE i.op IN ('s', 'r')
        UNION ALL SELECT json_build_array('', 'waits', json_agg(json_build_array(w.tenant, w.rule, w.ms)))
            FROM unnest(waits) w HAVING count(*) > 0
    ) a;
    RETURN answer;
END $$;
