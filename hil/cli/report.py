"""``hil report``: what a run left, made readable anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hil.cli.app import app, command, stdout
from hil.errors import HilError


@app.command()
@command
def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run's folder, its name below the report directory, or its --tag."
        ),
    ] = "latest",
    report_dir: Annotated[Path, typer.Option(help="Where reports are.")] = Path("reports"),
) -> None:
    """Make the HTML report and the summary of a run anew.

    Of one that was killed too: it then also gets the JUnit XML that it did not live to write.
    """
    from hil.reporting import junit
    from hil.reporting.html import generate
    from hil.reporting.run import Run
    from hil.reporting.summary import Totals, render, write_summary

    folder = Path(run) if "/" in run or Path(run, "run.json").is_file() else report_dir / run
    if not folder.exists() and folder.parent == report_dir:
        # By its tag; names begin with the time.
        tagged = sorted(found for found in report_dir.glob("*") if found.name.endswith(f"-{run}"))
        folder = tagged[-1] if tagged else folder
    opened = Run.open(folder)
    write_summary(opened)
    if not opened.junit.exists():
        junit.write(opened)
    failure: HilError | None = None
    try:
        generate(opened.directory)
    except HilError as error:
        failure = error  # the summary is there all the same
    console = stdout()
    text = render(
        Totals.of(opened.outcomes()),
        lab=str(opened.state.get("lab", "")),
        kind=str(opened.state.get("kind", "")),
        run=opened,
        width=console.width,
        colour=console.is_terminal,
    )
    typer.echo(text, nl=False)
    if failure is not None:
        raise failure
