"""A server that may open few files goes on serving, whoever knocks."""

from __future__ import annotations

from contextlib import ExitStack

from tests.server.conftest import STUB
from tests.server.raw import Connection
from tests.server.test_full import lived, opened
from tests.servers import running_server

# A server that may open few files, which leaves it the fewest connections that there are.
FEW_FILES = (
    "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (140, 140)); "
    "runpy.run_module('gateway.server', run_name='__main__')"
)


def test_it_keeps_below_its_limit_of_files() -> None:
    with running_server(STUB, command=("-c", FEW_FILES)) as server, ExitStack() as stack:
        connections = opened(stack, server, 60)
        for connection in reversed(connections):
            try:
                assert lived(connection) == 200
            except (EOFError, ConnectionError):
                continue  # it was idle for longest
        assert lived(stack.enter_context(Connection(server))) == 200
        assert not [line for line in server.lines() if line.get("reason") == "EMFILE"]
