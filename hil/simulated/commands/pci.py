"""pciconf(8): functions, their identity, BARs, capabilities and configuration space.

The formats are those of usr.sbin/pciconf/{pciconf,cap}.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hil.pci.address import Address
from hil.simulated.commands.options import getopt, refuse
from hil.simulated.commands.pci_names import CLASSES, DEVICES, SUBCLASSES, VENDORS
from hil.simulated.errno import Errno, SimError
from hil.simulated.process import Command, Exit, Process

_USAGE = """\
usage: pciconf -l [-BbceVv] [device]
       pciconf -a device
       pciconf -r [-b | -h] device addr[:addr2]
       pciconf -w [-b | -h] device addr value
       pciconf -D [-b | -h | -x] device addr [start[:count]]
"""
_INDENT = " " * 17
_DEEP = " " * 21


def selector(address: Address) -> str:
    """``pci0:1:0:0``, as pciconf prints it."""
    return f"pci{address.domain}:{address.bus}:{address.device}:{address.function}"


def _address(process: Process, name: str) -> Address:
    """What a selector on the command line means: an address, or a driver's name and unit."""
    found = re.fullmatch(r"(?:pci)?((?:\d+:){1,3}\d+):?", name)
    if found:
        numbers = [int(word) for word in found.group(1).split(":")]
        if len(numbers) == 2:
            numbers = [*numbers, 0]
        return Address(*([0] * (4 - len(numbers)) + numbers))
    for device in process.system.kernel.devices():
        if device.name == name:
            address: Address = device.function.address
            return address
    process.complain(f"cannot parse selector {name}" if ":" in name else f"Device {name} not found")
    raise Exit(1)


def pciconf(process: Process) -> int:
    found, words = getopt(process, "aBbcDehlRrVvwx", _USAGE)
    letters = [letter for letter, _ in found]
    width = 1 if "b" in letters else 2 if "h" in letters else 4
    if "l" in letters:
        return _list(process, letters, words)
    if "a" in letters and len(words) == 1:
        return _attached(process, words[0])
    if "r" in letters and len(words) == 2:
        return _read(process, words[0], words[1], width)
    if "w" in letters and len(words) == 3:
        return _write(process, words, width)
    refuse(process, _USAGE)
    return 1


def _list(process: Process, letters: list[str], words: list[str]) -> int:
    kernel = process.system.kernel
    wanted = _address(process, words[0]) if words else None
    unnamed = 0
    for device in kernel.devices():
        function = device.function
        if wanted is not None and function.address != wanted:
            continue
        name = device.name
        if not name:
            name = f"none{unnamed}"
            unnamed += 1
        read = _reader(kernel, function.address)
        process.out(_line(name, function.address, read, old=process.system.release < (13, 0)))
        if "v" in letters:
            process.out(_names(read))
        if "b" in letters:
            process.out("".join(_bar("bar  ", 0x10 + 4 * bar.index, bar) for bar in function.bars))
        if "c" in letters:
            process.out("".join(_capabilities(read)))
    return 0


Reader = Callable[[int, int], int]


def _reader(kernel: Any, address: Address) -> Reader:
    text = selector(address)

    def read(offset: int, width: int) -> int:
        value: int = kernel.read_config(text, offset, width)
        return value

    return read


def _line(name: str, address: Address, read: Reader, *, old: bool) -> str:
    header = read(0x0E, 1)
    vendor, device = read(0x2C, 2), read(0x2E, 2)
    if header & 0x7F == 1:
        # A bridge has its subsystem ids in a capability.
        at = _find(read, 0x0D)
        vendor, device = (read(at + 4, 2), read(at + 6, 2)) if at else (0, 0)
    if old:
        return (
            f"{name}@{selector(address)}:\tclass=0x{read(0x08, 4) >> 8:06x} "
            f"card=0x{device:04x}{vendor:04x} chip=0x{read(2, 2):04x}{read(0, 2):04x} "
            f"rev=0x{read(0x08, 1):02x} hdr=0x{header & 0x7F:02x}\n"
        )
    return (
        f"{name}@{selector(address)}:\tclass=0x{read(0x08, 4) >> 8:06x} rev=0x{read(0x08, 1):02x} "
        f"hdr=0x{header & 0x7F:02x} vendor=0x{read(0, 2):04x} device=0x{read(2, 2):04x} "
        f"subvendor=0x{vendor:04x} subdevice=0x{device:04x}\n"
    )


def _names(read: Reader) -> str:
    lines = []
    vendor = read(0, 2)
    if vendor in VENDORS:
        lines.append(f"    vendor     = '{VENDORS[vendor]}'\n")
        device = DEVICES.get((vendor, read(2, 2)))
        if device:
            lines.append(f"    device     = '{device}'\n")
    base, sub = read(0x0B, 1), read(0x0A, 1)
    if base in CLASSES:
        lines.append(f"    class      = {CLASSES[base]}\n")
    if (base, sub) in SUBCLASSES:
        lines.append(f"    subclass   = {SUBCLASSES[base, sub]}\n")
    return "".join(lines)


def _bar(label: str, register: int, bar: Any) -> str:
    if not bar.memory:
        kind, span = "I/O Port", 32
    else:
        kind = "Prefetchable Memory" if bar.prefetchable else "Memory"
        span = 64 if bar.wide else 32
    state = "enabled" if bar.decoded else "disabled"
    return (
        f"    {label} [{register:02x}] = type {kind}, range {span}, base {_hex(bar.address)}, "
        f"size {bar.size}, {state}\n"
    )


def _hex(value: int) -> str:
    """``%#jx``: zero has no prefix."""
    return f"{value:#x}" if value else "0"


# Capabilities (cap.c)


def _walk(read: Reader) -> Iterator[tuple[int, int]]:
    if not read(0x06, 2) & 0x10:
        return
    at = read(0x34, 1)
    seen: set[int] = set()
    while at not in (0, 0xFF) and at not in seen:
        seen.add(at)
        yield read(at, 1), at
        at = read(at + 1, 1)


def _find(read: Reader, identity: int) -> int:
    return next((at for each, at in _walk(read) if each == identity), 0)


def _capabilities(read: Reader) -> Iterator[str]:
    express = False
    for identity, at in _walk(read):
        describe = _DESCRIBERS.get(identity)
        express |= identity == 0x10
        text = describe(read, at) if describe else "unknown"
        yield f"    cap {identity:02x}[{at:02x}] = {text}\n"
    if express:
        yield from _extended(read)


def _plural(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"


def _power(read: Reader, at: int) -> str:
    cap, status = read(at + 2, 2), read(at + 4, 2)
    states = (" D1" if cap & 0x200 else "") + (" D2" if cap & 0x400 else "")
    return f"powerspec {cap & 7}  supports D0{states} D3  current D{status & 3}"


def _msi(read: Reader, at: int) -> str:
    control = read(at + 2, 2)
    text = f"MSI supports {_plural(1 << (control >> 1 & 7))}"
    text += ", 64 bit" if control & 0x80 else ""
    text += ", vector masks" if control & 0x100 else ""
    enabled = f"enabled with {_plural(1 << (control >> 4 & 7))}" if control & 1 else ""
    return f"{text} {enabled}"


def _msix(read: Reader, at: int) -> str:
    control, table, pba = read(at + 2, 2), read(at + 4, 4), read(at + 8, 4)
    enabled = ", enabled" if control & 0x8000 else ""
    return (
        f"MSI-X supports {_plural((control & 0x7FF) + 1)}{enabled}\n{_INDENT}"
        f"Table in map 0x{0x10 + 4 * (table & 7):x}[0x{table & ~7:x}], "
        f"PBA in map 0x{0x10 + 4 * (pba & 7):x}[0x{pba & ~7:x}]"
    )


def _hypertransport(read: Reader, at: int) -> str:
    kind = read(at + 2, 2) & 0xE000
    return f"HT {'slave' if kind == 0 else 'host' if kind == 0x2000 else 'unknown'}"


def _vendor(read: Reader, at: int) -> str:
    return f"vendor (length {read(at + 2, 1)})"


def _subvendor(read: Reader, at: int) -> str:
    return f"PCI Bridge subvendor=0x{read(at + 4, 2):04x} subdevice=0x{read(at + 6, 2):04x}"


def _advanced(read: Reader, at: int) -> str:
    cap = read(at + 3, 1)
    return f"PCI Advanced Features:{' FLR' if cap & 2 else ''}{' TP' if cap & 1 else ''}"


_TYPES = {
    0: "endpoint", 1: "legacy endpoint", 4: "root port", 5: "upstream port",
    6: "downstream port", 7: "PCI bridge", 8: "PCI to PCIe bridge", 9: "root endpoint",
    10: "event collector",
}  # fmt: skip
_SPEEDS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0"}
_ASPM = {1: "L0s", 2: "L1", 3: "L0s/L1"}


def _express(read: Reader, at: int) -> str:
    flags = read(at + 2, 2)
    version, kind = flags & 0xF, flags >> 4 & 0xF
    text = f"PCI-Express {version} {_TYPES.get(kind, f'type {kind}')}"
    if flags >> 9 & 0x1F:
        text += f" MSI {flags >> 9 & 0x1F}"
    cap, control = read(at + 4, 4), read(at + 8, 2)
    text += f" max data {128 << (control >> 5 & 7)}({128 << (cap & 7)})"
    text += " FLR" if cap & 1 << 28 else ""
    text += " RO" if control & 0x10 else ""
    text += " NS" if control & 0x800 else ""
    if version >= 2 and read(at + 0x24, 4) & 0x20:
        # The source prints what follows from this register, too.
        control = read(at + 0x28, 2)
        text += f" ARI {'enabled' if control & 0x20 else 'disabled'}"
    read_size = control >> 12 & 7
    text += f"\n{_INDENT}max read {128 << read_size if read_size < 6 else 'undef'}"
    link, status = read(at + 0x0C, 4), read(at + 0x12, 2)
    if not link and not status:
        return text
    text += f"\n{_INDENT}link x{status >> 4 & 0x3F}(x{link >> 4 & 0x3F})"
    if link >> 4 & 0x3F:
        speed = _SPEEDS.get(status & 0xF, "undef") if status >> 4 & 0x3F else "0.0"
        text += f" speed {speed}({_SPEEDS.get(link & 0xF, 'undef')})"
    if link >> 10 & 3:
        now = read(at + 0x10, 2) & 3
        text += f" ASPM {_ASPM.get(now, 'disabled')}({_ASPM.get(link >> 10 & 3, 'disabled')})"
    if link & 1 << 18:
        text += f" ClockPM {'enabled' if read(at + 0x10, 2) & 0x100 else 'disabled'}"
    return text + (_slot(read, at) if flags & 0x100 else "")


def _slot(read: Reader, at: int) -> str:
    cap, status, control = read(at + 0x14, 4), read(at + 0x1A, 2), read(at + 0x18, 2)
    watts = (cap >> 7 & 0xFF) * (1000, 100, 10, 1)[cap >> 15 & 3]
    text = f"\n{_INDENT}slot {cap >> 19} power limit {watts} mW"
    text += f" HotPlug({'present' if status & 0x40 else 'empty'})" if cap & 0x40 else ""
    text += " surprise" if cap & 0x20 else ""
    text += " Attn Button" if cap & 1 else ""
    text += f" PC({'off' if control & 0x400 else 'on'})" if cap & 2 else ""
    text += f" MRL({'open' if status & 0x20 else 'closed'})" if cap & 4 else ""
    text += f" EI({'engaged' if status & 0x80 else 'disengaged'})" if cap & 1 << 17 else ""
    return text


_DESCRIBERS: Mapping[int, Callable[[Reader, int], str]] = {
    0x01: _power, 0x05: _msi, 0x08: _hypertransport, 0x09: _vendor, 0x0D: _subvendor,
    0x10: _express, 0x11: _msix, 0x12: lambda _read, _at: "SATA Index-Data Pair",
    0x13: _advanced, 0x03: lambda _read, _at: "VPD",
}  # fmt: skip

_EXTENDED_NAMES = {
    0x0002: "Virtual Channel", 0x000E: "ARI", 0x000F: "ATS", 0x0013: "Page Page Request",
    0x0015: "Resizable BAR", 0x0018: "LTR", 0x001B: "Process Address Space ID",
}  # fmt: skip


def _extended(read: Reader) -> Iterator[str]:
    at = 0x100
    header = read(at, 4)
    if header in (0, 0xFFFFFFFF):
        return
    while True:
        identity, version = header & 0xFFFF, header >> 16 & 0xF
        describe = _EXTENDED_DESCRIBERS.get(identity)
        if describe:
            text = describe(read, at, version)
        else:
            text = f"{_EXTENDED_NAMES.get(identity, 'unknown')} {version}"
        yield f"    ecap {identity:04x}[{at:03x}] = {text}\n"
        at = header >> 20
        if not at:
            return
        header = read(at, 4)


def _aer(read: Reader, at: int, version: int) -> str:
    status, severity = read(at + 4, 4), read(at + 0x0C, 4)
    corrected = read(at + 0x10, 4)
    return (
        f"AER {version} {(status & severity).bit_count()} fatal "
        f"{(status & ~severity).bit_count()} non-fatal {corrected.bit_count()} corrected"
    )


def _serial(read: Reader, at: int, version: int) -> str:
    return f"Serial {version} {read(at + 8, 4):08x}{read(at + 4, 4):08x}"


def _enabled(value: int) -> str:
    return "enabled" if value else "disabled"


def _sriov(read: Reader, at: int, version: int) -> str:
    control = read(at + 8, 2)
    caps, size = read(at + 0x1C, 4), read(at + 0x20, 4)
    pages = ", ".join(
        f"{4096 << shift}{' (enabled)' if size & 1 << shift else ''}"
        for shift in range(20)
        if caps & 1 << shift
    )
    return (
        f"SR-IOV {version} IOV {_enabled(control & 1)}, Memory Space {_enabled(control & 8)}, "
        f"ARI {_enabled(control & 0x10)}\n"
        f"{_DEEP}{read(at + 0x10, 2)} VFs configured out of {read(at + 0x0E, 2)} supported\n"
        f"{_DEEP}First VF RID Offset 0x{read(at + 0x14, 2):04x}, "
        f"VF RID Stride 0x{read(at + 0x16, 2):04x}\n"
        f"{_DEEP}VF Device ID 0x{read(at + 0x1A, 2):04x}\n"
        f"{_DEEP}Page Sizes: {pages}"
    )


def _acs(read: Reader, at: int, version: int) -> str:
    cap, control = read(at + 4, 2), read(at + 6, 2)

    def state(bit: int) -> str:
        return _enabled(control & bit) if cap & bit else "unavailable"

    return (
        f"ACS {version} Source Validation {state(1)}, Translation Blocking {state(2)}\n"
        f"{_DEEP}P2P Req Redirect {state(4)}, P2P Cmpl Redirect {state(8)}\n"
        f"{_DEEP}P2P Upstream Forwarding {state(0x10)}, P2P Egress Control {state(0x20)}\n"
        f"{_DEEP}P2P Direct Translated {state(0x40)}, Enhanced Capability "
        f"{'available' if control & 0x80 else 'unavailable'}"
    )


_EXTENDED_DESCRIBERS: Mapping[int, Callable[[Reader, int, int], str]] = {
    0x0001: _aer, 0x0003: _serial, 0x000D: _acs, 0x0010: _sriov,
}  # fmt: skip


# Single functions


def _exists(process: Process, address: Address) -> bool:
    return any(each.function.address == address for each in process.system.kernel.devices())


def _attached(process: Process, name: str) -> int:
    address = _address(process, name)
    for device in process.system.kernel.devices():
        if device.function.address == address:
            state = "attached" if device.attached else "not attached"
            process.out(f"{name}: {state}\n")
            return 0 if device.attached else 2
    process.complain(f"ioctl(PCIOCATTACHED): {Errno.ENODEV.text}")
    return 1


def _read(process: Process, name: str, registers: str, width: int) -> int:
    address = _address(process, name)
    first, colon, last = registers.partition(":")
    start = int(first, 0)
    end = int(last, 0) if colon else start
    if not _exists(process, address):
        process.complain(f"ioctl(PCIOCREAD): {Errno.ENODEV.text}")
        return 1
    offsets = range(start, end + 1, width)
    if start % width:
        process.complain(f"ioctl(PCIOCREAD): {Errno.EINVAL.text}")
        return 1
    values = process.system.kernel.read_configs(selector(address), offsets, width)
    text = []
    for count, value in enumerate(values, 1):
        text.append(f"{value:0{2 * width}x}" + (" " if count % 8 == 0 else ""))
        text.append(" " if count % (16 // width) else "\n")
    if (len(values) + 1) % (16 // width) != 1:
        text.append("\n")
    process.out("".join(text))
    return 0


def _write(process: Process, words: list[str], width: int) -> int:
    address = _address(process, words[0])
    try:
        if not _exists(process, address):
            raise SimError(Errno.ENODEV)
        process.system.kernel.write_config(
            selector(address), int(words[1], 0), width, int(words[2], 0)
        )
    except SimError as error:
        process.complain(f"ioctl(PCIOCWRITE): {error.text}")
        return 1
    return 0


COMMANDS: Mapping[str, Command] = {"pciconf": pciconf}
