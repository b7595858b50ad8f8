"""``hil compare``: what changed between two sets of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hil.cli.app import JsonOption, app, command, stdout
from hil.errors import InventoryError

DEFAULT_POLICY = "newly-failing,flaky,incomplete"


@app.command()
@command
def compare(
    before: Annotated[
        str,
        typer.Argument(metavar="BEFORE", help="A run, several (A,B,C), or a folder of runs."),
    ],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Likewise.")] = "latest",
    report_dir: Annotated[Path, typer.Option(help="Where reports are.")] = Path("reports"),
    fail_on: Annotated[
        str,
        typer.Option(metavar="WORDS", help="What ends with status 1, with commas; or none."),
    ] = DEFAULT_POLICY,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, to paste in a review.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Tell what changed between two runs, or two sets of them; status 1: by --fail-on."""
    from hil.compare import changes, load, render

    policy = _policy(fail_on, changes.POLICY)
    if markdown and as_json:
        raise InventoryError("--markdown and --json are two forms of one answer", hint="choose one")
    comparison = changes.compare(load.side(before, report_dir), load.side(after, report_dir))
    if as_json:
        typer.echo(json.dumps(render.as_json(comparison, policy), indent=1))
    elif markdown:
        typer.echo(render.markdown(comparison, policy), nl=False)
    else:
        console = stdout()
        text = render.terminal(comparison, policy, console.width, colour=console.is_terminal)
        typer.echo(text, nl=False)
    return 1 if changes.violations(comparison, policy) else 0


def _policy(words: str, known: tuple[str, ...]) -> tuple[str, ...]:
    wanted = tuple(word.strip() for word in words.split(",") if word.strip())
    if wanted == ("none",):
        return ()
    for word in wanted:
        if word not in known:
            from hil.lab.document import nearest

            raise InventoryError(
                f"--fail-on knows no {word!r}{nearest(word, known)}",
                hint=f"none, or some of: {', '.join(known)}",
            )
    return wanted
