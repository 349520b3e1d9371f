"""The keeper of one home's engines: a process of its own that starts them and outlives whoever started it.

    python -m gateway.embedded.keeper HOME [--without-postgres]

It leaves its starter's session at once, starts PostgreSQL and Valkey as its children, says so in
`locks/ready`, restarts one that dies, and waits until it can take the users' lock alone: then no process
uses the engines any more, and it stops Valkey, PostgreSQL and itself. Users wait for that lock meanwhile, so
that none of them ever meets an engine that is going down. If it is killed, its engines die with it
(parent-death signal).
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from gateway.embedded import children, layout, locks
from gateway.embedded.postgres import Postgres
from gateway.embedded.trouble import Trouble
from gateway.embedded.valkey import Valkey

LOOK_EVERY_S = 0.2
LARGEST_LOG = 10_000_000  # bytes; a larger one is set aside at the next start
log = logging.getLogger("counterfoil.keeper")


class Keeper:
    def __init__(self, home: Path, *, with_postgres: bool) -> None:
        self.home = home
        self.ready = locks.folder(home) / "ready"
        self.stopping = False
        identity = children.Identity(home / "postgres")
        if identity.kind == "nobody":
            home.chmod(0o711)  # nobody must reach its own folders inside; the secrets stay 0600
        if with_postgres:
            self.postgres: Postgres | None = Postgres(home, identity)
            identity.own(self.postgres.sockets)
        else:
            self.postgres = None
        self.valkey = Valkey(home)

    @property
    def engines(self) -> list[Postgres | Valkey]:
        return [self.postgres, self.valkey] if self.postgres else [self.valkey]

    def run(self, users: int) -> None:
        """Start all, watch them, stop them when nobody holds `users` any more."""
        try:
            self.valkey.start()
            if self.postgres:
                self.postgres.start()
            self._watch(users)
        except Trouble as trouble:
            log.error("%s", trouble)
            self._write_ready(f"failed {trouble}")  # whoever waits for us shows it
        except Exception as error:
            log.exception("unexpected")
            self._write_ready(f"failed {type(error).__name__}: {error}. See {self.home / 'logs' / 'keeper.log'}.")
            raise
        finally:
            for engine in [self.valkey, self.postgres]:
                if engine:
                    engine.stop()
            if layout.sockets(self.home).parent != self.home:
                shutil.rmtree(layout.sockets(self.home), ignore_errors=True)
            log.info("stopped")

    def _watch(self, users: int) -> None:
        pause = 0.0
        self._write_ready()
        while not self.stopping and not locks.acquire(users, shared=False):
            for engine in self.engines:
                if engine.process and engine.process.poll() is not None:
                    log.error("%s ended by itself (%s)", type(engine).__name__, engine.process.returncode)
                    self.ready.unlink(missing_ok=True)
                    time.sleep(pause)
                    pause = min(pause + 1.0, 5.0)
                    engine.start()
                    self._write_ready()
            time.sleep(LOOK_EVERY_S)
        self.ready.unlink(missing_ok=True)
        log.info("stopping")

    def _write_ready(self, text: str = "") -> None:
        draft = self.ready.with_suffix(".new")
        draft.write_text(text or ("ok postgres" if self.postgres else "ok"))
        draft.rename(self.ready)

    def asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True


def leave_session() -> None:
    """Two forks: the starter has no child to reap, and no terminal reaches us."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)


def open_log(home: Path) -> None:
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.glob("*.log"):
        if path.stat().st_size > LARGEST_LOG:
            path.rename(path.with_suffix(".log.1"))
    out = os.open(folder / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s", stream=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="keeper")
    parser.add_argument("home", type=Path)
    parser.add_argument("--without-postgres", action="store_true")
    options = parser.parse_args()
    home: Path = options.home
    os.umask(0o077)
    leave_session()
    open_log(home)
    own = locks.open_file(home, "keeper")
    users = locks.open_file(home, "users")
    locks.wait(own, shared=False, seconds=2, doing="Another keeper's end")
    try:
        keeper = Keeper(home, with_postgres=not options.without_postgres)
        for number in [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]:
            signal.signal(number, keeper.asked_to_stop)
        log.info("starting")
        keeper.run(users)
    finally:
        # In this order: whoever gets the users' lock next must find no keeper, and start one.
        os.close(own)
        os.close(users)


if __name__ == "__main__":
    main()
