"""The command line: ``hil run``, ``doctor``, ``devices``, ``leases``, ``recover`` and the rest.

Exit codes are those of :mod:`hil.errors`; besides, 2 is a usage error, 70 a fault in hil
itself, and 130 an interruption (Ctrl-C, SIGTERM, SIGHUP).
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

import hil
from hil.deadline import Deadline
from hil.errors import Fault, HilError, InventoryError, LabError

if TYPE_CHECKING:
    import pytest
    from rich.console import Console

    from hil.doctor.check import Check
    from hil.emulated.image_store import Image
    from hil.lab.lease import Holder, Lease
    from hil.lab.models import Lab
    from hil.platforms.contract import Function, Platform

P = ParamSpec("P")

USAGE, INTERNAL, INTERRUPTED = 2, 70, 130

#: Seconds for a lab to come up; the first time its images are built too.
UP = 1800
#: Seconds to switch a host off and on; it then boots for as long as it takes.
POWER = 180
#: Seconds for a question to a host that is up.
ASK = 60

app = typer.Typer(
    help="Hardware-in-the-loop tests for PCI passthrough.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LabOption = Annotated[
    str, typer.Option("--lab", "-l", metavar="NAME|FILE", help="Lab name or inventory file.")
]
WaitOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for a lab in use.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass
class _Invocation:
    """What holds for the whole command line."""

    debug: bool = False
    """Show tracebacks."""
    after_dashes: tuple[str, ...] = ()
    """What followed ``--``: for pytest or ssh, not for us."""


_invocation = _Invocation()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (by default the process's); return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _invocation.after_dashes = ()
    if "--" in words:
        # An option parser would mix these with the words before.
        dashes = words.index("--")
        _invocation.after_dashes = tuple(words[dashes + 1 :])
        words = words[:dashes]
    try:
        app(words, prog_name="hil")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option(help="Show the Python traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    _invocation.debug = debug
    if version:
        typer.echo(f"hil {hil.__version__}")
        raise typer.Exit


def _command(function: Callable[P, int | None]) -> Callable[P, None]:
    """Turn what a command returns or raises into an exit code and words on stderr."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            # As Ctrl-C: what was begun is undone.
            signal.signal(number, signal.default_int_handler)
        try:
            code = function(*args, **kwargs) or 0
        except HilError as error:
            if _invocation.debug:
                raise
            complain(error)
            code = error.exit_code
        except KeyboardInterrupt:
            if _invocation.debug:
                raise
            _stderr().print("hil: interrupted", style="yellow")
            code = INTERRUPTED
        except BrokenPipeError:
            # Whoever read our output has seen enough; Python must not try to flush more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except Exception as error:
            if _invocation.debug:
                raise
            text = f"hil: internal error: {type(error).__name__}: {error}"
            _stderr().print(text, style="bold red", markup=False)
            _stderr().print("  next:    hil --debug …, and report the traceback that it shows")
            code = INTERNAL
        raise typer.Exit(code)

    return command


def complain(error: HilError) -> None:
    """Print ``error`` on stderr, its first line in red."""
    from rich.text import Text

    from hil.reporting.text import clean, redact

    first, _, rest = redact(clean(error.explain())).partition("\n")
    text = Text(f"hil: {first}", style="bold red")
    if rest:
        text.append(f"\n{rest}", style="not bold default")
    _stderr().print(text)


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def _stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _say(text: str) -> None:
    """One line of progress, on stderr."""
    _stderr().print(f"hil: {text}", style="dim", markup=False)


def _say_waiting(name: str, holder: Holder | None, waited: float) -> None:
    who = str(holder) if holder else "a process that left no record"
    _say(f"waiting for {name} since {waited:.0f} s; held by {who}")


# ---- hil run --------------------------------------------------------------------------


@app.command()
@_command
def run(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITES]... [-- PYTEST ARGUMENTS]...",
            help="Names of suites (dma, reset …), files, or pytest node ids; all by default.",
        ),
    ] = None,
    lab: LabOption = "emulated",
    report_dir: Annotated[Path, typer.Option(help="Reports go below it.")] = Path("reports"),
    danger: Annotated[
        int, typer.Option(min=0, max=3, help="Run nothing above it, even if the lab allows it.")
    ] = 3,
    cycles: Annotated[
        int | None, typer.Option(min=1, help="How often tests of repetition repeat.")
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="How long canaries are watched."),
    ] = None,
    labs: Annotated[
        int | None,
        typer.Option(
            min=1, max=16, help="Emulated labs to share the work (default: by processors)."
        ),
    ] = None,
    wait: WaitOption = 600,
) -> int:
    """Run suites on a lab and write a report."""
    from hil.lab.load import load

    inventory = load(lab)
    count = _labs_at_once(labs, inventory.kind)
    options = [f"--hil-lab={lab}", f"--hil-report={report_dir}", f"--hil-danger={danger}"]
    options.append(f"--hil-wait={wait}")
    if cycles is not None:
        options.append(f"--hil-cycles={cycles}")
    if watch is not None:
        options.append(f"--hil-watch={watch}")
    paths = [_suite(name) for name in suites or []] or [str(suites_folder())]
    several = f", {count} of them side by side" if count > 1 else ""
    _say(f"running on the lab {inventory.name}, which is {inventory.kind}{several}")
    if count > 1:
        options += ["-n", str(count), "--dist", "loadgroup"]
    return _pytest([*options, *_invocation.after_dashes, *paths])


@app.command()
@_command
def prove(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITES]... [-- PYTEST ARGUMENTS]...",
            help="Names of suites, files, or pytest node ids; all by default.",
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A bug to re-enact, by name; all by default."),
    ] = None,
    release: Annotated[
        str, typer.Option(help="The simulated hosts: freebsd-RELEASE-intel and -amd.")
    ] = "15",
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Runs at once.")] = 1,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the matrix there too.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Re-enact each bug of the past on a simulated host, and tell which tests catch it.

    Status 1: a bug was caught by no test, or a test failed without any bug.
    """
    from hil import prove as proving
    from hil.lab.load import load
    from hil.simulated.faults import FAULTS, fault_named

    labs = {vendor: f"freebsd-{release}-{vendor}" for vendor in ("intel", "amd")}
    for name in labs.values():
        load(name)
    paths = [_suite(name) for name in suites or []] or [str(suites_folder())]
    proof = proving.prove(
        [fault_named(n) for n in fault] if fault else [f for f in FAULTS if not f.beyond],
        labs,
        proving.run_suites(paths, _invocation.after_dashes),
        jobs=jobs,
        tell=_say,
    )
    if markdown is not None:
        markdown.write_text(proving.markdown(proof))
    if as_json:
        typer.echo(json.dumps(proof.as_json(), indent=1))
    else:
        console = _stdout()
        text = proving.table(proof, console.width, colour=console.is_terminal)
        typer.echo(text, nl=False)
    return 0 if proof.holds else 1


def _labs_at_once(wanted: int | None, kind: str) -> int:
    """How many labs a run brings up: a physical one is there once."""
    if kind != "emulated":
        if wanted not in (None, 1):
            raise InventoryError(
                f"a lab that is {kind} is there once, not {wanted} times", hint="leave out --labs"
            )
        return 1
    from hil.emulated.machine import labs_that_fit

    return wanted or labs_that_fit()


def suites_folder() -> Path:
    """Where hil's own suites are: in the checkout or in the installed package."""
    for folder in hil.__path__:
        if (Path(folder) / "suites").is_dir():
            return Path(folder) / "suites"
    raise InventoryError("hil's suites are not installed", hint="install hil anew")


def _suite(name: str) -> str:
    """What pytest calls the suite, file or node id ``name``."""
    path, sep, test = name.partition("::")
    if Path(path).exists():
        return name
    folder = suites_folder()
    for candidate in (folder / path, folder / f"{path}.py", folder / path.removeprefix("suites/")):
        if candidate.exists():
            return f"{candidate}{sep}{test}"
    from hil.lab.load import nearest

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

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # pytest calls it "interrupted" too when a file of tests cannot be imported.
        if excinfo.typename == "KeyboardInterrupt":
            self.interrupted = True

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        if directory := getattr(config.option, "hil_run_directory", None):
            self.directory = Path(directory)


def _pytest(arguments: Sequence[str]) -> int:
    import pytest

    watcher = _Watcher()
    code = pytest.main(list(arguments), plugins=[watcher])
    if watcher.interrupted:
        return INTERRUPTED
    match code:
        case pytest.ExitCode.OK:
            return 0
        case pytest.ExitCode.USAGE_ERROR:
            return USAGE
        case pytest.ExitCode.INTERNAL_ERROR:
            return INTERNAL
        case pytest.ExitCode.NO_TESTS_COLLECTED:
            raise InventoryError("no test was selected", hint="look at the options -k and -m")
    return _by_fault(watcher.directory)


def _by_fault(directory: Path | None) -> int:
    """The exit code of a run in which tests failed: the product's fault before all others."""
    from hil.reporting.run import Run

    outcomes = Run(directory).outcomes() if directory else ()
    faults = {outcome.fault for outcome in outcomes}
    codes = {Fault.PRODUCT: 1, Fault.GUEST: 3, Fault.LAB: 4, Fault.INVENTORY: 5}
    if "test" in faults:
        return 1
    return next((code for fault, code in codes.items() if fault.value in faults), 1)


# ---- hil report -----------------------------------------------------------------------


@app.command()
@_command
def report(
    run: Annotated[
        str, typer.Argument(help="A run's folder, or its name below the report directory.")
    ] = "latest",
    report_dir: Annotated[Path, typer.Option(help="Where reports are.")] = Path("reports"),
) -> None:
    """Make the HTML report and the summary of a run anew, also of one that was killed."""
    from hil.reporting.html import generate
    from hil.reporting.run import Run
    from hil.reporting.summary import Totals, render, write_summary

    folder = Path(run) if "/" in run or Path(run, "run.json").is_file() else report_dir / run
    opened = Run.open(folder)
    write_summary(opened)
    generate(opened.directory)
    console = _stdout()
    text = render(
        Totals.of(opened.outcomes()),
        lab=str(opened.state.get("lab", "")),
        kind=str(opened.state.get("kind", "")),
        run=opened,
        width=console.width,
        colour=console.is_terminal,
    )
    typer.echo(text, nl=False)


# ---- hil devices ----------------------------------------------------------------------


@app.command()
@_command
def devices(
    lab: LabOption = "emulated", wait: WaitOption = 600, as_json: JsonOption = False
) -> None:
    """List the PCI functions of a lab's hosts."""
    from hil.lab.live import open_lab
    from hil.lab.load import load

    inventory = load(lab)
    deadline = Deadline(UP, f"the lab {inventory.name}")
    with open_lab(
        inventory, deadline, run="hil devices", wait=wait, progress=_say, on_wait=_say_waiting
    ) as live:
        found = {
            name: platform.functions(Deadline(ASK, f"the functions of {name}"))
            for name, platform in live.platforms.items()
        }
    if as_json:
        rows = [function_row(name, f) for name, functions in found.items() for f in functions]
        typer.echo(json.dumps(rows, indent=1))
        return
    for name, functions in found.items():
        _print_functions(f"{name} ({inventory.kind})", functions)


def function_row(host: str, function: Function) -> dict[str, str | int | None]:
    """What ``hil devices`` shows of a function."""
    from hil.lab.check import capabilities, serial

    config = function.config
    return {
        "host": host,
        "address": str(function.address),
        "id": f"{function.vendor:04x}:{function.device:04x}",
        "subsystem": f"{config.subsystem_vendor:04x}:{config.subsystem_device:04x}",
        "serial": serial(function),
        "class": config.class_name,
        "driver": function.driver,
        "group": function.group,
        "resets": " ".join(function.reset_methods),
        "capabilities": " ".join(sorted(capabilities(function))),
        "in_use_as": function.in_use_as,
    }


def _print_functions(title: str, functions: Iterable[Function]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    columns = ("address", "id", "class", "driver", "group", "resets", "capabilities", "in_use_as")
    for column in columns:
        fixed = column in ("address", "id")
        table.add_column(column.replace("_", " "), no_wrap=fixed, overflow="fold")
    for function in functions:
        row = function_row("", function)
        cells = ["" if row[column] is None else str(row[column]) for column in columns]
        table.add_row(*cells, style="yellow" if function.in_use_as else None)
    _stdout().print(table, markup=False)


# ---- hil lab --------------------------------------------------------------------------

lab_app = typer.Typer(no_args_is_help=True, help="A lab by hand: up, down, status, ssh, console.")
app.add_typer(lab_app, name="lab")

NameOption = Annotated[
    str, typer.Option("--name", metavar="NAME", help="Which of the labs that are up.")
]


@lab_app.command()
@_command
def up(
    name: NameOption = "",
    simulated: Annotated[
        str,
        typer.Option(
            metavar="HOST", help="A simulated host instead: freebsd-RELEASE-intel or -amd."
        ),
    ] = "",
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="A bug of the past that the simulated host has."),
    ] = None,
    host_image: Annotated[
        str,
        typer.Option(metavar="FILE|NAME", help="A FreeBSD disk image as the emulated host."),
    ] = "",
    guest_image: Annotated[
        str, typer.Option(metavar="FILE|NAME", help="One for its guests; else the same.")
    ] = "",
    qemu: Annotated[str, typer.Option(metavar="FILE", help="QEMU to use ($HIL_QEMU).")] = "",
    qemu_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="One more argument for QEMU ($HIL_QEMU_ARGS)."),
    ] = None,
) -> None:
    """Bring up an emulated lab, or a simulated host, that stays up until hil lab down."""
    from hil.lab import keeper

    if fault and not simulated:
        raise InventoryError("only a simulated host has faults", hint="hil lab up --simulated HOST")
    kind = "simulated" if simulated else "emulated"
    name = name or simulated.replace(".", "_") or kind
    _check_name(name)
    if simulated and (host_image or guest_image or qemu or qemu_arg):
        raise InventoryError("a simulated host has no image and no QEMU", hint="leave out one")
    if guest_image and not host_image:
        raise InventoryError(
            "--guest-image goes with --host-image", hint="the emulated lab has guests of its own"
        )
    if qemu:
        os.environ["HIL_QEMU"] = str(Path(qemu).resolve()) if "/" in qemu else qemu
    if qemu_arg:
        os.environ["HIL_QEMU_ARGS"] = shlex.join(qemu_arg)
    words = [simulated, *(fault or ())] if simulated else _emulated(host_image, guest_image)
    keeper.start(name, Deadline(UP, f"the lab {name}"), _say, lab=words)
    option = "" if name == "emulated" else f" --name {name}"
    typer.echo(
        f"the {kind} lab {name} is up: "
        f"hil lab ssh{option}, hil lab console{option}, hil lab down{option}"
    )


def _emulated(host_image: str, guest_image: str) -> list[str]:
    """What the keeper, which works in another folder, takes for the emulated lab."""
    from hil.lab.load import load

    if not host_image:
        return []
    # Mistakes are told here, at once.
    lab = load(f"emulated:{host_image}" + (f",{guest_image}" if guest_image else ""))
    return [f"emulated:{lab.host_image},{lab.guest_image}"]


@lab_app.command()
@_command
def down(name: NameOption = "emulated") -> None:
    """Take an emulated or simulated lab down. Nothing of it stays but caches."""
    from hil.lab import keeper

    _check_name(name)
    was_up = keeper.stop(name, Deadline(ASK, f"the end of the lab {name}"))
    typer.echo(f"the lab {name} {'is down' if was_up else 'was not up'}")


@lab_app.command()
@_command
def status(
    lab: Annotated[
        str, typer.Option("--lab", "-l", metavar="NAME|FILE", help="Who holds this lab's hosts.")
    ] = "emulated",
    as_json: JsonOption = False,
) -> int:
    """Tell which emulated labs are up, or who holds a physical lab; status 1: none, nobody."""
    from hil.lab import keeper
    from hil.lab.load import load
    from hil.lab.models import LabKind

    inventory = load(lab)
    if inventory.kind is LabKind.EMULATED:
        states = [state for name in keeper.names() if (state := keeper.find(name))]
        rows = {
            s.name: {**asdict(s), "minutes": round((time.time() - s.since) / 60)} for s in states
        }
        text = {s.name: f"up, SSH on 127.0.0.1:{s.ssh_port}, process {s.pid}" for s in states}
        nothing = "no emulated lab is up"
    else:
        held = {
            f"{host}: {lease.name}": lease
            for host, found in _leases(inventory).items()
            for lease in found
        }
        rows = {name: _lease_row(lease) for name, lease in held.items()}
        text = {name: _held_by(lease) for name, lease in held.items()}
        nothing = f"nobody holds the lab {inventory.name}"
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        typer.echo("\n".join(f"{name}: {words}" for name, words in text.items()) or nothing)
    return 0 if rows else 1


@lab_app.command()
@_command
def power(
    action: Annotated[str, typer.Argument(metavar="state|on|off|cycle")],
    lab: LabOption,
    host: Annotated[str, typer.Argument(metavar="[HOST]", help="A host of --lab.")] = "",
) -> None:
    """Switch a physical host's power, or tell whether it has any. Asks nobody who uses it."""
    from hil.lab.load import load
    from hil.lab.power import power_of

    inventory = load(lab)
    host = _host(inventory, host)
    if action not in ("state", "on", "off", "cycle"):
        raise InventoryError(f"{action!r} is nothing to do with power", hint="state|on|off|cycle")
    switch = power_of(inventory, host)
    deadline = Deadline(POWER, f"the power of {host}")
    if action == "state":
        typer.echo(switch.state(deadline).value)
    else:
        getattr(switch, action)(deadline)
        typer.echo(f"{host}: {action}: done")


@lab_app.command()
@_command
def ssh(
    host: Annotated[
        str, typer.Argument(metavar="[HOST] [-- COMMAND...]", help="A host of --lab.")
    ] = "",
    lab: LabOption = "emulated",
    name: NameOption = "emulated",
) -> None:
    """Log in at a lab's host, or run a command there."""
    from hil.lab.load import load

    inventory = load(lab)
    host = _host(inventory, host)
    words = list(_invocation.after_dashes)
    if inventory.kind == "emulated":
        from hil.lab import keeper

        _check_name(name)
        command = keeper.ssh_command(keeper.get(name), words)
    else:
        entry = inventory.hosts[host]
        if entry.transport == "local":
            raise InventoryError(f"the host {host} is this very machine", hint="use its shell")
        command = ["ssh", "-i", str(inventory.file(entry.key_file)), "-p", str(entry.port)]
        if entry.known_hosts:
            command += ["-o", f"UserKnownHostsFile={inventory.file(entry.known_hosts)}"]
        command += ["-l", entry.user, "--", entry.address, *words]
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell
    except FileNotFoundError:
        raise LabError("there is no ssh on PATH", hint="apt-get install openssh-client") from None


@lab_app.command()
@_command
def console(name: NameOption = "emulated") -> None:
    """Talk to an emulated host's console until Ctrl-]; if not at a terminal, print its log."""
    from hil.lab import keeper

    _check_name(name)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        keeper.dump(name, sys.stdout.buffer)
        return
    _say(f"the console of {name}; Ctrl-] ends this, not the lab")
    keeper.talk(name)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name):
        raise InventoryError(
            f"{name!r} is not a name for a lab", hint="use letters, digits, '_' and '-', at most 32"
        )


def _host(inventory: Lab, host: str) -> str:
    if host in inventory.hosts:
        return host
    if not host and len(inventory.hosts) == 1:
        return next(iter(inventory.hosts))
    raise InventoryError(
        f"the lab {inventory.name} has no host {host!r}" if host else "name a host",
        hint=f"its hosts are: {', '.join(inventory.hosts)}",
    )


# ---- hil image ---------------------------------------------------------------------------

image_app = typer.Typer(
    no_args_is_help=True, help="Disk images of FreeBSD for emulated hosts: add, list, remove."
)
app.add_typer(image_app, name="image")


@image_app.command()
@_command
def add(
    source: Annotated[str, typer.Argument(metavar="URL|FILE", help="Raw or qcow2; xz, zstd.")],
    sha256: Annotated[str, typer.Option(metavar="SUM", help="Of URL or FILE as it is.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call it.")] = "",
) -> None:
    """Fetch an image, or copy it, into hil's cache; nothing is ever fetched unasked."""
    from hil.emulated import image_store

    image = image_store.add(source, sha256, name=name, progress=_say)
    typer.echo(f"{image.name}: {_size(image)}; next: hil lab up --host-image {image.name}")


@image_app.command("list")
@_command
def list_images(as_json: JsonOption = False) -> None:
    """List the images that were added."""
    from hil.emulated import image_store
    from hil.reporting.text import one_line

    images = image_store.images()
    if as_json:
        typer.echo(json.dumps([asdict(image) for image in images], indent=1, default=str))
        return
    for image in images:
        typer.echo(one_line(f"{image.name}: {_size(image)}, from {image.source}", 500))
    if not images:
        typer.echo("no images; add one with: hil image add URL|FILE --sha256 SUM")


def _size(image: Image) -> str:
    return f"{image.disk.format}, {image.disk.size / 2**30:.1f} GiB"


@image_app.command()
@_command
def remove(name: Annotated[str, typer.Argument(metavar="NAME", help="As listed.")]) -> None:
    """Remove an image that was added."""
    from hil.emulated import image_store

    image_store.remove(name)
    typer.echo(f"the image {name} is removed")


# ---- hil leases, hil recover ------------------------------------------------------------


@app.command()
@_command
def leases(lab: LabOption, as_json: JsonOption = False) -> None:
    """List who uses which cards of a physical lab's hosts, and since when."""
    from hil.lab.load import load

    found = _leases(load(lab))
    if as_json:
        rows = [
            {"host": host, "lease": lease.name, **_lease_row(lease)}
            for host, held in found.items()
            for lease in held
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    for host, held in found.items():
        for lease in held:
            typer.echo(f"{host}: {lease.name}: {_held_by(lease)}")
        if not held:
            typer.echo(f"{host}: nobody uses it")


def _leases(inventory: Lab) -> dict[str, tuple[Lease, ...]]:
    """The leases of each host's cards; a run's own lease tells nobody anything."""
    from hil.lab.lease import look

    found = {}
    for name, platform in _each_host(inventory):
        deadline = Deadline(ASK, f"the leases of {name}")
        held = look(platform.transport, platform.dialect, deadline)
        found[name] = tuple(lease for lease in held if not lease.name.startswith("run."))
    return found


def _lease_row(lease: Lease) -> dict[str, str | int]:
    return asdict(lease.holder) if lease.holder else {}


def _held_by(lease: Lease) -> str:
    return f"held by {lease.holder or 'a process that left no record'}"


def _each_host(inventory: Lab) -> Iterator[tuple[str, Platform]]:
    """Each host of a physical lab, connected while it is looked at.  Takes no lease."""
    from hil.lab.live import connect, platform_of
    from hil.lab.models import LabKind

    if inventory.kind is not LabKind.PHYSICAL:
        raise InventoryError(
            f"the lab {inventory.name} is {inventory.kind}: each run makes one for itself, so "
            "nobody else can use it, and nothing of it stays",
            hint="name a physical lab with --lab",
        )
    for name in inventory.hosts:
        transport = connect(inventory, name, Deadline(ASK, f"a connection to {name}"))
        try:
            yield name, platform_of(inventory, name, transport)
        finally:
            transport.close()


@app.command()
@_command
def recover(
    lab: LabOption,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show it; change nothing.")
    ] = False,
) -> int:
    """Put back what dead runs left on a physical lab's hosts; status 4: not all could be."""
    from hil.lab.load import load

    code = 0
    for _, platform in _each_host(load(lab)):
        code = max(code, _show_leftovers(platform) if dry_run else _recover(platform))
    return code


def _show_leftovers(platform: Platform) -> int:
    from hil import journal
    from hil.lab.recover import leftovers, words
    from hil.reporting.text import one_line

    kinds = {kind.name: kind for kind in platform.undo_kinds}
    deadline = Deadline(ASK, f"the journal of {platform.host}")
    contents = journal.read(platform.transport, platform.dialect, deadline)
    found = leftovers(contents)
    for entry in found:
        kind = kinds.get(entry.undo.kind)
        doubt = "" if entry.made else " (perhaps: the run ended while it was being done)"
        text = one_line(f"{words(entry, kinds)}{doubt}, by {entry.by}", 500)
        typer.echo(f"{platform.host}: {text}")
        if kind is not None and kind.fits(entry.undo):
            typer.echo(f"    by hand: {one_line(kind.command(entry.undo), 500)}")
    for file in contents.unreadable:
        typer.echo(one_line(f"{platform.host}: {file.run}/{file.name} is no entry", 500))
    if not found:
        typer.echo(f"{platform.host}: no dead run left anything")
    return 0


def _recover(platform: Platform) -> int:
    from hil.lab import recover as recovery
    from hil.reporting.text import one_line

    kinds = {kind.name: kind for kind in platform.undo_kinds}
    deadline = Deadline(UP, f"the recovery of {platform.host}")
    recovered = recovery.recover(platform, deadline)
    for title, entries in (("undone", recovered.undone), ("in use, left alone", recovered.kept)):
        for entry in entries:
            text = one_line(recovery.words(entry, kinds), 500)
            typer.echo(f"{platform.host}: {title}: {text}")
    for text in recovered.unreadable:
        typer.echo(one_line(f"{platform.host}: cannot be read, left alone: {text}", 500))
    for _, error in recovered.failed:
        complain(error)
    if not (recovered.undone or recovered.kept or recovered.failed or recovered.unreadable):
        typer.echo(f"{platform.host}: no dead run left anything")
    return LabError.exit_code if recovered.failed else 0


# ---- hil doctor -----------------------------------------------------------------------


@app.command()
@_command
def doctor(lab: LabOption = "emulated", as_json: JsonOption = False) -> int:
    """Tell what this machine and a lab's hosts lack, and how to mend it. Changes nothing."""
    from hil.doctor.machine import controller
    from hil.lab.load import load
    from hil.lab.models import LabKind
    from hil.transport.local import LocalTransport

    inventory = load(lab)
    deadline = Deadline(ASK, "the checks of this machine")
    emulated = inventory.kind is LabKind.EMULATED
    checks = controller(LocalTransport(), deadline, emulated=emulated)
    if inventory.kind is LabKind.SIMULATED:
        checks += _examine_simulated(inventory, deadline)
    elif not emulated:
        for name in inventory.hosts:
            checks += _examine(inventory, name)
    healthy = not any(check.bad for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": healthy, "checks": [asdict(c) for c in checks]}, indent=1))
    else:
        _print_checks(checks)
    return 0 if healthy else 1


def _examine_simulated(inventory: Lab, deadline: Deadline) -> list[Check]:
    from hil.doctor.freebsd import freebsd_host
    from hil.lab.live import open_lab

    with open_lab(inventory, deadline) as live:
        return [
            check
            for name, platform in live.platforms.items()
            for check in freebsd_host(name, platform.transport, deadline, inventory)
        ]


def _examine(inventory: Lab, name: str) -> list[Check]:
    from hil.doctor.check import Check, State
    from hil.doctor.freebsd import freebsd_host
    from hil.doctor.linux import linux_host
    from hil.lab.live import connect

    deadline = Deadline(ASK, f"the checks of {name}")
    try:
        transport = connect(inventory, name, deadline.within(20, f"a connection to {name}"))
    except HilError as error:
        return [Check(name, "answers", State.MISSING, error.message, error.hint)]
    try:
        if inventory.hosts[name].platform == "freebsd-bhyve":
            return freebsd_host(name, transport, deadline, inventory)
        return linux_host(name, transport, deadline)
    finally:
        transport.close()


def _print_checks(checks: Sequence[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    from hil.doctor.check import State
    from hil.reporting.text import one_line

    console = _stdout()
    for where in dict.fromkeys(check.where for check in checks):
        console.print(Text(where, style="bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column()
        table.add_column(overflow="fold")
        for check in (c for c in checks if c.where == where):
            text = Text(one_line(check.evidence, 300))
            if check.state is not State.FOUND and check.remedy:
                text.append(f"\n→ {check.remedy}", style="bold")
            colour = "green" if check.state is State.FOUND else "red" if check.bad else "yellow"
            name = check.name if check.needed else f"{check.name} (optional)"
            table.add_row(f"  {name}", Text(check.state, style=colour), text)
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
