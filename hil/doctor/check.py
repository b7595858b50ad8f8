"""One row of the doctor's table."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """What a check saw."""

    FOUND = "found"
    MISSING = "not found"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the doctor's table."""

    where: str
    """``this machine`` or a host's name."""
    name: str
    state: State
    evidence: str
    """What was seen, and where."""
    remedy: str = ""
    """The command that mends it, or in brackets what to do by hand."""
    needed: bool = True
    """Without it hil does not work there; what is not needed only makes things better."""

    @property
    def bad(self) -> bool:
        return self.needed and self.state is State.MISSING
