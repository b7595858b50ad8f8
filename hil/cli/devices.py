"""``hil devices``: the PCI functions of a lab."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from hil.cli.app import (
    ASK,
    UP,
    JsonOption,
    LabOption,
    WaitOption,
    app,
    command,
    say,
    say_waiting,
    stdout,
)
from hil.deadline import Deadline

if TYPE_CHECKING:
    from hil.platforms.contract import Function


@app.command()
@command
def devices(
    lab: LabOption = "emulated", wait: WaitOption = 600, as_json: JsonOption = False
) -> None:
    """List the PCI functions of a lab's hosts."""
    from hil.lab.live import open_lab
    from hil.lab.load import load

    inventory = load(lab)
    deadline = Deadline(UP, f"the lab {inventory.name}")
    with open_lab(
        inventory, deadline, run="hil devices", wait=wait, progress=say, on_wait=say_waiting
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
    stdout().print(table, markup=False)
