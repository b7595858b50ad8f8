"""What a policy and runs come to: the words of a verdict."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Judgement(enum.StrEnum):
    """What a policy, a requirement or a cell of its matrix comes to."""

    QUALIFIED = "qualified"
    NOT_QUALIFIED = "not qualified"
    """Something failed."""
    NOT_ENOUGH = "not enough evidence"
    """Nothing failed, but something was not shown."""

    @classmethod
    def of(cls, parts: Iterable[Judgement]) -> Judgement:
        """The worst of ``parts``; qualified if there are none."""
        found = set(parts)
        for judgement in (cls.NOT_QUALIFIED, cls.NOT_ENOUGH):
            if judgement in found:
                return judgement
        return cls.QUALIFIED


@dataclass(frozen=True, slots=True)
class Finding:
    """Why something is not qualified, or is so in spite of something."""

    judgement: Judgement
    text: str
    test: str = ""
    """The test's name in every run; empty: it is not about one test."""
    run: str = ""
    """The run where it can be seen; empty: nowhere."""
    waiver: str = ""
    """The waiver that accepts it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One suite on one device with one guest on one platform."""

    suite: str
    device: str
    """Empty: the tests that use no device."""
    guest: str
    """Empty: whichever."""
    platform: str
    """Empty: whichever."""
    passed: int
    """Tests that passed often enough."""
    failed: int
    accepted: int
    """Tests whose failure a waiver accepts."""
    lacking: int
    """Tests that were not shown to pass."""
    skipped: int
    """Tests that were passed over, because the requirement allows it."""
    findings: tuple[Finding, ...]

    @property
    def judgement(self) -> Judgement:
        return Judgement.of(f.judgement for f in self.findings)

    @property
    def tests(self) -> int:
        return self.passed + self.failed + self.accepted + self.lacking + self.skipped


@dataclass(frozen=True, slots=True)
class Line:
    """One requirement, judged."""

    name: str
    title: str
    demands: str
    """What it asks for beside suites, devices, guests and platforms, in words."""
    cells: tuple[Cell, ...]

    @property
    def judgement(self) -> Judgement:
        return Judgement.of(cell.judgement for cell in self.cells)


@dataclass(frozen=True, slots=True)
class RunUse:
    """What became of a run."""

    name: str
    lab: str
    kind: str
    started: float | None
    hil: str
    tests: int
    """Tests that ended in it."""
    counted: int
    """Those that counted for or against something."""
    doubts: tuple[str, ...]
    """Why what passed in it does not count."""


@dataclass(frozen=True, slots=True)
class WaiverUse:
    """What became of a waiver."""

    name: str
    test: str
    device: str
    reason: str
    link: str
    expires: dt.date
    expired: bool
    accepted: tuple[str, ...]
    """Tests whose failure it accepted, or would if it had not expired."""
    note: str
    """What a person should do about it; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy and runs come to."""

    policy: str
    judged: float
    """Seconds since the epoch."""
    lines: tuple[Line, ...]
    findings: tuple[Finding, ...]
    """What concerns no single requirement."""
    runs: tuple[RunUse, ...]
    waivers: tuple[WaiverUse, ...]
    notes: tuple[str, ...]
    """What changes nothing, but a person should know."""
    provenance: tuple[str, ...]
    """Of the results that counted."""
    systems: tuple[str, ...]
    """What was tested: systems and hypervisors of the results that counted."""

    @property
    def judgement(self) -> Judgement:
        parts = [line.judgement for line in self.lines]
        return Judgement.of(parts + [finding.judgement for finding in self.findings])
