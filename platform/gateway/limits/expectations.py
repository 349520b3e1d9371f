"""Expected output of a request, learned per key and model: a high percentile of what was used lately.

In memory, bounded, per process: it only sizes holds. Settlement books the real usage, and a limit that must not be
exceeded holds the worst case instead (`hold: hard`). A process that has just been started knows from the ledger what
a key used before: with a guess, many requests at once would hold what is left of a budget, and refuse falsely.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

KNOWN = 20_000  # pairs in memory
SAMPLES = 64
UNKNOWN = 1_024  # tokens, until a few answers have been seen
ENOUGH = 4
PERCENTILE = 0.95


class Expectations:
    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[int, int], deque[int]] = OrderedDict()

    def learn(self, key_id: int, model_id: int, output_tokens: int) -> None:
        samples = self._seen.get((key_id, model_id))
        if samples is None:
            samples = self._seen[key_id, model_id] = deque(maxlen=SAMPLES)
            if len(self._seen) > KNOWN:
                self._seen.popitem(last=False)
        samples.append(output_tokens)

    def remember(self, key_id: int, outputs: Sequence[tuple[int, int]]) -> None:
        """What the ledger has of a key: (model, output tokens), the latest last. What was seen here is as good."""
        known = {model_id for model_id, _ in outputs if (key_id, model_id) in self._seen}
        for model_id, output_tokens in outputs:
            if model_id not in known:
                self.learn(key_id, model_id, output_tokens)

    def expect(self, key_id: int, model_id: int, cap: int) -> int:
        """Never above the cap (0: none)."""
        samples = self._seen.get((key_id, model_id))
        if samples is None or len(samples) < ENOUGH:
            expected = UNKNOWN
        else:
            ordered = sorted(samples)
            expected = ordered[min(len(ordered) - 1, int(len(ordered) * PERCENTILE))]
        return min(expected, cap) if cap else expected


expectations = Expectations()  # of this process
