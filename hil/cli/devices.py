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
        _print_functions(f"{name} ({inventory.provenance})", functions)


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

    heads = {"capabilities": "has", "in_use_as": "in use as"}
    known = ("address", "id", "class", "driver", "group", "resets", "capabilities", "in_use_as")
    rows = [
        {key: "" if value is None else str(value) for key, value in function_row("", f).items()}
        for f in functions
    ]
    # Without columns that say nothing of any function: a terminal may be narrow.
    cells = {
        heads.get(column, column): [row[column] for row in rows]
        for column in known
        if any(row[column] for row in rows)
    }
    console = stdout()
    natural = sum(max(map(len, [head, *texts])) + 2 for head, texts in cells.items())
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for head, texts in cells.items():
        longest = max(len(word) for text in [head, *texts] for word in text.split())
        wraps = head in ("class", "in use as") and natural > console.width
        table.add_column(
            head,
            no_wrap=head in ("address", "id", "driver"),
            overflow="fold",
            width=longest if wraps else None,  # no word of these two is broken
        )
    for function, row in zip(rows, zip(*cells.values(), strict=True), strict=True):
        table.add_row(*row, style="yellow" if function["in_use_as"] else None)
    console.print(table, markup=False)
