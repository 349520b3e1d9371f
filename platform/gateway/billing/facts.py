"""What each row of the ledger adds to a sum, as one SELECT: the one place where records become sums in SQL.

Everything that sums the ledger (rollups, day sums, the day export) puts a condition into `facts_of` and
groups what comes out, so that no two reports can disagree about what an error or an unpriced request is.
"""

from __future__ import annotations

DIMENSIONS = ("local_date", "tenant_id", "key_id", "model", "kind", "charge_currency", "cost_currency")
TOKENS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
MEASURES = ("requests", "errors", "unpriced", "adjustments", *TOKENS, "charge", "cost")

_RECORDS = f"""
SELECT started_at, local_date, tenant_id, key_id, model, '' AS kind, charge_currency, cost_currency,
       1 AS requests, (status <> 'completed')::int AS errors, (charge IS NULL)::int AS unpriced,
       0 AS adjustments, {", ".join(TOKENS)}, coalesce(charge, 0) AS charge, coalesce(cost, 0) AS cost
  FROM ledger_usagerecord WHERE """

# A rating gives an unpriced record its charge, and there is at most one of a record (adjustment_once).
_ADJUSTMENTS = f"""
SELECT started_at, local_date, tenant_id, key_id, model, kind, charge_currency, cost_currency,
       0, 0, -(kind = 'rating')::int, 1, {", ".join(TOKENS)}, charge, cost
  FROM ledger_adjustment WHERE """


def facts_of(condition: str) -> str:
    """Records and adjustments that fit a condition on columns which both tables have, one row each."""
    return f"{_RECORDS}{condition}\nUNION ALL{_ADJUSTMENTS}{condition}"


def records_of(condition: str) -> str:
    return f"{_RECORDS}{condition}"


def adjustments_of(condition: str) -> str:
    return f"{_ADJUSTMENTS}{condition}"


def sums() -> str:
    """The measures, summed, under their own names."""
    return ", ".join(f"sum({name}) AS {name}" for name in MEASURES)
