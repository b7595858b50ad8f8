"""``hil lab``: a lab by hand."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hil.cli.app import ASK, POWER, UP, JsonOption, LabOption, app, command, invocation, say
from hil.cli.recover import held_by, lease_row, leases_of, require_physical
from hil.deadline import Deadline
from hil.errors import InventoryError, LabError

if TYPE_CHECKING:
    from hil.lab.models import Lab

lab_app = typer.Typer(
    no_args_is_help=True, help="A lab by hand: up, down, status, power, ssh, console."
)
app.add_typer(lab_app, name="lab")

NameOption = Annotated[
    str, typer.Option("--name", metavar="NAME", help="Which of the labs that are up.")
]


@lab_app.command()
@command
def up(
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What to call it, where several are to be up.")
    ] = "",
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
    name = name or _name_of(simulated) or kind
    _check_name(name)
    if simulated and (host_image or guest_image or qemu or qemu_arg):
        raise InventoryError("a simulated host has no image and no QEMU", hint="leave out one")
    if simulated:
        # Mistakes are told here, at once, and not by the process that is to keep it up.
        from hil.simulated.faults import fault_named
        from hil.simulated.topology import spec_named

        spec_named(simulated)
        for wrong in fault or ():
            fault_named(wrong)
    if guest_image and not host_image:
        raise InventoryError(
            "--guest-image goes with --host-image", hint="the emulated lab has guests of its own"
        )
    if qemu:
        os.environ["HIL_QEMU"] = str(Path(qemu).resolve()) if "/" in qemu else qemu
    if qemu_arg:
        os.environ["HIL_QEMU_ARGS"] = shlex.join(qemu_arg)
    words = [simulated, *(fault or ())] if simulated else _emulated(host_image, guest_image)
    keeper.start(name, Deadline(UP, f"the lab {name}"), say, lab=words)
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
@command
def down(name: NameOption = "emulated") -> None:
    """Take an emulated or simulated lab down. Nothing of it stays but caches."""
    from hil.lab import keeper

    _check_name(name)
    was_up = keeper.stop(name, Deadline(ASK, f"the end of the lab {name}"))
    typer.echo(f"the lab {name} {'is down' if was_up else 'was not up'}")


@lab_app.command()
@command
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
            for host, found in leases_of(inventory).items()
            for lease in found
        }
        rows = {name: lease_row(lease) for name, lease in held.items()}
        text = {name: held_by(lease) for name, lease in held.items()}
        nothing = f"nobody holds the lab {inventory.name}"
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        typer.echo("\n".join(f"{name}: {words}" for name, words in text.items()) or nothing)
    return 0 if rows else 1


@lab_app.command()
@command
def power(
    action: Annotated[str, typer.Argument(metavar="state|on|off|cycle")],
    lab: LabOption,
    host: Annotated[str, typer.Argument(metavar="HOST", help="A host of --lab.")] = "",
) -> None:
    """Switch a physical host's power, or tell whether it has any. Asks nobody who uses it."""
    from hil.lab.load import load
    from hil.lab.power import power_of

    inventory = load(lab)
    require_physical(inventory)
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
@command
def ssh(
    host: Annotated[
        str,
        typer.Argument(
            metavar="HOST", help="A host of --lab. A command to run there goes after --."
        ),
    ] = "",
    lab: LabOption = "emulated",
    name: NameOption = "emulated",
) -> None:
    """Log in at a lab's host, or run a command there."""
    from hil.lab.load import load

    inventory = load(lab)
    host = _host(inventory, host)
    words = list(invocation.after_dashes)
    if inventory.kind == "emulated":
        from hil.lab import keeper

        _check_name(name)
        command = keeper.ssh_command(keeper.get(name), words)
    else:
        kept = _name_of(inventory.name)
        require_physical(
            inventory,
            hint=f"hil lab up --simulated {inventory.name}, then: hil lab ssh --name {kept}",
        )
        entry = inventory.hosts[host]
        if entry.transport == "local":
            raise InventoryError(f"the host {host} is this very machine", hint="use its shell")
        command = ["ssh", "-i", str(inventory.file(entry.key_file)), "-p", str(entry.port)]
        if entry.known_hosts:
            command += ["-o", f"UserKnownHostsFile={inventory.file(entry.known_hosts)}"]
        if entry.host_key and not entry.host_key.startswith("SHA256:"):  # ssh takes no sum of a key
            command += ["-o", f"KnownHostsCommand=/bin/echo %H {entry.host_key}"]
            command += ["-o", "UserKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes"]
        command += ["-l", entry.user, "--", entry.address, *words]
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell
    except FileNotFoundError:
        raise LabError("there is no ssh on PATH", hint="apt-get install openssh-client") from None


@lab_app.command()
@command
def console(
    name: NameOption = "emulated",
    follow: Annotated[
        bool, typer.Option("--follow", help="Only print what comes, until the lab's end.")
    ] = False,
) -> None:
    """Talk to an emulated host's console until Ctrl-]; if not at a terminal, print its log."""
    from hil.lab import keeper

    _check_name(name)
    if follow:
        # Of a run that reads this console, nothing else tells the end if it is killed.
        pipe = stat.S_ISFIFO(os.fstat(0).st_mode) or stat.S_ISSOCK(os.fstat(0).st_mode)
        keeper.follow(name, sys.stdout.buffer, sys.stdin.buffer if pipe else None)
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        keeper.dump(name, sys.stdout.buffer)
        return
    say(f"the console of {name}; Ctrl-] ends this, not the lab")
    keeper.talk(name)


def _name_of(simulated: str) -> str:
    """What the lab of a simulated host is called if nothing else is said."""
    return simulated.replace(".", "_")


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
