"""Events as providers write them, and what a translator makes of them."""

from __future__ import annotations

import json
from typing import Any

from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from gateway.upstreams.base import Face
from gateway.upstreams.translator import Translator
from tests.upstreams.conftest import FACE, parse

Json = dict[str, Any]
HEAD: Json = {"id": "chatcmpl-theirs", "object": "chat.completion.chunk", "created": 1, "model": "theirs-2026"}
USAGE: Json = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
DONE = b"[DONE]"


def event(delta: object = None, finish: object = None, *, index: object = 0, **top: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return json.dumps({**HEAD, "choices": [choice], **top}, separators=(",", ":")).encode()


def said(value: Json) -> bytes:
    return json.dumps(value).encode()


def run(*events: bytes, face: Face = FACE, one_by_one: bool = True) -> tuple[list[Json], Translator]:
    translator = Translator(face, lambda: 42)
    batches = [[one] for one in events] if one_by_one else [list(events)]
    sent = b"".join(translator.translate(batch) for batch in batches)
    if translator.failure:
        raise translator.failure
    return parse(sent + translator.end()), translator


def deltas(chunks: list[Json]) -> list[Json]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def sdk_sees(chunks: list[Json]) -> Any:
    """What the official SDK makes of it; raises where its accumulator would."""
    state: Any = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    return state.get_final_completion()


ROLE = event({"role": "assistant", "content": "", "refusal": None})
HELLO = [ROLE, *(event({"content": part}) for part in ("Hel", "lo ", "th", "ere")), event({}, "stop"), DONE]
