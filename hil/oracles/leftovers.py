"""Does an operation, done over and over, leave anything behind on the host?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from hil.bench import BenchHost
from hil.deadline import poll
from hil.errors import DeadlineExceeded, ProductError


def count(host: BenchHost) -> Mapping[str, int]:
    """Things that only a guest or an assignment makes, by name."""
    return host.platform.footprint(host.limit(20, "the count of what is in use"))


@contextlib.contextmanager
def none_expected(host: BenchHost) -> Iterator[None]:
    """After the block the host counts what it counted before.

    Raises:
        ProductError: with each count that grew and did not come down again.
    """
    before = count(host)
    yield
    grown: dict[str, str] = {}

    def settled() -> bool:
        after = count(host)
        grown.clear()
        grown.update(
            {
                name: f"{name}: {before.get(name, 0)} before, {number} after"
                for name, number in after.items()
                if number > before.get(name, 0)
            }
        )
        return not grown

    try:
        poll(settled, host.limit(1.5, "leftovers to go"), interval=0.2)
    except DeadlineExceeded as error:
        raise ProductError(
            "something was left behind", host=host.name, seen="\n".join(grown.values())
        ) from error
