"""The supervisor's side of the local model: its key and port, its process, and whether it answers."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from gateway.embedded import children, model


class LocalModel:
    """Key and port are kept in the home, so that a new start changes nothing in the catalogue."""

    def __init__(self, home: Path) -> None:
        self._kept = home / "model.json"
        self.log = home / "logs" / "model.log"
        kept = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        self.key: str = kept.get("key") or secrets.token_urlsafe(32)
        self.port: int = kept.get("port") or 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> subprocess.Popen[bytes]:
        self.port = _free_port(self.port)
        draft = self._kept.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({"key": self.key, "port": self.port}))
        draft.rename(self._kept)
        with self.log.open("ab") as log:
            return children.start(
                [sys.executable, "-m", "gateway.embedded.model", str(self.port)],
                env=os.environ | {"LOCAL_MODEL_KEY": self.key},
                output=log,
            )

    def answers(self) -> bool:
        """Whether it completes a chat; a few tokens of work."""
        body = {"model": model.NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return bool(json.load(answer)["choices"])
        except (OSError, ValueError):  # urllib's errors are OSErrors
            return False


def _free_port(wanted: int) -> int:
    """The wanted port of loopback if it is free, else any that is."""
    for port in [wanted, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")
