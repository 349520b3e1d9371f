-- For databases that come from here: most of it is replaced by 0009 to 0015, which have the text in force.

-- The desk: one call decides, books and commits a whole batch (design.md 2). No other code writes holds,
-- records and counters but the sweeper (0007) and ledger/books.py. Rules that order everything here:
--   * counters are locked before holds, both in id order, by everybody: no deadlocks;
--   * lock first, then look, in a later statement (READ COMMITTED): a repeated batch finds what it did before;
--   * an item says all that its record needs, so that a settlement survives the loss of its hold.

-- The claims of these admissions, with the state of their rows at an instant.
CREATE FUNCTION ledger_states(p_items ledger_item[], p_instant timestamptz)
RETURNS TABLE (request_id uuid, claim ledger_claim, counter bigint, used numeric, held numeric, taken numeric,
    slots bigint[], slot_at bigint)
LANGUAGE sql STABLE AS $$
    SELECT i.request_id, c, l.id, l.used, l.held,
        CASE WHEN (c).kind = 'm'
            THEN ledger_slots_sum(l.slots, l.slot_at, greatest(l.slot_at, floor(extract(epoch FROM p_instant))::bigint))
            ELSE l.used + l.held END,
        l.slots, l.slot_at
    FROM unnest(p_items) i, LATERAL jsonb_populate_recordset(NULL::ledger_claim, i.limits) c
    JOIN limits_limitcounter l ON l.rule_id = (c).rule AND l.owner_id = (c).owner AND l.window_start = (c).starts
$$;

CREATE FUNCTION ledger_take(p_items ledger_item[], p_instant timestamptz) RETURNS void LANGUAGE sql AS $$
    SELECT ledger_move_limits(array_agg(ROW((c).rule, (c).owner, (c).starts, (c).kind, (c).ask, 0,
        floor(extract(epoch FROM p_instant))::bigint)::ledger_change))
    FROM unnest(p_items) i, LATERAL jsonb_populate_recordset(NULL::ledger_claim, i.limits) c
    HAVING count(*) > 0
$$;

-- What each of these admissions is decided on, as if they came one after the other. A row of `decided` is
-- [rule, owner, kind, measure, enforce, starts, ends, amount, ask, used, held]: kind and measure as ascii codes,
-- instants as epoch seconds, -1 for no end (ledger/decisions.py reads it).
CREATE TYPE ledger_decision AS (request_id uuid, decided numeric[], fits boolean);

CREATE FUNCTION ledger_decisions(p_items ledger_item[], p_instant timestamptz) RETURNS SETOF ledger_decision
LANGUAGE sql STABLE AS $$
    SELECT w.request_id, array_agg(ARRAY[(w.claim).rule, (w.claim).owner, ascii((w.claim).kind),
            ascii((w.claim).measure), (w.claim).enforce::integer, extract(epoch FROM (w.claim).starts),
            COALESCE(extract(epoch FROM (w.claim).ends), -1), (w.claim).amount, (w.claim).ask,
            CASE WHEN (w.claim).kind = 'm' THEN w.taken ELSE w.used END,
            CASE WHEN (w.claim).kind = 'm' THEN 0 ELSE w.held END + w.earlier] ORDER BY (w.claim).rule),
        bool_and(NOT (w.claim).enforce OR w.taken + w.earlier + (w.claim).ask <= (w.claim).amount)
    FROM (SELECT s.request_id, s.claim, s.used, s.held, s.taken, sum((s.claim).ask) OVER (
              PARTITION BY s.counter ORDER BY s.request_id ROWS UNBOUNDED PRECEDING) - (s.claim).ask AS earlier
          FROM ledger_states(p_items, p_instant) s) w
    GROUP BY w.request_id
$$;

-- Which of these admissions do not fit, decided in their order; the others are counted. Rows are locked. A batch in
-- which nothing runs short is taken as a whole; else those that touch a short row are decided one by one.
-- An answer: [request_id, "limited", instant, null, [{claim and state}, …]]; wait_ms: until it fits, if nobody else
-- takes what becomes free; reset_ms: until nothing of it is used.
CREATE FUNCTION ledger_judge(
    p_items ledger_item[], instant timestamptz, OUT refused uuid[], OUT answers json[], OUT decisions ledger_decision[]
) LANGUAGE plpgsql AS $$
DECLARE
    all_fit boolean;
    topped bigint[];
    short bigint[];
    hard uuid[];
    easy ledger_item[];
    item ledger_item;
    decision ledger_decision;
    refusals ledger_decision[] := '{}';
    detail json;
BEGIN
    refused := '{}';
    answers := '{}';
    SELECT array_agg(d), bool_and(d.fits) INTO decisions, all_fit FROM ledger_decisions(p_items, instant) d;
    IF COALESCE(all_fit, true) THEN
        PERFORM ledger_take(p_items, instant);
        RETURN;
    END IF;
    SELECT array_agg(t.counter) INTO short FROM (
        SELECT s.counter FROM ledger_states(p_items, instant) s WHERE (s.claim).enforce
        GROUP BY s.counter HAVING max(s.taken) + sum((s.claim).ask) > min((s.claim).amount)) t;
    SELECT array_agg(DISTINCT s.request_id) INTO hard FROM ledger_states(p_items, instant) s
    WHERE (s.claim).enforce AND s.counter = ANY (short);
    -- Credit that has expired and that nobody has closed yet: what was paid with it stays paid. Those ask again.
    SELECT array_agg(DISTINCT s.request_id), array_agg(DISTINCT (s.claim).rule) INTO refused, topped
    FROM ledger_states(p_items, instant) s JOIN limits_credit c ON c.rule_id = (s.claim).rule
    WHERE s.counter = ANY (short) AND c.closed_at IS NULL AND c.expires_at <= now();
    refused := COALESCE(refused, '{}');
    IF topped IS NOT NULL THEN
        PERFORM ledger_close_credits(r) FROM unnest(topped) r;
        SELECT array_agg(json_build_array(r, 'stale', instant)) INTO answers FROM unnest(refused) r;
    END IF;
    SELECT array_agg(i) INTO easy FROM unnest(p_items) i WHERE i.request_id <> ALL (hard);
    SELECT array_agg(d) INTO decisions FROM ledger_decisions(easy, instant) d;
    PERFORM ledger_take(easy, instant);
    FOREACH item IN ARRAY p_items LOOP
        CONTINUE WHEN item.request_id <> ALL (hard) OR item.request_id = ANY (refused);
        SELECT * INTO decision FROM ledger_decisions(ARRAY[item], instant);
        IF decision.fits THEN
            decisions := decisions || decision;
            PERFORM ledger_take(ARRAY[item], instant);
            CONTINUE;
        END IF;
        SELECT json_agg(json_build_object('rule', (s.claim).rule, 'kind', (s.claim).kind, 'measure', (s.claim).measure,
                'amount', (s.claim).amount, 'ask', (s.claim).ask, 'enforce', (s.claim).enforce,
                'starts', (s.claim).starts, 'ends', (s.claim).ends, 'used', s.used, 'held', s.held, 'taken', s.taken,
                'fits', s.taken + (s.claim).ask <= (s.claim).amount,
                'wait_ms', CASE WHEN s.taken + (s.claim).ask > (s.claim).amount THEN
                    CASE WHEN (s.claim).kind = 'm' THEN
                        ledger_slots_wait(s.slots, s.slot_at, s.taken + (s.claim).ask - (s.claim).amount, instant)
                    ELSE ceil(extract(epoch FROM (s.claim).ends - instant) * 1000) END END,
                'reset_ms', CASE WHEN (s.claim).kind = 'm' THEN
                    ledger_slots_wait(s.slots, s.slot_at, nullif(s.taken, 0), instant)
                    ELSE ceil(extract(epoch FROM (s.claim).ends - instant) * 1000) END))
        INTO detail FROM ledger_states(ARRAY[item], instant) s;
        refused := refused || item.request_id;
        refusals := refusals || decision;
        answers := answers || json_build_array(item.request_id, 'limited', instant, NULL, detail);
    END LOOP;
    PERFORM ledger_keep_refusals(p_items, refusals, instant);
END $$;

-- Keeps refusals, so that they can be explained: of one key at most three a batch, of which the first stands for
-- the rest. A request that was refused, lowered and refused again has one row, its last.
CREATE FUNCTION ledger_keep_refusals(p_items ledger_item[], p_refusals ledger_decision[], p_instant timestamptz)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO limits_refusal (request_id, tenant_id, key_id, model, rule_id, at, input_tokens, output_tokens,
        decided, stands_for)
    SELECT r.request_id, r.tenant_id, r.key_id, r.model, tightest.rule, p_instant, r.input_tokens, r.output_tokens,
        r.decided, r.keep + CASE WHEN r.n = 1 THEN greatest(r.total - 3, 0) ELSE 0 END
    FROM (SELECT i.request_id, i.tenant_id, i.key_id, i.model, i.input_tokens, i.output_tokens, i.keep, d.decided,
              row_number() OVER (PARTITION BY i.key_id ORDER BY i.request_id) AS n,
              count(*) OVER (PARTITION BY i.key_id) AS total
          FROM unnest(p_items) i JOIN unnest(p_refusals) d ON d.request_id = i.request_id
          WHERE i.keep IS NOT NULL) r,
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

-- The claims of a request that has ended: its hold's; without a hold those of the counters that count it now.
CREATE FUNCTION ledger_claims_of(p_held jsonb, p_item ledger_item) RETURNS SETOF ledger_claim
LANGUAGE sql STABLE AS $$
    SELECT * FROM jsonb_populate_recordset(NULL::ledger_claim, p_held)
    UNION ALL
    SELECT c.* FROM ledger_counted(p_item.tenant_id, p_item.key_id, p_item.catalogue_model_id, p_item.charge_currency,
        p_item.started_at) c WHERE p_held IS NULL AND p_item.op = 's'
$$;

-- What a request that has ended takes from its windows: the hold goes, the real use comes.
CREATE FUNCTION ledger_measure(p_measure text, p_tokens_in bigint, p_tokens_out bigint, p_charge bigint)
RETURNS numeric LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE p_measure WHEN 'q' THEN 1 WHEN 'i' THEN p_tokens_in WHEN 'o' THEN p_tokens_out
        WHEN 'b' THEN p_tokens_in + p_tokens_out WHEN 's' THEN COALESCE(p_charge, 0) ELSE 0 END
$$;

-- p_skip: do not wait for locked rows; items that need one answer "blocked" and nothing of them is done.
-- p_retry: an earlier try of this batch may have been committed without our knowing.
-- Returns [[request_id, verdict, started_at, local_date], …]; verdicts: ok, stale, suspended, refused, blocked, window
-- (the caller's clock is in another window than ours), limited,
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
    limited uuid[] := '{}';
    limit_answers json[] := '{}';
    decisions ledger_decision[];
    swept uuid[] := '{}';
    catalogue bigint;
    deltas ledger_delta[];
    more ledger_delta[];
    claims ledger_claim[];
    instant timestamptz := now();
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

    -- Whoever makes a counter for everybody has the holds to itself (ledger_make_counter). All others enter here:
    -- before they lock limits, which it may wait for; and before they look at versions, so that whoever has not
    -- heard of the new limit is waited for, and is in the ledger that the counter starts from.
    IF owners IS NOT NULL THEN
        IF EXISTS (
            SELECT FROM unnest(items) i, LATERAL jsonb_populate_recordset(NULL::ledger_claim, i.limits) c
            WHERE i.op = 'a' AND c.owner = 0
                AND NOT EXISTS (SELECT FROM limits_limitcounter l
                                WHERE l.rule_id = c.rule AND l.owner_id = 0 AND l.window_start = c.starts)
                AND EXISTS (SELECT FROM limits_limitrule r
                            WHERE r.id = c.rule AND r.tenant_id IS NULL AND r.key_id IS NULL AND r.plan_id IS NULL))
        THEN
            LOCK TABLE ledger_hold IN SHARE ROW EXCLUSIVE MODE;
        ELSE
            LOCK TABLE ledger_hold IN ROW EXCLUSIVE MODE;
        END IF;
    END IF;

    -- Admissions and checks: are the facts that they were prepared with still the facts?
    SELECT version INTO catalogue FROM catalogue_catalogueversion;
    SELECT array_agg(i) FILTER (WHERE v.verdict = 'ok'),
        COALESCE(array_agg(json_build_array(i.request_id, v.verdict, now())) FILTER (WHERE v.verdict <> 'ok'), '{}')
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
        -- The caller's clock was in another window than ours: it asks again, with our time.
        WHEN EXISTS (SELECT FROM jsonb_populate_recordset(NULL::ledger_claim, i.limits) c
                     WHERE now() < c.starts OR now() >= c.ends) THEN 'window'
        ELSE 'ok' END AS verdict) v
    WHERE i.op IN ('a', 'c');

    -- A batch that is sent again may have been admitted, settled or swept already: then nothing is decided anew.
    SELECT array_agg(i) INTO admits FROM unnest(checked) i WHERE i.op = 'a'
        AND NOT (p_retry AND (EXISTS (SELECT FROM ledger_usagerecord r WHERE r.request_id = i.request_id)
                              OR EXISTS (SELECT FROM ledger_hold h WHERE h.request_id = i.request_id)));

    SELECT array_agg(c) INTO claims FROM (
        SELECT c FROM unnest(admits) i, LATERAL jsonb_populate_recordset(NULL::ledger_claim, i.limits) c
        UNION ALL
        SELECT c FROM unnest(items) i LEFT JOIN ledger_hold h ON h.request_id = i.request_id,
            LATERAL ledger_claims_of(h.limits, i) c
        WHERE i.op IN ('s', 'r')) u;
    IF claims IS NOT NULL THEN
        PERFORM ledger_lock_limits(claims);
        -- Decided now that the rows are ours, and so it starts now, to the second in which it is counted. If we
        -- waited into another window it asks again.
        instant := clock_timestamp();
        IF EXISTS (SELECT FROM unnest(claims) c WHERE c.ends <= instant) THEN
            SELECT refused || COALESCE(array_agg(json_build_array(i.request_id, 'window', instant)), '{}'),
                COALESCE(array_agg(i.request_id), '{}')
            INTO refused, limited FROM unnest(admits) i WHERE EXISTS (
                SELECT FROM jsonb_populate_recordset(NULL::ledger_claim, i.limits) c WHERE c.ends <= instant);
            SELECT array_agg(i) INTO admits FROM unnest(admits) i WHERE i.request_id <> ALL (limited);
            SELECT array_agg(i) INTO checked FROM unnest(checked) i WHERE i.request_id <> ALL (limited);
            limited := '{}';
        END IF;
        IF EXISTS (SELECT FROM unnest(admits) i WHERE i.limits IS NOT NULL) THEN
            SELECT * INTO limited, limit_answers, decisions FROM ledger_judge(admits, instant);
            IF limited <> '{}' THEN
                SELECT array_agg(i) INTO admits FROM unnest(admits) i WHERE i.request_id <> ALL (limited);
                SELECT array_agg(i) INTO checked FROM unnest(checked) i WHERE i.request_id <> ALL (limited);
            END IF;
        END IF;
    END IF;

    WITH held AS (
        INSERT INTO ledger_hold (request_id, process_id, tenant_id, key_id, model, started_at, local_date,
            charge_currency, cost_currency, catalogue_model_id, deployment_id, provider_id, endpoint, stream,
            input_tokens, output_tokens, amount, charge_price_id, cost_price_id, client_request_id, end_user, limits,
            decided)
        SELECT i.request_id, p_process, i.tenant_id, i.key_id, i.model, instant,
            (instant AT TIME ZONE i.timezone)::date, i.charge_currency, i.cost_currency, i.catalogue_model_id,
            i.deployment_id, i.provider_id, i.endpoint, i.stream, i.input_tokens, i.output_tokens, i.amount,
            i.charge_price_id, i.cost_price_id, i.client_request_id, i.end_user, COALESCE(i.limits, '[]'),
            COALESCE(d.decided, '{}')
        FROM unnest(admits) i LEFT JOIN unnest(decisions) d ON d.request_id = i.request_id
        ON CONFLICT (request_id) DO NOTHING
        RETURNING tenant_id, key_id, charge_currency, amount
    )
    SELECT array_agg(ROW(tenant_id, key_id, charge_currency, 0, 0, 0, 1, amount)::ledger_delta)
    INTO deltas FROM held;

    -- Refused at first, lowered by a limit of on_shortage: fit, and admitted now.
    IF EXISTS (SELECT FROM unnest(admits) i WHERE i.lowered IS NOT NULL) THEN
        UPDATE limits_refusal r SET lowered_to = i.lowered FROM unnest(admits) i
        WHERE i.lowered IS NOT NULL AND r.request_id = i.request_id;
    END IF;

    -- Settlements and releases take their holds; whoever deletes the hold books the request.
    IF EXISTS (SELECT FROM unnest(items) i WHERE i.op IN ('s', 'r')) THEN
        SELECT * INTO more, swept FROM ledger_settle(p_process, items);
        deltas := deltas || more;
    END IF;
    IF deltas IS NOT NULL THEN
        PERFORM ledger_move_counters(deltas);
    END IF;

    SELECT json_agg(a.row) INTO answer FROM (
        -- What it was decided on: with its own ask, the state after this request, however many came with it.
        SELECT json_build_array(i.request_id, 'ok', h.started_at, h.local_date,
                CASE WHEN i.limits IS NOT NULL THEN to_json(h.decided) END) AS row
            FROM unnest(checked) i LEFT JOIN ledger_hold h ON h.request_id = i.request_id
        UNION ALL SELECT unnest(refused)
        UNION ALL SELECT unnest(limit_answers)
        UNION ALL SELECT json_build_array(b, 'blocked') FROM unnest(blocked) b
        UNION ALL SELECT json_build_array(i.request_id, CASE WHEN i.request_id = ANY (swept) THEN 'swept' ELSE 'ok' END)
            FROM unnest(items) i WHERE i.op IN ('s', 'r')
    ) a;
    RETURN answer;
END $$;
