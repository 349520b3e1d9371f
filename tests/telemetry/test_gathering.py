"""Several processes share a folder: whoever is asked shows the sum, and nothing is lost with a process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.telemetry import exposition
from gateway.telemetry.families import CLIENTS_LEFT
from gateway.telemetry.gathering import gather
from gateway.telemetry.slots import BYTES, Slots
from tests.servers import ROOT
from tests.telemetry.samples import value

WORKER = """
import sys
from pathlib import Path
from gateway.telemetry import metrics
from gateway.telemetry.slots import slots
metrics.client_left()  # before it joins
slots.share(Path(sys.argv[1]))
metrics.client_left()
metrics.connections(int(sys.argv[2]))
metrics.attempt_ended(provider=1, deployment_id=int(sys.argv[2]), outcome="ok", seconds=0.3)
metrics.breaker_changed(1, sys.argv[3])
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def worker(folder: Path, connections: int, breaker: str = "closed") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(connections), breaker],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def look(folder: Path, name: str, **labels: str) -> float | None:
    return value(exposition.page(folder=folder).body.decode(), name, **labels)


def test_it_adds_up_what_lives_and_what_has_died(tmp_path: Path) -> None:
    with worker(tmp_path, 3), worker(tmp_path, 4, "open") as second:
        assert look(tmp_path, "counterfoil_clients_left_total") == 4
        assert look(tmp_path, "counterfoil_connections") == 7
        assert look(tmp_path, "counterfoil_processes") == 2
        assert look(tmp_path, "counterfoil_attempt_seconds_count", deployment="4") == 1
        assert look(tmp_path, "counterfoil_breaker_state", deployment="1") == 2  # said last
        second.send_signal(signal.SIGKILL)
        second.wait()
        for _ in range(2):  # the first to look moves what it counted, the next finds it there
            assert look(tmp_path, "counterfoil_clients_left_total") == 4
            assert look(tmp_path, "counterfoil_attempt_seconds_count", deployment="4") == 1
            assert look(tmp_path, "counterfoil_connections") == 3
            assert look(tmp_path, "counterfoil_processes") == 1
            assert look(tmp_path, "counterfoil_breaker_state", deployment="1") == 0
        with worker(tmp_path, 5):
            assert look(tmp_path, "counterfoil_clients_left_total") == 6
            assert look(tmp_path, "counterfoil_connections") == 8


def test_restarts_leave_no_pile(tmp_path: Path) -> None:
    for _ in range(3):
        with worker(tmp_path, 1):
            pass
        assert look(tmp_path, "counterfoil_processes") == 0
    assert look(tmp_path, "counterfoil_clients_left_total") == 6
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "departed.json"}


def test_killed_in_the_middle_of_tidying_up_it_counts_nothing_twice(tmp_path: Path) -> None:
    with worker(tmp_path, 1):
        pass
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert look(tmp_path, "counterfoil_clients_left_total") == 2
    for path, content in kept.items():  # the sum was written, the files not yet removed
        path.write_bytes(content)
    assert look(tmp_path, "counterfoil_clients_left_total") == 2
    assert look(tmp_path, "counterfoil_clients_left_total") == 2


@pytest.mark.parametrize("content", [b"", b"{", b'{"files": [], "series": [["gone", [], [1]]]}'])
def test_it_survives_a_sum_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "departed.json").write_bytes(content)
    with worker(tmp_path, 1):
        assert look(tmp_path, "counterfoil_clients_left_total") == 2


def test_it_survives_a_process_that_died_at_birth_and_one_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "1-1.slots").write_bytes(b"")
    (tmp_path / "2-2.slots").write_bytes(bytes(131_072 * 8))
    (tmp_path / "2-2.index").write_bytes(
        b'["counterfoil_gone",[],40,1]\n["counterfoil_charge",["EUR","x"],41,1]\n["counterfoil_charge",["EUR"],42,9]\n'
        b'["counterfoil_clie["counterfoil_charge",["EUR"],42,9]\n'  # torn, as the disk was full for a moment
        b'["counterfoil_clients_left",[],43'  # torn
    )
    with worker(tmp_path, 1):
        assert look(tmp_path, "counterfoil_clients_left_total") == 2
        assert look(tmp_path, "counterfoil_charge_total", currency="EUR") is None


def test_on_a_full_disk_it_counts_for_itself_and_goes_on(
    tmp_path: Path, fresh: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine would kill it at the first touch of a page for which there is no room."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        fresh.share(tmp_path)
    assert fresh.folder is None
    fresh.values[fresh.place(CLIENTS_LEFT)] += 1
    assert gather().series[CLIENTS_LEFT.name, ()] == [1]
    assert gather(tmp_path).pids == []
    monkeypatch.undo()
    other = Slots()
    other.share(tmp_path)
    (path,) = tmp_path.glob("*.slots")
    assert path.stat().st_blocks * 512 >= BYTES


def test_alone_it_shows_itself(fresh: Slots) -> None:
    found = gather()
    assert found.pids == [os.getpid()]
