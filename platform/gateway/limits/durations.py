"""How long to wait, in the forms that clients read. Pure."""

from __future__ import annotations


def go_duration(milliseconds: int) -> str:
    """As Go writes durations, which is what OpenAI's headers have: 6ms, 8.64s, 1m0s, 23m16.298s."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else "") + seconds


def retry_headers(milliseconds: int) -> dict[str, str]:
    """Whole seconds, rounded up, for HTTP clients; milliseconds, which official SDKs prefer."""
    return {"retry-after": str(-(-milliseconds // 1000)), "retry-after-ms": str(milliseconds)}
