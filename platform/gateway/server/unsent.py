"""What a client has been written and has not taken, in bytes: of ours, and of the kernel's."""

from __future__ import annotations

import array
import contextlib
import fcntl
import termios
from typing import Any


def size(transport: Any) -> int:
    """0 if all of ours is in the kernel's hands, however much it still has: then the client has had time enough.

    The kernel asks for more only when a third of its buffer is free, which may be a megabyte: while a slow client
    reads that, nothing of ours moves for minutes.
    """
    ours = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    return ours + _in_kernel(transport.socket) if ours else 0


def _in_kernel(socket: Any) -> int:
    """Not acknowledged by the client's system. 0 where ours does not tell, and for a socket that is closed."""
    found = array.array("i", [0])
    with contextlib.suppress(OSError, ValueError):
        fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, found)
    return found[0]
