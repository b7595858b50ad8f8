"""``plan.json``: which tests a run was to run, and which of them it was told to leave out.

Without it nobody can tell a suite that passed whole from one of which a single test was
asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from hil.reporting.text import plain


@dataclass(frozen=True, slots=True)
class Planned:
    """A test that was collected."""

    test: str
    """pytest's node id."""
    area: str
    devices: tuple[str, ...] = ()
    group: str = ""
    """Tests of one group share guests, and so a lab, where several labs share the work."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The tests of a run, before the first of them ran."""

    tests: tuple[Planned, ...] = ()
    """Those that were to run, in order."""
    deselected: tuple[Planned, ...] = ()
    """Those that options such as ``-k`` took out."""
    narrowed: bool = False
    """Whether single tests or files were asked for, so that a suite may have more tests than
    these two lists."""
    not_for_lab: Mapping[str, int] = field(default_factory=dict)
    """How many tests are not about such a lab at all, by the reason, in a few words."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises ValueError, TypeError or KeyError if ``text`` is not a plan."""
        data = json.loads(text)
        reasons = data.get("not_for_lab", {})
        if not all(type(count) is int for count in reasons.values()):
            raise TypeError("not numbers")
        return cls(
            _planned(data["tests"]),
            _planned(data["deselected"]),
            data["narrowed"] is True,
            {plain(why): count for why, count in reasons.items()},
        )


def _planned(rows: object) -> tuple[Planned, ...]:
    if not isinstance(rows, list):
        raise TypeError("not a list")
    planned = tuple(
        Planned(r["test"], r["area"], tuple(r.get("devices", ())), r.get("group", "")) for r in rows
    )
    words = (word for p in planned for word in (p.test, p.area, p.group, *p.devices))
    if not all(isinstance(word, str) for word in words):
        raise TypeError("not text")
    # As in outcomes: of the same name there, and nothing that a terminal would obey.
    return tuple(
        Planned(plain(p.test), plain(p.area), tuple(map(plain, p.devices)), plain(p.group))
        for p in planned
    )
