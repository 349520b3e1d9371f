"""What a person sees while things start and stop: lines on stderr, so that stdout stays for answers."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    # The terminal may be gone; stopping in order matters more.
    with contextlib.suppress(OSError):
        print(f"counterfoil: {text}", file=sys.stderr, flush=True)
