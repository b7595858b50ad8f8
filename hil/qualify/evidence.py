"""Runs as evidence: what was found on disk, with all that is doubtful about it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hil.compare.load import RunData, key
from hil.compare.load import read as read_data
from hil.reporting.outcome import Outcome
from hil.reporting.plan import Plan, Planned
from hil.reporting.run import Run
from hil.reporting.text import one_line


@dataclass(frozen=True, slots=True)
class Identity:
    """A card, as a run recorded it; all in small hexadecimal digits."""

    id: str
    subsystem: str
    serial: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run."""

    data: RunData
    finished: bool
    """Whether it came to its end."""
    cycles: int | None
    """``hil run --cycles``; ``None``: not noted."""
    plan: Plan | None
    """What was to run, tests by their names in every run; ``None``: not noted."""
    digest: str
    """SHA-256 of its outcomes, hexadecimal."""

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def planned(self) -> frozenset[str] | None:
        """The tests of ``plan`` that were to run."""
        return self.data.planned

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(o for outcomes in self.data.outcomes.values() for o in outcomes)

    @property
    def guest(self) -> str:
        """The image that its guests booted; empty: not noted."""
        return next((o.guest for o in self.outcomes if o.guest), "")

    def platforms(self, devices: Sequence[str] = ()) -> set[str]:
        """The platforms of its hosts, or of those that have ``devices``; empty: not noted."""
        found = {
            platform
            for outcome in self.outcomes
            if not devices or set(devices) & set(outcome.devices)
            for platform in outcome.platforms
        }
        return found or (self.platforms() if devices else found)

    def system(self, host: str) -> tuple[str, str]:
        """What ``host`` said of itself: its system and its hypervisor; empty: not noted."""
        environment = self.data.environment
        return (
            one_line(environment.get(f"{host}: system", "")),
            one_line(environment.get(f"{host}: hypervisor", "")),
        )

    def identity(self, device: str) -> Identity | None:
        """Which card ``device`` was; ``None``: not noted."""
        return parse_identity(self.data.environment.get(f"device {device}", ""))


_IDENTITY = re.compile(
    r"([0-9a-f]{4}:[0-9a-f]{4}) rev [0-9a-f]{2}, subsystem ([0-9a-f]{4}:[0-9a-f]{4})"
    r"(?:, serial ([0-9a-f]{16}))?(?:,.*)?"
)


def parse_identity(text: str) -> Identity | None:
    """The card that a line of ``environment.json`` tells of; ``None`` if it tells of none.

    Its form: ``8086:10c9 rev 01, subsystem 1af4:1100, serial 525400ffff686902, at …``; the
    serial number is there if the card has one.
    """
    found = _IDENTITY.fullmatch(text)
    return Identity(found[1], found[2], found[3] or "") if found else None


def read(directory: Path) -> RunRecord:
    """The run in ``directory``, as far as it can be read.

    Raises:
        InventoryError: it is not the folder of a run.
    """
    run = Run.open(directory)
    cycles = run.state.get("cycles")
    return RunRecord(
        data=read_data(run.directory),
        finished=run.finished,
        cycles=cycles if isinstance(cycles, int) else None,
        plan=_plain(run.plan),
        digest=_digest(run.directory / "outcomes.jsonl"),
    )


def gather(directories: Iterable[Path]) -> tuple[tuple[RunRecord, ...], tuple[str, ...]]:
    """The runs in ``directories``, each once and with a name of its own; and notes for a person.

    Raises:
        InventoryError: one of them is not the folder of a run.
    """
    records: dict[str, RunRecord] = {}
    notes = []
    for directory in directories:
        if any(record.data.directory == directory.resolve() for record in records.values()):
            notes.append(f"{directory.resolve().name} was named twice, and counts once")
            continue
        record = read(directory)
        stem, number = record.name, 2
        while record.name in records:
            record = replace(record, data=replace(record.data, name=f"{stem}-{number}"))
            number += 1
        records[record.name] = record
    return tuple(records.values()), tuple(notes)


def _plain(plan: Plan | None) -> Plan | None:
    if plan is None:
        return None
    tests, deselected = (
        tuple(Planned(key(p.test), p.area, p.devices) for p in planned)
        for planned in (plan.tests, plan.deselected)
    )
    return Plan(tests, deselected, plan.narrowed)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return hashlib.sha256().hexdigest()
