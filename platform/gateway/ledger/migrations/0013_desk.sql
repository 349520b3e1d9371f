-- The desk, with claims in numbers (0009), rows for each process where they are busy (0010), and one judge (0011).
-- Its rules are those of 0006: counters are locked before holds, both in id order, by everybody; lock first, then look,
-- in a later statement; an item says all that its record needs.

DROP FUNCTION ledger_claims_of(jsonb, ledger_item);

-- Holds what these items ask; returns which of them are held now and were not before.
CREATE FUNCTION ledger_hold_items(
    p_process uuid, p_admits ledger_item[], p_decisions ledger_decision[], p_instant timestamptz
) RETURNS uuid[] LANGUAGE sql AS $$
    WITH held AS (
        INSERT INTO ledger_hold (request_id, process_id, tenant_id, key_id, model, started_at, local_date,
            charge_currency, cost_currency, catalogue_model_id, deployment_id, provider_id, endpoint, stream,
            input_tokens, output_tokens, amount, charge_price_id, cost_price_id, client_request_id, end_user, claims,
            decided)
        SELECT i.request_id, p_process, i.tenant_id, i.key_id, i.model, p_instant,
            (p_instant AT TIME ZONE i.timezone)::date, i.charge_currency, i.cost_currency, i.catalogue_model_id,
            i.deployment_id, i.provider_id, i.endpoint, i.stream, i.input_tokens, i.output_tokens, i.amount,
            i.charge_price_id, i.cost_price_id, i.client_request_id, i.end_user, COALESCE(i.claims, '{}'),
            COALESCE(d.decided, '{}')
        FROM unnest(p_admits) i LEFT JOIN unnest(p_decisions) d ON d.request_id = i.request_id
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id
    )
    SELECT array_agg(request_id) FROM held
$$;

-- p_skip: do not wait for locked rows; items that need one answer "blocked" and nothing of them is done.
-- p_retry: an earlier try of this batch may have been committed without our knowing.
-- Returns [[request_id, verdict, started_at, local_date, decided], …]; verdicts: ok, stale, suspended, refused,
-- blocked, window (the caller's clock is in another window than ours), limited, again (a share did not do: with
-- `whole` it is decided on all rows), swept (settled by an adjustment, since the sweeper had already taken the hold).
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
        bool_or(i.first_use IS NOT NULL), bool_or(i.lowered IS NOT NULL), bool_or(i.op = 'c' AND i.keep IS NOT NULL)
    INTO items, ends, begins, first_use, lowered, early FROM json_populate_recordset(NULL::ledger_item, p_items) i;

    SELECT array_agg(ROW(i.tenant_id, i.key_id, i.charge_currency, 0, 0, 0, 0, 0, i.shard)::ledger_delta)
    INTO owners FROM (
        SELECT DISTINCT u.tenant_id, u.key_id, u.charge_currency, COALESCE(u.shard, 0::smallint) AS shard
        FROM unnest(items) u WHERE u.op <> 'c') i;
    IF owners IS NOT NULL THEN
        SELECT * INTO locked, waits FROM ledger_lock_counters(owners, p_skip);
        IF p_skip THEN
            SELECT COALESCE(array_agg(i.request_id), '{}') INTO blocked FROM unnest(items) i
            WHERE i.op <> 'c' AND (
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
    IF ends THEN
        gives := ledger_gives(items);
    END IF;

    IF asks IS NOT NULL OR gives IS NOT NULL THEN
        SELECT * INTO asks, gives, ids, more_waits FROM ledger_lock_windows(asks, gives, whole);
        waits := waits || more_waits;
    END IF;
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
        IF no <> '{}' THEN
            SELECT array_agg(i) INTO admits FROM unnest(admits) i WHERE i.request_id <> ALL (no);
            SELECT array_agg(i) INTO checked FROM unnest(checked) i WHERE i.request_id <> ALL (no);
        END IF;
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
        SELECT json_build_array(i.request_id, 'ok', instant, (instant AT TIME ZONE i.timezone)::date, d.decided) AS row
            FROM unnest(admits) i LEFT JOIN unnest(decisions) d ON d.request_id = i.request_id
        UNION ALL SELECT json_build_array(i.request_id, 'ok', h.started_at, h.local_date, h.decided)
            FROM unnest(checked) i LEFT JOIN ledger_hold h ON h.request_id = i.request_id
            WHERE i.op = 'c' OR (known AND NOT EXISTS (SELECT FROM unnest(admits) u WHERE u.request_id = i.request_id))
        UNION ALL SELECT unnest(refused)
        UNION ALL SELECT json_build_array(b, 'blocked') FROM unnest(blocked) b
        UNION ALL SELECT json_build_array(i.request_id, CASE WHEN i.request_id = ANY (swept) THEN 'swept' ELSE 'ok' END)
            FROM unnest(items) i WHERE i.op IN ('s', 'r')
        UNION ALL SELECT json_build_array('', 'waits', json_agg(json_build_array(w.tenant, w.rule, w.ms)))
            FROM unnest(waits) w HAVING count(*) > 0
    ) a;
    RETURN answer;
END $$;
