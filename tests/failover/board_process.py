"""A server process's board without the server, for test_processes. `python -m tests.failover.board_process`.

In: a line of JSON with the database, then a line for each call: `state 7`, `fail 7 5`. Out: one line of JSON each.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import django
from django.conf import settings


async def answer(board: Any, what: str, deployment_id: int, *more: str) -> Any:
    if what == "state":
        return board.state(deployment_id)
    if what == "fail":
        for _ in range(int(more[0])):
            board.failed(deployment_id, "connect")
    elif what == "bad_probe":
        board.failed(deployment_id, "timeout", probe=True)
    elif what == "good_probe":
        board.succeeded(deployment_id, probe=True)
    elif what == "succeed":
        board.succeeded(deployment_id)
    elif what == "abandon":
        board.abandoned(deployment_id)
    elif what == "rest":
        board.rest(deployment_id, float(more[0]))
    elif what == "claim":
        return await board.claim_probe(deployment_id)
    elif what == "opens_in":
        return board.opens_in(deployment_id)
    return board.state(deployment_id)


async def work(board: Any) -> None:
    loop = asyncio.get_running_loop()
    board.start(loop)
    print(json.dumps("ready"), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, deployment_id, *more = line.split()
        print(json.dumps(await answer(board, what, int(deployment_id), *more)), flush=True)
    await board.stop()


def main() -> None:
    settings.DATABASES["default"].update(json.loads(sys.stdin.readline()))
    django.setup()
    from gateway.failover import board as boards
    from gateway.failover import sharing

    # On a busy machine too the database decides who may probe: that is what is tested.
    boards.CLAIM_PATIENCE_S = 60.0
    sharing._SESSION = sharing._SESSION.replace("'1s'", "'30s'").replace("'3s'", "'60s'")
    asyncio.run(work(boards.board))


if __name__ == "__main__":
    main()
