"""A provider without a network: answers with the last thing the user said. For trying things out."""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_right
from collections.abc import AsyncIterator
from typing import Any

from gateway.upstreams import tokens
from gateway.upstreams.base import Answer, Face, Target, Usage
from gateway.upstreams.frames import Frames
from gateway.upstreams.jsontext import dumps
from gateway.upstreams.usage import usage_body

NOTHING_SAID = "You said nothing."


class EchoAdapter:
    async def complete(self, target: Target, request: dict[str, Any], face: Face) -> Answer:
        words, finish = reply(request)
        choices = whole(request.get("n"), 1)
        usage = _usage(request, words, choices)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(words), "refusal": None, "annotations": []}
        body = {
            "id": face.id,
            "object": "chat.completion",
            "created": face.created,
            "model": face.model,
            "choices": [
                {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
                for index in range(choices)
            ],
            "usage": usage_body(usage),
        }
        return Answer(dumps(body), usage)

    async def open_stream(self, target: Target, request: dict[str, Any], face: Face) -> EchoStream:
        return EchoStream(request, face)

    async def close(self) -> None:
        """There is nothing to release."""


class EchoStream:
    def __init__(self, request: dict[str, Any], face: Face) -> None:
        self._request, self._face = request, face
        self._words, self._finish = reply(request)
        self._choices = whole(request.get("n"), 1)
        self._sent: list[str] = []
        self._closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    @property
    def usage(self) -> Usage:
        return _usage(self._request, self._sent, self._choices)

    async def aclose(self) -> None:
        self._closed = True

    async def _chunks(self) -> AsyncIterator[bytes]:
        frames, indexes = Frames(self._face), range(self._choices)
        yield b"".join(map(frames.role, indexes))
        for word in self._words:
            if self._closed:
                return
            self._sent.append(word)
            yield b"".join(frames.chunk(index, dumps({"content": word})) for index in indexes)
            await asyncio.sleep(0)
        yield b"".join(frames.chunk(index, b"{}", self._finish) for index in indexes)
        if self._face.include_usage:
            yield frames.usage(self.usage)


def reply(request: dict[str, Any]) -> tuple[list[str], str]:
    """(words of the answer, each with the blanks before it; finish_reason); `stop` and max tokens are obeyed."""
    text, finish = _last_text(request.get("messages")) or NOTHING_SAID, "stop"
    stops = request.get("stop")
    for stop in [stops] if isinstance(stops, str) else stops or []:
        if isinstance(stop, str) and stop:
            text = text.split(stop, 1)[0]
    words = re.findall(r"\s*\S+|\s+", text)
    limit = whole(request.get("max_completion_tokens"), 0) or whole(request.get("max_tokens"), 0)
    if limit and tokens.count(text) > limit:
        finish = "length"
        fit = bisect_right(range(len(words)), limit, key=lambda last: tokens.count("".join(words[: last + 1])))
        words = words[:fit]
    return words, finish


def whole(value: object, default: int) -> int:
    return value if type(value) is int and value > 0 else default


def _usage(request: dict[str, Any], words: list[str], choices: int) -> Usage:
    return Usage(input_tokens=tokens.estimate_request(request), output_tokens=choices * tokens.count("".join(words)))


def _last_text(messages: object) -> str:
    for message in reversed(messages) if isinstance(messages, list) else ():
        if not isinstance(message, dict) or message.get("role") not in ("user", "tool", "function"):
            continue
        content = message.get("content")
        parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
        texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if texts:
            return "\n".join(texts)
    return ""
