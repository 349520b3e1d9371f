"""/metrics on a port of its own, without a token.

    listener = start("127.0.0.1", 9464)   # OSError if the address is taken
    listener.stop()

Needs no Django and no event loop: a thread answers.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gateway.telemetry import exposition

log = logging.getLogger(__name__)

PATH = "/metrics"
STOP_SECONDS = 3.0


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, folder: Path | None, beside_others: bool) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        self.folder, self.beside_others = folder, beside_others
        self._accepted = self._left = 0  # connections; each is counted by one thread alone, or under the lock
        self._lock = threading.Lock()
        super().__init__((host, port), Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Not HTTPServer's, which asks the resolver for our own name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.beside_others:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that hung up is not worth a line."""
        log.debug("a scrape failed", exc_info=True)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._accepted += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._lock:
            self._left += 1

    def stop(self) -> None:
        """Whoever was accepted, also by the kernel alone, is answered: a reload makes no gap in the graphs."""
        self.shutdown()
        waiting = select.poll()
        waiting.register(self.socket, select.POLLIN)
        while waiting.poll(0):
            self.handle_request()
        self.server_close()
        deadline = time.monotonic() + STOP_SECONDS
        while self._left < self._accepted and time.monotonic() < deadline:
            time.sleep(0.01)


class Handler(BaseHTTPRequestHandler):
    server: Listener
    protocol_version = "HTTP/1.1"  # but one request each: who keeps a connection would meet its end at a reload
    server_version = "Counterfoil"
    sys_version = ""
    timeout = 10  # for a scraper that says nothing

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self._answer(404, b"The metrics are at /metrics.\n")
            return
        try:
            found = exposition.page(
                self.headers.get("Accept", ""), self.headers.get("Accept-Encoding", ""), self.server.folder
            )
        except Exception:
            log.exception("The metrics could not be gathered")
            self._answer(500, b"The metrics could not be gathered: see the log.\n")
            return
        extra = {"Content-Encoding": "gzip"} if found.gzipped else {}
        self._answer(200, found.body, found.content_type, extra)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._answer(405, b"Only GET and HEAD.\n", extra={"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = _refuse

    def _answer(
        self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8", extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        said = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close", **(extra or {})}
        for name, value in said.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Scrapes are not logged."""


def start(host: str, port: int, folder: Path | None = None, *, beside_others: bool = False) -> Listener:
    """`folder`: what the web processes share; None: what this process knows. Port 0: any that is free.

    `beside_others`: neighbours listen there, too, and whoever is asked answers for all; so one may always leave.
    """
    listener = Listener(host, port, folder, beside_others)
    threading.Thread(target=listener.serve_forever, name="counterfoil-metrics", daemon=True).start()
    log.info("metrics", extra={"host": host, "port": listener.port})
    return listener
