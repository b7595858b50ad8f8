"""bhyve's command line as its configuration: what usr.sbin/bhyve/{bhyverun,config,pci_emul}.c do.

Devices are kept as ``pci.BUS.SLOT.FUNCTION.KEY``, as bhyve_config(5) names them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hil.simulated.commands.options import getopt, size_of
from hil.simulated.process import Exit, Process

#: Device models that bhyve has; some only by name here.
MODELS = frozenset(
    {"hostbridge", "amd_hostbridge", "lpc", "passthru", "virtio-blk", "virtio-net", "virtio-rnd"}
    | {"virtio-console", "virtio-scsi", "virtio-9p", "virtio-input", "ahci", "ahci-hd", "ahci-cd"}
    | {"nvme", "e1000", "xhci", "fbuf", "uart", "dummy", "hda"}
)
_DISKS = frozenset({"virtio-blk", "ahci", "ahci-hd", "ahci-cd", "nvme"})

_OPTIONS = "aehuwxACDHIMPSWYk:f:o:p:G:c:s:m:l:B:U:K:r:"

USAGE_13 = """\
Usage: bhyve [-AaCDeHhPSuWwxY]
             [-c [[cpus=]numcpus][,sockets=n][,cores=n][,threads=n]]
             [-G port] [-k config_file] [-l lpc] [-m mem] [-o var=value]
             [-p vcpu:hostcpu] [-r file] [-s pci] [-U uuid] vmname
       -A: create ACPI tables
       -a: local apic is in xAPIC mode (deprecated)
       -C: include guest memory in core file
       -c: number of CPUs and/or topology specification
       -D: destroy on power-off
       -e: exit on unhandled I/O access
       -G: start a debug server
       -H: vmexit from the guest on HLT
       -h: help
       -k: key=value flat config file
       -K: PS2 keyboard layout
       -l: LPC device configuration
       -m: memory size
       -o: set config 'var' to 'value'
       -P: vmexit from the guest on pause
       -p: pin 'vcpu' to 'hostcpu'
       -S: guest memory cannot be swapped
       -s: <slot,driver,configinfo> PCI slot config
       -U: UUID
       -u: RTC keeps UTC time
       -W: force virtio to use single-vector MSI
       -w: ignore unimplemented MSRs
       -x: local APIC is in x2APIC mode
       -Y: disable MPtable generation
"""


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    bus: int
    slot: int
    function: int


@dataclass
class Config:
    """What a guest is to be made of."""

    name: str = ""
    memory: int = 256 << 20
    cpus: int = 1
    wired: bool = False
    bootrom: str = ""
    console: str = ""
    """The path (or ``stdio``) behind com1; empty: none."""
    debugger: str = ""
    """``HOST:PORT`` of -G."""
    wait_for_debugger: bool = False
    devices: dict[Slot, dict[str, str]] = field(default_factory=dict)
    """By place: ``device`` and the model's own settings."""

    @property
    def has_lpc(self) -> bool:
        """Whether there is something that com1 is on."""
        return any(device["device"] == "lpc" for device in self.devices.values())

    @property
    def disks(self) -> list[str]:
        """Paths of the guest's disks, in order of their places."""
        return [
            device["path"]
            for _, device in sorted(self.devices.items())
            if device["device"] in _DISKS and "path" in device
        ]


def parse(process: Process) -> Config:
    """The configuration that the command line asks for.

    Raises:
        Exit: it is refused, with bhyve's words and status.
    """
    found, words = getopt(process, _OPTIONS, USAGE_13, 1)
    config = Config()
    for letter, value in found:
        if letter == "h":
            process.err(USAGE_13)
            raise Exit(0)
        if letter == "S":
            config.wired = True
        elif letter == "m":
            config.memory = _memory(process, value)
        elif letter == "c":
            config.cpus = _cpus(process, value)
        elif letter == "s":
            _slot(process, config, value)
        elif letter == "l":
            _lpc(process, config, value)
        elif letter == "G":
            config.wait_for_debugger = value.startswith("w")
            place = value.removeprefix("w")
            config.debugger = place if ":" in place else f"127.0.0.1:{place}"
        elif letter == "o":
            _set(process, config, value)
        elif letter == "k":
            _read_file(process, config, value)
    if len(words) > 1 or (not words and not config.name):
        process.err(USAGE_13)
        raise Exit(1)
    config.name = words[0] if words else config.name
    return config


def _memory(process: Process, text: str) -> int:
    try:
        size = size_of(text)
    except ValueError:
        process.complain(f"invalid memsize '{text}'")
        raise Exit(64) from None
    # A number below 1 MiB is one of megabytes.
    return size << 20 if size < 1 << 20 else size


def _cpus(process: Process, text: str) -> int:
    cpus = sockets = cores = threads = 0
    for part in text.split(","):
        name, equals, value = part.partition("=")
        number = value if equals else name
        if not number.isdigit():
            process.complain(f"invalid cpu topology '{text}'")
            raise Exit(64)
        if not equals or name == "cpus":
            cpus = int(number)
        elif name == "sockets":
            sockets = int(number)
        elif name == "cores":
            cores = int(number)
        elif name == "threads":
            threads = int(number)
    return cpus or (sockets or 1) * (cores or 1) * (threads or 1)


def _refuse(process: Process, message: str) -> Exit:
    process.err(f"{message}\n")
    return Exit(4)


def _slot(process: Process, config: Config, text: str) -> None:
    if text == "help":
        process.out("".join(f"{name}\n" for name in sorted(MODELS)))
        raise Exit(0)
    place, _, rest = text.partition(",")
    model, _, options = rest.partition(",")
    numbers = place.split(":")
    if not rest or not all(number.isdigit() for number in numbers) or len(numbers) > 3:
        raise _refuse(process, f'Invalid PCI slot info field "{text}"')
    values = [int(number) for number in numbers]
    bus, slot, function = {
        1: (0, values[0], 0),
        2: (0, *values[:2]) if len(values) > 1 else (0, 0, 0),
        3: tuple(values) if len(values) == 3 else (0, 0, 0),
    }[len(values)]
    where = f"pci slot {bus}:{slot}:{function}"
    at = Slot(bus, slot, function)
    if at in config.devices:
        raise _refuse(process, f"{where} already occupied!")
    if model not in MODELS:
        raise _refuse(process, f'{where}: unknown device "{model}"')
    config.devices[at] = {"device": model, **_options(process, model, options)}


_PASSTHRU = (
    re.compile(r"pci0:(\d+):(\d+):(\d+)"),
    re.compile(r"pci(\d+):(\d+):(\d+)"),
    re.compile(r"(\d+)/(\d+)/(\d+)"),
)


def _options(process: Process, model: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    first, _, rest = text.partition(",")
    # Before 13.0 there was one form only, and no configuration behind it.
    modern = process.system.release >= (13, 0)
    if model == "passthru" and text:
        if first.startswith("ppt") and modern:
            found["pptdev"] = first
        else:
            # sscanf(3) takes what it can, and minds nothing after it.
            forms = _PASSTHRU if modern else _PASSTHRU[-1:]
            match = next((m for form in forms if (m := form.match(first))), None)
            if match is None:
                words = f'passthru: invalid options "{text}"'
                raise _refuse(process, words if modern else "invalid passthru options")
            found |= zip(("bus", "slot", "func"), match.groups(), strict=True)
    elif model in _DISKS and text:
        found["path"] = first
    elif model in ("virtio-net", "e1000") and text:
        found["backend"] = first
    else:
        rest = text
    for word in rest.split(","):
        name, equals, value = word.partition("=")
        if name:
            found[name] = value if equals else "true"
    return found


def _lpc(process: Process, config: Config, text: str) -> None:
    name, _, value = text.partition(",")
    if name == "bootrom":
        config.bootrom = value.partition(",")[0]
    elif name == "com1":
        config.console = value
    elif name == "help":
        process.out("bootrom\ncom1\ncom2\ncom3\ncom4\npc-testdev\n")
        raise Exit(0)
    elif name not in ("com2", "com3", "com4", "pc-testdev", "tpm", "fwcfg"):
        process.complain(f"invalid lpc device configuration '{text}'")
        raise Exit(64)


def _set(process: Process, config: Config, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals:
        process.complain(f"invalid configuration option '{text}'")
        raise Exit(64)
    yes = value in ("true", "on", "yes", "1")
    if name == "memory.wired":
        config.wired = yes
    elif name == "memory.size":
        config.memory = _memory(process, value)
    elif name == "cpus":
        config.cpus = int(value)
    elif name == "name":
        config.name = value
    elif name == "bootrom":
        config.bootrom = value
    elif name == "lpc.com1.path":
        config.console = value
    elif found := re.fullmatch(r"pci\.(\d+)\.(\d+)\.(\d+)\.(.+)", name):
        at = Slot(*(int(number) for number in found.groups()[:3]))
        config.devices.setdefault(at, {"device": ""})[found[4]] = value


def _read_file(process: Process, config: Config, path: str) -> None:
    text = process.system.files.read(process.path(path)).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if "=" not in line:
            process.complain(f"{path} line {number}: invalid config option '{line}'")
            raise Exit(4)
        _set(process, config, line.strip())
