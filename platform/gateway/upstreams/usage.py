"""What a provider says was used, as classes that do not overlap, and back as OpenAI's `usage` object.

OpenAI counts cached tokens inside prompt_tokens and reasoning inside completion_tokens. The classes here are
never negative, and their sum is what the provider said; nonsense is None, and then we count ourselves.
"""

from __future__ import annotations

from typing import Any

from gateway.upstreams.base import Usage

LARGEST = 10**9  # tokens of one request; above it somebody counts something else
PROMPT_DETAILS = ("cached_tokens", "cache_write_tokens", "audio_tokens", "text_tokens", "image_tokens")
COMPLETION_DETAILS = (
    "reasoning_tokens",
    "audio_tokens",
    "accepted_prediction_tokens",
    "rejected_prediction_tokens",
    "text_tokens",
    "image_tokens",
)
# What is always said.
NOTHING_BEFORE = {"cached_tokens": 0, "audio_tokens": 0}
NOTHING_AFTER = dict.fromkeys(COMPLETION_DETAILS[:4], 0)


def parse_usage(raw: object) -> Usage | None:
    """OpenAI's `usage` object; None if it is not one that can be booked."""
    if not isinstance(raw, dict):
        return None
    prompt, completion = count_of(raw.get("prompt_tokens")), count_of(raw.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    before, after = _details(raw, "prompt_tokens_details"), _details(raw, "completion_tokens_details")
    reasoning = first_count(after.get("reasoning_tokens"), raw.get("reasoning_tokens"))
    total = count_of(raw.get("total_tokens"))
    if total is not None and total > prompt + completion:
        # Some (Gemini, Grok) count reasoning beside completion_tokens and only the total has it.
        extra = total - prompt - completion
        completion += extra
        reasoning = max(reasoning, extra)
    cached = min(
        prompt, first_count(before.get("cached_tokens"), raw.get("prompt_cache_hit_tokens"), raw.get("cached_tokens"))
    )
    written = min(prompt - cached, first_count(before.get("cache_write_tokens"), before.get("cache_creation_tokens")))
    reasoning = min(completion, reasoning)
    return Usage(
        input_tokens=prompt - cached - written,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=completion - reasoning,
        reasoning_tokens=reasoning,
    )


def usage_body(usage: Usage, raw: object = None) -> dict[str, Any]:
    """OpenAI's `usage` object. Details that the provider gave beyond our classes are kept."""
    said = raw if isinstance(raw, dict) else {}
    prompt = usage.input_tokens + usage.cached_input_tokens + usage.cache_write_tokens
    completion = usage.output_tokens + usage.reasoning_tokens
    before = NOTHING_BEFORE | _kept(said, "prompt_tokens_details", PROMPT_DETAILS)
    after = NOTHING_AFTER | _kept(said, "completion_tokens_details", COMPLETION_DETAILS)
    before["cached_tokens"], after["reasoning_tokens"] = usage.cached_input_tokens, usage.reasoning_tokens
    if usage.cache_write_tokens:
        before["cache_write_tokens"] = usage.cache_write_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": before,
        "completion_tokens_details": after,
    }


def count_of(value: object) -> int | None:
    """A number of tokens; None for what is none."""
    return value if type(value) is int and 0 <= value <= LARGEST else None


def first_count(*values: object) -> int:
    """The first that is a count of tokens; 0 if none is."""
    for value in values:
        if (tokens := count_of(value)) is not None:
            return tokens
    return 0


def _details(raw: dict[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name)
    return value if isinstance(value, dict) else {}


def _kept(raw: dict[str, Any], name: str, known: tuple[str, ...]) -> dict[str, int]:
    return {key: tokens for key, value in _details(raw, name).items() if key in known and (tokens := count_of(value))}
