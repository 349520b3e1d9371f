"""`manage.py export_usage`: its arguments, its file, its errors."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from gateway.reports import csv_export
from tests.billing import books

pytestmark = pytest.mark.django_db(transaction=True)

PERIOD = {"--from": "2026-11-01", "--to": "2026-11-30"}


def run(**options: Any) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    given = PERIOD | {f"--{name}": value for name, value in options.items()}
    arguments = [part for pair in given.items() for part in pair]
    call_command("export_usage", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_it_prints_the_csv_and_nothing_else() -> None:
    books.record(books.key(books.tenant("acme")))
    out, err = run()
    assert out.splitlines()[0] == ",".join(csv_export.REQUEST_COLUMNS)
    assert out.splitlines()[1].startswith("usage,,2026-11-10,")
    assert err == ""


def test_it_sums_by_day_for_one_tenant() -> None:
    acme, globex = books.key(books.tenant("acme")), books.key(books.tenant("globex"))
    books.record(acme)
    books.record(acme)
    books.record(globex)
    out, _ = run(by="day", tenant="acme")
    lines = [line for line in out.splitlines() if line.startswith("usage")]
    assert len(lines) == 1
    assert f",acme,{acme.public_id},laptop,acme-chat,2,0,0,2000," in lines[0]
    assert ",tenant=acme" in out


def test_it_writes_a_file_that_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books.record(books.key(books.tenant("acme")))
    target = tmp_path / "usage.csv"
    target.write_text("last month's")

    def fails(*args: Any, **kwargs: Any) -> Any:
        yield b"line\n"
        raise RuntimeError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr(csv_export, "chunks", fails)
        with pytest.raises(RuntimeError):
            run(output=str(target))
    assert target.read_text() == "last month's"
    assert os.listdir(tmp_path) == ["usage.csv"]

    out, err = run(output=str(target))
    assert (out, err) == ("", f"wrote {target}\n")
    assert target.read_text() == run()[0]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_it_tells_its_progress_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.reports.management.commands import export_usage

    monkeypatch.setattr(export_usage, "EVERY", 2)
    key = books.key(books.tenant("acme"))
    for _ in range(3):
        books.record(key)
    assert run()[1] == "3 rows …\n"


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"from": "2026-02-30"}, "--from: '2026-02-30' is not a day: write YYYY-MM-DD"),
        ({"to": "yesterday"}, "--to: 'yesterday' is not a day"),
        ({"from": "2026-12-01"}, "--from: The period ends before it begins: from 2026-12-01 to 2026-11-30"),
        ({"tenant": "nobody"}, "--tenant: there is no tenant 'nobody'"),
        ({"by": "week"}, "invalid choice: 'week'"),
        ({"output": "/nowhere/usage.csv"}, "--output: No such file or directory: /nowhere/usage.csv"),
    ],
)
def test_it_says_what_is_wrong(options: dict[str, str], complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint.replace("(", r"\(")):
        run(**options)
