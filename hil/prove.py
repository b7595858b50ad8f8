"""Do the suites catch the bugs they are there for?  Each bug of the past, re-enacted.

The suites run once on a simulated host without a fault, where every test must pass, and once
for each fault, where at least one must fail and blame the product: first the tests that name
the bug in their ``catalogue`` marker, then, if none of them saw it, all.  The matrix of faults
and the tests that caught them is what the suites are worth.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hil import transient
from hil.errors import LabError
from hil.reporting.outcome import Outcome, Status
from hil.reporting.run import Run

if TYPE_CHECKING:
    from hil.simulated.faults import Fault

#: How a test ended that found nothing.
_QUIET = frozenset({Status.PASSED, Status.SKIPPED})

#: Runs the suites on a lab, with a fault or with none (an empty name); with a bug, only the
#: tests that name it.
Runner = Callable[[str, str, str], Sequence[Outcome]]


@dataclass(frozen=True, slots=True)
class Row:
    """What one fault came to."""

    number: int
    fault: str
    sentence: str
    reference: str
    lab: str
    """The simulated host it was re-enacted on."""
    caught: tuple[str, ...]
    """Node ids of the tests that failed and blamed the product, in the order they ran.

    Controls are none of them: one that fails shows an oracle that could not be tried.
    """
    broken: tuple[str, ...]
    """Those that could not judge, without the fault they could."""
    ran: int
    """How many tests ran."""
    by_name: bool
    """Whether these were only the tests that name the bug."""
    error: str = ""
    """Why its suites did not run; empty if they did."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The whole matrix."""

    rows: tuple[Row, ...]
    failed_without: Mapping[str, tuple[Outcome, ...]]
    """By lab, the tests that did not pass without any fault."""
    ran: Mapping[str, int]
    """By lab, how many tests ran without a fault."""

    @property
    def missed(self) -> tuple[Row, ...]:
        """The faults that no test caught."""
        return tuple(row for row in self.rows if not row.caught)

    @property
    def holds(self) -> bool:
        """Whether every fault was caught, and nothing failed without one."""
        quiet = not any(self.failed_without.values())
        return quiet and not self.missed and all(self.ran.values())

    def as_json(self) -> dict[str, Any]:
        """Plain values: ``holds``, ``without`` by lab, and ``faults``, one object each."""
        return {
            "holds": self.holds,
            "without": {
                lab: {"ran": self.ran[lab], "failed": [o.test for o in outcomes]}
                for lab, outcomes in self.failed_without.items()
            },
            "faults": [
                {
                    "number": row.number,
                    "name": row.fault,
                    "sentence": row.sentence,
                    "reference": row.reference,
                    "lab": row.lab,
                    "caught": list(row.caught),
                    "broken": list(row.broken),
                    "ran": row.ran,
                    "by_name": row.by_name,
                    "error": row.error,
                }
                for row in self.rows
            ],
        }


def labs_for(fault: Fault, labs: Mapping[str, str]) -> list[str]:
    """The labs, of those given by vendor, that can have a fault, the preferred first."""
    return [labs[vendor] for vendor in labs if vendor in fault.vendors]


def prove(
    faults: Sequence[Fault],
    labs: Mapping[str, str],
    run: Runner,
    *,
    jobs: int = 1,
    whole: bool = False,
    end: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Run the suites without a fault and with each.

    Args:
        faults: the bugs to re-enact.
        labs: names of simulated labs by processor vendor, the preferred first.
        run: runs the suites.
        jobs: runs at once.
        whole: run all tests with each fault, not first those that name it.
        end: ends the runs under way; called when this call is interrupted.
        tell: hears what is being done.
    """
    without: dict[str, tuple[Outcome, ...]] = {}
    needed = dict.fromkeys(lab for fault in faults for lab in labs_for(fault, labs))

    def outcomes(lab: str, name: str, bug: str = "") -> tuple[Outcome, ...]:
        found = tuple(run(lab, name, bug))
        wrong = sum(outcome.status not in _QUIET for outcome in found)
        tell(f"{lab}, {name or 'without a fault'}: {len(found)} tests, {wrong} did not pass")
        return found

    def row(fault: Fault) -> Row:
        """Of the first run in which a test catches the fault, or of the last."""
        made = None
        number = str(fault.number)
        # The short runs of all labs come before the first long one.
        for bug, lab in itertools.product((number, ""), labs_for(fault, labs)):
            good = {o.test: o for o in without[lab] if o.status is Status.PASSED}
            if bug and (whole or not any(bug in o.bugs for o in good.values())):
                continue
            error = ""
            try:
                found = outcomes(lab, fault.name, bug)
            except LabError as problem:  # the other rows are still worth having
                found, error = (), problem.explain()
            seen = [o for o in found if o.test in good]
            made = Row(
                fault.number,
                fault.name,
                fault.sentence,
                fault.reference,
                lab,
                tuple(o.test for o in seen if o.status is Status.FAILED and not _is_control(o)),
                tuple(o.test for o in seen if o.status in (Status.BROKEN, Status.BLOCKED)),
                sum(o.status is not Status.SKIPPED for o in found),
                bool(bug),
                error,
            )
            if made.caught:
                break
        assert made is not None, f"no lab can have {fault.name}"
        return made

    with ThreadPoolExecutor(jobs) as pool:
        labs_used = list(needed or dict.fromkeys(labs.values()))
        try:
            found = pool.map(lambda lab: outcomes(lab, ""), labs_used)
            without.update(zip(labs_used, found, strict=True))
            rows = tuple(pool.map(row, faults))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end()
            raise
    return Proof(
        rows,
        {lab: tuple(o for o in out if o.status not in _QUIET) for lab, out in without.items()},
        {lab: sum(o.status is not Status.SKIPPED for o in out) for lab, out in without.items()},
    )


class Suites:
    """Runs suites with pytest, each time in a process of its own that ends with this one.

    Args:
        paths: of files and folders, or node ids.
        arguments: more of pytest's.
    """

    def __init__(self, paths: Sequence[str], arguments: Sequence[str] = ()) -> None:
        self._own = [*arguments, *paths]
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def run(self, lab: str, fault: str, bug: str) -> Sequence[Outcome]:
        """As :data:`Runner`; the outcomes are read from the run's report.

        Raises:
            LabError: pytest did not run the tests.
            CancelledError: it was called after :meth:`end`.
        """
        with transient.folder() as folder:
            options = [f"--hil-lab={lab}", f"--hil-report={folder}", "--hil-no-html"]
            options += ["-q", "-p", "no:cacheprovider"]
            if fault:
                options.append(f"--hil-fault={fault}")
            if bug:
                options.append(f"--hil-bug={bug}")
            said = self._call([sys.executable, "-m", "pytest", *options, *self._own])
            run = folder / "latest"
            outcomes = Run(run).outcomes() if run.exists() else ()
            if not outcomes:
                raise LabError(
                    f"the suites did not run on {lab} with {fault or 'no fault'}",
                    seen=said.decode("utf-8", "replace")[-4000:],
                )
            return outcomes

    def _call(self, command: Sequence[str]) -> bytes:
        """Run a command to its end; what it printed."""
        with self._lock:
            if self._ended:
                raise CancelledError
            child = subprocess.Popen(
                transient.tied(command, "TERM"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it once, from end()
            )
            self._running.add(child)
        with child:
            said, _ = child.communicate()
        with self._lock:
            self._running.discard(child)
        return said

    def end(self) -> None:
        """Interrupt what runs, which then puts its lab away; start nothing more."""
        with self._lock:
            self._ended = True
            for child in self._running:
                child.terminate()


def table(proof: Proof, width: int, *, colour: bool) -> str:
    """The matrix for a terminal."""
    from rich.table import Table
    from rich.text import Text

    from hil.reporting.text import on_paper

    console, paper = on_paper(width, colour=colour)
    for lab, outcomes in proof.failed_without.items():
        console.print(f"{lab}, without a fault: {proof.ran[lab]} tests ran, ", end="")
        console.print(f"{len(outcomes)} did not pass" if outcomes else "all passed")
        for outcome in outcomes:
            console.print(Text(f"  {outcome.status}: {outcome.title}: {outcome.reason}", "red"))
    rows = Table(box=None, pad_edge=False)
    rows.add_column("fault", overflow="fold", style="bold")
    rows.add_column("tests", justify="right")
    rows.add_column("caught by", overflow="fold")
    for row in proof.rows:
        names = Text("\n".join(grouped(row.caught)))
        missed = f"DID NOT RUN: {row.error}" if row.error else "NOT CAUGHT"
        rows.add_row(row.fault, str(len(row.caught)), names or Text(missed, style="bold red"))
    console.print(rows)
    return paper.getvalue()


def markdown(proof: Proof) -> str:
    """The matrix for the documentation."""
    lines = [
        "# Which test catches which bug",
        "",
        "<!-- Made by `hil prove --markdown docs/proof.md`; not to be edited by hand. -->",
        "",
        "Every bug below is re-enacted in a *simulated* host (a model, no hardware), and the",
        "suites run on it: the tests that name the bug, and where none of them saw it, all (a",
        "star). Without a fault they ran on:",
        "",
    ]
    lines += [
        f"- `{lab}`: {proof.ran[lab]} tests, "
        + (f"{len(outcomes)} did not pass" if outcomes else "all passed")
        for lab, outcomes in proof.failed_without.items()
    ]
    lines += ["", "| bug | what the host does wrong | reference | host | caught by |"]
    lines.append("|---|---|---|---|---|")
    for row in proof.rows:
        caught = "<br>".join(f"`{name}`" for name in grouped(row.caught)) or "**nothing**"
        caught += "" if row.by_name else " *"
        cells = (f"`{row.fault}`", row.sentence, row.reference, f"`{row.lab}`", caught)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _is_control(outcome: Outcome) -> bool:
    return "::test_control_" in outcome.test


def short(test: str) -> str:
    """A node id without folders and ``test_``: ``reset: registers_are_at_…[nic0]``."""
    path, _, name = test.partition("::")
    return f"{Path(path).parent.name}: {name.removeprefix('test_')}"


def grouped(tests: Sequence[str]) -> list[str]:
    """Short names, a test of several devices once: ``reset: registers_are_at_… [nic0 nvme0]``."""
    devices: dict[str, list[str]] = {}
    for test in tests:
        name, _, device = short(test).partition("[")
        devices.setdefault(name, []).append(device.removesuffix("]"))
    return [
        f"{name} [{' '.join(found)}]" if any(found) else name for name, found in devices.items()
    ]
