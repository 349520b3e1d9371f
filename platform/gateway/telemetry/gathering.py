"""The numbers of all web processes, added up: counters of dead ones too, gauges of those that live."""

from __future__ import annotations

import fcntl
import logging
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from gateway.telemetry.families import FAMILIES
from gateway.telemetry.slots import BYTES, Key, locked, slots

log = logging.getLogger(__name__)

Series = dict[Key, list[float]]


@dataclass
class Gathered:
    series: Series = field(default_factory=dict)
    pids: list[int] = field(default_factory=list)  # of processes that live


def gather(folder: Path | None = None) -> Gathered:
    """Of the processes that share the folder; without one, of this process."""
    folder = folder or slots.folder
    if folder is None:
        return Gathered(slots.series(), [os.getpid()])
    with locked(folder):
        return _gather_shared(folder)


def _gather_shared(folder: Path) -> Gathered:
    """What dead processes counted moves into one file, so that restarts leave no pile."""
    departed, folded = _departed(folder)
    living = Gathered()
    dead = []
    for path in sorted(folder.glob("*.slots")):
        if path.stem in folded:  # killed between writing the sum and removing what is in it
            dead.append(path)
        elif _lives(path):
            _add(living.series, _read(path))
            living.pids.append(int(path.stem.partition("-")[0]))
        else:
            _add(departed, {key: numbers for key, numbers in _read(path).items() if _adds_up(key)})
            dead.append(path)
    if dead:
        _bury(folder, departed, dead)
    _add(living.series, departed)
    return living


def _read(path: Path) -> Series:
    """Of one process. Places that this version does not know, or cuts otherwise, are left out."""
    values = array("d")
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < BYTES:
            return {}  # it died before it had counted anything
        values.frombytes(file.read())
    found: Series = {}
    for name, labels, place, size in _index(path.with_suffix(".index")):
        family = FAMILIES.get(name)
        if family is not None and family.size == size and len(family.labels) == len(labels):
            found[name, tuple(labels)] = values[place : place + size].tolist()
    return found


def _index(path: Path) -> Iterator[tuple[str, list[str], int, int]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines[:-1]:  # the last is empty, or being written
        with suppress(ValueError):  # torn: the disk was full
            name, labels, place, size = orjson.loads(line)
            yield name, labels, place, size


def _lives(path: Path) -> bool:
    with path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _adds_up(key: Key) -> bool:
    return FAMILIES[key[0]].kind != "gauge"


def _add(total: Series, more: Series) -> None:
    for key, numbers in more.items():
        known = total.get(key)
        if known is None:
            total[key] = numbers
        elif FAMILIES[key[0]].merge == "sum":
            total[key] = [one + other for one, other in zip(known, numbers, strict=True)]
        elif numbers[1] > known[1]:  # set later
            total[key] = numbers


def _departed(folder: Path) -> tuple[Series, set[str]]:
    """What dead processes counted, and whose files are in it."""
    try:
        said = orjson.loads((folder / "departed.json").read_bytes())
    except FileNotFoundError:
        return {}, set()
    except ValueError:
        log.warning("What earlier web processes counted cannot be read, and is left out of the metrics")
        return {}, set()
    known = {(name, tuple(labels)): numbers for name, labels, numbers in said["series"] if name in FAMILIES}
    return {key: numbers for key, numbers in known.items() if len(numbers) == FAMILIES[key[0]].size}, set(
        said["files"]
    )


def _bury(folder: Path, departed: Series, dead: list[Path]) -> None:
    said = {
        "files": [path.stem for path in dead],
        "series": [[name, labels, numbers] for (name, labels), numbers in departed.items()],
    }
    fresh = folder / "departed.new"
    fresh.write_bytes(orjson.dumps(said))
    fresh.replace(folder / "departed.json")
    for path in dead:
        path.with_suffix(".index").unlink(missing_ok=True)
        path.unlink()
