"""How a test ended."""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from hil.reporting.text import plain, short

#: Of attempts; nothing is tried more often.
ORDINALS = ("first", "second", "third", "fourth")


class Status(enum.StrEnum):
    """The five ways a test ends."""

    PASSED = "passed"
    FAILED = "failed"
    """A check failed: the product is wrong."""
    BROKEN = "broken"
    """The test could not judge: the guest, the lab, the inventory or the test itself failed."""
    SKIPPED = "skipped"
    """The lab has not what it needs, or it is not allowed there."""
    BLOCKED = "blocked"
    """Not tried, because the host or the lab was already known to be dead."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a test ended, for summaries; all text is redacted and bounded already."""

    test: str
    """pytest's node id."""
    status: Status
    seconds: float
    provenance: str
    """``physical``, ``emulated`` or ``simulated``: what the result is worth."""
    reason: str = ""
    """One line: why it did not pass."""
    fault: str = ""
    """Whose fault a failure is: a value of :class:`hil.errors.Fault`, or ``test``."""
    area: str = ""
    danger: int = 0
    catalogue: tuple[str, ...] = ()
    bugs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    """Those of its hosts: ``linux-vfio``, ``freebsd-bhyve``."""
    guest: str = ""
    """Name of the image that its lab's guests boot from."""
    attempt: int = 1
    """Which attempt this was: where an emulated guest died by itself, a test is tried again."""
    earlier: str = ""
    """One line: what ended the attempt before this one; empty for the first."""
    repeated: bool = False
    """Whether it was tried again after this: the next attempt tells how the test ended."""

    @property
    def only_at(self) -> str:
        """``at the second attempt``, for a test that did not pass at the first; else empty."""
        if self.status is not Status.PASSED or self.attempt < 2:
            return ""
        return f"at the {ORDINALS[self.attempt - 1]} attempt"

    @property
    def words(self) -> str:
        """One line on how it ended, besides its status: the reason, and of earlier attempts."""
        if self.attempt < 2:
            return self.reason
        if self.only_at:
            told = f"passed {self.only_at}: {self.earlier}"
            return f"{self.reason}; {told}" if self.reason else told
        before = "the same" if self.reason == self.earlier else self.earlier
        return f"{self.reason} (the attempt before: {before})"

    @property
    def properties(self) -> tuple[tuple[str, str], ...]:
        """Its properties in JUnit XML, as (name, value)."""
        return (
            ("provenance", self.provenance),
            ("status", self.status.value),
            ("danger", str(self.danger)),
            ("devices", " ".join(self.devices)),
            ("catalogue", " ".join(self.catalogue)),
            ("fault", self.fault),
            *((("attempt", str(self.attempt)), ("note", self.words)) if self.attempt > 1 else ()),
        )

    @property
    def title(self) -> str:
        """The test's name as words, not too many: ``AS1 a device comes back [nic0]``."""
        name = self.test.rpartition("::")[2] or self.test
        name, bracket, parameters = name.partition("[")
        words = name.removeprefix("test_").replace("_", " ")
        if words.startswith("control "):
            words = f"control: {words.removeprefix('control ')}"
        return short(" ".join(filter(None, (*self.catalogue, words, bracket + parameters))))

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Raises ValueError, TypeError or KeyError if ``text`` is not an outcome."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError("not an object")
        known = {field.name for field in fields(cls)}
        # Whoever wrote the file, its reader is a person at a terminal.
        values: dict[str, Any] = {
            key: plain(value) if isinstance(value, str) else value
            for key, value in data.items()
            if key in known
        }
        values["status"] = Status(values["status"])
        for key in ("catalogue", "bugs", "devices", "hosts", "platforms"):
            values[key] = _texts(values.get(key, []))
        for key in ("seconds", "danger"):
            value = values.get(key, 0)
            # Python's JSON has NaN, infinity, and integers that no float can hold.
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and abs(value) < 1e12):
                raise TypeError(f"{key} is not a number")
        attempt, repeated = values.get("attempt", 1), values.get("repeated", False)
        if type(attempt) is not int or not 1 <= attempt <= len(ORDINALS):
            raise ValueError("no such attempt")
        if not isinstance(repeated, bool):
            raise TypeError("repeated is neither true nor false")
        outcome = cls(**values)
        texts = (outcome.test, outcome.provenance, outcome.reason, outcome.fault, outcome.area)
        _texts([*texts, outcome.guest, outcome.earlier])
        return outcome


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("not texts")
    return tuple(map(plain, values))
