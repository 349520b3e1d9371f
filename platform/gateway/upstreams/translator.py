"""A provider's events, turned into OpenAI's (openai-wire §4). No network here: bytes in, bytes out.

Most events are one content delta between bytes that are always the same (templates.py): about 2 µs each.
All others are parsed and written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import orjson

from gateway.errors import UpstreamError
from gateway.upstreams.base import Face, Usage
from gateway.upstreams.choices import Choice
from gateway.upstreams.fields import finish_reason, whole_number
from gateway.upstreams.frames import NO_LOGPROBS, Frames
from gateway.upstreams.jsontext import dumps, loads
from gateway.upstreams.templates import Template, learn
from gateway.upstreams.usage import parse_usage

MOST_CHOICES = 1024
MOST_TEMPLATES = 8  # a provider whose events differ in more than the delta is parsed whole
OBFUSCATION = b',"obfuscation":"'

FAILED = "The model's provider failed while it was answering."
CUT_SHORT = "The model's provider ended the stream before the answer was complete."


class Translator:
    """One stream. After `translate`, `failure` says that the provider failed and `done` that it said [DONE]."""

    def __init__(self, face: Face, estimate: Callable[[], int]) -> None:
        self.failure: UpstreamError | None = None
        self.cause = ""  # of the failure, for the operator only
        self.done = False
        self._face = face
        self._estimate = estimate  # input tokens, should the provider not report them
        self._frames = Frames(face)
        self._choices: dict[int, Choice] = {}
        self._templates: list[Template] = []
        self._lessons = 0
        self._obfuscated = False
        self._reported: Usage | None = None
        self._reported_raw: object = None

    def translate(self, events: list[bytes]) -> bytes:
        """The client's events for these; what came before a failure is among them."""
        out: list[bytes] = []
        try:
            for event in events:
                if not self._translate_delta(event, out):
                    self._translate_any(event, out)
                if self.done:
                    break
        except UpstreamError as exc:
            self.failure = exc
            self.cause = self.cause or exc.message
        return b"".join(out)

    def end(self) -> bytes:
        """Last events, once the provider's stream has ended properly. Raises UpstreamError if it has not."""
        open_choices = [choice for choice in self._choices.values() if not choice.finished]
        if not self._choices or (open_choices and not self.done):
            raise UpstreamError(CUT_SHORT)
        # [DONE] without a finish_reason: the provider forgot it, but clients need one.
        out = [self._frames.chunk(choice.index, b"{}", "stop") for choice in open_choices]
        if self._face.include_usage:
            out.append(self._frames.usage(self.usage, self._reported_raw))
        return b"".join(out)

    @property
    def usage(self) -> Usage:
        """Reported by the provider, plus an estimate of what it delivered since it last reported."""
        output = reasoning = 0
        for choice in self._choices.values():
            counts = choice.meter.counts()
            output, reasoning = output + counts[0], reasoning + counts[1]
        reported = self._reported
        if reported is None:
            return Usage(self._input, output_tokens=output, reasoning_tokens=reasoning, estimated=True)
        if not output and not reasoning:
            return reported
        return replace(
            reported,
            output_tokens=reported.output_tokens + output,
            reasoning_tokens=reported.reasoning_tokens + reasoning,
            estimated=True,
        )

    @cached_property
    def _input(self) -> int:
        return self._estimate()

    def _translate_delta(self, event: bytes, out: list[bytes]) -> bool:
        """The fast path; false if the event is of another kind."""
        hidden = b""
        if self._obfuscated:
            event, hidden = _split_obfuscation(event)
        for prefix, suffix, choice, opening, closing in self._templates:
            if not (event.startswith(prefix) and event.endswith(suffix)):
                continue
            inner = event[len(prefix) : -len(suffix)]
            try:
                # That this alone is a whole object proves that nothing else differs from the template.
                delta = orjson.loads(b"{%b}" % inner)
            except orjson.JSONDecodeError:
                return False
            text = delta.get("content")
            if len(delta) == 1 and text.__class__ is str and text:
                choice.meter.add_output(text)
            else:
                inner = dumps(choice.delta(delta))[1:-1]
                if not inner:
                    return True
            out += (opening, inner, closing) if not hidden else (opening, inner, closing[:-3], hidden, b"\n\n")
            return True
        return False

    def _translate_any(self, event: bytes, out: list[bytes]) -> None:
        if not event or event.isspace():
            return
        if event.strip().startswith(b"[DONE]"):
            self.done = True
            return
        try:
            said = loads(event)
        except ValueError:
            raise self._failed("an event is not JSON") from None
        if not isinstance(said, dict) or said.get("error") or said.get("object") == "error":
            raise self._failed(f"an event says: {event[:200].decode(errors='replace')}")
        if self._frames.learn(said):
            self._templates.clear()
        choices = said.get("choices")
        choices = choices if isinstance(choices, list) else []
        hidden = said.get("obfuscation")
        self._obfuscated = self._obfuscated or isinstance(hidden, str)
        for choice in choices:
            if isinstance(choice, dict):
                self._translate_choice(choice, out)
        if (usage := said.get("usage")) is not None:
            self._report(usage, one_of_many=not choices and "timings" in said and len(self._choices) > 1)
        elif len(choices) == 1:
            self._learn(event, choices[0])

    def _translate_choice(self, said: dict[str, Any], out: list[bytes]) -> None:
        choice = self._choice(said.get("index"))
        delta = said.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        finish = finish_reason(said.get("finish_reason"))
        logprobs = dumps(found) if isinstance(found := said.get("logprobs"), dict) and found else NO_LOGPROBS
        fresh = choice.delta(delta)
        frames, index = self._frames, choice.index
        if not choice.started:
            choice.started = True
            out.append(frames.role(index, tool_call="tool_calls" in fresh))
        if choice.finished:
            finish = None  # said before; what still comes is not lost, but the reason is not repeated
        if fresh or (logprobs is not NO_LOGPROBS and not finish):
            out.append(frames.chunk(index, dumps(fresh), logprobs=logprobs))
            logprobs = NO_LOGPROBS
        if finish:
            choice.finished = True
            out.append(frames.chunk(index, b"{}", finish, logprobs))

    def _choice(self, said_index: object) -> Choice:
        index = whole_number(said_index, 0)
        choice = self._choices.get(index)
        if choice is None:
            if len(self._choices) >= MOST_CHOICES:
                raise self._failed("too many choices")
            choice = self._choices[index] = Choice(index, self._face.reasoning_field)
        return choice

    def _failed(self, cause: str) -> UpstreamError:
        self.cause = cause
        return UpstreamError(FAILED)

    def _report(self, raw: object, *, one_of_many: bool) -> None:
        usage = parse_usage(raw)
        if usage is None:
            return
        before = self._reported
        if one_of_many and before is not None:  # llama.cpp (known by its timings) reports each choice by itself
            output = usage.output_tokens + before.output_tokens
            usage, raw = replace(before, output_tokens=output), self._reported_raw
        self._reported, self._reported_raw = usage, raw
        for choice in self._choices.values():
            choice.meter.reset()

    def _learn(self, event: bytes, said: object) -> None:
        """Remember what is around the delta, if this is a plain event in the middle of a choice."""
        if self._lessons >= MOST_TEMPLATES or not isinstance(said, dict):
            return
        if said.get("finish_reason") or said.get("logprobs"):
            return
        self._lessons += 1
        if self._obfuscated:
            event, _ = _split_obfuscation(event)
        if (around := learn(event)) is None:
            return
        choice = self._choice(said.get("index"))
        opening, closing = self._frames.delta_open(choice.index), self._frames.delta_close
        self._templates.insert(0, Template(*around, choice, opening, closing))


def _split_obfuscation(event: bytes) -> tuple[bytes, bytes]:
    """(the event without it, its own bytes to the end): OpenAI pads each event with a random string."""
    start = event.rfind(OBFUSCATION)
    if start < 0 or event.find(b'"', start + len(OBFUSCATION)) != len(event) - 2 or not event.endswith(b'"}'):
        return event, b""
    return event[:start] + b"}", event[start:]
