"""What a bisection is, and what became of its steps, on disk.

::

    reports/bisect-20261121-120501/
        bisect.json      what was asked for: Settings
        steps.jsonl      one line a step, written when it ended
        git.log          what git bisect said
        bisect.md        the result
        01-0f3c…/        a step: build.log, check.log, run.log, and the folders of its runs

``hil-bisect`` in the tree's git folder names that folder while the bisection is under way.
"""

from __future__ import annotations

import contextlib
import enum
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hil.errors import InventoryError
from hil.reporting.run import write_whole


class Verdict(enum.Enum):
    """Of a commit; the value is the status that ``git bisect run`` knows it by."""

    GOOD = 0
    BAD = 1
    SKIP = 125
    """It cannot be tested."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a bisection was asked for."""

    tree: str
    """The git working tree, an absolute path."""
    good: tuple[str, ...]
    bad: str
    """Commits, hexadecimal."""
    build: str
    """A shell command that builds and installs what is checked out in the tree."""
    lab: str
    """As ``hil run`` takes it; a file by its absolute path."""
    tests: tuple[str, ...]
    """As ``hil run`` takes them."""
    host: str = ""
    """The host to reboot; empty: none."""
    check: str = ""
    """A shell command that fails if the host does not run what was built; or empty."""
    pytest: tuple[str, ...] = ()
    times: int = 1
    """How often the test must pass."""
    bad_faults: tuple[str, ...] = ("product",)
    """Whose fault makes a commit bad; all others': it cannot be tested."""
    build_limit: float = 7200
    boot_limit: float = 600
    run_limit: float = 3600
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one commit."""

    commit: str
    verdict: Verdict
    reason: str
    """One line."""
    seconds: float
    folder: str
    """Its own, below the bisection's."""
    runs: tuple[str, ...] = ()
    """Folders of runs below that."""


@dataclass(frozen=True, slots=True)
class Record:
    """The folder of a bisection."""

    folder: Path

    @classmethod
    def create(cls, reports: Path, stem: str, settings: Settings) -> Record:
        """A new folder below ``reports``.

        Raises:
            InventoryError: it cannot be written.
        """
        try:
            reports.mkdir(parents=True, exist_ok=True)
            folder = reports.resolve() / f"bisect-{stem}"
            folder.mkdir()
            write_whole(folder / "bisect.json", json.dumps(asdict(settings), indent=1))
        except OSError as error:
            raise InventoryError(
                f"{reports} cannot be written: {error.strerror or error}",
                hint="name another folder with --report-dir",
            ) from None
        return cls(folder)

    @property
    def settings(self) -> Settings:
        """What was asked for.

        Raises:
            InventoryError: it cannot be read.
        """
        try:
            data = json.loads((self.folder / "bisect.json").read_text())
            known = {field.name: data[field.name] for field in fields(Settings)}
            for name in ("good", "tests", "pytest", "bad_faults"):
                known[name] = tuple(map(str, known[name]))
            for field in fields(Settings):
                if field.type == "str" and not isinstance(known[field.name], str):
                    raise TypeError(f"{field.name} is no text")
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise InventoryError(
                f"{self.folder} is no bisection's folder: its bisect.json is gone or damaged",
                hint="hil bisect stop, and begin again",
            ) from None
        return Settings(**known)

    @property
    def steps(self) -> tuple[Step, ...]:
        """In order; a last line that a kill cut short is left out."""
        return tuple(self._steps())

    def _steps(self) -> Iterator[Step]:
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "steps.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    data = json.loads(line)
                    verdict, runs = Verdict[data["verdict"]], tuple(data["runs"])
                    yield Step(**{**data, "verdict": verdict, "runs": runs})

    def add(self, step: Step) -> None:
        """Note how a step ended."""
        with (self.folder / "steps.jsonl").open("a") as file:
            file.write(json.dumps({**asdict(step), "verdict": step.verdict.name}) + "\n")

    def known(self, commit: str) -> Step | None:
        """The last good or bad step of ``commit``: what could not be tested is tried again."""
        found = [s for s in self.steps if s.commit == commit and s.verdict is not Verdict.SKIP]
        return found[-1] if found else None

    def place(self, commit: str) -> Path:
        """A new folder for a step."""
        number = 1 + sum(path.is_dir() for path in self.folder.iterdir())
        place = self.folder / f"{number:02}-{commit[:12]}"
        place.mkdir()
        return place
