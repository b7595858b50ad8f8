"""``hil prove``: bugs of the past re-enacted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hil.cli.app import JsonOption, app, command, invocation, say, stdout
from hil.cli.run import suite, suites_folder


@app.command()
@command
def prove(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITES",
            help="Names of suites, files, or pytest node ids; all by default. "
            "Arguments of pytest go after --.",
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A bug to re-enact, by name; all by default."),
    ] = None,
    release: Annotated[
        str, typer.Option(help="The simulated hosts: freebsd-RELEASE-intel and -amd.")
    ] = "15",
    guests: Annotated[
        str, typer.Option(help="What guests boot: freebsd; with release 15 linux or linux-uefi.")
    ] = "freebsd",
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Runs at once.")] = 1,
    whole: Annotated[
        bool, typer.Option("--all", help="Run all tests with each bug, not first those naming it.")
    ] = False,
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

    end = "" if guests == "freebsd" else f"-{guests}"
    labs = {vendor: f"freebsd-{release}-{vendor}{end}" for vendor in ("intel", "amd")}
    for name in labs.values():
        load(name)
    paths = [suite(name) for name in suites or []] or [str(suites_folder())]
    runs = proving.Suites(paths, invocation.after_dashes)
    proof = proving.prove(
        [fault_named(n) for n in fault] if fault else [f for f in FAULTS if not f.beyond],
        labs,
        runs.run,
        jobs=jobs,
        whole=whole,
        end=runs.end,
        tell=say,
    )
    if as_json:
        typer.echo(json.dumps(proof.as_json(), indent=1))
    else:
        console = stdout()
        text = proving.table(proof, console.width, colour=console.is_terminal)
        typer.echo(text, nl=False)
    if markdown is not None:
        # Last: hours of work are not lost where it cannot be written.
        markdown.write_text(proving.markdown(proof), "utf-8")
    return 0 if proof.holds else 1
