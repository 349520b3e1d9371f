"""The two C programs: a load client and a mock of an upstream, cheap enough never to be what is measured."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.embedded import children  # theirs end with us, whatever ends us

HERE = Path(__file__).resolve().parent
BIN = HERE / "bin"
Figures = dict[str, Any]  # one JSON line of load.c


class Failed(Exception):
    """The benchmark cannot go on; the text is for a person."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build() -> None:
    """Compile what is missing or older than its source. Raises Failed without a C compiler."""
    BIN.mkdir(exist_ok=True)
    for name in ("load", "mock"):
        source, program = HERE / f"{name}.c", BIN / name
        if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
            continue
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None:
            raise Failed("The benchmark's load client is a C program, and there is no C compiler (cc) here.")
        draft = program.with_suffix(".new")
        done = subprocess.run([compiler, "-O2", "-w", "-o", draft, source], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{compiler} cannot build {source.name}:\n{done.stderr}")
        draft.rename(program)


class Mock:
    """The upstream: answers at once, streams a chunk every so often, counts what it has served."""

    DEFAULTS = {"latency_ms": 0, "chunks": 100, "interval_us": 10_000, "content": 200, "pad": 0}

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid = port, pid
        self.url = f"http://127.0.0.1:{port}/v1"

    def set(self, settings: Mapping[str, int]) -> None:
        query = "&".join(f"{name}={value}" for name, value in {**self.DEFAULTS, **settings}.items())
        self._get(f"/ctl?{query}")

    def served(self) -> int:
        """Requests so far."""
        return int(json.loads(self._get("/stats"))["requests"])

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            content: bytes = answer.read()
        return content


@contextmanager
def running_mock() -> Iterator[Mock]:
    port = free_port()
    process = children.start([BIN / "mock", str(port)])
    try:
        mock = Mock(port, process.pid)
        for _ in range(100):
            try:
                mock.served()
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise Failed("The mock upstream does not answer.")
        yield mock
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


class Load:
    """One run of the load client. Connections take the URLs in turn, requests the keys (none: no key).

    `trees` are the process trees whose CPU is measured, by label.
    """

    def __init__(
        self,
        urls: Sequence[str],
        keys: Sequence[str],
        model: str,
        load: str,
        *,
        seconds: float,
        warm: float,
        trees: Mapping[str, Sequence[int]],
    ) -> None:
        command = [str(BIN / "load"), "-m", model, *load.split(), "-d", str(seconds), "-w", str(warm)]
        for url in urls:
            command += ["-u", f"{url}/chat/completions"]
        for key in keys:
            command += ["-k", key]
        for label, pids in trees.items():
            command += ["-P", f"{label}={','.join(map(str, pids))}"]
        self._patience = seconds + warm + 30
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def figures(self) -> Figures:
        """Wait for the end. `first_error` is a text when a request failed."""
        try:
            out, err = self._process.communicate(timeout=self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise Failed("The load client did not come to its end.") from None
        try:
            found: Figures = json.loads(out)
        except ValueError:
            raise Failed(f"The load client says: {err.strip() or out}") from None
        found["first_error"] = err.strip()
        return found
