"""``hil qualify``: may this be released?"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hil.cli.app import JsonOption, app, command, say, stdout
from hil.errors import InventoryError

if TYPE_CHECKING:
    from hil.qualify.bundle import Checked

#: Exit codes beside 0, qualified.
NOT_QUALIFIED, NOT_ENOUGH, NOT_INTACT = 1, 6, 7


@app.command()
@command
def qualify(
    words: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="POLICY RUN...", help="The policy's file, and folders of runs; see --verify."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write verdict, policy and results there."),
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the bundle with this SSH key.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the verdict as a page.")
    ] = None,
    pdf: Annotated[
        Path | None, typer.Option("--pdf", metavar="FILE", help="Write the verdict as PDF.")
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Check a bundle instead; RUN... are compared with it."),
    ] = None,
    allowed_signers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Who may have signed (see ssh-keygen(1))."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Judge runs by a release policy: qualified, not qualified, or not enough evidence.

    Status 0: qualified; 1: not qualified; 6: not enough evidence; 7: --verify found a bundle that
    was changed, or is not signed as it should be.
    """
    given = words or []
    if verify is not None:
        if bundle or sign or html or pdf:
            raise InventoryError(
                "--verify only looks: it writes and signs nothing",
                hint="hil qualify --verify BUNDLE [--allowed-signers FILE] [RUN...]",
            )
        return _verify(verify, allowed_signers, given, as_json)
    if allowed_signers is not None:
        raise InventoryError("--allowed-signers goes with --verify")
    if sign is not None and bundle is None:
        raise InventoryError("--sign goes with --bundle: a bundle is what is signed")
    if len(given) < 2:
        raise InventoryError(
            "name a policy and at least one run",
            hint="hil qualify POLICY RUN..., for example: hil qualify policy.toml reports/latest",
        )
    return _judge(given[0], given[1:], bundle, sign, html, pdf, as_json)


def _judge(
    policy_file: Path,
    folders: list[Path],
    bundle: Path | None,
    key: Path | None,
    html: Path | None,
    pdf: Path | None,
    as_json: bool,
) -> int:
    from hil.qualify import bundle as bundles
    from hil.qualify import render
    from hil.qualify.evidence import gather
    from hil.qualify.judge import judge
    from hil.qualify.links import links, reports_of
    from hil.qualify.policy import load
    from hil.qualify.verdict import Judgement

    policy, text = load(policy_file)
    runs, notes = gather(folders)
    verdict = judge(policy, runs, time.time())
    found = links(verdict, reports_of({run.name: run.data.directory for run in runs}))
    if as_json:
        typer.echo(json.dumps({"verdict": render.as_json(verdict), "links": found}, indent=1))
    else:
        console = stdout()
        shown = render.terminal(verdict, found, width=console.width, colour=console.is_terminal)
        typer.echo(shown, nl=False)
    for note in notes:
        say(note)
    if html is not None:
        _write(html, render.page(verdict, _absolute(found)).encode())
    if pdf is not None:
        _write(pdf, render.pdf(verdict))
    if bundle is not None:
        for note in bundles.write(bundle, verdict, text, runs, key=key):
            say(note)
        signed = f"signed with {key}" if key else "not signed (--sign KEY signs it)"
        say(f"the bundle is in {bundle}, {signed}")
    return {Judgement.QUALIFIED: 0, Judgement.NOT_QUALIFIED: NOT_QUALIFIED}.get(
        verdict.judgement, NOT_ENOUGH
    )


def _absolute(links: dict[str, str]) -> dict[str, str]:
    """Links from a page that may lie anywhere."""
    found = {}
    for name, link in links.items():
        path, mark, fragment = link.partition("#")
        found[name] = f"{Path(path).resolve().as_uri()}{mark}{fragment}"
    return found


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InventoryError(f"{path} cannot be written: {error.strerror}") from None


def _verify(bundle: Path, signers: Path | None, originals: list[Path], as_json: bool) -> int:
    from hil.qualify.bundle import verify

    checked = verify(bundle, allowed_signers=signers, originals=originals)
    if as_json:
        typer.echo(json.dumps(_row(checked), indent=1))
    else:
        _print(checked)
    if not checked.intact:
        return NOT_INTACT
    return {"qualified": 0, "not qualified": NOT_QUALIFIED}.get(checked.judgement, NOT_ENOUGH)


def _row(checked: Checked) -> dict[str, object]:
    from dataclasses import asdict

    return {"intact": checked.intact, **asdict(checked)}


def _print(checked: Checked) -> None:
    from rich.text import Text

    from hil.qualify.bundle import State
    from hil.qualify.render import when

    console = stdout()
    marks = {
        State.GOOD: ("✓", "green"),
        State.BAD: ("✗", "bold red"),
        State.UNKNOWN: ("?", "yellow"),
    }
    for check in checked.checks:
        mark, style = marks[check.state]
        text = Text(f"{mark} {check.what}: ", style=style)
        text.append(check.text, style="not bold default")
        console.print(text, soft_wrap=True)
    words = f"{checked.policy}: {checked.judgement}, judged {when(checked.judged)}"
    if checked.intact:
        console.print(Text(words, style="bold"), soft_wrap=True)
    else:
        text = Text("not to be relied on", style="bold red")
        console.print(text.append(f"; it says: {words}", style="not bold default"), soft_wrap=True)
