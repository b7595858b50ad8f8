"""``hil run``: suites on a lab, through pytest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hil.cli.app import (
    INTERNAL,
    INTERRUPTED,
    USAGE,
    LabOption,
    WaitOption,
    app,
    command,
    invocation,
    say,
)
from hil.errors import Fault, InventoryError, LabError

if TYPE_CHECKING:
    import pytest


@app.command()
@command
def run(
    context: typer.Context,
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITES",
            help="Names of suites (dma, reset …), files, or pytest node ids; all by default. "
            "Arguments of pytest go after --.",
        ),
    ] = None,
    lab: LabOption = "emulated",
    report_dir: Annotated[Path, typer.Option(help="Reports go below it.")] = Path("reports"),
    no_html: Annotated[
        bool, typer.Option("--no-html", help="Leave out the report's page; hil report makes it.")
    ] = False,
    tag: Annotated[
        str, typer.Option(help="End the report folder's name so; for a build, its number.")
    ] = "",
    deadline: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="End the run after so long, and put all back."),
    ] = None,
    test_deadline: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="How long a test may take.")
    ] = None,
    danger: Annotated[
        int, typer.Option(min=0, max=3, help="Run nothing above it, even if the lab allows it.")
    ] = 3,
    cycles: Annotated[
        int | None,
        typer.Option(
            min=1, help="How often tests of repetition repeat; by default 2, or 1 if emulated."
        ),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="How long canaries are watched."),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=3,
            help="How often to repeat a test whose guest died, on an emulated lab without KVM; "
            "by default once.",
        ),
    ] = None,
    labs: Annotated[
        int | None,
        typer.Option(
            min=1, max=16, help="Labs to share the work, if not physical (default: by processors)."
        ),
    ] = None,
    wait: WaitOption = 600,
    like: Annotated[
        str, typer.Option(metavar="RUN", help="Do a run again; other options change that.")
    ] = "",
) -> int:
    """Run suites on a lab and write a report."""
    from hil.lab.load import load

    if like:
        return _again(context, like, suites or [])
    inventory = load(lab)
    count = _labs_at_once(labs, inventory.kind)
    options = [f"--hil-lab={lab}", f"--hil-report={report_dir}", f"--hil-danger={danger}"]
    options.append(f"--hil-wait={wait}")
    if no_html:
        options.append("--hil-no-html")
    if tag:
        options.append(f"--hil-tag={tag}")
    if deadline is not None:
        options.append(f"--hil-deadline={deadline}")
    if test_deadline is not None:
        options.append(f"--hil-test-deadline={test_deadline}")
    if cycles is not None:
        options.append(f"--hil-cycles={cycles}")
    if watch is not None:
        options.append(f"--hil-watch={watch}")
    if retries is not None:
        options.append(f"--hil-retries={retries}")
    paths = [suite(name) for name in suites or []] or [str(suites_folder())]
    several = f", {count} of them side by side" if count > 1 else ""
    say(f"running on the lab {inventory.name}, which is {inventory.provenance}{several}")
    if count > 1:
        options += ["-n", str(count), "--dist", "loadgroup"]
    return _pytest([*options, *invocation.after_dashes, *paths])


def _again(context: typer.Context, name: str, suites: Sequence[str]) -> int:
    """``hil run --like``: the run's own arguments, then those that were given now."""
    from hil import repeat
    from hil.lab.load import load
    from hil.reporting.run import Run

    given = {
        option: value
        for option, value in context.params.items()
        if (source := context.get_parameter_source(option)) is not None
        and source.name == "COMMANDLINE"
    }
    if suites:
        raise InventoryError(
            "--like runs what the run ran: it takes no suites",
            hint="leave them out, or choose among its tests: -- -k WORDS",
        )
    reports = Path(context.params["report_dir"])
    here = Path(name)
    run = Run.open(here if "/" in name or (here / "run.json").is_file() else reports / name)
    again = repeat.like(run, given.get("lab"))
    options = [f"--hil-report={reports}", f"--hil-wait={context.params['wait']}"]
    settings = ("tag", "deadline", "test_deadline", "danger", "cycles", "watch", "retries")
    options += [f"--hil-{o.replace('_', '-')}={given[o]}" for o in settings if o in given]
    if "no_html" in given:
        options.append("--hil-no-html")
    if "labs" in given:
        lab = next(w for w in reversed(again.arguments) if w.startswith("--hil-lab="))
        count = _labs_at_once(given["labs"], load(lab.partition("=")[2]).kind)
        options += ["-n", str(count), "--dist", "loadgroup"] if count > 1 else ["-n0"]
    say(f"running again what {run.name} ran")
    for note in again.notes:
        say(f"not as then: {note}")
    return _pytest([*again.arguments, *options, *invocation.after_dashes])


def _labs_at_once(wanted: int | None, kind: str) -> int:
    """How many labs a run brings up: a physical one is there once."""
    if kind == "physical":
        if wanted not in (None, 1):
            raise InventoryError(
                f"a lab that is {kind} is there once, not {wanted} times", hint="leave out --labs"
            )
        return 1
    if kind == "simulated":
        # Each is in a process of its own, which keeps one processor busy.
        return wanted or min(2, len(os.sched_getaffinity(0)))
    from hil.emulated.machine import labs_that_fit

    return wanted or labs_that_fit()


def suites_folder() -> Path:
    """Where hil's own suites are: in the checkout or in the installed package."""
    from hil import repeat

    folder = repeat.suites_folder()
    if folder is None:
        raise InventoryError("hil's suites are not installed", hint="install hil anew")
    return folder


def suite(name: str) -> str:
    """What pytest calls the suite, file or node id ``name``."""
    path, sep, test = name.partition("::")
    if Path(path).exists():
        return name
    folder = suites_folder()
    for candidate in (folder / path, folder / f"{path}.py", folder / path.removeprefix("suites/")):
        if candidate.exists():
            return f"{candidate}{sep}{test}"
    from hil.lab.document import nearest

    known = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._")
    raise InventoryError(
        f"there is no suite {name!r}{nearest(name, known)}",
        hint=f"suites are: {', '.join(known)}; arguments of pytest go after --",
    )


class _Watcher:
    """A pytest plugin that remembers what the exit code alone does not tell."""

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.interrupted = False
        self.unwritable = False
        self.mistake = 0
        """The exit code of a mistake of the user's, if one ended the run before its tests."""

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # pytest calls it "interrupted" too when a file of tests cannot be imported.
        if excinfo.typename == "KeyboardInterrupt":
            self.interrupted = True

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        if directory := getattr(config.option, "hil_run_directory", None):
            self.directory = Path(directory)
        self.unwritable = bool(getattr(config.option, "hil_unwritable", False))
        self.mistake = int(getattr(config.option, "hil_mistake", 0))


def _pytest(arguments: Sequence[str]) -> int:
    import pytest

    watcher = _Watcher()
    code = pytest.main(list(arguments), plugins=[watcher])
    if watcher.interrupted:
        return INTERRUPTED
    if watcher.unwritable:
        return LabError.exit_code
    match code:
        case pytest.ExitCode.OK:
            return 0
        case pytest.ExitCode.USAGE_ERROR:
            return watcher.mistake or USAGE
        case pytest.ExitCode.INTERNAL_ERROR:
            return INTERNAL
        case pytest.ExitCode.NO_TESTS_COLLECTED:
            raise InventoryError("no test was selected", hint="look at the options -k and -m")
    return _by_fault(watcher.directory)


def _by_fault(directory: Path | None) -> int:
    """The exit code of a run in which tests failed: the product's fault before all others.

    Where tests were only blocked, by the run's deadline, or the lab was not put back at its end, it
    is the lab's.
    """
    from hil.reporting.outcome import Status
    from hil.reporting.run import Run

    run = Run(directory) if directory else None
    outcomes = run.outcomes() if run is not None else ()
    faults = {outcome.fault for outcome in outcomes}
    codes = {Fault.PRODUCT: 1, Fault.GUEST: 3, Fault.LAB: 4, Fault.INVENTORY: 5}
    if "test" in faults:
        return 1
    blocked = any(outcome.status is Status.BLOCKED for outcome in outcomes)
    if faults <= {""} and (blocked or (run is not None and run.state.get("put_back") is False)):
        return LabError.exit_code
    return next((code for fault, code in codes.items() if fault.value in faults), 1)
