-- A counter that is made anew has in its first row all that is held. A hold that another row had lent before did not
-- know that: if that row was made again too, it was given back there what it had never lent. The rows added up all the
-- same, but one stayed below nothing, and another held for ever what nobody holds.

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

-- As in 0010; and what is held is told of the first row. Nobody is just giving it back: see there.
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

-- As in 0010; and where what is given back goes is what its hold says now, since a counter that has just been made
-- anew has it in its first row.
CREATE OR REPLACE FUNCTION ledger_find_windows(p_asks ledger_ask[]) RETURNS ledger_ask[] LANGUAGE sql STABLE AS $$
    SELECT array_agg(ROW(a.n, a.request_id, a.tenant, a.rule, a.owner, a.kind, a.measure, a.enforce, a.starts, a.ends,
        a.amount, a.ask, a.everybody, hold.shard, a.whole, a.real, a.second,
        CASE WHEN l.id IS NULL AND a.second IS NOT NULL THEN ledger_first_row(a.rule, a.owner, a.starts)
            ELSE l.id END)::ledger_ask ORDER BY a.ordinality)
    FROM unnest(p_asks) WITH ORDINALITY a
    CROSS JOIN LATERAL (SELECT CASE WHEN a.second IS NULL OR a.shard = 0 THEN a.shard ELSE COALESCE((
        SELECT c.shard FROM ledger_hold h, ledger_claim_rows(h.claims) c WHERE h.request_id = a.request_id
            AND c.rule = a.rule AND c.owner = a.owner AND c.starts = a.starts LIMIT 1), a.shard) END AS shard) hold
    LEFT JOIN limits_limitcounter l ON l.rule_id = a.rule
        AND l.owner_id = a.owner AND l.window_start = to_timestamp(a.starts) AND l.shard = hold.shard
$$;
