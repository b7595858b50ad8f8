"""Reads the runs of a comparison, and says plainly what is wrong with them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hil.errors import InventoryError
from hil.reporting.allure import Environment
from hil.reporting.outcome import Outcome
from hil.reporting.run import Run
from hil.reporting.text import one_line


@dataclass(frozen=True, slots=True)
class RunData:
    """One run, as it was found on disk."""

    name: str
    directory: Path
    lab: str = ""
    kind: str = ""
    """``physical``, ``emulated`` or ``simulated``; empty: the run did not get so far."""
    hil: str = ""
    """Version of hil."""
    inventory: str = ""
    """Hash of the inventory, hexadecimal; empty: not noted."""
    started: float | None = None
    """Seconds since the epoch."""
    complete: bool = False
    planned: frozenset[str] | None = None
    """Tests that were to run; ``None``: nobody knows."""
    expected: int | None = None
    """How many were to run."""
    outcomes: Mapping[str, tuple[Outcome, ...]] = field(default_factory=dict)
    """By test; a run may repeat a test."""
    environment: Mapping[str, str] = field(default_factory=dict)
    damage: tuple[str, ...] = ()
    """What of it cannot be read."""

    @property
    def when(self) -> str:
        """The start, in local time, to the minute."""
        if self.started is None:
            return "at an unknown time"
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started))


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: repetitions of one run."""

    runs: tuple[RunData, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know before believing the comparison."""

    @property
    def complete(self) -> bool:
        """Whether all of its runs came to their ends."""
        return all(run.complete for run in self.runs)


def side(words: str, reports: Path) -> Side:
    """The runs that ``words`` name: folders of runs, or folders of such, with commas between.

    Args:
        words: paths, or names of runs below ``reports`` (``latest`` is one).
        reports: the report directory.

    Raises:
        InventoryError: one of them is no run and has none in it.
    """
    found: dict[Path, RunData] = {}
    notes: list[str] = []
    for word in [words] if _exists(words, reports) else words.split(","):
        for directory in _runs(word.strip(), reports):
            if directory in found:
                notes.append(f"{directory.name} is named twice and counts once")
                continue
            found[directory] = read(directory)
    runs = tuple(sorted(found.values(), key=lambda run: (run.started or 0, run.name)))
    for run in runs:
        notes += _troubles(run)
    for what in ("lab", "kind", "inventory", "hil"):
        values = {getattr(run, what) for run in runs} - {""}
        if len(values) > 1:
            shown = "" if what == "inventory" else f": {', '.join(sorted(values))}"
            notes.append(f"its runs are not alike: {_NAMES[what]} differs{shown}")
    return Side(runs, tuple(notes))


_NAMES = {
    "lab": "the lab",
    "kind": "the kind of lab",
    "inventory": "what the inventory says",
    "hil": "hil's version",
}


def _exists(word: str, reports: Path) -> bool:
    return Path(word).exists() or (reports / word).exists()


def _runs(word: str, reports: Path) -> list[Path]:
    candidates = [Path(word), *([] if "/" in word else [reports / word])]
    if not word or not any(path.exists() for path in candidates):
        raise InventoryError(
            f"there is no run {one_line(word)!r}, neither here nor in {reports}",
            hint="name a run's folder, such as reports/latest, or a folder of runs",
        )
    for path in candidates:
        if (path / "run.json").is_file():
            return [path.resolve()]
    below = {
        entry.resolve()
        for path in candidates
        if path.is_dir()
        for entry in path.iterdir()
        if (entry / "run.json").is_file()
    }
    if not below:
        raise InventoryError(
            f"{word} is not the folder of a run, and has none in it: no run.json",
            hint="name a run's folder, such as reports/latest, or a folder of runs",
        )
    return sorted(below)


def read(directory: Path) -> RunData:
    """The run in ``directory``, as far as it can be read."""
    run = Run.open(directory)
    state, damage = run.state, []
    if not state:
        damage.append("its run.json cannot be read")
    outcomes: dict[str, list[Outcome]] = {}
    try:
        ended, bad = run.outcomes_and_damage()
    except OSError:
        ended, bad = (), 0
    for outcome in ended:
        outcomes.setdefault(key(outcome.test), []).append(outcome)
    if bad:
        lines = "a line" if bad == 1 else f"{bad} lines"
        damage.append(f"{lines} of its outcomes.jsonl cannot be read")
    expected, plan = state.get("tests"), run.plan
    return RunData(
        name=run.name,
        directory=run.directory,
        lab=_text(state, "lab"),
        kind=_text(state, "kind"),
        hil=_text(state, "hil"),
        inventory=_text(state, "inventory"),
        started=run.started,
        complete=not bad
        and state.get("state") == "finished"
        and isinstance(expected, int)
        and sum(map(len, outcomes.values())) >= expected,
        planned=None if plan is None else frozenset(key(test.test) for test in plan.tests),
        expected=expected if isinstance(expected, int) else None,
        outcomes={test: tuple(found) for test, found in outcomes.items()},
        environment=Environment.read(run),
        damage=tuple(damage),
    )


def key(test: str) -> str:
    """What a test is called in every run.

    Without the folder above ``suites``, and without the group that pytest-xdist appends.
    """
    _, found, rest = test.rpartition("suites/")
    return re.sub(r"@[^\]]*$", "", found + rest if found else test)


def _troubles(run: RunData) -> list[str]:
    done = sum(map(len, run.outcomes.values()))
    found = [f"{run.name}: {text}" for text in run.damage]
    if not run.complete:
        planned = "an unknown number of" if run.expected is None else str(run.expected)
        found.append(f"{run.name} was cut short: {done} of {planned} tests ended")
    elif not done:
        found.append(f"{run.name} ran no test")
    kinds = {o.provenance for outcomes in run.outcomes.values() for o in outcomes}
    if run.kind and kinds - {run.kind}:
        others = ", ".join(sorted(kinds - {run.kind}))
        found.append(f"{run.name} says that its lab is {run.kind}, but has results of: {others}")
    return found


def _text(state: Mapping[str, Any], name: str) -> str:
    value = state.get(name, "")
    return one_line(value) if isinstance(value, str) else ""
