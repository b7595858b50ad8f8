"""Commands that ask and set the kernel: modules, sysctls, its environment, messages, interrupts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hil.simulated.commands.options import flags, getopt, refuse
from hil.simulated.errno import Errno, SimError
from hil.simulated.process import Command, Process

# Modules


def _shown(module: Any) -> str:
    return (
        f"{module.id:2d} {module.references:4d} {module.address:#x} {module.size:8x} {module.name}"
    )


def kldstat(process: Process) -> int:
    found, _ = getopt(
        process, "dhi:m:n:qv", "usage: kldstat [-dhqv] [-i id] [-m modname] [-n filename]\n"
    )
    option = flags(found)
    modules = process.system.kernel.modules()
    if "m" in option:
        for module in modules:
            if option["m"] in [name for _, name in module.submodules]:
                if "q" not in option:
                    process.out(f"Id  Refs Name\n{module.id:3d} {1:4d} {option['m']}\n")
                return 0
        if "q" not in option:
            process.complain(f"can't find module {option['m']}: {Errno.ENOENT.text}")
        return 1
    if "n" in option:
        modules = [each for each in modules if option["n"] in (each.name, _stem(each.name))]
        if not modules:
            if "q" not in option:
                process.complain(f"can't find file {option['n']}: {Errno.ENOENT.text}")
            return 1
        if "q" in option:
            return 0
    process.out("Id Refs Address                Size Name\n")
    for module in modules:
        process.out(_shown(module))
        if "v" not in option:
            process.out("\n")
            continue
        path = "kernel" if module.name == "kernel" else module.name
        process.out(f" (/boot/kernel/{path})\n\tContains modules:\n\t\t Id Name\n")
        for number, name in reversed(module.submodules):
            process.out(f"\t\t{number:3d} {name}\n")
    return 0


def _stem(name: str) -> str:
    return name.removesuffix(".ko")


def kldload(process: Process) -> int:
    usage = "usage: kldload [-nqv] file ...\n"
    found, names = getopt(process, "nqv", usage)
    option = flags(found)
    if not names:
        refuse(process, usage)
    status = 0
    for name in names:
        stem = _stem(name.rpartition("/")[2])
        try:
            process.system.kernel.load_module(stem)
        except SimError as error:
            if error.number is Errno.EEXIST:
                if "n" in option:
                    continue
                text = "module already loaded or in kernel"
            else:
                text = error.text
            process.complain(f"can't load {name}: {text}")
            status = 1
    return status


def kldunload(process: Process) -> int:
    usage = "usage: kldunload [-fv] file ...\n       kldunload -i id ...\n"
    _, names = getopt(process, "fi:nv", usage)
    if not names:
        refuse(process, usage)
    status = 0
    for name in names:
        stem = _stem(name.rpartition("/")[2])
        loaded = [_stem(module.name) for module in process.system.kernel.modules()]
        if stem not in loaded:
            process.complain(f"can't find file {name}: {Errno.ENOENT.text}")
            status = 1
            continue
        try:
            process.system.kernel.unload_module(stem)
        except SimError as error:
            process.complain(f"can't unload file: {error.text}")
            status = 1
    return status


# sysctl, kenv

_SYSCTL_USAGE = """\
usage: sysctl [-bdeFhilmnNoqTtWx] [ -B <bufsize> ] [-f filename] name[=value] ...
       sysctl [-bdeFhlmnNoqTtWx] [ -B <bufsize> ] -a
"""


def sysctl(process: Process) -> int:
    found, names = getopt(process, "AabB:def:FhHij:lmnNoqtTwWxX", _SYSCTL_USAGE)
    option = {letter for letter, _ in found}
    known: Mapping[str, Any] = {**process.system.kernel.sysctls(), **process.system.settings()}
    if option & {"a", "A"}:
        for name, value in known.items():
            _show_sysctl(process, name, value, option)
        return 0
    if not names:
        refuse(process, _SYSCTL_USAGE)
    failed = 0
    for word in names:
        name, equals, text = word.partition("=")
        name = name.rstrip(".")
        matches = [each for each in known if each == name or each.startswith(f"{name}.")]
        if not matches:
            if "i" not in option:
                if "q" not in option:
                    process.complain(f"unknown oid '{name}'")
                failed += 1
            continue
        if not equals:
            for each in matches:
                _show_sysctl(process, each, known[each], option)
            continue
        failed += _set_sysctl(process, name, text, known.get(name), option)
    return failed


def _show_sysctl(process: Process, name: str, entry: Any, option: set[str]) -> None:
    if "N" in option:
        process.out(f"{name}\n")
    elif "n" in option:
        process.out(f"{entry.value}\n")
    else:
        process.out(f"{name}{'=' if 'e' in option else ': '}{entry.value}\n")


def _set_sysctl(process: Process, name: str, text: str, entry: Any, option: set[str]) -> int:
    if entry is None:
        process.complain(f"oid '{name}' isn't a leaf node")
        return 1
    if not entry.writable:
        if entry.tunable:
            process.complain(f"oid '{name}' is a read only tunable")
            process.complain("Tunable values are set in /boot/loader.conf")
        else:
            process.complain(f"oid '{name}' is read only")
        return 1
    process.system.set_sysctl(name, text)
    if "q" not in option:
        arrow = f"{entry.value} -> {text}"
        process.out(f"{arrow}\n" if "n" in option else f"{name}: {arrow}\n")
    return 0


def kenv(process: Process) -> int:
    found, words = getopt(process, "hlNmqsuv", "usage: kenv [-l|-m|-s] [-hNq]\n")
    option = {letter for letter, _ in found}
    variables: dict[str, str] = process.system.kernel.kenv
    if not words:
        for name, value in variables.items():
            # The loader keeps to itself which modules it was to load.
            if name.endswith("_load"):
                continue
            process.out(f"{name}\n" if "N" in option else f'{name}="{value}"\n')
        return 0
    name, equals, value = words[0].partition("=")
    if not equals and len(words) > 1:
        value, equals = words[1], "="
    if "u" in option:
        if variables.pop(name, None) is None:
            if "q" not in option:
                process.complain(f"unable to unset {name}")
            return 255
        return 0
    if equals:
        variables[name] = value.strip('"')
        process.out(f'{name}="{variables[name]}"\n')
        return 0
    if name not in variables:
        if "q" not in option:
            process.complain(f"unable to get {name}")
        return 255
    process.out(f'{name}="{variables[name]}"\n' if "v" in option else f"{variables[name]}\n")
    return 0


# Messages, interrupts, names


def dmesg(process: Process) -> int:
    found, _ = getopt(process, "acM:N:")
    kernel = process.system.kernel
    process.out("".join(f"{line}\n" for line in list(kernel.dmesg)))
    if ("c", "") in found:
        kernel.dmesg.clear()
    return 0


def vmstat(process: Process) -> int:
    found, _ = getopt(process, "ac:fHhiM:mN:n:op:Psw:z")
    option = {letter for letter, _ in found}
    if "i" not in option:
        process.out(_VMSTAT)
        return 0
    up = max(1, int(time.time() - process.system.booted))
    process.out(f"{'interrupt':<19} {'total':>20} {'rate':>10}\n")
    total = 0
    lines = list(process.system.kernel.interrupts())
    timers = [_Timer(f"cpu{n}:timer", 79 * up) for n in range(_processors(process))]
    first = next((n for n, line in enumerate(lines) if line.irq > _LAST_LINE), len(lines))
    for line in [*lines[:first], *timers, *lines[first:]]:
        total += line.count
        if line.count or "a" in option:
            name = line.name if isinstance(line, _Timer) else f"irq{line.irq}: {line.name}"
            process.out(f"{name:<19} {line.count:>20} {line.count // up:>10}\n")
    process.out(f"{'Total':<19} {total:>20} {total // up:>10}\n")
    return 0


@dataclass(frozen=True, slots=True)
class _Timer:
    """A processor's timer, which no function has."""

    name: str
    count: int


#: Interrupt numbers up to this are lines of the I/O APIC; what is above are messages.
_LAST_LINE = 23


def _processors(process: Process) -> int:
    known = process.system.kernel.sysctls()
    return int(known["hw.ncpu"].value) if "hw.ncpu" in known else 1


_VMSTAT = """\
procs     memory       page                      disks     faults       cpu
r b w     avm    fre   flt  re  pi  po    fr   sr nv0 vt0   in   sy   cs us sy id
0 0 0    164M   5.6G   105   0   0   0   122   12   0   0   60  113  212  0  0 99
"""


def uname(process: Process) -> int:
    found, _ = getopt(process, "abiKmnoprsUv", "usage: uname [-abiKmnoprsUv]\n")
    letters = [letter for letter, _ in found] or ["s"]
    version = process.system.version
    ident = process.system.ident
    settings = process.system.settings()
    date = settings["kern.osreldate"].value if "kern.osreldate" in settings else "1302001"
    build = process.system.build
    parts = {
        "s": "FreeBSD", "n": process.system.name, "r": version,
        "v": f"FreeBSD {version} {build}{ident}", "m": "amd64", "p": "amd64", "i": ident,
        "o": "FreeBSD", "K": date, "U": date, "b": "8d3b5a2f",
    }  # fmt: skip
    wanted = (
        "snrvm" if "a" in letters else "".join(each for each in "snrvmpioKUb" if each in letters)
    )
    process.out(" ".join(parts[letter] for letter in wanted) + "\n")
    return 0


def freebsd_version(process: Process) -> int:
    found, _ = getopt(process, "kruj:", "usage: freebsd-version [-kru] [-j jail]\n", 2)
    for _ in found or [("u", "")]:
        process.out(f"{process.system.version}\n")
    return 0


def getconf(process: Process) -> int:
    values = {"PAGESIZE": "4096", "PAGE_SIZE": "4096", "NPROCESSORS_ONLN": "2"}
    name = process.arguments[1] if len(process.arguments) > 1 else ""
    process.out(f"{values.get(name, 'undefined')}\n")
    return 0


# ACPI


def acpidump(process: Process) -> int:
    from hil.simulated.commands.acpi import tables_text

    found, _ = getopt(
        process,
        "bdhstvT:f:o:",
        "usage: acpidump [-d] [-t] [-h] [-v]\n",
    )
    if {letter for letter, _ in found} & {"t", "T"}:
        process.out(tables_text(process.system.machine))
    return 0


def dmardump(process: Process) -> int:
    """tools/tools/dmardump, as far as units that are switched off go."""
    from hil.iommu.acpi import parse_dmar
    from hil.iommu.registers import DrhdRegisters

    machine = process.system.machine
    table = machine.acpi.tables.get("DMAR") if hasattr(machine.acpi, "tables") else None
    if table is None:
        return 0
    for unit in parse_dmar(table).units:
        registers = DrhdRegisters(machine.memory.read(unit.base, 4096))
        state = "" if registers.translation_enabled else " (disabled)"
        process.out(f"drhd @ {unit.base:#x} (version 1.0) PCI segment {unit.segment}{state}:\n")
    return 0


def jls(process: Process) -> int:
    getopt(process, "dhNnqsvj:")
    process.out("   JID  IP Address      Hostname                      Path\n")
    return 0


COMMANDS: Mapping[str, Command] = {
    "kldstat": kldstat, "kldload": kldload, "kldunload": kldunload, "sysctl": sysctl,
    "kenv": kenv, "dmesg": dmesg, "vmstat": vmstat, "uname": uname,
    "freebsd-version": freebsd_version, "getconf": getconf, "jls": jls,
}  # fmt: skip
HOST_COMMANDS: Mapping[str, Command] = {"acpidump": acpidump, "dmardump": dmardump}
