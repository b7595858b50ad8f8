"""One deadline for an operation, passed down to all it calls.

A :class:`Deadline` is a point in time with a name.  Functions that can wait take
one and hand it on; they never invent time of their own.  What ran out of it says
what was waited for, for how long, and what was last seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from hil.errors import DeadlineExceeded

T = TypeVar("T")


class Deadline:
    """A point in time by which ``what`` must be done.

    Args:
        seconds: from now; may be infinite.
        what: the operation, as it should read after "waited for".
    """

    __slots__ = ("_end", "_start", "what")

    def __init__(self, seconds: float, what: str) -> None:
        self._start = time.monotonic()
        self._end = self._start + seconds
        self.what = what

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def elapsed(self) -> float:
        """Seconds since the deadline was set."""
        return time.monotonic() - self._start

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._end

    def within(self, seconds: float, what: str) -> Deadline:
        """A part of this operation: at most ``seconds``, never past this deadline."""
        return Deadline(min(seconds, self.remaining), what)

    def bounded(self, bound: Deadline | None) -> Deadline:
        """This deadline, or the same operation's by the end of ``bound`` if that is sooner."""
        if bound is None or bound.remaining >= self.remaining:
            return self
        return bound.within(bound.remaining, self.what)

    def exceeded(self, last_seen: str = "", *, host: str = "", hint: str = "") -> DeadlineExceeded:
        """The error to raise when time ran out."""
        return DeadlineExceeded(
            f"waited {self.elapsed:.1f} s for {self.what}, in vain",
            seen=last_seen,
            host=host,
            hint=hint,
        )

    def check(self, last_seen: str = "") -> None:
        """Raise :class:`~hil.errors.DeadlineExceeded` if no time is left."""
        if self.expired:
            raise self.exceeded(last_seen)


def poll(
    probe: Callable[[], T | None],
    deadline: Deadline,
    *,
    interval: float = 0.05,
    last_seen: Callable[[], str] = lambda: "",
) -> T:
    """Call ``probe`` until it returns something other than ``None`` or ``False``.

    The pause starts at ``interval`` seconds and grows to ten times that, so that a
    quick answer is seen quickly and a slow one costs little.

    Raises:
        DeadlineExceeded: with what ``last_seen()`` returns.
    """
    pause = interval
    while True:
        answer = probe()
        if answer is not None and answer is not False:
            return answer
        if deadline.expired:
            raise deadline.exceeded(last_seen())
        time.sleep(min(pause, deadline.remaining))
        pause = min(pause * 1.3, interval * 10)
