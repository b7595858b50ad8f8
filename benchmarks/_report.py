"""What the benchmarks share: contenders run in turns, and medians of ratios."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping


def alternate(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call, one list a contender; all run in turn, ``rounds`` times.

    In turn, so that what else the machine does falls on all alike.  If a call returns a
    function, that takes down what was measured, and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for count in range(rounds + 1):
        for name, call in contenders.items():
            begin = time.perf_counter()
            end = call()
            taken = time.perf_counter() - begin
            if callable(end):
                end()
            if count == 0:
                continue  # caches, imports
            seconds[name].append(taken)
            print(f"  {name}: {seconds[name][-1]:.3f} s", file=sys.stderr)
    return seconds


def ratio(seconds: Mapping[str, list[float]], upper: str, lower: str) -> float:
    """Median over the rounds of how long ``upper`` took, ``lower`` being 1."""
    pairs = zip(seconds[upper], seconds[lower], strict=True)
    return statistics.median(a / b for a, b in pairs)


def show(title: str, seconds: Mapping[str, list[float]], each: int = 1) -> None:
    """Print the median time of one of the ``each`` things that a call does."""
    print(title)
    for name, values in seconds.items():
        print(f"  {name:<40} {statistics.median(values) / each * 1000:9.3f} ms")


def verdict(what: str, value: float, wanted: str, reached: bool) -> None:
    """Print one figure beside what it should be."""
    print(f"  {what:<40} {value:9.2f}    wanted {wanted}: {'yes' if reached else 'NO'}")
