"""What a client has been written and has not taken, in this process and in the kernel's buffer."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
import termios
import time
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.server.channel import Channel

MOST_UNSENT_BYTES = 65_536
TAKING_SECONDS, LOOK_SECONDS = 5.0, 0.02
BYTES_ACKED = 120  # where Linux has it in its struct tcp_info


class Taking:
    """Whether a client takes what is written to it; looked at now and then."""

    __slots__ = ("_progress", "_progress_at")

    def __init__(self, now: float) -> None:
        self._progress, self._progress_at = -1, now

    def stopped_for(self, transport: Any, now: float, *, answering: bool) -> float:
        """Seconds since it last took something, or had nothing to take. `answering`: a request is under way; else
        what the kernel has left to send is no matter of ours."""
        waiting = in_process(transport)
        if waiting or answering:
            waiting += in_kernel(transport)
        taken = acknowledged(transport) if waiting else None
        progress = -waiting if taken is None else taken
        if progress != self._progress or not waiting:
            self._progress, self._progress_at = progress, now
        return now - self._progress_at


def bound(transport: Any) -> None:
    """Let the kernel keep no more for a client than MOST_UNSENT_BYTES that it cannot send. By itself it keeps
    megabytes, which would be booked as delivered though they never left this machine."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None:
        with contextlib.suppress(OSError):
            transport.socket.setsockopt(socket.IPPROTO_TCP, option, MOST_UNSENT_BYTES)


def break_off(channel: Channel, *, framed: bool, since: float | None = None) -> None:
    """Close before the body's end. Where that is told by the connection's end alone (HTTP/1.0), a proper one would
    make a part look whole: then it is reset, once the client's system has what was sent, which a reset overtakes."""
    transport, now = channel.transport, time.monotonic()
    since = now if since is None else since
    if framed:
        channel.loseConnection()
    elif (in_process(transport) or in_kernel(transport)) and now - since < TAKING_SECONDS:
        again = partial(break_off, channel, framed=False, since=since)
        channel.factory.loop.call_later(LOOK_SECONDS, again)
    else:
        channel.abort()


def in_process(transport: Any) -> int:
    """Bytes. The kernel asks for more only when a third of its buffer is free, which may be a megabyte: while a slow
    client reads that, this does not move for minutes."""
    ours: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    return ours


def in_kernel(transport: Any) -> int:
    """Bytes that the client's system has not acknowledged. 0 where ours does not tell, or the socket is closed."""
    found = array.array("i", [0])
    with contextlib.suppress(OSError, ValueError):
        fcntl.ioctl(transport.socket.fileno(), termios.TIOCOUTQ, found)
    return found[0]


def acknowledged(transport: Any) -> int | None:
    """Bytes since the connection began; None where the system does not tell."""
    option = getattr(socket, "TCP_INFO", None)
    if option is not None:
        with contextlib.suppress(OSError, AttributeError, struct.error):
            info = transport.socket.getsockopt(socket.IPPROTO_TCP, option, BYTES_ACKED + 8)
            return int(struct.unpack_from("=Q", info, BYTES_ACKED)[0])
    return None
