"""Which values a label may have. What comes from outside must never make a series for each request."""

from __future__ import annotations

OTHER = "other"


class LabelSet:
    """The first `most` values that were seen; any later one is "other"."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._known: set[str] = set()

    def of(self, value: str) -> str:
        if value in self._known:
            return value
        if not value or len(self._known) >= self.most:
            return OTHER
        self._known.add(value)
        return value


models = LabelSet(500)
deployments = LabelSet(500)
providers = LabelSet(200)
outcomes = LabelSet(60)  # ok, connect, timeout, status_503, ...
codes = LabelSet(100)  # of errors: ours, and those of a provider's 400
currencies = LabelSet(50)
endpoints = LabelSet(20)
