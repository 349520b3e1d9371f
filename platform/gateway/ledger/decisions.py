"""What a request was decided on: one row per limit, as the desk's SQL packs it (`ledger_decisions`, 0006)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from gateway.limits.claims import Claim

NO_BOUND = -1  # asked of a limit that could not know how much; its counter was not looked at
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Decision:
    """One limit, as it was when the request came. Amounts of spend are nano-units."""

    rule_id: int
    owner_id: int
    kind: str  # c(alendar), m(inute), f (in flight)
    measure: str  # q, i, o, b, s, f: see ledger_claim
    enforce: bool
    starts: datetime
    ends: datetime | None
    amount: int
    ask: int
    used: int
    held: int

    @property
    def left(self) -> int:
        """What the limit still had for this request; below 0: a limit that was lowered under what is used."""
        return self.amount - self.used - self.held

    @property
    def bounded(self) -> bool:
        """False: it could not be said how much the request asks, so that it was refused unseen."""
        return self.ask != NO_BOUND

    @property
    def fits(self) -> bool:
        return self.bounded and self.ask <= self.left

    @property
    def verdict(self) -> str:
        """fits | refused | over (it does not fit, but the limit only observes)."""
        return "fits" if self.fits else "refused" if self.enforce else "over"

    @property
    def never(self) -> bool:
        """Larger than the limit itself: waiting does not help."""
        return self.ask > self.amount


def unpack(rows: Iterable[Sequence[Decimal | int]]) -> list[Decision]:
    """In the order of rules' ids, in which they were looked at."""
    return [_decision([int(number) for number in row]) for row in rows]


def unasked(claim: Claim) -> list[int]:
    """A row for a limit that a request could not be put to (`ledger_keep_early_refusals` keeps it)."""
    return [*claim._replace(ask=NO_BOUND)[:9], 0, 0]


def _decision(row: Sequence[int]) -> Decision:
    rule, owner, kind, measure, enforce, starts, ends, amount, ask, used, held = row
    return Decision(
        rule_id=rule,
        owner_id=owner,
        kind=chr(kind),
        measure=chr(measure),
        enforce=bool(enforce),
        starts=EPOCH + timedelta(seconds=starts),
        ends=None if ends < 0 else EPOCH + timedelta(seconds=ends),
        amount=amount,
        ask=ask,
        used=used,
        held=held,
    )
