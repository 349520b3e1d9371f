-- What a check carries when a refusal waits for its verdict: why, and the limit that could not be asked, as one row of
-- ledger_decisions with -1 asked (ledger/decisions.py). keep, model and the tokens are those of an admission.
ALTER TYPE ledger_item ADD ATTRIBUTE reason text, ADD ATTRIBUTE decided numeric[];

-- For the desk, with the checks that it found to be on fresh facts. Of one key at most three a batch, of which the
-- first stands for the rest, as in ledger_keep_refusals. What was decided on counters under the same id stays.
CREATE FUNCTION ledger_keep_early_refusals(p_items ledger_item[], p_instant timestamptz) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO limits_refusal (request_id, tenant_id, key_id, model, rule_id, reason, at, input_tokens,
        output_tokens, decided, stands_for)
    SELECT r.request_id, r.tenant_id, r.key_id, r.model, COALESCE(r.decided[1][1], 0), r.reason, p_instant,
        r.input_tokens, r.output_tokens, COALESCE(r.decided, '{}'),
        r.keep + CASE WHEN r.n = 1 THEN greatest(r.total - 3, 0) ELSE 0 END
    FROM (SELECT i.*, row_number() OVER (PARTITION BY i.key_id ORDER BY i.request_id) AS n,
              count(*) OVER (PARTITION BY i.key_id) AS total
          FROM unnest(p_items) i WHERE i.op = 'c' AND i.keep IS NOT NULL) r
    WHERE r.n <= 3
    ON CONFLICT (request_id) DO NOTHING
$$;
