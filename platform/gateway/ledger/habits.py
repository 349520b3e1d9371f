"""How long the last answers of a key were: for a process that has seen none of them yet (limits.expectations)."""

from __future__ import annotations

from gateway.ledger.models import UsageRecord

LOOKED_AT = 256


def last_outputs(key_id: int) -> list[tuple[int, int]]:
    """(model, output tokens) of its last completed requests, the latest last. By the index on (key, request)."""
    latest = UsageRecord.objects.filter(key_id=key_id, status="completed").order_by("-request_id")[:LOOKED_AT]
    rows = latest.values_list("catalogue_model_id", "output_tokens", "reasoning_tokens")
    return [(model, output + reasoning) for model, output, reasoning in reversed(rows)]
