"""Hosts, guests and transports that do what a test tells them, and remember what was asked.

Nothing here may run a command of a real guest system on this machine: :class:`FakeOS` has
harmless ones in place of those that end a machine.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from hil.bench import BenchDevice, BenchHost
from hil.console.console import loop
from hil.deadline import Deadline
from hil.errors import HilError, LabError, LabRefusalError
from hil.guests.linux import LinuxGuest
from hil.iommu.faults import FaultRecord
from hil.iommu.memory import PhysicalMemory
from hil.iommu.vtd import VtdTables
from hil.journal import LINUX, Journal, Kind
from hil.pci.address import Address
from hil.pci.config import ConfigSpace
from hil.platforms.contract import (
    Bar,
    Canary,
    Feature,
    Function,
    GuestSpec,
    HostFacts,
    MachineState,
    Owner,
    Phase,
    Platform,
    Reservation,
    Template,
)
from hil.platforms.linux_undo import KINDS
from hil.transport.base import OUTPUT_LIMIT, ByteStream, Result, Transport
from hil.transport.keys import generate
from tests.console.streams import PtyStream, ScriptedStream
from tests.iommu.vtd_builder import Image

NIC = Address.parse("0000:01:00.0")
DISK = Address.parse("0000:02:00.0")


def soon(seconds: float = 60.0) -> Deadline:
    return Deadline(seconds, "a test's step")


def config(
    vendor: int = 0x8086,
    device: int = 0x10C9,
    *,
    header_type: int = 0,
    command: int = 0,
    subsystem: tuple[int, int] = (0, 0),
    capabilities: Sequence[tuple[int, bytes]] = (),
) -> ConfigSpace:
    """A configuration space with these capabilities: (id, what follows the link byte)."""
    data = bytearray(256)
    struct.pack_into("<HHHH", data, 0, vendor, device, command, 0x10 if capabilities else 0)
    data[0x0E] = header_type
    struct.pack_into("<HH", data, 0x2C, *subsystem)
    link, at = 0x34, 0x40
    for identity, body in capabilities:
        data[link] = at
        data[at : at + 2 + len(body)] = bytes([identity, 0]) + body
        link, at = at + 1, at + (len(body) + 5) // 4 * 4
    return ConfigSpace(bytes(data))


#: Bodies of capabilities: MSI; MSI-X with 4 vectors; PCI Express with FLR; PM without
#: soft reset, and PM whose way through D3hot resets nothing.
MSI = (0x05, bytes(12))
MSIX = (0x11, struct.pack("<HII", 3, 0, 0x2000))
FLR = (0x10, struct.pack("<HI", 2, 1 << 28) + bytes(28))
PM_RESETS = (0x01, struct.pack("<HH", 3, 0))
PM_KEEPS = (0x01, struct.pack("<HH", 3, 8))


def function(
    address: Address = NIC,
    *,
    config: ConfigSpace = config(capabilities=[MSI, FLR]),  # noqa: B008 - frozen
    driver: str | None = "igb",
    group: int | None = 1,
    bars: Iterable[Bar] = (),
    reset_methods: Sequence[str] = ("flr",),
    physical_function: Address | None = None,
    virtual_functions: Sequence[Address] = (),
    interfaces: Sequence[str] = (),
    in_use_as: str = "",
) -> Function:
    return Function(
        address,
        config.vendor,
        config.device,
        config,
        driver,
        driver == "stub",
        group,
        tuple(bars),
        tuple(reset_methods),
        physical_function,
        tuple(virtual_functions),
        0,
        tuple(interfaces),
        in_use_as,
    )


Answer = tuple[int, bytes | str, bytes | str]


def changing(command: Sequence[str]) -> Sequence[str]:
    """The command itself of one that is run together with its entry in a journal."""
    written = command[:2] == ["sh", "-c"] and "hil: the journal" in command[2]
    return command[9:] if written else command


class FakeTransport:
    """Answers commands by a function: (command, standard input) to (status, out, err).

    What a journal records together with a command is left out.
    """

    def __init__(
        self,
        answer: Callable[[tuple[str, ...], bytes], Answer] = lambda _command, _stdin: (0, "", ""),
        name: str = "lab1",
    ) -> None:
        self.name = name
        self.answer = answer
        self.commands: list[tuple[str, ...]] = []
        self.files: dict[str, bytes] = {}
        self.streams: list[ByteStream] = []
        self.closed = False

    def run(
        self,
        command: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        limit: int = OUTPUT_LIMIT,
    ) -> Result:
        deadline.check()
        command = changing(command)
        self.commands.append(tuple(command))
        status, out, err = self.answer(tuple(command), stdin)
        return Result(tuple(command), status, _bytes(out), _bytes(err), 0.0, self.name)

    def open_stream(self, command: Sequence[str], *, deadline: Deadline) -> ByteStream:
        self.commands.append(tuple(command))
        if not self.streams:
            raise LabError("no stream here", host=self.name)
        return self.streams.pop(0)

    def put(self, data: bytes, path: str, *, deadline: Deadline, mode: int = 0o644) -> None:
        self.files[path] = data

    def get(self, path: str, *, deadline: Deadline, limit: int = OUTPUT_LIMIT) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise LabError(f"no file {path}", host=self.name) from None

    def close(self) -> None:
        self.closed = True


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


class FakeOS(LinuxGuest):
    """Linux whose commands that end a machine end nothing here."""

    def power_off(self) -> list[str]:
        return ["echo", "power off"]

    def reboot(self) -> list[str]:
        # The log-in shell and what hil runs in it; see SHELL.
        return ["kill", "-9", "$LOGIN_SHELL", "$$"]

    def crash(self) -> list[str]:
        return ["printf", "[   10.000000] Kernel panic - not syncing: sysrq triggered crash\\r\\n"]

    def triple_fault(self) -> list[str]:
        return ["echo", "triple fault"]

    def is_up(self) -> str:
        return "true"

    def before_saving(self) -> str:
        return "echo about to be saved"

    def after_continuing(self, name: str, now: float, key: str) -> str:
        return f"echo continued as {name}"


#: A console that asks for a log-in, again and again, and counts into the file $1.
SHELL = r"""
n=0
while :; do
    n=$((n + 1)); echo "boot $n" > "$1"
    printf '[    0.000000] Linux version 6.1.0\r\nguest login: '
    read -r user || exit
    sh -c 'export LOGIN_SHELL=$$; exec sh -i +m'
done
"""


class FakeMachine:
    """A guest on the hypervisor's side; its console is a stream that the test gives."""

    def __init__(self, spec: GuestSpec, stream: ByteStream, ssh: Transport | None = None) -> None:
        self.spec = spec
        self.stream = stream
        self.transport: Transport = ssh or FakeTransport(name=spec.name)
        self.memory: Callable[[int, int], bytes] = lambda _, length: bytes(length)
        self.found: dict[str, tuple[int, ...]] = {}
        self.at = MachineState.PREPARED
        self.destroyed = 0
        self.refusal: HilError | None = None
        """What :meth:`destroy` raises."""
        self.words = ""

    @property
    def guest_addresses(self) -> Mapping[Address, Address]:
        return {a: Address(0, 0, 16 + i, 0) for i, a in enumerate(self.spec.devices)}

    def console(self, deadline: Deadline) -> ByteStream:
        return self.stream

    def start(self, deadline: Deadline) -> None:
        self.at = MachineState.RUNNING
        if self.spec.template is not None and (shell := self.spec.template.shell):
            # In the saved guest's memory its console's shell waits; here it starts.
            waits = """stty -echo -opost; sh -c 'IFS= read -r a; eval "$a"'"""
            text = f"root\n{waits}\n{loop(shell[:8], shell[8:])}\n"
            self.stream.write(text.encode())

    def save(self, path: str, deadline: Deadline) -> Template:
        self.at = MachineState.STOPPED
        spec = self.spec
        return Template(spec.image, spec.memory, spec.cpus, path, generate())

    def state(self, deadline: Deadline) -> MachineState:
        return self.at

    def ssh(self, deadline: Deadline) -> Transport:
        return self.transport

    def reset(self, deadline: Deadline) -> None:
        raise NotImplementedError

    def nmi(self, deadline: Deadline) -> None:
        raise NotImplementedError

    def kill(self, deadline: Deadline) -> None:
        self.at = MachineState.CRASHED

    def destroy(self, deadline: Deadline) -> None:
        self.destroyed += 1
        if self.refusal is not None:
            raise self.refusal
        self.at = MachineState.DESTROYED

    def read_physical(self, address: int, length: int, deadline: Deadline) -> bytes:
        return self.memory(address, length)

    def search_physical(self, texts: Sequence[str], deadline: Deadline) -> list[tuple[int, ...]]:
        return [self.found.get(text, ()) for text in texts]

    def failure(self) -> str:
        return self.words


class FakeCanary:
    def __init__(self) -> None:
        self.changed: list[str] = []
        self.closed = False

    def changes(self, deadline: Deadline) -> tuple[str, ...]:
        return tuple(self.changed)

    def spoil(self, offset: int, data: bytes, deadline: Deadline) -> None:
        self.changed.append(f"byte {offset:#x}")

    def close(self, deadline: Deadline) -> None:
        self.closed = True


class FakePlatform(Platform):
    """A host held in dictionaries; ``log`` tells in order what was done to it."""

    name = "fake"
    stub_driver = "stub"
    dialect = LINUX
    undo_kinds: tuple[Kind, ...] = KINDS
    domains: Mapping[Phase, Owner] = {
        Phase.BOOT: Owner.HOST,
        Phase.IDLE: Owner.NOBODY,
        Phase.ASSIGNED: Owner.GUEST,
        Phase.DESTROYED: Owner.NOBODY,
        Phase.RETURNED: Owner.HOST,
    }

    def __init__(self, *functions: Function) -> None:
        self.host = "lab1"
        self.fake_transport = FakeTransport()
        self.transport = self.fake_transport
        self.journal = Journal(self.transport, self.dialect, self.undo_kinds)
        self.known = {f.address: f for f in functions}
        self.log: list[str] = []
        self.machines: list[FakeMachine] = []
        self.refusals: dict[str, HilError] = {}
        """Raised by what the log would call so, for example ``give back 0000:01:00.0``."""
        self.image = Image()
        self.fault_log: list[FaultRecord] = []
        self.counts: list[dict[str, int]] = []
        """What interrupts and footprint say, in turn; the last for ever."""
        self.canaries: list[FakeCanary] = []
        self.new_stream: Callable[[], ByteStream] = shell
        self.can: frozenset[Feature] = frozenset()

    def _do(self, what: str) -> None:
        self.log.append(what)
        if what in self.refusals:
            raise self.refusals[what]

    @property
    def features(self) -> frozenset[Feature]:
        return self.can

    def facts(self, deadline: Deadline) -> HostFacts:
        return HostFacts("FakeOS", "1", "none", "none", 1 << 30, "vt-d", True)

    def functions(self, deadline: Deadline) -> tuple[Function, ...]:
        return tuple(self.known[address] for address in sorted(self.known))

    def function(self, address: Address, deadline: Deadline) -> Function:
        return self.known[address]

    def read_config(self, address: Address, deadline: Deadline) -> ConfigSpace:
        deadline.check()
        return self.known[address].config

    def write_config(self, address: Address, offset: int, value: bytes, deadline: Deadline) -> None:
        deadline.check()
        data = bytearray(self.known[address].config.data)
        data[offset : offset + len(value)] = value
        self.known[address] = replace(self.known[address], config=ConfigSpace(bytes(data)))

    def reset(self, address: Address, deadline: Deadline, method: str = "") -> None:
        self._do(f"reset {address}" + (f" by {method}" if method else ""))

    def _bind(self, address: Address, driver: str | None) -> None:
        bound = replace(self.known[address], driver=driver, reserved=driver == "stub")
        self.known[address] = bound

    def reserve(self, addresses: Sequence[Address], deadline: Deadline) -> Reservation:
        drivers = {a: self.known[a].driver for a in addresses if not self.known[a].reserved}
        for address in addresses:
            self._do(f"reserve {address}")
            self._bind(address, "stub")
        return Reservation(tuple(addresses), drivers)

    def give_back(self, reservation: Reservation, deadline: Deadline) -> None:
        for address in reservation.addresses:
            self._do(f"give back {address}")
            self._bind(address, reservation.previous_drivers.get(address))

    def create_vfs(self, address: Address, count: int, deadline: Deadline) -> tuple[Address, ...]:
        self._do(f"create {count} VFs of {address}")
        made = tuple(Address(address.domain, address.bus, 16, index) for index in range(count))
        for vf in made:
            self.known[vf] = function(vf, physical_function=address, driver="igbvf")
        return made

    def remove_vfs(self, address: Address, deadline: Deadline) -> None:
        self._do(f"remove VFs of {address}")
        self.known = {a: f for a, f in self.known.items() if f.physical_function != address}

    def iommu_in_use(self, deadline: Deadline) -> bool:
        return True

    def replug(self, address: Address, deadline: Deadline) -> None:
        self._do(f"replug {address}")

    def create_guest(self, spec: GuestSpec, deadline: Deadline) -> FakeMachine:
        self._do(f"create {spec.name}")
        held = {a for m in self.machines if m.at is not MachineState.DESTROYED for a in _held(m)}
        if held & set(spec.devices):
            raise LabRefusalError("the device is busy")
        machine = FakeMachine(spec, self.new_stream())
        self.machines.append(machine)
        return machine

    def guests(self, deadline: Deadline) -> tuple[str, ...]:
        return tuple(m.spec.name for m in self.machines if m.at is not MachineState.DESTROYED)

    def tables(self, deadline: Deadline) -> VtdTables:
        return VtdTables(self.image, self.image.root)

    def faults(self, deadline: Deadline) -> tuple[FaultRecord, ...]:
        return tuple(self.fault_log)

    def physical_memory(self, deadline: Deadline) -> PhysicalMemory:
        return self.image

    def canary(self, size: int, deadline: Deadline) -> Canary:
        self.canaries.append(FakeCanary())
        return self.canaries[-1]

    def interrupts(self, address: Address, deadline: Deadline) -> Mapping[str, int]:
        return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]

    def footprint(self, deadline: Deadline) -> Mapping[str, int]:
        return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]

    def kernel_log(self, deadline: Deadline) -> str:
        return ""


def _held(machine: FakeMachine) -> tuple[Address, ...]:
    return machine.spec.devices


def shell() -> ByteStream:
    """A console on which a shell's prompt stands already."""
    return PtyStream(["sh", "-i"])


def silent() -> ByteStream:
    """A console on which nothing ever comes."""
    return ScriptedStream()


def bench_device(
    name: str = "nic0", address: Address = NIC, platform: FakePlatform | None = None
) -> tuple[BenchDevice, FakePlatform]:
    """A device on a fake host, which has one if none is given."""
    platform = platform or FakePlatform(function(address))
    host = BenchHost("lab1", platform, pace=0.05)
    return BenchDevice(name, "nic", host, (address,)), platform
