"""Chunks of a stream as clients must see them: OpenAI's shape, our id and public model name (openai-wire §4)."""

from __future__ import annotations

import re
from typing import Any

from gateway.upstreams.base import Face, Usage
from gateway.upstreams.jsontext import dumps
from gateway.upstreams.usage import usage_body

SERVICE_TIERS = {"auto", "default", "flex", "scale", "priority"}
# Others than OpenAI write their software and version there, which is nobody's business.
FINGERPRINT = re.compile(r"fp_[0-9a-zA-Z]{1,40}")
NO_LOGPROBS = b"null"


def known_fields(said: dict[str, Any]) -> dict[str, str]:
    """The two optional top-level fields of OpenAI's that say nothing of the provider."""
    fields = {}
    tier, fingerprint = said.get("service_tier"), said.get("system_fingerprint")
    if isinstance(tier, str) and tier in SERVICE_TIERS:
        fields["service_tier"] = tier
    if isinstance(fingerprint, str) and FINGERPRINT.fullmatch(fingerprint):
        fields["system_fingerprint"] = fingerprint
    return fields


class Frames:
    """Writes whole events: `data: {…}` and a blank line."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._fields: dict[str, str] = {}
        self.close = b',"usage":null}\n\n' if face.include_usage else b"}\n\n"
        self._render()

    def learn(self, said: dict[str, Any]) -> bool:
        """Take over service_tier and system_fingerprint of an event; whether that changed anything."""
        fields = self._fields | known_fields(said)
        changed = fields != self._fields
        if changed:
            self._fields = fields
            self._render()
        return changed

    def delta_open(self, index: int) -> bytes:
        """Up to and with the brace that opens the delta."""
        return b'%b"choices":[{"index":%d,"delta":{' % (self.head, index)

    @property
    def delta_close(self) -> bytes:
        """From the brace that closes the delta, for an event without finish_reason and logprobs."""
        return b'},"logprobs":null,"finish_reason":null}]' + self.close

    def chunk(self, index: int, delta: bytes, finish: str | None = None, logprobs: bytes = NO_LOGPROBS) -> bytes:
        reason = b'"%b"' % finish.encode() if finish else b"null"
        return b'%b"choices":[{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}]%b' % (
            self.head,
            index,
            delta,
            logprobs,
            reason,
            self.close,
        )

    def role(self, index: int, *, tool_call: bool = False) -> bytes:
        content = b"null" if tool_call else b'""'
        return self.chunk(index, b'{"role":"assistant","content":%b,"refusal":null}' % content)

    def usage(self, usage: Usage, raw: object = None) -> bytes:
        return b'%b"choices":[],"usage":%b}\n\n' % (self.head, dumps(usage_body(usage, raw)))

    def _render(self) -> None:
        face = self._face
        fields = {"id": face.id, "object": "chat.completion.chunk", "created": face.created, "model": face.model}
        self.head = b"data: " + dumps(fields | self._fields)[:-1] + b","
