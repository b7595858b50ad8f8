"""The commands of the simulated machines.

A command reads and changes the machine's model and formats text, as FreeBSD's own does;
what it prints is checked against what a real host printed (tests/recorded).
"""

from __future__ import annotations

from hil.simulated.process import Command


def standard_commands() -> dict[str, Command]:
    """The shell and POSIX's utilities: what every machine has."""
    from hil.simulated import builtins
    from hil.simulated.commands import files, processes, sed, text

    return {
        **builtins.COMMANDS,
        **text.COMMANDS,
        **sed.COMMANDS,
        **files.COMMANDS,
        **processes.COMMANDS,
    }


def freebsd_commands() -> dict[str, Command]:
    """What asks and sets a FreeBSD kernel, of a host or a guest: ``process.system.kernel``."""
    from hil.simulated.commands import kernel, network, newbus, pci

    return {**kernel.COMMANDS, **network.COMMANDS, **newbus.COMMANDS, **pci.COMMANDS}


def host_commands() -> dict[str, Command]:
    """All that a simulated bhyve host has."""
    from hil.simulated.commands import bhyve, grub, kernel, storage

    return {
        **standard_commands(),
        **freebsd_commands(),
        **kernel.HOST_COMMANDS,
        **storage.COMMANDS,
        **bhyve.COMMANDS,
        **grub.COMMANDS,
    }
