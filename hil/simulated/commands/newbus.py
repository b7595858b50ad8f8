"""devctl(8), devinfo(8) and iovctl(8): drivers and the devices they have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hil.simulated.commands.options import getopt, refuse
from hil.simulated.commands.pci import selector
from hil.simulated.errno import Errno, SimError
from hil.simulated.process import Command, Process

_DEVCTL = """\
usage: devctl attach device
       devctl detach [-f] device
       devctl disable [-f] device
       devctl enable device
       devctl suspend device
       devctl resume device
       devctl set driver [-f] device driver
       devctl clear driver [-f] device
       devctl rescan device
       devctl delete [-f] device
       devctl freeze
       devctl thaw
       devctl reset [-d] device
"""
_GETPATH = "       devctl getpath locator device\n"  # since 14.0


def devctl(process: Process) -> int:
    words = process.arguments[1:]
    usage = _DEVCTL
    if process.system.release >= (14, 0):
        usage += _GETPATH
    if not words:
        refuse(process, usage)
    verb, *rest = words
    if verb in ("set", "clear") and rest[:1] == ["driver"]:
        rest = rest[1:]
    flags = [word for word in rest if word in ("-f", "-d")]
    operands = [word for word in rest if word not in flags]
    kernel = process.system.kernel
    forced = bool(flags)
    if verb == "set" and len(operands) == 2:
        name, driver = operands
        return _attempt(
            process,
            f"set {name} driver to {driver}",
            lambda: kernel.set_driver(name, driver, force=forced),
        )
    if verb == "clear" and len(operands) == 1:
        name = operands[0]
        return _attempt(
            process, f"clear {name} driver", lambda: kernel.clear_driver(name, force=forced)
        )
    if verb in ("freeze", "thaw") and not operands:
        return 0
    if len(operands) != 1:
        refuse(process, usage)
    name = operands[0]
    actions: Mapping[str, Callable[[], object]] = {
        "attach": lambda: kernel.attach(name),
        "detach": lambda: kernel.detach(name, force=forced),
        "disable": lambda: kernel.disable(name, force=forced),
        "enable": lambda: kernel.enable(name),
        "rescan": lambda: kernel.rescan(name),
        "delete": lambda: kernel.delete(name, force=forced),
        # the request ends when the function has had its time (PCIe 6.6.2)
        "reset": lambda: process.sleep(kernel.reset(name, detach=forced)),
    }
    action = actions.get(verb)
    if action is None:
        process.complain("unknown command")
        return 1
    return _attempt(process, f"{verb} {name}", action)


def _attempt(process: Process, what: str, action: Callable[[], object]) -> int:
    try:
        action()
    except SimError as error:
        process.complain(f"Failed to {what}: {error.text}")
        return 1
    return 0


# devinfo


def devinfo(process: Process) -> int:
    found, words = getopt(
        process,
        "ruvp",
        "usage: devinfo [-rv]\n       devinfo -u [-v]\n       devinfo -p dev [-v]\n",
    )
    letters = {letter for letter, _ in found}
    tree = _Tree(process.system.kernel, resources="r" in letters, verbose="v" in letters)
    if "p" in letters and words:
        return _path(process, tree, words[0])
    process.out("".join(f"{line}\n" for line in tree.lines()))
    return 0


def _path(process: Process, tree: _Tree, name: str) -> int:
    stack: list[str] = []
    for line in tree.lines():
        depth = (len(line) - len(line.lstrip())) // 2
        stack[depth:] = [line.split()[0]]
        if stack[-1] == name:
            process.out(" ".join(reversed(stack)) + "\n")
            return 0
    process.complain(f"{name}: Not found")
    return 1


class _Tree:
    """The device tree as text: ACPI's devices as recorded, PCI's as they are now."""

    def __init__(self, kernel: Any, *, resources: bool, verbose: bool) -> None:
        self._kernel = kernel
        self._resources = resources
        self._verbose = verbose
        self._devices = list(kernel.devices())

    def lines(self) -> Iterator[str]:
        for depth, name, detail, resources in _ABOVE:
            yield from self._static(depth, name, detail, resources)
        yield from self._bus(0, 3)
        for depth, name, detail, resources in _BELOW:
            yield from self._static(depth, name, detail, resources)
        if any(name.startswith("vmm") for name in self._modules()) and self._has_amd_iommu():
            yield from self._static(2, "ivhd0", "pnpinfo unknown", ())

    def _modules(self) -> list[str]:
        return [module.name for module in self._kernel.modules()]

    def _has_amd_iommu(self) -> bool:
        return any(device.name == "amdiommu0" for device in self._devices)

    def _static(
        self, depth: int, name: str, detail: str, resources: tuple[tuple[str, tuple[str, ...]], ...]
    ) -> Iterator[str]:
        if name == "unknown" and not self._verbose:
            return
        if name.strip() in _NAMED_ONLY and not self._verbose:
            return
        yield "  " * depth + name + (f" {detail}" if detail and self._verbose else "")
        if self._resources:
            inset = (len(name) - len(name.lstrip())) // 2
            yield from _resource_lines(depth + inset, resources)

    def _bus(self, bus: int, depth: int, above: str = "") -> Iterator[str]:
        yield "  " * depth + f"pci{bus}"
        if self._resources:
            title = f"{above} bus numbers" if above else "PCI domain 0 bus numbers"
            yield from _resource_lines(depth, ((title, (str(bus),)),))
        for device in self._devices:
            if device.function.address.bus == bus:
                yield from self._function(device, depth + 1)

    def _function(self, device: Any, depth: int) -> Iterator[str]:
        function = device.function
        if not self._verbose and not device.attached:
            return
        name = device.name or "unknown"
        yield "  " * depth + name + (f" {self._detail(function)}" if self._verbose else "")
        if self._resources:
            yield from _resource_lines(depth, self._held(device))
        if not device.attached:
            return
        secondary = getattr(function, "secondary", 0)
        if secondary:
            yield from self._bus(secondary, depth + 1, name)
        for name, detail, resources in self._children(device):
            yield from self._static(depth + 1, name, detail, resources)

    def _detail(self, function: Any) -> str:
        address = function.address

        def read(offset: int) -> int:
            value: int = self._kernel.read_config(selector(address), offset, 2)
            return value

        header = function.header_type & 0x7F
        at = 0x2C
        if header == 1:
            at = function.capability(0x0D) + 4
        class_code = self._kernel.read_config(selector(address), 0x08, 4) >> 8
        handle = f"\\_SB_.PCI0.S{address.device << 3 | address.function:02X}_"
        if address.bus:
            port = next(
                (
                    d.function
                    for d in self._devices
                    if getattr(d.function, "secondary", 0) == address.bus
                ),
                None,
            )
            above = port.address.device << 3 | port.address.function if port else 0
            handle = f"\\_SB_.PCI0.S{above:02X}_.S{address.device << 3 | address.function:02X}_"
        return (
            f"pnpinfo vendor=0x{read(0):04x} device=0x{read(2):04x} subvendor=0x{read(at):04x} "
            f"subdevice=0x{read(at + 2):04x} class=0x{class_code:06x} at slot={address.device} "
            f"function={address.function} dbsf={selector(address)} handle={handle}"
        )

    def _held(self, device: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
        function = device.function
        found: list[tuple[str, tuple[str, ...]]] = []
        owned = re.compile(rf"{device.name}(:.*)?") if device.attached else None
        irqs = tuple(
            f"{line.irq:#x}"
            for line in self._kernel.interrupts()
            if owned and owned.fullmatch(line.name)
        )
        if irqs:
            found.append(("Interrupt request lines", irqs))
        titles = ("I/O ports", "I/O memory addresses")
        if function.address.bus:
            port = self._port(function.address.bus)
            titles = (f"{port} I/O port window", f"{port} memory window")
        for title, memory in zip(titles, (False, True), strict=True):
            spans = sorted((bar.address, bar.size) for bar in function.bars if bar.memory is memory)
            if spans:
                found.append((title, tuple(f"{a:#x}-{a + s - 1:#x}" for a, s in spans)))
        if getattr(function, "secondary", 0):
            found.append(("PCI domain 0 bus numbers", (str(function.secondary),)))
        return tuple(found)

    def _port(self, bus: int) -> str:
        """The bridge to a bus."""
        ports = (d for d in self._devices if getattr(d.function, "secondary", 0) == bus)
        return next((device.name for device in ports if device.name), "pcib0")

    def _children(
        self,
        device: Any,
    ) -> Iterator[tuple[str, str, tuple[tuple[str, tuple[str, ...]], ...]]]:
        driver = re.sub(r"[0-9]+$", "", device.name or "")
        if driver == "virtio_pci":
            kind = self._kernel.read_config(device.selector, 2, 2)
            number = self._kernel.read_config(device.selector, 0x2E, 2)
            name = {1: "vtnet", 2: "vtblk", 4: "vtrnd"}.get(number)
            if name:
                detail = f"pnpinfo vendor=0x00001af4 device=0x{kind:04x} subvendor=0x1af4"
                yield f"{name}0", f"{detail} device_type=0x{number:08x}", ()
        elif driver == "isab":
            yield "isa0", "", ()
            yield "  attimer0", "", _ATTIMER
            for name in _NAMED_ONLY:
                yield f"  {name}", "", ()
        elif driver == "ahci":
            base = next((bar.address for bar in device.function.bars if bar.memory), 0)
            for channel in range(6):
                start = base + 0x100 + 0x80 * channel
                span = (f"{start:#x}-{start + 0x7F:#x}",)
                yield f"ahcich{channel}", f"at channel={channel}", (("I/O memory addresses", span),)


def _resource_lines(
    depth: int, resources: tuple[tuple[str, tuple[str, ...]], ...]
) -> Iterator[str]:
    for title, values in resources:
        yield "  " * (depth + 2) + f"{title}:"
        for value in values:
            yield "  " * (depth + 4) + value


_Row = tuple[int, str, str, tuple[tuple[str, tuple[str, ...]], ...]]
_MEMORY, _PORTS, _IRQ = "I/O memory addresses", "I/O ports", "Interrupt request lines"

#: Devices that have a name without having attached: devinfo shows them with -v only.
_NAMED_ONLY = ("fdc0", "ppc0", "sc0", "uart1")

_ABOVE: tuple[_Row, ...] = (
    (0, "nexus0", "", ()),
    (1, "efirtc0", "", ()),
    (1, "aesni0", "", ()),
    (1, "cryptosoft0", "", ()),
    (1, "smbios0", "", ((_MEMORY, ("0x7f520000-0x7f52001e",)),)),
    (
        1,
        "ram0",
        "",
        (
            (
                _MEMORY,
                (
                    "0x0-0x9ffff",
                    "0x100000-0x805fff",
                    "0x808000-0x80ffff",
                    "0x900000-0x7ea89fff",
                    "0x7eb8c000-0x7f4ebfff",
                    "0x7f7fe000-0x7feebfff",
                    "0x100000000-0x1ffffffff",
                ),
            ),
        ),
    ),
    (1, "apic0", "", ((_MEMORY, ("0xfec00000-0xfec0001f", "0xfee00000-0xfee0053f")),)),
    (1, "vtvga0", "", ((_MEMORY, ("0xa0000-0xaffff",)),)),
    (1, "acpi0", "", ((_IRQ, ("0x9",)),)),
    (
        2,
        "pcib0",
        "pnpinfo _HID=PNP0A08 _UID=0 _CID=PNP0A03 at handle=\\_SB_.PCI0",
        ((_PORTS, ("0xcf8-0xcff",)),),
    ),
)

_ATTIMER = ((_IRQ, ("0x0",)), (_PORTS, ("0x40-0x43",)))


def _acpi(
    name: str,
    identity: str,
    handle: str,
    *resources: tuple[str, tuple[str, ...]],
    uid: int = 0,
    compatible: str = "none",
) -> _Row:
    detail = f"pnpinfo _HID={identity} _UID={uid} _CID={compatible} at handle=\\_SB_.{handle}"
    return 2, name, detail, resources


_BELOW: tuple[_Row, ...] = (
    _acpi("acpi_syscontainer1", "PNP0A06", "PCI0.PRES", (_PORTS, ("0xcd8-0xce3",))),
    _acpi("acpi_syscontainer2", "PNP0A06", "PCI0.GPE0", (_PORTS, ("0x620-0x62f",))),
    _acpi("acpi_syscontainer3", "PNP0A06", "PCI0.PHPR", (_PORTS, ("0xcc0-0xcd7",))),
    _acpi("unknown", "QEMU0002", "PCI0.FWCF", (_PORTS, ("0x510-0x51b",))),
    _acpi("atkbdc0", "PNP0303", "PCI0.SF8_.KBD_", (_IRQ, ("0x1",)), (_PORTS, ("0x60", "0x64"))),
    (3, "atkbd0", "", ()),
    _acpi("unknown", "PNP0F13", "PCI0.SF8_.MOU_"),
    _acpi(
        "uart0", "PNP0501", "PCI0.SF8_.COM1", (_IRQ, ("0x4",)), (_PORTS, ("0x3f8-0x3ff",)), uid=1
    ),
    _acpi("atrtc0", "PNP0B00", "PCI0.SF8_.RTC_", (_IRQ, ("0x8",)), (_PORTS, ("0x70-0x77",))),
    _acpi("acpi_sysresource0", "PNP0C01", "DRAC"),
    *(
        _acpi(f"pci_link{index}", "PNP0C0F", f"LNK{letter}", uid=index)
        for index, letter in enumerate("ABCDEFGH")
    ),
    *(
        _acpi(f"pci_link{index + 8}", "PNP0C0F", f"GSI{letter}", uid=index + 16)
        for index, letter in enumerate("ABCDEFGH")
    ),
    _acpi("hpet0", "PNP0103", "HPET", (_MEMORY, ("0xfed00000-0xfed003ff",))),
    _acpi("acpi_syscontainer0", "ACPI0010", "CPUS", compatible="PNP0A05"),
    _acpi("cpu0", "none", "CPUS.C000"),
    _acpi("cpu1", "none", "CPUS.C001", uid=0),
    (2, "acpi_timer0", "pnpinfo unknown", ((_PORTS, ("0x608-0x60b",)),)),
)


# iovctl


_IOVCTL = """\
Usage: iovctl -C -f <config file> [-n]
       iovctl -D [-d <PF device> | -f <config file>] [-n]
       iovctl -S [-d <PF device> | -f <config file>]
"""


def iovctl(process: Process) -> int:
    usage = _IOVCTL
    found, _ = getopt(process, "CDSd:f:n", usage)
    option = dict(found)
    kernel = process.system.kernel
    device = option.get("d", "")
    count = 0
    passed: dict[int, bool] = {}
    if "f" in option:
        try:
            text = process.system.files.read(process.path(option["f"])).decode("utf-8", "replace")
        except SimError as error:
            process.complain(f"Could not open configuration file '{option['f']}': {error.text}")
            return 1
        device, count, passed = _iov_config(text)
    if not device or not ({"C", "D", "S"} & option.keys()):
        refuse(process, usage)
    path = f"/dev/iov/{device}"
    try:
        name = _pf(kernel, device)
    except SimError as error:
        process.complain(f"Could not open device '{path}': {error.text}")
        return 1
    try:
        if "D" in option:
            kernel.iov_delete(name)
        elif "C" in option:
            kernel.iov_create(name, count, passed)
    except SimError as error:
        verb = "configure SR-IOV" if "C" in option else "delete VFs"
        process.complain(f"Failed to {verb}: {error.text}")
        return 1
    return 0


def _pf(kernel: Any, device: str) -> str:
    found = kernel.find(device)
    if not found.attached or not found.function.extended_capability(0x10):
        raise SimError(Errno.ENOENT)
    name: str = found.name
    return name


def _iov_config(text: str) -> tuple[str, int, dict[int, bool]]:
    """iovctl.conf(5): the PF's device, the number of VFs, and which are for passthrough."""
    text = re.sub(r"#.*", "", text)
    sections = {
        name.strip('" ').upper(): body for name, body in re.findall(r"([\w\" -]+)\{([^}]*)\}", text)
    }
    physical = sections.get("PF", "")
    device = re.search(r'device\s*[:=]?\s*"?([\w:]+)"?', physical)
    number = re.search(r"num_vfs\s*[:=]?\s*(\d+)", physical)
    count = int(number.group(1)) if number else 0

    def passes(section: str, *, default: bool) -> bool:
        found = re.search(r'passthrough\s*[:=]?\s*"?(\w+)"?', sections.get(section, ""))
        return found.group(1) in ("true", "yes", "on") if found else default

    usual = passes("DEFAULT", default=False)
    passed = {vf: passes(f"VF-{vf}", default=usual) for vf in range(count)}
    return device.group(1) if device else "", count, passed


COMMANDS: Mapping[str, Command] = {"devctl": devctl, "devinfo": devinfo, "iovctl": iovctl}
