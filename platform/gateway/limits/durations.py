"""How long to wait, in the forms that clients read. Pure."""

from __future__ import annotations

LONGEST_RETRY_MS = 120_000  # OpenAI's Python package waits no longer


def go_duration(milliseconds: int) -> str:
    """As Go writes durations, which is what OpenAI's headers have: 6ms, 8.64s, 1m0s, 23m16.298s."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else "") + seconds


def retry_headers(milliseconds: int) -> dict[str, str]:
    """Whole seconds, rounded up, for HTTP clients; milliseconds, which official SDKs prefer.

    Of longer waits SDKs make either nothing (a retry too early) or a program that sleeps until midnight.
    """
    headers = {"retry-after": str(-(-milliseconds // 1000)), "retry-after-ms": str(milliseconds)}
    if milliseconds > LONGEST_RETRY_MS:
        headers["x-should-retry"] = "false"
    return headers
