"""The breaker as anybody would write it down: every result is kept, and everything is worked out anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SlowBreaker:
    """No rests, no switches: those are simple enough to be looked at by themselves."""

    results: list[tuple[float, bool]] = field(default_factory=list)  # since it was last closed
    openings: list[float] = field(default_factory=list)  # when it opened, in a row
    claims: list[float] = field(default_factory=list)  # since it last opened
    unheard: int = 0  # claims of which no end was heard

    def state(self, now: float) -> str:
        if not self.openings:
            return "closed"
        lasts = [5, 10, 20, 40][len(self.openings) - 1] if len(self.openings) <= 4 else 60
        if now < self.openings[-1] + lasts:
            return "open"
        if self.claims and now < self.claims[-1] + 30:
            return "open"
        return "half_open"

    def claim(self, now: float) -> bool:
        if self.state(now) != "half_open":
            return False
        self.claims.append(now)
        return True

    def succeeded(self, now: float, *, probe: bool) -> bool:
        if not self.openings:
            self.results.append((now, True))
            return False
        if probe:
            self.results, self.openings, self.claims = [], [], []
        return probe

    def failed(self, now: float, *, probe: bool) -> bool:
        if self.openings:
            if probe:
                self.openings.append(now)
                self.claims = []
            return probe
        self.results.append((now, False))
        last_five = [good for _, good in self.results[-5:]]
        recent = [good for at, good in self.results if int(at) > int(now) - 30]
        opens = last_five == [False] * 5 or (len(recent) >= 20 and recent.count(False) * 2 > len(recent))
        if opens:
            self.openings = [now]
        return opens

    def abandon(self) -> None:
        self.claims = []
