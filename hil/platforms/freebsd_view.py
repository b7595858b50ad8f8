"""What a FreeBSD host with bhyve tells of itself; nothing here changes it.

What belongs together is asked in one round trip.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hil.deadline import Deadline
from hil.errors import CommandError, LabError
from hil.iommu.scope import Topology
from hil.pci.address import Address
from hil.pci.config import ConfigSpace
from hil.platforms.contract import Function
from hil.platforms.freebsd_pci import (
    Survey,
    functions,
    parse_bridges,
    parse_config_dump,
    parse_pciconf,
    physical_functions,
    virtual_functions,
)
from hil.platforms.freebsd_state import HostState
from hil.platforms.freebsd_text import (
    Release,
    parse_acpi_tables,
    parse_devinfo,
    parse_kenv,
    parse_kldstat,
    parse_names,
    parse_ps,
    parse_release,
    parse_sysctl,
)
from hil.transport.base import Result, Transport
from hil.transport.quoting import quote

T = TypeVar("T")

_SYSCTLS = (
    "hw.model",
    "hw.physmem",
    "hw.ncpu",
    "kern.osreldate",
    "kern.securelevel",
    "security.jail.jailed",
    "vm.max_user_wired",
    "vm.stats.vm.v_user_wire_count",
    "machdep.acpi_root",
    "hw.vmm",
    "dev.ivhd",
)

#: The arguments are functions; without any, all.
_CONFIGS = r"""
[ $# -gt 0 ] || set -- $(pciconf -l | sed 's/^[^@]*@\(pci[0-9:]*\):.*/\1/')
for selector in "$@"; do
    echo "function $selector"
    pciconf -r "$selector" 0:0xfff
done
"""

#: Each bridge with its bus numbers: primary, secondary, subordinate (PCI bridge 3.2.5).
_BRIDGES = r"""
for selector in $(pciconf -l | sed -n 's/^[^@]*@\(pci[0-9:]*\):.* hdr=0x01.*/\1/p'); do
    numbers=$(pciconf -r "$selector" 0x18) && echo "bridge $selector $numbers"
done
true
"""

#: What tells which functions there are and which the host needs: must succeed, then may not.
_SURVEY: Mapping[str, tuple[str, ...]] = {
    "pciconf": ("pciconf", "-lvbce"),
    "devinfo": ("devinfo",),
    "mounts": ("mount", "-p"),
    "swap": ("swapinfo",),
    "geom": ("sysctl", "-n", "kern.geom.conftxt"),
    "ifconfig": ("ifconfig", "-a"),
    "routes": ("netstat", "-rn"),
}
_SURVEY_IF_THERE: Mapping[str, tuple[str, ...]] = {
    "configs": ("sh", "-c", _CONFIGS, "hil"),
    "camcontrol": ("camcontrol", "devlist", "-v"),
    # Without ZFS, zpool(8) would load it.
    "zpool": ("sh", "-c", "kldstat -q -m zfs && zpool status -LP"),
    "console": ("sysctl", "-i", "kern.console", "hw.pci.default_vgapci_unit"),
    "ssh_connection": ("sh", "-c", 'echo "$SSH_CONNECTION"'),
}

_STATE: Mapping[str, tuple[str, ...]] = {
    "sysctl": ("sysctl", "-i", *_SYSCTLS),
    "kenv": ("kenv", "-q"),
    "modules": ("kldstat", "-v"),
    "tables": ("acpidump", "-t"),
    "dmesg": ("dmesg",),
    "pciconf": ("pciconf", "-l"),
    "devinfo": ("devinfo",),
    "processes": ("ps", "-axww", "-o", "pid=", "-o", "command="),
}


@dataclass(frozen=True, slots=True)
class _Told:
    """What one of several commands printed."""

    command: tuple[str, ...]
    status: int
    text: str
    errors: str
    """What all of them together wrote to standard error."""


class HostView:
    """A FreeBSD host as it shows itself.

    Args:
        host: the host's name in the inventory.
        transport: a root shell on it.
    """

    def __init__(self, host: str, transport: Transport) -> None:
        self._host = host
        self._transport = transport
        #: Functions that had VFs when last looked at: their configuration is read with the rest.
        self._had_vfs: tuple[Address, ...] = ()

    @functools.cached_property
    def release(self) -> Release:
        """Of the running kernel."""
        deadline = Deadline(60, f"a look at the release of {self._host}")
        return parse_release(self._run("uname", "-r", deadline=deadline).stdout)

    def state(
        self, deadline: Deadline, vm: str = "", devices: tuple[Address, ...] = ()
    ) -> HostState:
        """Facts that tell one cause of a failure from another; changes nothing."""
        told = self._ask(_STATE, deadline)

        def read(parse: Callable[..., T], *names: str) -> T | None:
            # It may be asked for because something is wrong: what cannot be read is not known.
            with contextlib.suppress(LabError):
                if all(told[name].status == 0 for name in names):
                    return parse(*(told[name].text for name in names))
            return None

        return HostState(
            release=self.release,
            sysctl=read(parse_sysctl, "sysctl"),
            kenv=read(parse_kenv, "kenv"),
            modules=read(_modules, "modules"),
            tables=read(lambda text: frozenset(parse_acpi_tables(text)), "tables"),
            dmesg=read(str, "dmesg"),
            drivers=read(_drivers, "pciconf", "devinfo"),
            vms=self.guests(deadline),
            processes=read(parse_ps, "processes"),
            vm=vm,
            devices=devices,
        )

    def sysctls(self, deadline: Deadline) -> dict[str, str]:
        """Those that :meth:`state` asks for."""
        return parse_sysctl(self._try("sysctl", "-i", *_SYSCTLS, deadline=deadline).stdout)

    def survey(self, chosen: Sequence[Address], deadline: Deadline) -> tuple[Function, ...]:
        """At least these functions, or all if none is given."""
        commands = {**_SURVEY, **_SURVEY_IF_THERE}
        if chosen:
            # Those asked for come last: by their reading the script is judged.
            before = [address for address in self._had_vfs if address not in chosen]
            commands["configs"] = _configs_of([*before, *chosen])
        told = self._ask(commands, deadline)
        texts = {}
        for name, one in told.items():
            if one.status != 0 and name in _SURVEY:
                raise CommandError(one.command, one.status, host=self._host, stderr=one.errors)
            texts[name] = one.text if one.status == 0 else ""
        configs = _configs(texts.pop("configs"))
        if chosen:
            # Which functions are virtual, and whose, only the physical ones' configuration tells.
            configs |= self._physical_ones(texts["pciconf"], configs, deadline)
        return functions(Survey(configs=configs, host=self._host, **texts))

    def _physical_ones(
        self, pciconf: str, configs: Mapping[Address, bytes], deadline: Deadline
    ) -> dict[Address, bytes]:
        """Configuration spaces of the functions that have VFs now; ``configs`` are read already.

        Args:
            pciconf: what ``pciconf -lc`` has just printed.
            configs: read with it; of :attr:`_had_vfs` too, so that mostly nothing is left to read.
            deadline: for reading.
        """
        if "IOV enabled" not in pciconf:
            self._had_vfs = ()
            return {}
        self._had_vfs = physical_functions(parse_pciconf(pciconf))
        known = {address: configs[address] for address in self._had_vfs if address in configs}
        left = [address for address in self._had_vfs if address not in known]
        if left:
            known |= _configs(self._try(*_configs_of(left), deadline=deadline).stdout)
        return known

    def topology(self, deadline: Deadline) -> Topology:
        """What of the host's functions decides which remapping unit has them."""
        asked = {"pciconf": ("pciconf", "-lc"), "bridges": ("sh", "-c", _BRIDGES)}
        if self._had_vfs:
            asked["configs"] = _configs_of(self._had_vfs)
        told = self._ask(asked, deadline)
        for one in (told["pciconf"], told["bridges"]):
            if one.status != 0:
                raise CommandError(one.command, one.status, host=self._host, stderr=one.errors)
        configs = _configs(told["configs"].text) if "configs" in told else {}
        physical = self._physical_ones(told["pciconf"].text, configs, deadline)
        spaces = {a: ConfigSpace(data) for a, data in physical.items() if a.domain == 0}
        bridges = parse_bridges(told["bridges"].text)
        return Topology(
            {a.requester_id: buses for a, buses in bridges.items() if a.domain == 0},
            {vf.requester_id: pf.requester_id for vf, pf in virtual_functions(spaces)},
        )

    def guests(self, deadline: Deadline) -> tuple[str, ...]:
        """Virtual machines that there are, by name."""
        # The directory comes and goes with the first and last of them.
        listed = self._try("ls", "/dev/vmm", deadline=deadline)
        return tuple(sorted(parse_names(listed.stdout))) if listed.status == 0 else ()

    def _ask(self, commands: Mapping[str, tuple[str, ...]], deadline: Deadline) -> dict[str, _Told]:
        """What several commands print, in one round trip."""
        script = "".join(
            f"{quote(command)}; printf '\\nhil: %s %s\\n' {name} \"$?\"\n"
            for name, command in commands.items()
        )
        result = self._run("sh", "-c", script, deadline=deadline)
        text = result.stdout
        parts = re.split(r"\nhil: (\w+) (\d+)\n", text)
        told = {
            name: _Told(commands[name], int(status), out, result.stderr)
            for out, name, status in zip(parts[::3], parts[1::3], parts[2::3], strict=False)
        }
        if told.keys() != commands.keys():
            raise LabError(
                f"{self._host} was asked {len(commands)} things and answered {len(told)}",
                host=self._host,
                seen=text[-1000:],
            )
        return told

    def _try(self, *command: str, deadline: Deadline) -> Result:
        return self._transport.run(command, deadline=deadline)

    def _run(self, *command: str, deadline: Deadline) -> Result:
        return self._try(*command, deadline=deadline).check()


def _modules(text: str) -> frozenset[str]:
    return frozenset(module for file in parse_kldstat(text) for module in file.modules)


def _drivers(pciconf: str, devinfo: str) -> dict[Address, str | None]:
    """The driver attached to each function; devinfo names only what is attached."""
    attached = parse_devinfo(devinfo).parents
    return {
        entry.address: entry.driver if entry.name in attached else None
        for entry in parse_pciconf(pciconf)
    }


def _configs_of(addresses: Iterable[Address]) -> tuple[str, ...]:
    """The command that prints configuration spaces; :func:`_configs` reads them."""
    selectors = dict.fromkeys(address.selector for address in addresses)
    return ("sh", "-c", _CONFIGS, "hil", *selectors)


def _configs(text: str) -> dict[Address, bytes]:
    """Each function's configuration space, as the script printed them."""
    configs = {}
    for part in re.split(r"^function ", text, flags=re.MULTILINE)[1:]:
        selector, _, dump = part.partition("\n")
        # It may have gone since it was listed.
        if dump.strip():
            configs[Address.parse(selector)] = parse_config_dump(dump)
    return configs
