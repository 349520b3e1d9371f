"""What beat sends exists, takes unknown arguments of newer senders, and may be run at any time."""

from __future__ import annotations

import pytest

from gateway.celery import BEAT_SCHEDULE, app
from gateway.ledger.models import Process

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("name", sorted(BEAT_SCHEDULE))
def test_it_runs_twice_and_with_arguments_of_a_newer_version(name: str) -> None:
    app.loader.import_default_modules()
    task = app.tasks[str(BEAT_SCHEDULE[name]["task"])]
    task.apply(throw=True)
    task.apply(kwargs={"of_tomorrow": 1}, throw=True)


@pytest.mark.parametrize("name", sorted(BEAT_SCHEDULE))
def test_it_expires_before_the_next_is_due(name: str) -> None:
    entry = BEAT_SCHEDULE[name]
    options = entry["options"]
    assert isinstance(options, dict)
    assert options["expires"] <= entry["schedule"]


def test_it_leaves_a_sign_of_life_of_the_worker() -> None:
    app.loader.import_default_modules()
    app.tasks["ledger.beat_worker"].apply(throw=True)
    assert Process.objects.filter(kind="worker").exists()
