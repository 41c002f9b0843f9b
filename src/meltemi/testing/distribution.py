"""Who answered how many of many requests, and whether that agrees with what was asked for.

Pure. A share is tested with the binomial distribution: with confidence 0.999 a correct configuration fails one test
in a thousand by chance, and the message says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from meltemi.testing.response import Response

CONFIDENCE = 0.9999


def acceptance_region(n: int, share: float, confidence: float) -> tuple[int, int]:
    """The counts that agree with ``share``: each tail beyond them is rarer than half of what confidence leaves.

    Exact binomial tails; for n up to some hundred thousand.
    """
    if share <= 0.0:
        return 0, 0
    if share >= 1.0:
        return n, n
    tail = (1.0 - confidence) / 2.0
    logs = (math.log(share), math.log1p(-share))

    def probability(k: int) -> float:
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return math.exp(ways + k * logs[0] + (n - k) * logs[1])

    low, total = 0, probability(0)
    while total <= tail:
        low += 1
        total += probability(low)
    high, total = n, probability(n)
    while total <= tail:
        high -= 1
        total += probability(high)
    return low, high


@dataclass(eq=False)
class Distribution:
    """The answers to ``n`` equal requests."""

    url: str
    responses: list[Response] = field(default_factory=list, repr=False)

    @property
    def n(self) -> int:
        """How many requests there were."""
        return len(self.responses)

    @property
    def counts(self) -> Counter[str]:
        """Answers by workload; '' for those that no workload gave."""
        return Counter(response.workload for response in self.responses)

    @property
    def pods(self) -> Counter[str]:
        """Answers by pod."""
        return Counter(response.destination.pod for response in self.responses)

    @property
    def statuses(self) -> Counter[int]:
        """Answers by status."""
        return Counter(response.status for response in self.responses)

    def count(self, name: str | int) -> int:
        """Answers of a workload, of a pod, or with a status."""
        if isinstance(name, int):
            return self.statuses[name]
        found = self.counts
        return found[name] if name in found else self.pods[name]

    def share(self, name: str | int) -> float:
        """The part of a workload, a pod or a status: 0 to 1."""
        return self.count(name) / self.n if self.n else 0.0

    def assert_share(
        self, name: str | int, expected: float, *, confidence: float = CONFIDENCE
    ) -> None:
        """Fail when the count is too far from ``expected`` (0 to 1) to be chance."""
        self.assert_shares({name: expected}, confidence=confidence)

    def assert_shares(
        self,
        expected: Mapping[str | int, float] | Mapping[str, float],
        *,
        confidence: float = CONFIDENCE,
    ) -> None:
        """The same for several at once; each has the confidence, shared out (Bonferroni)."""
        __tracebackhide__ = True
        each = 1.0 - (1.0 - confidence) / max(1, len(expected))
        wrong = []
        for name, share in expected.items():
            low, high = acceptance_region(self.n, share, each)
            count = self.count(name)
            if not low <= count <= high:
                wrong.append(
                    f"{count} of {self.n} ({count / max(1, self.n):.1%}) for {name!r}; {share:.1%} was expected, which gives "
                    f"{low} to {high} ({low / max(1, self.n):.1%} to {high / max(1, self.n):.1%})"
                )
        if wrong:
            raise AssertionError(
                f"the distribution of {self.url} is another than expected (confidence {confidence:.2%}):\n  "
                + "\n  ".join(wrong)
                + f"\n  counts: {dict(self.counts)}; statuses: {dict(self.statuses)}"
            )

    def __repr__(self) -> str:
        return f"<{self.n} of {self.url}: {dict(self.counts)}>"
