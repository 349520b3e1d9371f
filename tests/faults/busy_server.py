"""`python -m tests.faults.busy_server …`: the server, which from its first request on has counters of its own.

As if it had waited long for every counter (ledger.heat), which at the load of these tests it rarely does.
"""

from __future__ import annotations

import runpy
from typing import Any

import django


def main() -> None:
    django.setup()
    from gateway.ledger.heat import Heat

    make = Heat.__init__

    def make_hot(self: Any) -> None:
        make(self)
        self._until = {(0, 0): float("inf")}
        self._hot = lambda subject, now=None: True

    Heat.__init__ = make_hot  # type: ignore[method-assign]
    runpy.run_module("gateway.server", run_name="__main__")


if __name__ == "__main__":
    main()
