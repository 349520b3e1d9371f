"""POST /chat/completions: from raw bytes to a validated request in OpenAI's form (openai-wire.md 2).

`parse` returns a plain dict of what the client sent: null parameters left out (null means absent), whole
numbers as integers, everything else untouched. The first fault found is the answer. A typical request of
1 KiB costs about 15 microseconds, because every parameter is one look-up in a table and one check.
"""

from __future__ import annotations

from typing import Any

import orjson

from apiv1.schemas import faults, messages, tools
from apiv1.schemas.checks import (
    Rule,
    array,
    boolean,
    choice,
    either,
    mapping,
    number,
    record,
    string,
    variants,
)
from apiv1.schemas.checks import integer as whole

INT32 = 2**31 - 1  # far above any model's output, and no sum of it overflows a bigint column
INT64 = 2**63 - 1
MAX_DEPTH = 200  # orjson writes at most 254 levels, so a deeper request could not be forwarded
TEXT = string()


def _logit_bias(value: Any, path: str) -> Any:
    mapping().check(value, path)
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit()):
            raise faults.clash(
                f"Invalid key in 'logit_bias': {faults.shortened(token)}. "
                "You should only be submitting non-negative integers.",
                "logit_bias",
            )
        value[token] = BIAS.check(bias, f"{path}.{token[:20]}")
    return value


def _metadata(value: Any, path: str) -> Any:
    mapping().check(value, path)
    if len(value) > 16:
        raise faults.large_object(path, 16, len(value))
    for key, text in value.items():
        if len(key) > 64:
            raise faults.long_string(path, 64, len(key))
        METADATUM.check(text, f"{path}.{key}")
    return value


BIAS = whole(-100, 100)
METADATUM = string(high=512)
PENALTY = number(-2, 2)
TOKENS = whole(1, INT32)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
JSON_SCHEMA = record({"name": tools.NAME}, {"description": TEXT, "schema": mapping(), "strict": boolean()})
LOCATION = record(
    {
        "type": choice("approximate"),
        "approximate": record({}, dict.fromkeys(["city", "country", "region"], TEXT)),
    }
)
RULES: dict[str, Rule] = {
    "model": string(high=256),
    "messages": messages.RULE,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "n": whole(1, 128),
    "stream": boolean(),
    "stream_options": record({}, {"include_usage": boolean(), "include_obfuscation": boolean()}),
    "max_completion_tokens": TOKENS,
    "max_tokens": TOKENS,
    "stop": either(TEXT, array(TEXT, low=1, high=4), expected="one of a string or array of strings"),
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "logit_bias": Rule(_logit_bias, {"type": "object", "additionalProperties": BIAS.schema}),
    "logprobs": boolean(),
    "top_logprobs": whole(0, 20),
    "seed": whole(-INT64 - 1, INT64),
    **tools.RULES,
    "response_format": variants(
        "type",
        {"text": record({}), "json_object": record({}), "json_schema": record({"json_schema": JSON_SCHEMA})},
    ),
    "reasoning_effort": choice(*EFFORTS),
    "verbosity": choice("low", "medium", "high"),
    "modalities": array(choice("text", "audio"), low=1, of="an array of strings"),
    "audio": record(
        {
            "voice": either(TEXT, record({"id": TEXT}), expected="one of a string or object"),
            "format": choice("wav", "aac", "mp3", "flac", "opus", "pcm16"),
        }
    ),
    "prediction": variants(
        "type",
        {
            "content": record(
                {"content": either(TEXT, messages.PARTS, expected="one of a string or array of objects")}
            )
        },
    ),
    "service_tier": choice("auto", "default", "flex", "scale", "priority", "fast"),
    "store": boolean(),
    "metadata": Rule(_metadata, {"type": "object", "maxProperties": 16, "additionalProperties": METADATUM.schema}),
    "moderation": record({"model": TEXT}, {"policy": mapping()}),
    "web_search_options": record(
        {}, {"search_context_size": choice("low", "medium", "high"), "user_location": LOCATION}
    ),
    "prompt_cache_key": TEXT,
    "prompt_cache_retention": choice("in_memory", "24h"),
    "prompt_cache_options": record({}, {"mode": choice("implicit", "explicit"), "ttl": choice("30m")}),
    "safety_identifier": string(high=128),
    "user": TEXT,
}
CHECKS = {name: rule.check for name, rule in RULES.items()}
SCHEMA = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {name: rule.schema for name, rule in RULES.items()},
    "additionalProperties": False,
}


def parse(raw: bytes, *, default_model: str = "") -> dict[str, Any]:
    """The request that these bytes are; raises MalformedBody or InvalidRequest."""
    sent = _decode(raw)
    if type(sent) is not dict:
        raise faults.not_an_object(sent)
    model = sent.get("model")
    if model is None or model == "":
        if not default_model:
            raise faults.no_model()
        sent["model"] = default_model
    if "messages" not in sent:
        raise faults.missing("messages")
    body: dict[str, Any] = {}
    for name, value in sent.items():
        check = CHECKS.get(name)
        if check is None:
            raise faults.unknown(name)
        if value is not None or name == "messages":
            body[name] = check(value, name)
    _check_together(body)
    return body


def _decode(raw: bytes) -> Any:
    # orjson, not msgspec: all that it reads it can write again (no lone surrogates, NaN or integers beyond
    # 64 bits), so whatever passes here can be forwarded.
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise faults.not_json() from None
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _is_deep(value):
        raise faults.not_json()
    return value


def _is_deep(value: Any) -> bool:
    """True if the value nests deeper than MAX_DEPTH. Level by level: deep nesting breaks recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = (part for outer in level for part in (outer.values() if type(outer) is dict else outer))
        level = [part for part in parts if type(part) is dict or type(part) is list]
        if not level:
            return False
    return True


def _check_together(body: dict[str, Any]) -> None:
    """Parameters that need or exclude each other."""
    if "stream_options" in body and not body.get("stream"):
        raise faults.clash(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise faults.clash(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            "max_tokens",
            "invalid_parameter_combination",
        )
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise faults.clash("The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs")
    if "tool_choice" in body or "function_call" in body:
        tools.check_choices(body)
    speaks = "audio" in body.get("modalities", ())
    if speaks and "audio" not in body:
        raise faults.missing("audio")
    if "audio" in body and not speaks:
        raise faults.clash("The 'audio' parameter is only allowed when 'modalities' includes 'audio'.", "audio")
