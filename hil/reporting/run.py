"""The folder of one run, and what lies where in it.

::

    reports/20261121-120501-emulated/
        run.json          lab, start, versions, and whether the run came to its end
        plan.json         the tests that were to run
        outcomes.jsonl    one line a test, written when it ended; and one for each attempt
                          at it that was repeated
        allure-results/   Allure's own files
        junit.xml         as pytest writes it, at the end of the run
        summary.json      totals and the reasons of what did not pass
        report.html       Allure's report, one file
    reports/latest        a link to the newest run

``outcomes.jsonl`` and ``allure-results`` grow while the run goes on: a report can be
made of a run that was killed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hil import __version__
from hil.errors import InventoryError
from hil.reporting.outcome import Outcome
from hil.reporting.plan import Plan
from hil.secrets import take_out

#: In seconds since the epoch: later times are in no calendar of Python's.
_YEAR_9999 = 253370764800


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one run."""

    directory: Path

    @classmethod
    def create(cls, base: Path, lab: str, tag: str = "") -> Run:
        """A new folder below ``base``, named by the time, the lab and, if there is one, a tag.

        Raises:
            InventoryError: ``base`` cannot be written.
        """
        words = [re.sub(r"[^A-Za-z0-9_.-]", "_", word) for word in (lab[:40] or "lab", tag[:60])]
        stem = "-".join(filter(None, (time.strftime("%Y%m%d-%H%M%S"), *words)))
        try:
            base.mkdir(parents=True, exist_ok=True)
            directory = _make(base.resolve(), stem)
            (directory / "allure-results").mkdir()
            run = cls(directory)
            run.write_state({"state": "running", "lab": lab, "started": time.time()})
            run._point_latest()
        except OSError as error:
            raise InventoryError(
                f"the report folder {base} cannot be written: {error.strerror or error}",
                hint="name another one with --report-dir DIR (of pytest itself: --hil-report)",
            ) from None
        return run

    @classmethod
    def open(cls, directory: Path) -> Run:
        """The run in ``directory``.

        Raises:
            InventoryError: there is none.
        """
        if not (directory / "run.json").is_file():
            raise InventoryError(
                f"{directory} is not the folder of a run: it has no run.json",
                hint="name a folder such as reports/latest",
            )
        return cls(directory.resolve())

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def results(self) -> Path:
        """Allure's results."""
        return self.directory / "allure-results"

    @property
    def junit(self) -> Path:
        return self.directory / "junit.xml"

    @property
    def html(self) -> Path:
        return self.directory / "report.html"

    @property
    def summary(self) -> Path:
        return self.directory / "summary.json"

    @property
    def state(self) -> dict[str, Any]:
        """``run.json``; empty if a kill left it unreadable."""
        try:
            state = json.loads((self.directory / "run.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return state if isinstance(state, dict) else {}

    @property
    def started(self) -> float | None:
        """When, in seconds since the epoch; ``None``: not noted, or no time of a calendar."""
        value = self.state.get("started")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if 0 <= value < _YEAR_9999 else None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end (be it with failures)."""
        return self.state.get("state") == "finished"

    @property
    def complete(self) -> bool:
        """Whether it came to its end, and no test of it was left out."""
        planned = self.state.get("tests")
        return self.finished and isinstance(planned, int) and len(self.outcomes()) >= planned

    def write_state(self, more: Mapping[str, Any]) -> None:
        """Add to ``run.json``; readers see the old one or the new one, whole."""
        state = {"hil": __version__, **self.state, **more}
        write_whole(self.directory / "run.json", json.dumps(state, indent=1))

    @property
    def plan(self) -> Plan | None:
        """What was to run; ``None`` if nobody wrote it down, or not legibly."""
        try:
            return Plan.from_json((self.directory / "plan.json").read_text("utf-8"))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def write_plan(self, plan: Plan) -> None:
        write_whole(self.directory / "plan.json", plan.to_json())

    def finish(self) -> None:
        """Note that the run came to its end."""
        if not self.finished:
            self.write_state({"state": "finished", "ended": time.time()})

    def add(self, outcome: Outcome) -> None:
        """Note how a test ended, so that a later kill does not lose it."""
        with (self.directory / "outcomes.jsonl").open("a", encoding="utf-8") as file:
            file.write(take_out(outcome.to_json()) + "\n")

    def outcomes(self) -> tuple[Outcome, ...]:
        """How each test ended, in order; a last line that a kill cut short is left out."""
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            return self.outcomes_and_damage()[0]
        return ()

    def outcomes_and_damage(self) -> tuple[tuple[Outcome, ...], int]:
        """How each test ended, in order, and the number of lines that cannot be read.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        attempts, bad = self._attempts()
        return tuple(outcome for outcome in attempts if not outcome.repeated), bad

    def repeated(self) -> tuple[Outcome, ...]:
        """The attempts at tests that were repeated, in order."""
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            return tuple(outcome for outcome in self._attempts()[0] if outcome.repeated)
        return ()

    def _attempts(self) -> tuple[tuple[Outcome, ...], int]:
        path = self.directory / "outcomes.jsonl"
        found = path.stat()
        return _read(path, (found.st_ino, found.st_size, found.st_mtime_ns))

    def _point_latest(self) -> None:
        link = self.directory.with_name("latest")
        # A person's own file or folder of that name is left alone.
        if link.is_symlink() or not link.exists():
            new = link.with_name(f".latest-{secrets.token_hex(4)}")
            new.symlink_to(self.directory.name)
            new.replace(link)


@functools.lru_cache(maxsize=1)
def _read(path: Path, stamp: tuple[int, ...]) -> tuple[tuple[Outcome, ...], int]:  # noqa: ARG001
    """The lines of ``outcomes.jsonl``, and how many cannot be read.

    All that a report is made of asks for them; ``stamp`` tells whether the file is another.
    """
    outcomes, bad = [], 0
    for line in path.read_bytes().decode("utf-8", "replace").split("\n"):
        if not line.strip():
            continue
        try:
            outcomes.append(Outcome.from_json(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            bad += 1
    return tuple(outcomes), bad


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half-written, without the secrets that hil knows.

    Where it cannot be written, nothing of it stays.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Text from JSON may have lone surrogates, which no file can have.
        new.write_text(take_out(text), "utf-8", "replace")
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _make(base: Path, stem: str) -> Path:
    """A folder that was not there before, however many runs start in this second."""
    number = 1
    while True:
        directory = base / (stem if number == 1 else f"{stem}-{number}")
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
        else:
            return directory
