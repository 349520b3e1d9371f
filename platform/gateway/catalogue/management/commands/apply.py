"""`manage.py apply FILE`: the diff on stdout; problems as FILE:LINE: text on stderr, then exit 1."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway.catalogue.apply import Refused, apply


class Command(BaseCommand):
    help = (
        "Make providers, models, prices and tenants as a YAML file states them. Idempotent: what the file does "
        "not mention stays, a second run changes nothing. One transaction: all of it or none."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE.yaml", help="the file, or - for stdin")
        parser.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["file"]
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        except OSError as exc:
            raise CommandError(f"{name}: {exc.strerror}") from exc
        except UnicodeError as exc:
            raise CommandError(f"{name}: {exc}") from exc
        source = "stdin" if name == "-" else name
        try:
            report = apply(text, dry_run=options["dry_run"], source=Path(source).name)
        except Refused as exc:
            for problem in exc.problems:
                self.stderr.write(f"{source}:{problem.line}: {problem.text}")
            count = len(exc.problems)
            raise CommandError(f"Nothing was changed: {count} problem{'s' * (count > 1)} in {source}.") from exc
        for line in report.lines():
            self.stdout.write(line)
        self.stdout.write(report.summary())
        if options["dry_run"] and not report.empty:
            self.stdout.write("Dry run: nothing was changed.")
