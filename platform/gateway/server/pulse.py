"""Tells the master of `manage.py serve` that this worker is ready, and then that its event loop turns.

A loop that hangs (a defect of ours or of a library's) answers nobody, and nothing else would end it: the master kills
a worker that it has not heard for HANG_SECONDS. SIGQUIT before that makes it write where each thread stands, without
needing the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal

from gateway.server.sizes import Sizes

LONGEST_PAUSE_SECONDS = 5.0  # between two words


def begin(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """`descriptor` is the master's pipe; this closes it when nothing is left to say, or nobody listens any more."""
    sizes = Sizes.of_settings()
    os.set_blocking(descriptor, False)
    faulthandler.register(signal.SIGQUIT, all_threads=True, chain=False)
    _say(loop, descriptor, sizes.dumps().encode() + b"\n", min(LONGEST_PAUSE_SECONDS, sizes.hang_seconds / 4))


def _say(loop: asyncio.AbstractEventLoop, descriptor: int, word: bytes, pause: float) -> None:
    """`pause`: seconds until the next one; 0: there is none."""
    listening = True
    try:
        os.write(descriptor, word)
    except BlockingIOError:
        pass  # the master is stopped, and will hear those before
    except OSError:
        listening = False  # it has ended, or is of an older version and has heard what it wanted
    if listening and pause:
        loop.call_later(pause, _say, loop, descriptor, b".", pause)
    else:
        os.close(descriptor)
