"""``hil doctor``: what a machine or a host lacks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from hil.cli.app import ASK, JsonOption, LabOption, app, command, stdout
from hil.deadline import Deadline
from hil.errors import HilError

if TYPE_CHECKING:
    from hil.doctor.check import Check
    from hil.lab.models import Lab


@app.command()
@command
def doctor(lab: LabOption = "emulated", as_json: JsonOption = False) -> int:
    """Tell what this machine and a lab's hosts lack, and how to mend it. Changes nothing."""
    from hil.doctor.machine import capture, controller
    from hil.lab.load import load
    from hil.lab.models import LabKind
    from hil.transport.local import LocalTransport

    inventory = load(lab)
    deadline = Deadline(ASK, "the checks of this machine")
    emulated = inventory.kind is LabKind.EMULATED
    checks = controller(LocalTransport(), deadline, emulated=emulated) + capture(inventory)
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
        return linux_host(name, transport, deadline, inventory)
    finally:
        transport.close()


def _print_checks(checks: Sequence[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    from hil.doctor.check import State
    from hil.reporting.text import one_line

    console = stdout()
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
