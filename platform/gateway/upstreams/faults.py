"""What goes wrong at a provider, as one of `gateway.errors`. The operator's log has the cause; the client never.

A 400 of the provider's is the client's own and passes through; a 401, 403 or 404 is ours (its credential, its
catalogue), so the client sees 502; a 429 passes with its retry-after.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from gateway.errors import (
    GatewayError,
    InvalidRequest,
    Phase,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.upstreams.addresses import AddressRefused
from gateway.upstreams.base import Target
from gateway.upstreams.jsontext import loads
from gateway.upstreams.scrub import SECRET, scrub

log = logging.getLogger("gateway.upstreams")

CONTEXT_TOO_LONG = re.compile(
    r"maximum context length|context[ _](?:window|size|length|limit)|too many (?:input )?tokens|prompt is too long"
    r"|exceeds the maximum number of tokens",
    re.IGNORECASE,
)
NOT_REACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL, AddressRefused)
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
LONGEST_DELAY = 86_400.0  # seconds

UNREACHABLE = "The model's provider could not be reached. Try again later."
TOO_SLOW = "The model's provider did not answer in time."
REFUSED = "The model's provider refused the request. This is a fault of the service, not of your request."
BROKEN = "The model's provider failed. Try again later."
OVERLOADED = "The model's provider is overloaded. Try again later."
LIMITED = "The model's provider is limiting requests at the moment. Try again later."


def from_exception(
    exc: BaseException, target: Target, phase: Phase = "sent", status: int | None = None
) -> UpstreamError:
    """For what aiohttp raises."""
    if isinstance(exc, asyncio.TimeoutError):
        fault: UpstreamError = UpstreamTimeout(TOO_SLOW)
    elif isinstance(exc, NOT_REACHED):
        fault = UpstreamError(UNREACHABLE)
    else:
        fault = UpstreamError(BROKEN)
    fault.phase, fault.upstream_status = phase, status
    number = getattr(exc, "errno", None)
    fault.ours = phase == "connect" and number in SCARCE
    note(target, f"{type(exc).__name__}: {exc}")
    return fault


def from_response(
    status: int, headers: Mapping[str, str], body: bytes, target: Target, public_model: str
) -> GatewayError:
    """For an answer that is not 200."""
    fault = _refusal(status, headers, body, target, public_model)
    fault.upstream_status = status
    if isinstance(fault, UpstreamError):
        fault.phase = "head"
        fault.headers = retry_headers(headers)
    return fault


def _refusal(status: int, headers: Mapping[str, str], body: bytes, target: Target, public_model: str) -> GatewayError:
    said = error_of(body)
    if status in (400, 413, 422):
        # Not logged: such a text may quote the prompt, and the client gets it anyway.
        return _invalid(said, target, public_model) if said else UpstreamError(BROKEN)
    note(target, f"status {status}: {body[:200].decode(errors='replace')}")
    if status == 429:
        return RateLimited(LIMITED, headers=retry_headers(headers))
    if status in (408, 504, 524):
        return UpstreamTimeout(TOO_SLOW)
    if status in (503, 529):
        overloaded = Unavailable(OVERLOADED)
        overloaded.headers = retry_headers(headers)
        return overloaded
    if status < 500:
        return UpstreamError(REFUSED)
    return UpstreamError(BROKEN)


def retry_headers(headers: Mapping[str, str], now: float | None = None) -> dict[str, str]:
    """retry-after (whole seconds, at least 1) and retry-after-ms, if the provider gave any that make sense."""
    found = {}
    delay = _seconds(headers.get("retry-after"), time.time() if now is None else now)
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None and milliseconds / 1000 <= LONGEST_DELAY:
        found["retry-after-ms"] = f"{milliseconds:.0f}"
        delay = milliseconds / 1000 if delay is None else delay
    if delay is not None:
        found["retry-after"] = str(max(1, math.ceil(min(delay, LONGEST_DELAY))))
    return found


def note(target: Target, cause: str) -> None:
    """One line for the operator. The credential never is in it, whatever the provider repeats."""
    if target.credential:
        cause = cause.replace(target.credential, "***")
    cause = SECRET.sub("***", cause)  # a key of the provider's own
    log.warning("provider %s (deployment %s): %s", target.provider_id, target.deployment_id, cause)


def _invalid(said: dict[str, Any], target: Target, public_model: str) -> InvalidRequest:
    message, kind, param, code = (said.get(name) for name in ("message", "type", "param", "code"))
    text = message if isinstance(message, str) and message else "The model's provider refused the request."
    fault = InvalidRequest(
        scrub(text, target, public_model),
        param=scrub(param, target, public_model)[:200] if isinstance(param, str) and param else None,
        code=code if isinstance(code, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", code) else None,
    )
    if (
        isinstance(kind, str)
        and re.fullmatch(r"[a-z]+(_[a-z]+)*_error", kind)
        and kind != "exceed_context_size_error"
    ):
        fault.type = kind
    if fault.code is None and CONTEXT_TOO_LONG.search(text):
        fault.code, fault.param = "context_length_exceeded", fault.param or "messages"
    return fault


def error_of(body: bytes) -> dict[str, Any] | None:
    """The error object in whichever of the usual shapes; None if the body has none."""
    try:
        value = loads(body)
    except ValueError:
        return None
    if isinstance(value, list) and value:  # Gemini
        value = value[0]
    if not isinstance(value, dict):
        return None
    for name in ("error", "detail", "message"):
        inner = value.get(name)
        if isinstance(inner, dict) and name != "message":
            return inner
        if isinstance(inner, str) and inner:
            return {**value, "message": inner}
    return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _seconds(text: str | None, now: float) -> float | None:
    if (number := _number(text)) is not None:
        return number
    try:
        return max(0.0, parsedate_to_datetime(text or "").timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return None
