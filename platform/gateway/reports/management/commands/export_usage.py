"""`manage.py export_usage`: the ledger as CSV, for finance and for scripts."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from gateway.billing.rollups import LedgerFromElsewhere
from gateway.reports import csv_export
from gateway.reports.selection import BadSelection, Selection, parse_day
from tenants.models import Tenant

EVERY = 100_000  # rows between two lines of progress


class Command(BaseCommand):
    help = (
        "Export what was used as CSV: one line per request, or summed by day, tenant, key and model. Days are "
        "the tenant's own, both ends included. The last lines are control totals (docs/finance.md)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--from", dest="first", required=True, metavar="DATE", help="first day, YYYY-MM-DD")
        parser.add_argument("--to", dest="last", required=True, metavar="DATE", help="last day, included")
        parser.add_argument("--tenant", metavar="SLUG", help="this tenant only; otherwise all")
        parser.add_argument("--by", choices=["request", "day"], default="request", help="default: request")
        parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        slug = options["tenant"]
        try:
            selection = Selection(
                first=parse_day("from", options["first"]),
                last=parse_day("to", options["last"]),
                by=options["by"],
                tenant_id=_tenant(slug).pk if slug else None,
            )
            chunks = csv_export.chunks(
                selection, described=f"tenant={slug}" if slug else "", progress=self._progress()
            )
            self._write(chunks, options["output"])
        except BadSelection as problem:
            raise CommandError(f"--{problem.parameter}: {problem}") from None
        except LedgerFromElsewhere as problem:
            raise CommandError(str(problem)) from None

    def _write(self, chunks: Iterator[bytes], output: Path | None) -> None:
        if output is not None:
            try:
                _write_whole(chunks, output)
            except OSError as problem:
                raise CommandError(f"--output: {problem.strerror}: {output}") from None
            self.stderr.write(f"wrote {output}")
            return
        try:
            for chunk in chunks:
                self.stdout.write(chunk.decode(), ending="")
            self.stdout.flush()
        except BrokenPipeError:
            # The reader has had enough (| head): not an error, and Python must not complain at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _progress(self) -> Any:
        said = 0

        def progress(rows: int) -> None:
            nonlocal said
            if rows - said >= EVERY:
                said = rows
                self.stderr.write(f"{rows:,} rows …")

        return progress


def _tenant(slug: str) -> Tenant:
    try:
        return Tenant.objects.get(slug=slug)
    except Tenant.DoesNotExist:
        raise BadSelection("tenant", f"there is no tenant {slug!r}.") from None


def _write_whole(chunks: Iterator[bytes], output: Path) -> None:
    """Under a name of its own until it is whole, so that nobody picks up half an export."""
    handle, draft = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(draft, 0o666 & ~mask)  # mkstemp is for the owner only; the file is as any other
        os.replace(draft, output)
    except BaseException:
        os.unlink(draft)
        raise
