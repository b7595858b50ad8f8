"""``hil leases`` and ``hil recover``: who uses a host, and what dead runs left there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hil.cli.app import ASK, UP, JsonOption, LabOption, app, command, complain
from hil.deadline import Deadline
from hil.errors import InventoryError, LabError

if TYPE_CHECKING:
    from hil.lab.lease import Lease
    from hil.lab.models import Lab
    from hil.platforms.contract import Platform


@app.command()
@command
def leases(lab: LabOption, as_json: JsonOption = False) -> None:
    """List who uses which cards of a physical lab's hosts, and since when."""
    from hil.lab.load import load

    found = leases_of(load(lab))
    if as_json:
        rows = [
            {"host": host, "lease": lease.name, **lease_row(lease)}
            for host, held in found.items()
            for lease in held
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    for host, held in found.items():
        for lease in held:
            typer.echo(f"{host}: {lease.name}: {held_by(lease)}")
        if not held:
            typer.echo(f"{host}: nobody uses it")


def leases_of(inventory: Lab) -> dict[str, tuple[Lease, ...]]:
    """The leases of each host's cards; a run's own lease tells nobody anything."""
    from hil.lab.lease import look

    found = {}
    for name, platform in _each_host(inventory):
        deadline = Deadline(ASK, f"the leases of {name}")
        held = look(platform.transport, platform.dialect, deadline)
        found[name] = tuple(lease for lease in held if not lease.name.startswith("run."))
    return found


def lease_row(lease: Lease) -> dict[str, str | int]:
    return asdict(lease.holder) if lease.holder else {}


def held_by(lease: Lease) -> str:
    return f"held by {lease.holder or 'a process that left no record'}"


def require_physical(inventory: Lab, hint: str = "name a physical lab with --lab") -> None:
    """Refuse a lab that is made for each run.

    Raises:
        InventoryError: it is emulated or simulated.
    """
    from hil.lab.models import LabKind

    if inventory.kind is not LabKind.PHYSICAL:
        raise InventoryError(
            f"the lab {inventory.name} is {inventory.kind}: each run makes one for itself, so "
            "nobody else can use it, and nothing of it stays",
            hint=hint,
        )


def _each_host(inventory: Lab) -> Iterator[tuple[str, Platform]]:
    """Each host of a physical lab, connected while it is looked at.  Takes no lease."""
    from hil.lab.live import connect, platform_of

    require_physical(inventory)
    for name in inventory.hosts:
        transport = connect(inventory, name, Deadline(ASK, f"a connection to {name}"))
        try:
            yield name, platform_of(inventory, name, transport)
        finally:
            transport.close()


@app.command()
@command
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
