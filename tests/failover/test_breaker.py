"""The state machine: against the slow model of it, and what is said of it in words."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.failover.breaker import FORCED_S, LONGEST_REST_S, Breaker, Forced, Results, State, open_seconds
from tests.failover.slow_breaker import SlowBreaker

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["good", "good", "bad", "bad", "probe", "look"]),
        st.sampled_from([0.0, 0.01, 0.4, 1.0, 3.0, 5.0, 29.5, 61.0]),
        st.sampled_from(["good", "bad", "abandon"]),
        st.integers(1, 8),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_it_does_what_the_slow_model_does(steps: list[tuple[str, float, str, int]]) -> None:
    breaker, slow, now = Breaker(), SlowBreaker(), 1000.0
    for what, seconds, outcome, times in steps:
        now += seconds
        for _ in range(times if what in ("good", "bad") else 1):
            if what == "good":
                assert breaker.succeeded(now) == slow.succeeded(now, probe=False)
            elif what == "bad":
                assert breaker.failed(now, "connect") == slow.failed(now, probe=False)
            elif what == "probe":
                claimed = breaker.claim(now)
                assert claimed == slow.claim(now)
                assert not breaker.claim(now)  # nobody gets a second one
                if claimed and outcome == "good":
                    assert breaker.succeeded(now, probe=True) and slow.succeeded(now, probe=True)
                elif claimed and outcome == "bad":
                    assert breaker.failed(now, "timeout", probe=True) and slow.failed(now, probe=True)
                elif claimed and times > 4:
                    breaker.abandon()
                    slow.abandon()
            assert breaker.state(now) == slow.state(now)
            assert (breaker.opens_in(now) > 0) == (slow.state(now) == "open")
            assert breaker.state(now + breaker.opens_in(now) + 1e-6) != "open"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.3, 1.0, 7.0, 31.0])), max_size=80))
def test_it_counts_what_lies_in_the_window(answers: list[tuple[bool, float]]) -> None:
    results, kept, now = Results(), [], 50.0
    for good, seconds in answers:
        now += seconds
        kept.append((now, good))
        if good:
            results.add_good(now)
        else:
            results.add_bad(now)
        inside = [good for at, good in kept if int(at) > int(now) - 30]
        assert results.counted(now) == (inside.count(True), inside.count(False))
    assert results.counted(now + 30) == (0, 0)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        breaker.failed(now, "connect")
    return breaker


def test_it_opens_at_the_fifth_failure_in_a_row() -> None:
    breaker = Breaker()
    for kind in ("connect", "timeout", "status 500", "broken"):
        assert not breaker.failed(0, kind)
    breaker.succeeded(0)
    for _ in range(4):
        assert not breaker.failed(0, "connect")
    assert breaker.failed(0, "cut")
    assert breaker.reason == "5 failures in a row, the last: cut"


def test_it_opens_when_more_than_half_of_twenty_fail() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.succeeded(1.0)
        assert not breaker.failed(1.0, "timeout")
    assert breaker.failed(1.0, "timeout")
    assert "11 of 21 requests failed in 30 s" in breaker.reason


def test_one_tenant_does_not_take_from_others_what_answers_them() -> None:
    breaker = Breaker()
    breaker.succeeded(0, tenant=1)
    for _ in range(40):
        assert not breaker.failed(5, "status 500", tenant=2)
    assert breaker.failed(5, "connect", tenant=2)  # this is nobody's request's fault


def test_it_opens_when_nobody_else_is_answered_or_others_fail_too() -> None:
    breaker = Breaker()
    breaker.succeeded(0, tenant=2)
    assert [breaker.failed(1, "status 500", tenant=2) for _ in range(5)] == [False] * 4 + [True]
    breaker = Breaker()
    breaker.succeeded(0, tenant=1)
    assert [breaker.failed(1, "status 500", tenant=2 + n % 2) for n in range(5)] == [False] * 4 + [True]
    breaker = Breaker()
    breaker.succeeded(0, tenant=1)
    assert [breaker.failed(31, "status 500", tenant=2) for _ in range(5)] == [False] * 4 + [True]


def test_it_stays_closed_while_streams_begin_between_the_failures() -> None:
    breaker = Breaker()
    for _ in range(25):
        breaker.began()
        assert not breaker.failed(1.0, "status 500")  # half of what was asked, and never two in a row
    assert breaker.failed(1.0, "status 500")
    assert breaker.reason.startswith("26 of 51 requests failed in 30 s")


def test_it_opens_when_streams_begin_and_all_break() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.began()
        assert not breaker.failed(1.0, "cut")
    breaker.began()
    assert breaker.failed(1.0, "cut")
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(1.0, "cut")
        breaker.failed(1.0, "connect")
        breaker.began()
        assert breaker.results.in_a_row == breaker.results.cut_in_a_row
    breaker.succeeded(1.0)
    assert breaker.results.cut_in_a_row == 0


def test_it_waits_twice_as_long_after_each_probe_that_fails() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(7):
        waits.append(breaker.opens_in(now))
        now += waits[-1]
        assert breaker.claim(now)
        assert breaker.failed(now, "connect", probe=True)
    assert waits == [5, 10, 20, 40, 60, 60, 60] == [open_seconds(n) for n in range(1, 8)]


def test_it_forgets_when_a_probe_was_good() -> None:
    breaker = opened()
    assert breaker.claim(5.0)
    breaker.failed(5.0, "connect", probe=True)
    assert breaker.claim(15.0)
    assert breaker.succeeded(15.0, probe=True)
    assert breaker.calm and breaker.results.counted(15.0) == (0, 0)
    for _ in range(4):
        assert not breaker.failed(15.0, "connect")
    assert breaker.failed(15.0, "connect")
    assert breaker.opens_in(15.0) == 5


def test_it_learns_nothing_from_requests_that_began_before_it_opened() -> None:
    breaker = opened()
    assert not breaker.succeeded(1.0)
    assert not breaker.failed(1.0, "timeout")
    assert (breaker.state(1.0), breaker.opens_in(1.0)) == (State.OPEN, 4)
    assert not breaker.succeeded(6.0)
    assert breaker.state(6.0) is State.HALF_OPEN


def test_it_lets_another_try_when_nothing_is_heard_of_a_probe() -> None:
    breaker = opened()
    assert breaker.claim(5.0)
    assert (breaker.state(6.0), breaker.opens_in(6.0)) == (State.OPEN, 29)
    assert breaker.claim(35.0)
    assert breaker.abandon() and not breaker.abandon()
    assert breaker.claim(35.0)


def test_it_makes_the_claim_of_a_long_probe_longer_but_not_for_ever() -> None:
    breaker = opened()
    assert breaker.claim(5.0)
    assert not breaker.renew(10.0, below=20, longest=120)
    assert breaker.renew(20.0, below=20, longest=120)
    assert (breaker.opens_in(20.0), breaker.retry_in(20.0)) == (30, 1)
    assert not breaker.renew(125.0, below=20, longest=120)


def test_it_rests_as_long_as_the_provider_asks_and_needs_no_probe_then() -> None:
    breaker = Breaker()
    assert breaker.rest(0, 7)
    assert not breaker.rest(1, 2)  # sooner over than the one before
    assert (breaker.state(3), breaker.opens_in(3)) == (State.RESTING, 4)
    breaker.failed(3, "status 500")
    assert breaker.state(7) is State.CLOSED and breaker.calm
    assert not breaker.rest(8, 0)
    assert breaker.rest(8, 10**9) and breaker.opens_in(8) == LONGEST_REST_S


def test_it_is_probed_after_a_rest_if_it_was_open() -> None:
    breaker = opened()
    breaker.rest(1, 20)
    assert (breaker.state(10), breaker.opens_in(10)) == (State.OPEN, 11)
    assert breaker.state(21) is State.HALF_OPEN


def hear(breaker: Breaker, now: float, forced: Forced = Forced.NO, *, open: bool = False, probe_s: float = 0) -> None:
    breaker.adopt(
        now,
        open=open,
        openings=1 if open else 0,
        reason="",
        forced=forced,
        open_s=3.0 if open else 0.0,
        probe_s=probe_s,
        rest_s=0.0,
    )


def test_it_obeys_a_switch_whatever_requests_say() -> None:
    breaker = Breaker()
    hear(breaker, 0, Forced.OPEN)
    breaker.succeeded(1)
    assert (breaker.state(1), breaker.opens_in(1), breaker.claim(1)) == (State.OPEN, FORCED_S, False)
    hear(breaker, 2, Forced.CLOSED)
    for _ in range(9):
        assert not breaker.failed(2, "connect")
    assert (breaker.state(2), breaker.opens_in(2)) == (State.CLOSED, 0)
    hear(breaker, 3)
    assert breaker.calm and not breaker.failed(3, "connect")


def test_it_follows_what_the_others_say() -> None:
    breaker = Breaker()
    hear(breaker, 10, open=True)
    assert (breaker.state(10), breaker.opens_in(10)) == (State.OPEN, 3)
    hear(breaker, 14, open=True, probe_s=9)
    assert (breaker.state(17), breaker.opens_in(17)) == (State.OPEN, 6)
    breaker.clear()
    assert breaker.calm and breaker.state(17) is State.CLOSED
