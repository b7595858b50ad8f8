"""Which tests became slower or faster, beyond noise.

The unit of repetition is the run: what disturbs one test of a run (a busy machine, a slow
network) disturbs its others too, so seconds within a run are not independent.  If nothing
changed, any of the runs could as well have been on the other side.  So the runs are dealt to
the two sides in all ways there are (or :data:`DEALS` of them, chosen at random), and a test's
difference counts if hardly any other deal makes the difference of *any* test as large: the
permutation test with the step-down maxT adjustment of Westfall and Young (*Resampling-Based
Multiple Testing*, 1993; Ge, Dudoit and Speed, *Test* 12, 2003, algorithm 4.1).  With a
probability of 95 %, no test that did not change is named at all, however many there are and
however they depend on each other.

Seconds are compared by their logarithms.  A test's difference is divided by its own standard
deviation plus the median of all tests' (as in Tusher, Tibshirani and Chu, PNAS 98, 2001), so
that a test that happens to vary little does not look as if it had changed.  Tests of less than
:data:`SHORTEST` seconds are left out, and so are changes that nobody would mind.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Chance of naming any test at all when none has changed.
ALPHA = 0.05
#: Least change that is told: a factor, and seconds.
FACTOR, SECONDS = 1.1, 0.1
#: Seconds that a test takes on one side at least, to be looked at.
SHORTEST = 0.1
#: Deals of the runs that are tried; all, if there are no more.
DEALS = 2000

Series = tuple[Sequence[float], Sequence[float]]
"""Seconds by run: those before, those after."""


@dataclass(frozen=True, slots=True)
class Change:
    """How a test's seconds differ."""

    before: float
    """Median, seconds."""
    after: float
    p: float
    """Adjusted for the number of tests."""

    @property
    def factor(self) -> float:
        """``after`` by ``before``."""
        return self.after / max(self.before, _LEAST)

    @property
    def matters(self) -> bool:
        """Whether it is beyond noise, and large enough to tell."""
        size = max(self.factor, 1 / max(self.factor, _LEAST))
        return self.p <= ALPHA and size >= FACTOR and abs(self.after - self.before) >= SECONDS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said of the speed of two sets of runs."""

    tests: Mapping[str, Change]
    """All that were compared, whether they changed or not."""
    together: Change | None
    """The sum of their seconds, judged alone."""
    silence: str = ""
    """Why speed could not be judged; empty: it was."""


_LEAST = 1e-3


def judge(series: Mapping[str, Series], runs: tuple[int, int]) -> Verdict:
    """Compare the seconds of tests.

    Args:
        series: of each test that passed in every run, its seconds by run.
        runs: how many there are before, and after.
    """
    before, after = runs
    if least_p(before, after) > ALPHA:
        told = "one run on a side" if min(runs) < 2 else f"{before} and {after} runs"
        why = f"{told} cannot tell a change from noise: repeat them, 4 and 4 are enough"
        return Verdict({}, None, why)
    family = {
        test: pair
        for test, pair in series.items()
        if max(statistics.median(pair[0]), statistics.median(pair[1])) >= SHORTEST
    }
    if not family:
        return Verdict({}, None, "no test of any length passed in every run")
    deals = list(_deals(before, after))
    changes = _judge(family, deals)
    sums: Series = (
        [sum(column) for column in zip(*(pair[0] for pair in family.values()), strict=True)],
        [sum(column) for column in zip(*(pair[1] for pair in family.values()), strict=True)],
    )
    return Verdict(changes, _judge({"": sums}, deals)[""])


def least_p(before: int, after: int) -> float:
    """The smallest p that so many runs can give: one deal in all, or two that mirror it."""
    if not before or not after:
        return 1.0
    return (2 if before == after else 1) / math.comb(before + after, before)


def _deals(before: int, after: int) -> Iterator[tuple[int, ...]]:
    """Which runs are on the first side; as they were comes first."""
    runs = range(before + after)
    if math.comb(before + after, before) <= DEALS:
        yield from itertools.combinations(runs, before)
        return
    yield tuple(range(before))
    chance = random.Random(0)  # the same answer for the same runs
    for _ in range(DEALS - 1):
        yield tuple(chance.sample(runs, before))


def _judge(series: Mapping[str, Series], deals: Sequence[tuple[int, ...]]) -> dict[str, Change]:
    logs = {
        test: [math.log(max(seconds, _LEAST)) for seconds in (*pair[0], *pair[1])]
        for test, pair in series.items()
    }
    spread = {test: statistics.pstdev(values) for test, values in logs.items()}
    usual = statistics.median(spread.values())

    def differences(deal: tuple[int, ...], tests: Sequence[str]) -> Iterator[float]:
        count = len(deal)
        for test in tests:
            values = logs[test]
            one = sum([values[run] for run in deal])
            other = (totals[test] - one) / (len(values) - count)
            yield abs(one / count - other) / (spread[test] + usual or 1.0)

    totals = {test: sum(values) for test, values in logs.items()}
    seen = dict(zip(logs, differences(deals[0], list(logs)), strict=True))
    # From the least difference to the largest.
    order = sorted(logs, key=lambda test: seen[test])
    reached = dict.fromkeys(order, 0)
    for deal in deals:
        largest = 0.0
        for test, difference in zip(order, differences(deal, order), strict=True):
            largest = max(largest, difference)
            # Sums in another order differ in their last digits.
            if largest >= seen[test] * (1 - 1e-9):
                reached[test] += 1
    changes, p = {}, 0.0
    for test in reversed(order):
        p = max(p, reached[test] / len(deals))
        before, after = (statistics.median(part) for part in series[test])
        changes[test] = Change(before, after, p)
    return changes
