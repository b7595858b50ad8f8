"""What FreeBSD's base tools print, read into values: one parser a command.

Each takes the text of one command's standard output and returns frozen values or plain
mappings.  A line that is none of the command's is an error which shows the line; what a
line holds beyond what hil needs is left alone.  The formats are those of the sources named
with each parser, and of ``tests/recorded``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hil.errors import InventoryError, LabError
from hil.pci.address import Address


def lines_of(text: str) -> Iterator[str]:
    """The lines that hold anything, without their ends; a console's carriage returns go too."""
    for line in text.split("\n"):
        bare = line.rstrip("\r")
        if bare.strip():
            yield bare


def unknown(command: str, line: str, why: object = "") -> LabError:
    """The error for a line that ``command`` is not known to print."""
    return LabError(
        f"cannot read a line that {command} printed",
        seen=line[:300],
        hint=f"{f'({why}) ' if why else ''}report it with this line and the host's release",
    )


# ---- the system ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """A FreeBSD release; orders by its numbers."""

    major: int
    minor: int
    branch: str = field(compare=False)
    """``RELEASE-p3``, ``STABLE``, ``CURRENT`` …"""

    @property
    def current(self) -> bool:
        """Whether it is a development version: its behaviour is not that of its number."""
        return self.branch.startswith("CURRENT")

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}-{self.branch}"


_RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})-([A-Za-z0-9.-]+)", re.ASCII)


def parse_release(text: str) -> Release:
    """``freebsd-version -k`` or ``uname -r``: ``13.2-RELEASE-p4``.

    Raises:
        LabError: it is no FreeBSD release.
    """
    match = _RELEASE.search(text)
    if match is None:
        raise unknown("freebsd-version", text)
    return Release(int(match[1]), int(match[2]), match[3])


@dataclass(frozen=True, slots=True)
class KernelFile:
    """A file that the kernel has loaded."""

    name: str
    """``kernel``, ``vmm.ko``"""
    modules: tuple[str, ...] = ()
    """Modules inside it, with ``-v`` only: ``vmm``, ``pci/ppt``."""


_KLD = re.compile(r"\s*\d+\s+\d+\s+0x[0-9a-f]+\s+[0-9a-f]+\s+(\S+)(?: \(.*\))?\s*", re.ASCII)
_KLD_MODULE = re.compile(r"\s+\d+\s+(\S+)\s*", re.ASCII)


def parse_kldstat(text: str) -> tuple[KernelFile, ...]:
    """``kldstat``, with or without ``-v`` (sbin/kldstat/kldstat.c).

    Raises:
        LabError: on a line that is none of its own.
    """
    files: list[tuple[str, list[str]]] = []
    for line in lines_of(text):
        file = _KLD.fullmatch(line)
        module = _KLD_MODULE.fullmatch(line)
        if file:
            files.append((file[1], []))
        elif re.fullmatch(r"\s*(Id\s+Refs\s.*|Contains modules:|Id\s+Name)\s*", line):
            continue
        elif module and files:
            files[-1][1].append(module[1])
        else:
            raise unknown("kldstat", line)
    return tuple(KernelFile(name, tuple(modules)) for name, modules in files)


_SYSCTL = re.compile(r"([A-Za-z_][\w%-]*(?:\.[\w%-]+)+)(?:: ?|=)(.*)", re.ASCII)


def parse_sysctl(text: str) -> dict[str, str]:
    """``sysctl NAME…``: value by name, from ``name: value`` and (``-e``) ``name=value``.

    A value of several lines keeps them, joined by newlines.

    Raises:
        LabError: on a first line without a name.
    """
    values: dict[str, str] = {}
    last = ""
    for line in lines_of(text):
        match = _SYSCTL.fullmatch(line)
        if match:
            last = match[1]
            values[last] = match[2]
        elif last:
            values[last] += "\n" + line
        else:
            raise unknown("sysctl", line)
    return values


_KENV = re.compile(r'([^\s="]+)="(.*)"\s*', re.DOTALL)


def parse_kenv(text: str) -> dict[str, str]:
    """``kenv -q``: the kernel's environment, ``name="value"`` a line (bin/kenv/kenv.c).

    A value may go on over several lines, as some firmware's SMBIOS strings do.

    Raises:
        LabError: on a line that has not this form.
    """
    values = {}
    pending = ""
    for line in lines_of(text):
        pending = f"{pending}\n{line}" if pending else line
        match = _KENV.fullmatch(pending)
        if match:
            values[match[1]] = match[2]
            pending = ""
        elif not re.match(r'[^\s="]+="', pending):
            break
    if pending:
        raise unknown("kenv", pending)
    return values


#: ppt(4) reads these and no others (sys/amd64/vmm/vmm.c, vmm_is_pptdev).
PPTDEVS = ("pptdevs", "pptdevs2", "pptdevs3")


def pptdevs(kenv: Mapping[str, str]) -> tuple[Address, ...]:
    """Functions that ``loader.conf`` reserves, in order; words that are no address are left out.

    The kernel ignores such words too: :func:`pptdevs_ignored` tells them.
    """
    found = []
    for word in _pptdevs_words(kenv):
        address = _slashes(word)
        if address is not None:
            found.append(address)
    return tuple(found)


def pptdevs_ignored(kenv: Mapping[str, str]) -> tuple[str, ...]:
    """What of ``pptdevs*`` the kernel cannot read, as written: ``pci0:5:0:0``, ``0/5``."""
    bad = [word for word in _pptdevs_words(kenv) if _slashes(word) is None]
    others = [name for name in kenv if re.fullmatch(r"pptdevs\d+", name) and name not in PPTDEVS]
    return (*bad, *(f'{name}="{kenv[name]}"' for name in sorted(others)))


def _pptdevs_words(kenv: Mapping[str, str]) -> list[str]:
    return [word for name in PPTDEVS for word in kenv.get(name, "").split()]


def _slashes(word: str) -> Address | None:
    if "/" not in word:
        return None
    try:
        return Address.parse(word)
    except InventoryError:
        return None


# ---- processes and virtual machines ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """A process and its command, as ps shows it."""

    pid: int
    command: str

    @property
    def vm(self) -> str:
        """The virtual machine that this bhyve runs; empty for another process.

        bhyve sets its title to ``bhyve: NAME`` (usr.sbin/bhyve/bhyverun.c), which ps shows
        as ``bhyve: NAME (bhyve)``; before, and in a jail, its arguments end with the name.
        """
        titled = re.fullmatch(r"bhyve: (\S+)(?: \(bhyve\))?\s*", self.command)
        if titled:
            return titled[1]
        words = self.command.split()
        if len(words) > 1 and words[0].rpartition("/")[2] == "bhyve":
            return words[-1]
        return ""


_PS = re.compile(r"\s*(\d{1,10})\s+(?:\d+\s+[A-Z][\w+<>]*\s+)?(\S.*)", re.ASCII)


def parse_ps(text: str) -> tuple[Process, ...]:
    """``ps -axww -o pid= -o command=`` (also with ``ppid`` and ``stat`` between the two).

    Raises:
        LabError: on a line without a process id.
    """
    found = []
    for line in lines_of(text):
        match = _PS.fullmatch(line)
        if match:
            found.append(Process(int(match[1]), match[2].rstrip()))
        elif line.split()[:1] != ["PID"]:
            raise unknown("ps", line)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class InterruptLine:
    """One line of ``vmstat -ia``."""

    source: str
    """``irq35``, or ``cpu0:timer`` of what is no device's."""
    name: str
    """``em0:rxq0``, of ppt(4) ``ppt0``; nothing once its handler is gone."""
    total: int
    rate: int
    """Per second since boot."""

    @property
    def irq(self) -> int | None:
        """Its number, by which :attr:`DeviceTree.interrupts` tells whose it is."""
        match = re.fullmatch(r"irq(\d{1,6})", self.source, re.ASCII)
        return int(match[1]) if match else None


_VMSTAT = re.compile(r"(?:(irq\d+):|([^\s:]\S*))\s*(.*?)\s+(\d{1,20})\s+(\d{1,20})\s*", re.ASCII)


def parse_vmstat(text: str) -> tuple[InterruptLine, ...]:
    """``vmstat -i`` or ``-ia`` (usr.bin/vmstat/vmstat.c, dointr), without the sum.

    Raises:
        LabError: on a line without two numbers at its end.
    """
    found = []
    for line in lines_of(text):
        if line.split() == ["interrupt", "total", "rate"]:
            continue
        match = _VMSTAT.fullmatch(line)
        if match is None:
            raise unknown("vmstat", line)
        irq, other, name, total, rate = match.groups()
        if irq:
            found.append(InterruptLine(irq, name, int(total), int(rate)))
        elif other != "Total":
            found.append(InterruptLine(" ".join((other, name)).strip(), "", int(total), int(rate)))
    return tuple(found)


# ---- devices ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceTree:
    """The kernel's devices (newbus), by name: ``em0``, ``ahcich0``."""

    parents: Mapping[str, str]
    """Of each device the one it hangs on; of the root's own, the empty string.

    Read from ``devinfo`` without ``-v`` it holds attached devices only.
    """
    interrupts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """With ``-r``: numbers of the interrupts that each device has."""
    addresses: Mapping[str, Address] = field(default_factory=dict)
    """With ``-v``: where each PCI function is."""

    def line(self, name: str) -> Iterator[str]:
        """The device itself, the one it hangs on, and so on up."""
        seen: set[str] = set()
        while name and name in self.parents and name not in seen:
            seen.add(name)
            yield name
            name = self.parents[name]


_DEVICE = re.compile(r"( *)([A-Za-z_][^\s:]*)((?: pnpinfo .*| at .*| \((?:disabled|suspended)\))?)")
_RESOURCE_KIND = re.compile(r" +\S[^:]*:\s*")
_RANGE = re.compile(r" +(0x[0-9a-f]{1,16}|\d{1,20})(?:-(0x[0-9a-f]{1,16}|\d{1,20}))?\s*", re.ASCII)
_DBSF = re.compile(r" dbsf=(pci\d+:\d+:\d+:\d+)(?: |$)", re.ASCII)


def parse_devinfo(text: str) -> DeviceTree:
    """``devinfo``, ``devinfo -v``, ``devinfo -r`` or both (usr.sbin/devinfo/devinfo.c).

    Without ``-v`` only attached devices are shown, so that a name of ``pciconf -l`` which is
    not in it belongs to a device whose driver has let go.

    Raises:
        LabError: on a line that is neither a device nor a resource.
    """
    parents: dict[str, str] = {}
    interrupts: dict[str, list[int]] = {}
    addresses: dict[str, Address] = {}
    stack: list[tuple[int, str]] = []
    kind = ""
    device = ""
    for line in lines_of(text):
        match = _DEVICE.fullmatch(line)
        numbers = _RANGE.fullmatch(line)
        if numbers and kind:
            if kind == "Interrupt request lines":
                first, last = _number(numbers[1]), _number(numbers[2] or numbers[1])
                # Not more than a device can have, whatever the text says.
                interrupts.setdefault(device, []).extend(range(first, min(last, first + 4095) + 1))
        elif match:
            depth, device, kind = len(match[1]), match[2], ""
            while stack and stack[-1][0] >= depth:
                stack.pop()
            if device != "unknown":
                parents[device] = next((name for _, name in reversed(stack)), "")
            stack.append((depth, device))
            where = _DBSF.search(match[3])
            if where and device != "unknown":
                addresses[device] = _selector(where[1], line)
        elif _RESOURCE_KIND.fullmatch(line):
            kind = line.strip().rstrip(":")
        else:
            raise unknown("devinfo", line)
    return DeviceTree(parents, {name: tuple(irqs) for name, irqs in interrupts.items()}, addresses)


def _number(text: str) -> int:
    return int(text, 16 if text.startswith("0x") else 10)


def _selector(text: str, line: str) -> Address:
    try:
        return Address.parse(text)
    except InventoryError as error:
        raise unknown("devinfo", line, error.message) from error


_TABLE = re.compile(r"\s*([A-Z0-9_!]{4}): Length=(\d{1,10}), Revision=.*", re.ASCII)


def parse_acpi_tables(text: str) -> dict[str, int]:
    """``acpidump -t``: bytes of each ACPI table, by its signature (``DMAR``, ``IVRS``)."""
    found = {}
    for line in lines_of(text):
        match = _TABLE.fullmatch(line)
        if match:
            found[match[1]] = int(match[2])
    return found


def parse_names(text: str) -> tuple[str, ...]:
    """One name a line: ``ls /dev/vmm``, ``zfs list -H -o name``."""
    return tuple(line.strip() for line in lines_of(text))
