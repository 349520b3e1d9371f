"""The embedded Valkey: Celery's broker and the admin's live feed. Nothing in it has to survive."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

from gateway.embedded import binaries, children, layout
from gateway.embedded.postgres import tail
from gateway.embedded.trouble import Trouble

START_S = 20.0


class Valkey:
    def __init__(self, home: Path) -> None:
        self.data = home / "valkey"
        self.socket = layout.valkey_socket(home)
        self.log = home / "logs" / "valkey.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. Raises Trouble."""
        program = binaries.valkey()
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.data),
            "save": "300 1",  # queued tasks survive an orderly stop
            "daemonize": "no",
            "maxmemory-policy": "noeviction",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with self.log.open("ab") as log:
            self.process = children.start(
                [program, *arguments], env=children.environment(), output=log, death_signal=signal.SIGKILL
            )
        self._wait()

    def stop(self) -> None:
        if self.process:
            children.stop(self.process, by=[(signal.SIGTERM, 5.0)])
            self.process = None

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while not answers(self.socket):
            assert self.process is not None
            if self.process.poll() is not None:
                raise Trouble(f"Valkey did not start. {self.log} says:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                raise Trouble(f"Valkey did not answer within {START_S:.0f} s. See {self.log}.")
            time.sleep(0.02)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False
