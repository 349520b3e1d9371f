"""One choice of a stream: what it has sent so far, and its next delta in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from gateway.upstreams.fields import arguments, new_call_id, reasoning_fields, text_of, texts, whole_number
from gateway.upstreams.meter import Meter

Delta = dict[str, Any]


class Call:
    """A tool call that was opened: its id and name are sent once, since clients concatenate strings."""

    __slots__ = ("id", "index", "named")

    def __init__(self, index: int, call_id: str) -> None:
        self.index, self.id, self.named = index, call_id, False


class Choice:
    """`started` once its role chunk is out, `finished` once its finish_reason is."""

    __slots__ = ("_by_index", "_calls", "_function", "_reasoning_field", "finished", "index", "meter", "started")

    def __init__(self, index: int, reasoning_field: str) -> None:
        self.index = index
        self.started = self.finished = False
        self.meter = Meter()
        self._reasoning_field = reasoning_field
        self._calls: list[Call] = []
        self._by_index: dict[int, Call] = {}  # by the provider's index
        self._function = Call(0, "")  # the deprecated function_call

    def delta(self, said: Delta) -> Delta:
        """What of a provider's delta goes to the client; {} if nothing does. The role is sent apart."""
        delta: Delta = {}
        content, reasoning = texts(said)
        if reasoning:
            self.meter.add_reasoning(reasoning)
            delta |= reasoning_fields(reasoning, self._reasoning_field)
        if content:
            self.meter.add_output(content)
            delta["content"] = content
        if refusal := text_of(said.get("refusal")):
            self.meter.add_output(refusal)
            delta["refusal"] = refusal
        items = said.get("tool_calls")
        if (
            calls := [self._fragment(item) for item in items if isinstance(item, dict)]
            if isinstance(items, list)
            else []
        ):
            delta["tool_calls"] = calls
        if isinstance(function := said.get("function_call"), dict):
            delta["function_call"] = self._text(self._function, function, "arguments")
        for name, kind in (("audio", dict), ("annotations", list)):
            if isinstance(value := said.get(name), kind) and value:
                delta[name] = value
        return delta

    def _fragment(self, item: Delta) -> Delta:
        call_id, custom, function = text_of(item.get("id")), item.get("custom"), item.get("function")
        call, opening = self._call(item.get("index"), call_id)
        fragment: Delta = {"index": call.index}
        if opening:
            fragment |= {"id": call.id, "type": "custom" if isinstance(custom, dict) else "function"}
        if isinstance(custom, dict):
            fragment["custom"] = self._text(call, custom, "input")
        else:
            fragment["function"] = self._text(call, function if isinstance(function, dict) else {}, "arguments")
        return fragment

    def _call(self, index: object, call_id: str) -> tuple[Call, bool]:
        """The call that a fragment belongs to, and whether it opens it.

        Some providers leave the index out, some (Gemini) give every parallel call index 0: a new id is a new
        call. Indexes are numbered again from 0, as OpenAI does.
        """
        key = whole_number(index, -1)
        call = self._by_index.get(key) or (self._calls[-1] if key < 0 and self._calls else None)
        opening = call is None or bool(call_id and call_id != call.id)
        if call is None or opening:
            call = Call(len(self._calls), call_id or new_call_id())
            self._calls.append(call)
        if key >= 0:
            self._by_index[key] = call
        return call, opening

    def _text(self, call: Call, said: Delta, field: str) -> Delta:
        name, text = text_of(said.get("name")), arguments(said.get(field))
        fresh: Delta = {}
        if name and not call.named:
            call.named = True
            self.meter.add_output(name)
            fresh["name"] = name
        self.meter.add_output(text)
        return fresh | {field: text}
