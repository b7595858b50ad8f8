"""``hil bisect``: which commit of a kernel or driver made a test fail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hil.cli.app import INTERRUPTED, LabOption, app, command, invocation, say
from hil.cli.run import suite
from hil.errors import Fault, HilError, InventoryError, LabError

bisect_app = typer.Typer(
    no_args_is_help=True,
    help="Find the commit of a kernel or driver that made a test fail: start, resume, stop.",
)
app.add_typer(bisect_app, name="bisect")

TreeOption = Annotated[
    Path, typer.Option(metavar="DIR", help="The git working tree of the kernel or driver.")
]


@bisect_app.command()
@command
def start(
    tests: Annotated[
        list[str],
        typer.Argument(
            metavar="TESTS",
            help="What fails, as hil run takes it; arguments of pytest go after --.",
        ),
    ],
    bad: Annotated[str, typer.Option(metavar="COMMIT", help="One at which it fails.")],
    good: Annotated[list[str], typer.Option(metavar="COMMIT", help="One at which it passes.")],
    build: Annotated[
        str, typer.Option(metavar="COMMAND", help="Shell command that builds and installs.")
    ],
    lab: LabOption,
    tree: TreeOption = Path(),
    host: Annotated[
        str, typer.Option(metavar="HOST", help="The host to reboot, if there are several.")
    ] = "",
    reboot: Annotated[
        bool, typer.Option(help="Switch the host off and on after each build.")
    ] = True,
    check: Annotated[
        str,
        typer.Option(metavar="COMMAND", help="Shell command: does the host run what was built?"),
    ] = "",
    times: Annotated[
        int, typer.Option(min=1, help="How often the test must pass: for one that fails at times.")
    ] = 1,
    bad_faults: Annotated[
        str, typer.Option(metavar="FAULTS", help="Whose fault makes a commit bad, with commas.")
    ] = Fault.PRODUCT.value,
    build_limit: Annotated[float, typer.Option(min=1, help="Seconds to build.")] = 7200,
    boot_limit: Annotated[float, typer.Option(min=1, help="Seconds to boot.")] = 600,
    run_limit: Annotated[float, typer.Option(min=1, help="Seconds for the test.")] = 3600,
    report_dir: Annotated[Path, typer.Option(help="Evidence goes below it.")] = Path("reports"),
) -> int:
    """Begin: both ends are tested, then git bisect run does the rest."""
    from hil.bisect import drive
    from hil.bisect.record import Settings
    from hil.lab.load import load

    tree = tree.resolve()
    inventory = load(lab)
    faults = tuple(word.strip() for word in bad_faults.split(",") if word.strip())
    known = (*(fault.value for fault in Fault), "test")
    if unknown := [fault for fault in faults if fault not in known]:
        raise InventoryError(f"{unknown[0]!r} is nobody's fault", hint=f"of: {', '.join(known)}")
    settings = Settings(
        tree=str(tree),
        good=tuple(drive.resolve(tree, commit) for commit in good),
        bad=drive.resolve(tree, bad),
        build=build,
        lab=str(inventory.source.resolve()) if Path(lab).is_file() else lab,
        tests=tuple(_absolute(suite(name)) for name in tests),
        host=_host_to_reboot(lab, host) if reboot and not inventory.kind.disposable else "",
        check=check,
        pytest=invocation.after_dashes,
        times=times,
        bad_faults=faults,
        build_limit=build_limit,
        boot_limit=boot_limit,
        run_limit=run_limit,
    )
    record = drive.begin(tree, report_dir, settings)
    say(f"evidence goes to {record.folder}; Ctrl-C interrupts, hil bisect resume goes on")
    return _go_on(tree)


@bisect_app.command()
@command
def resume(tree: TreeOption = Path()) -> int:
    """Go on after an interruption, or after what could not be tested was mended."""
    return _go_on(tree.resolve())


@bisect_app.command()
@command
def stop(tree: TreeOption = Path()) -> None:
    """End a bisection, and check out what was checked out before; its evidence stays."""
    from hil.bisect import drive

    typer.echo(f"the bisection is ended; what it found out is in {drive.stop(tree.resolve())}")


@bisect_app.command()
@command
def step(tree: TreeOption = Path()) -> int:
    """Test what is checked out, for git bisect run: 0 good, 1 bad, 125 cannot be tested."""
    from hil.bisect import drive

    try:
        return drive.step(tree.resolve(), say)
    except KeyboardInterrupt:
        return drive.STOP
    except HilError as error:
        from hil.cli.app import complain

        complain(error)
        return drive.STOP


def _go_on(tree: Path) -> int:
    from hil.bisect import drive, render
    from hil.reporting.run import write_whole

    record = drive.current(tree)
    try:
        result = drive.go_on(tree, record, say)
    except KeyboardInterrupt:
        say("interrupted; hil bisect resume goes on, hil bisect stop ends it")
        return INTERRUPTED
    text = render.markdown(result, drive.subjects(tree, record))
    write_whole(record.folder / "bisect.md", text)
    drive.stop(tree)
    typer.echo(text, nl=False)
    return 0 if result.first is not None else LabError.exit_code


def _absolute(test: str) -> str:
    """A test's path, whichever folder a step is in."""
    path, colons, name = test.partition("::")
    return f"{Path(path).resolve()}{colons}{name}"


def _host_to_reboot(lab: str, host: str) -> str:
    from hil.lab.load import load
    from hil.lab.power import power_of
    from hil.power.none import NoPower

    inventory = load(lab)
    if not host and len(inventory.hosts) == 1:
        host = next(iter(inventory.hosts))
    if host not in inventory.hosts:
        raise InventoryError(
            f"the lab {inventory.name} has no host {host!r}" if host else "name the host to reboot",
            hint=f"--host NAME, or --no-reboot; its hosts are: {', '.join(inventory.hosts)}",
        )
    if isinstance(power_of(inventory, host), NoPower):
        raise InventoryError(
            f"nothing can switch the power of {host} from here",
            hint=f"say in hosts.{host}.power what can; or --no-reboot, and reboot it in --build",
        )
    return host
