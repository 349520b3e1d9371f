"""Health in the admin: states, switches with their questions, history, and who may do what."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gateway.catalogue.models import Deployment, Model, Provider
from gateway.failover import services
from gateway.failover.models import Circuit, HealthEvent, RecentResults
from gateway.failover.standings import in_state, next_probe, state_of

LIST = "/admin/failover/deploymenthealth/"


def text_of(response: Any) -> str:
    return str(response.content.decode())


def page_of(deployment: Deployment) -> str:
    return f"{LIST}{deployment.pk}/change/"


def switch_of(verb: str, *deployments: Deployment) -> str:
    return f"{LIST}switch/{verb}/?ids={','.join(str(one.pk) for one in deployments)}"


def opened(deployment: Deployment, **facts: Any) -> Circuit:
    soon = timezone.now() + timedelta(minutes=1)
    stated = {"state": "open", "openings": 2, "reason": "5 failures in a row, the last: connect", "open_until": soon}
    return Circuit.objects.create(deployment=deployment, **{**stated, **facts})


@pytest.fixture
def second(deployment: Deployment) -> Deployment:
    return Deployment.objects.create(model=deployment.model, provider=deployment.provider, upstream_model="second")


# ---- what is shown ----


def test_it_lists_the_sick_ones_first_and_says_why(
    browser: Client, deployment: Deployment, second: Deployment
) -> None:
    opened(second)
    for good, bad in ((10, 4), (3, 1)):
        RecentResults.objects.create(deployment=second, process=uuid4(), good=good, bad=bad)
    long_ago = timezone.now() - timedelta(minutes=5)
    RecentResults.objects.create(deployment=second, process=uuid4(), good=1, bad=99, at=long_ago)
    text = text_of(browser.get(LIST))
    assert text.index("acme-chat-2026-01") > text.index(">second<") > 0
    assert "5 failures in a row, the last: connect" in text
    assert "5 of 18 (27 %)" in text
    assert re.search(r"\bin \d+ s\b", text)


def test_it_filters_by_state(browser: Client, deployment: Deployment, second: Deployment) -> None:
    opened(second)
    for state, names in {
        "open": ["second"],
        "closed": ["acme-chat-2026-01"],
        "half_open": [],
        "out": [],
        "disabled": [],
        "nonsense": ["second", "acme-chat-2026-01"],
    }.items():
        text = text_of(browser.get(LIST, {"state": state}))
        assert [name for name in ("second", "acme-chat-2026-01") if f">{name}<" in text] == names, state
    Provider.objects.update(enabled=False)
    assert ">second<" in text_of(browser.get(LIST, {"state": "disabled"}))
    assert ">second<" not in text_of(browser.get(LIST, {"state": "open"}))


def test_it_gives_one_state_in_python_and_in_sql(deployment: Deployment) -> None:
    now = timezone.now()
    before, after = now - timedelta(seconds=9), now + timedelta(seconds=9)
    for state in ("closed", "open"):
        for forced in ("", "open", "closed"):
            for open_until in (None, before, after):
                for resting_until in (None, before, after):
                    Circuit.objects.all().delete()
                    circuit = Circuit.objects.create(
                        deployment=deployment,
                        state=state,
                        forced=forced,
                        open_until=open_until if state == "open" else None,
                        resting_until=resting_until,
                    )
                    if state == "open" and open_until is None:
                        continue
                    found = [
                        one for one in HealthEvent.State if Deployment.objects.filter(in_state(one, now)).exists()
                    ]
                    assert found == [state_of(circuit, now)]
                    assert bool(next_probe(circuit, now)) == (found[0] not in ("closed", "always"))


def test_it_shows_a_page_of_its_own_with_history(browser: Client, deployment: Deployment, admin: User) -> None:
    assert "Nothing has happened to it" in text_of(browser.get(page_of(deployment)))
    for number in range(15):
        services.take_out(deployment=deployment, by=admin, reason=f"maintenance {number}")
        services.put_back(deployment=deployment, by=admin, reason="done")
    text = text_of(browser.get(page_of(deployment)))
    assert "maintenance 14" in text and "maintenance 1<" not in text
    assert "All of the last 90 days" in text
    events = text_of(browser.get(f"/admin/failover/healthevent/?deployment__id__exact={deployment.pk}"))
    assert "maintenance 0" in events and "alice" in events


def test_it_shows_health_where_deployments_are_edited(browser: Client, deployment: Deployment) -> None:
    for page in ("/admin/catalogue/deployment/", f"/admin/catalogue/deployment/{deployment.pk}/change/"):
        assert "in rotation" in text_of(browser.get(page))
    opened(deployment)
    for page in ("/admin/catalogue/deployment/", f"/admin/catalogue/deployment/{deployment.pk}/change/"):
        text = text_of(browser.get(page))
        assert "open, tried again: in" in text and page_of(deployment) in text
    assert browser.get("/admin/catalogue/deployment/add/").status_code == 200


def test_it_says_on_the_dashboard_who_is_out(browser: Client, deployment: Deployment) -> None:
    assert "not in rotation" not in text_of(browser.get("/admin/"))
    opened(deployment)
    text = text_of(browser.get("/admin/"))
    assert "Deployments that are not in rotation" in text and "5 failures in a row" in text


def test_it_lists_many_with_as_many_queries_as_one(browser: Client, deployment: Deployment) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert browser.get(LIST).status_code == 200
        return len(captured)

    browser.get(LIST)
    few = queries()
    for number in range(10):
        more = Deployment.objects.create(
            model=deployment.model, provider=deployment.provider, upstream_model=f"u{number}"
        )
        opened(more)
    assert queries() == few <= 9


# ---- switching ----


def test_it_asks_before_it_takes_one_out_and_wants_a_reason(
    browser: Client, deployment: Deployment, second: Deployment
) -> None:
    asked = browser.get(f"{LIST}{deployment.pk}/out/")
    assert asked.status_code == 302 and asked["location"] == switch_of("take-out", deployment)
    text = text_of(browser.get(asked["location"]))
    assert "Take out of rotation?" in text and "has no other deployment" not in text
    assert "This field is required" in text_of(browser.post(asked["location"], {"reason": ""}))
    assert not Circuit.objects.exclude(forced="").exists()
    done = browser.post(asked["location"], {"reason": "their keys are changed"}, follow=True)
    assert "taken out of rotation." in text_of(done) and "alice: their keys are changed" in text_of(done)
    circuit = Circuit.objects.get()
    assert (circuit.forced, circuit.forced_by) == ("open", "alice")
    event = HealthEvent.objects.get()
    assert (event.before, event.after, event.person) == ("closed", "out", "alice")


def test_it_warns_who_would_be_left_without(browser: Client, deployment: Deployment, second: Deployment) -> None:
    both = switch_of("take-out", deployment, second)
    assert "acme-chat has no other deployment in rotation: it will be refused." in text_of(browser.get(both))
    Model.objects.update(fallbacks=["acme-small"])
    assert "acme-small will be asked instead." in text_of(browser.get(both))
    opened(second)
    assert "has no other deployment" in text_of(browser.get(switch_of("take-out", deployment)))


def test_it_switches_many_at_once(browser: Client, deployment: Deployment, second: Deployment) -> None:
    chosen = {"_selected_action": [deployment.pk, second.pk]}
    asked = browser.post(LIST, {"action": "take_out_selected", **chosen})
    assert asked.status_code == 302
    browser.post(asked["location"], {"reason": "moving"})
    assert Circuit.objects.filter(forced="open").count() == 2
    back = browser.post(LIST, {"action": "put_back_selected", **chosen})
    browser.post(back["location"], {"reason": ""})
    assert Circuit.objects.filter(forced="").count() == 2
    assert HealthEvent.objects.count() == 4


def test_it_forgets_failures(browser: Client, deployment: Deployment) -> None:
    opened(deployment, resting_until=timezone.now() + timedelta(seconds=30))
    done = browser.post(switch_of("forget", deployment), {"reason": "they say it is mended"}, follow=True)
    assert "called again." in text_of(done)
    circuit = Circuit.objects.get()
    assert (circuit.state, circuit.openings, circuit.resting_until, circuit.open_until) == ("closed", 0, None, None)
    assert HealthEvent.objects.get().reason == "they say it is mended"


def test_it_always_tries_one(browser: Client, deployment: Deployment) -> None:
    opened(deployment)
    browser.post(switch_of("always-try", deployment), {"reason": "it only looks ill"})
    assert "always tried" in text_of(browser.get(page_of(deployment)))
    assert state_of(Circuit.objects.get()) == "always"


def test_it_says_when_there_is_nothing_to_switch(browser: Client, deployment: Deployment) -> None:
    for verb, said in (("put-back", "is switched by nobody"), ("forget", "is in rotation already")):
        assert said in text_of(browser.post(switch_of(verb, deployment), {"reason": "x"}, follow=True))
    browser.post(switch_of("take-out", deployment), {"reason": "x"})
    for verb, said in (
        ("take-out", "is taken out of rotation already, by alice"),
        ("forget", "put it back instead"),
    ):
        assert said in text_of(browser.post(switch_of(verb, deployment), {"reason": "x"}, follow=True))
    assert HealthEvent.objects.count() == 1


@pytest.mark.parametrize("query", ["", "ids=", "ids=x", "ids=0", "ids=99999999999999999999999", "ids=1,-2"])
def test_it_knows_no_page_for_nobody(browser: Client, db: None, query: str) -> None:
    assert browser.get(f"{LIST}switch/take-out/?{query}").status_code == 404


def test_it_knows_no_other_verb(browser: Client, deployment: Deployment) -> None:
    assert browser.get(switch_of("explode", deployment)).status_code == 404


# ---- who may ----


def test_it_honours_permissions(finance: User, deployment: Deployment) -> None:
    client = Client()
    client.force_login(finance)
    switch = switch_of("take-out", deployment)
    assert [client.get(page).status_code for page in (LIST, page_of(deployment), switch)] == [403] * 3
    finance.user_permissions.add(Permission.objects.get(codename="view_deploymenthealth"))
    assert [client.get(page).status_code for page in (LIST, page_of(deployment))] == [200] * 2
    assert "Take out of rotation" not in text_of(client.get(page_of(deployment)))
    assert client.get(switch).status_code == client.post(switch, {"reason": "x"}).status_code == 403
    assert client.get(f"{LIST}{deployment.pk}/out/").status_code == 403
    assert not Circuit.objects.exists()
    finance.user_permissions.add(Permission.objects.get(codename="change_deploymenthealth"))
    client.post(switch, {"reason": "x"})
    assert Circuit.objects.get().forced_by == "fiona"


def test_it_lets_nobody_edit_or_delete_what_happened(browser: Client, deployment: Deployment, admin: User) -> None:
    services.take_out(deployment=deployment, by=admin, reason="x")
    event = HealthEvent.objects.get()
    for page in (f"/admin/failover/healthevent/{event.pk}", f"{LIST}{deployment.pk}"):
        assert browser.post(f"{page}/delete/", {"post": "yes"}).status_code == 403
        assert browser.post(f"{page}/change/", {"reason": "y"}).status_code == 403
    assert browser.get("/admin/failover/healthevent/add/").status_code == 403
