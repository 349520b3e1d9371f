"""`python -m tests.faults.sweeping SECONDS`: what Celery's beat does, with a lease of so many seconds.

It survives whatever happens to the database, as a Celery task does: the next look is a new one.
"""

from __future__ import annotations

import sys
import time

import django


def main() -> None:
    django.setup()
    from django.db import DatabaseError, connection

    from gateway.ledger.sweeper import sweep

    while True:
        try:
            sweep(lease_seconds=float(sys.argv[1]))
        except DatabaseError as exc:
            print(f"no look: {exc}", flush=True)
            connection.close()
        time.sleep(0.5)


if __name__ == "__main__":
    main()
