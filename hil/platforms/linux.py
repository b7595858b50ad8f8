"""Linux with VFIO and QEMU/KVM.

Base tools only (``sh``, coreutils, findutils, ``dmesg``, ``ip``) plus QEMU itself.
Sources: Documentation/driver-api/vfio.rst, Documentation/ABI/testing/sysfs-bus-pci,
Documentation/PCI/pci-iov-howto.rst of the Linux kernel.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hil import events
from hil.deadline import Deadline, poll
from hil.errors import (
    CommandError,
    DeadlineExceeded,
    HilError,
    InventoryError,
    LabError,
    LabRefusalError,
    ProductError,
)
from hil.guests.images import GuestImage, image_named
from hil.guests.linux import LinuxGuest
from hil.iommu.faults import FaultRecord, parse_fault_log
from hil.iommu.host import host_tables
from hil.iommu.memory import CachedMemory, PhysicalMemory
from hil.iommu.scope import Topology
from hil.iommu.tables import HostTables
from hil.journal import LINUX, Entry, Journal, Undo, card_of
from hil.pci.address import Address
from hil.pci.budget import Windows
from hil.pci.config import ConfigSpace
from hil.pci.vectors import VectorLimits
from hil.platforms import linux_undo
from hil.platforms.bar_windows import address_bits, q35
from hil.platforms.contract import (
    Canary,
    Feature,
    Function,
    GuestSpec,
    HostFacts,
    Machine,
    Owner,
    Phase,
    Platform,
    Reservation,
)
from hil.platforms.linux_canary import FileCanary
from hil.platforms.linux_guest import QemuMachine
from hil.platforms.linux_memory import KcoreMemory, read_device_memory
from hil.platforms.linux_survey import STUB, SURVEY, parse_survey
from hil.platforms.pinning import MIB, Pinning
from hil.platforms.reserving import passable, raise_all
from hil.transport.agent import Agent, AgentEndedError, program
from hil.transport.base import Result, Transport

SYSFS = "/sys/bus/pci/devices"
ACPI = "/sys/firmware/acpi/tables"
#: The first QEMU that migrates to and from files.
_SAVES_TO_FILE = (8, 2)
#: In place of a driver's name: whichever the kernel chooses.
_UNKNOWN = "?"


class OutOfBand(Protocol):
    """What an emulated lab can read of its host without the host's help."""

    def physical_memory(self) -> PhysicalMemory: ...

    def drhd_registers(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Registers:
    """The remapping units' registers; an emulated lab has one unit, Intel's."""

    transport: Transport
    out_of_band: OutOfBand | None
    deadline: Deadline

    def read(self, address: int, length: int) -> bytes:
        """As :meth:`hil.iommu.memory.PhysicalMemory.read`."""
        if self.out_of_band is not None:
            return self.out_of_band.drhd_registers()[:length]
        return read_device_memory(self.transport, address, length, self.deadline)


_BIND = r"""
d=/sys/bus/pci/devices/$1
echo "$2" > "$d/driver_override" || exit
if [ -e "$d/driver" ]; then echo "$1" > "$d/driver/unbind" || exit; fi
echo "$1" > /sys/bus/pci/drivers_probe
readlink "$d/driver"
true
"""

# Writing "default" gives the order of before (Documentation/ABI/testing/sysfs-bus-pci).
_RESET = r"""
d=/sys/bus/pci/devices/$1
[ -e "$d/reset" ] || { echo "no reset method" >&2; exit 1; }
if [ -n "$2" ]; then echo "$2" > "$d/reset_method" || exit; fi
echo 1 > "$d/reset"; status=$?
if [ -n "$2" ]; then echo default > "$d/reset_method"; fi
exit "$status"
"""

# $1 the run's folder, $2 its id: other runs may come and go.
_FOOTPRINT = r"""
n=0
for p in $(find /proc/[0-9]*/exe -lname '*/qemu-system-*' 2>/dev/null); do
    ! tr '\0' '\n' < "${p%/exe}/cmdline" 2>/dev/null | grep -q -F -e "path=$1/" || n=$((n + 1))
done
echo "guests $n"
echo "files $(find "$1" -mindepth 1 2>/dev/null | wc -l)"
echo "groups $(ls /dev/vfio 2>/dev/null | grep -c '^[0-9]')"
echo "canaries $(find /dev/shm -maxdepth 1 -name "hil-canary.$2.*" | wc -l)"
sed -n -e 's/^Mlocked: *\([0-9]*\) kB/locked_kib \1/p' \
    -e 's/^HugePages_Total: */huge_pages /p' /proc/meminfo
"""

# $1 the run's folder.  VFIO counts what it pins for a process as locked (vfio_lock_acct() in
# drivers/vfio/vfio_iommu_type1.c), IOMMUFD as pinned; /proc/meminfo's Mlocked has neither.
_PINNED = r"""
n=0
for p in $(find /proc/[0-9]*/exe -lname '*/qemu-system-*' 2>/dev/null); do
    p=${p%/exe}
    tr '\0' '\n' < "$p/cmdline" 2>/dev/null | grep -q -F -e "path=$1/" || continue
    for kib in $(sed -n 's/^Vm\(Lck\|Pin\):[^0-9]*\([0-9]*\) kB/\2/p' "$p/status" 2>/dev/null); do
        n=$((n + kib))
    done
done
echo "pinned $n"
sed -n 's/^MemAvailable: *\([0-9]*\) kB/available \1/p' /proc/meminfo
echo "limit $(ulimit -l)"
sed -n 's/^CapEff:[^0-9a-f]*/capabilities /p' /proc/self/status
"""
#: CAP_IPC_LOCK (linux/capability.h): RLIMIT_MEMLOCK does not bind who has it.
_IPC_LOCK = 1 << 14
_VECTORS = r"""
echo "processors $(grep -c '^processor' /proc/cpuinfo)"
echo "used $(grep -c '^ *[0-9][0-9]*:' /proc/interrupts)"
"""
#: Vectors of one processor for devices: from 0x20 to 0xeb, less two that the kernel keeps (6.1,
#: arch/x86/include/asm/irq_vectors.h).  An interrupt remapping unit has 65,536 entries
#: (drivers/iommu/intel/irq_remapping.h), which is more than 300 processors have.
_VECTORS_OF_PROCESSOR = 202


class LinuxVfio(Platform):
    """A Linux host whose guests run under QEMU/KVM.

    Args:
        host: the host's name in the inventory.
        transport: a root shell on it.
        images: the guest images it has.
        out_of_band: for an emulated host, the way to its memory that does not need it.
        directory: where guests' sockets go on the host, in a folder of the run; made when
            needed.
        features: what else this host can do.
        python: whether to use Python 3 on the host where it has it.
        shared: whether other runs use the host at the same time.
    """

    name = "linux-vfio"
    stub_driver = STUB
    #: QEMU maps the BARs of a passed function for the others too (hw/vfio/common.c,
    #: vfio_listener_region_add); what is between the functions may refuse it all the same.
    peer_to_peer = True
    dialect = LINUX
    undo_kinds = linux_undo.KINDS
    #: VFIO leaves a function in its host-owned default domain until a guest claims the
    #: group, and puts it back there when the guest is gone (drivers/iommu/iommu.c,
    #: iommu_group_claim_dma_owner and __iommu_group_set_core_domain).
    domains: Mapping[Phase, Owner] = {
        Phase.BOOT: Owner.HOST,
        Phase.IDLE: Owner.HOST,
        Phase.ASSIGNED: Owner.GUEST,
        Phase.DESTROYED: Owner.HOST,
        Phase.RETURNED: Owner.HOST,
    }

    def __init__(
        self,
        host: str,
        transport: Transport,
        *,
        images: Iterable[GuestImage] = (),
        out_of_band: OutOfBand | None = None,
        directory: str = "/run/hil",
        features: Iterable[Feature] = (),
        python: bool = True,
        shared: bool = False,
    ) -> None:
        self.host = host
        self.transport = transport
        self.journal = Journal(transport, self.dialect, self.undo_kinds)
        self.images = {image.name: image for image in images}
        self._out_of_band = out_of_band
        self._directory = f"{directory.rstrip('/')}/{self.journal.run}"
        self._shared = shared
        self._taken: dict[Address, Entry] = {}
        self._made_vfs: dict[Address, Entry] = {}
        self._agent_tried = not python
        self._running_agent: Agent | None = None
        self._facts: HostFacts | None = None
        self._more_features = frozenset(features)

    @functools.cached_property
    def features(self) -> frozenset[Feature]:
        """What this host can do, tried out once."""
        deadline = Deadline(60, f"a look at what {self.host} can do")
        found = {Feature.GUEST_MEMORY, Feature.RAW_FRAMES, Feature.SRIOV, *self._more_features}
        found |= {Feature.LINE_INTERRUPTS, Feature.RESTARTS_AFTER_TRIPLE_FAULT}
        found.add(Feature.PINNED_MEMORY)
        facts = self.facts(deadline)
        version = re.match(r"QEMU (\d+)\.(\d+)", facts.hypervisor)
        if version and (int(version[1]), int(version[2])) >= _SAVES_TO_FILE:
            found.add(Feature.TEMPLATES)
        if facts.iommu_enabled:
            found |= {Feature.IOMMU, Feature.FAULTS}
        for feature, attempt in (
            (Feature.TABLES, self.tables),
            (Feature.PHYSICAL_MEMORY, self.physical_memory),
        ):
            with contextlib.suppress(LabError, ProductError):
                attempt(deadline)
                found.add(feature)
        return frozenset(found)

    # ---- facts -----------------------------------------------------------------

    def facts(self, deadline: Deadline) -> HostFacts:
        """What the host is: asked once, since all of it lasts until its next boot."""
        if self._facts is None:
            self._facts = self._ask_for_facts(deadline)
        return self._facts

    def _ask_for_facts(self, deadline: Deadline) -> HostFacts:
        text = self._sh(
            r"""
            . /etc/os-release; echo "os=$PRETTY_NAME"
            echo "kernel=$(uname -srv)"
            echo "qemu=$(qemu-system-x86_64 --version 2>/dev/null | head -n 1)"
            [ -e /dev/kvm ] && echo kvm=yes
            sed -n 's/^model name[^:]*: /cpu=/p' /proc/cpuinfo | head -n 1
            sed -n 's/^MemTotal: *\([0-9]*\) kB/memory=\1/p' /proc/meminfo
            [ -e /sys/firmware/acpi/tables/DMAR ] && echo iommu=vt-d
            [ -e /sys/firmware/acpi/tables/IVRS ] && echo iommu=amd-vi
            [ -n "$(ls -A /sys/class/iommu 2>/dev/null)" ] && echo enabled=yes
            echo "cmdline=$(cat /proc/cmdline)"
            cd /sys/class/dmi/id 2>/dev/null &&
                echo "firmware=$(cat bios_vendor bios_version bios_date | tr '\n' ' ')"
            true
            """,
            deadline=deadline,
        )
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        qemu = found.get("qemu", "")
        version = re.search(r"version ([\d.]+)", qemu)
        return HostFacts(
            os=found.get("os", "Linux"),
            kernel=found.get("kernel", ""),
            hypervisor=(f"QEMU {version[1]}" if version else "no QEMU")
            + (" with KVM" if "kvm" in found else " without KVM"),
            cpu=found.get("cpu", ""),
            memory=int(found.get("memory", "0")) * 1024,
            iommu=found.get("iommu", "none"),
            iommu_enabled="enabled" in found,
            extra={
                "cmdline": found.get("cmdline", ""),
                "firmware": found.get("firmware", "").strip(),
            },
        )

    def bar_windows(self, deadline: Deadline) -> Windows:
        """Where guests of this host get their BARs: as far as its processor's addresses go."""
        text = self._sh("grep -m1 '^address sizes' /proc/cpuinfo; true", deadline=deadline)
        return q35(address_bits(text))

    def pinning(self, deadline: Deadline) -> Pinning:
        """What this run's guests have pinned, and what is available."""
        found = self._numbers(_PINNED, self._directory, deadline=deadline)
        limited = not int(found["capabilities"], 16) & _IPC_LOCK and found["limit"].isdigit()
        return Pinning(
            free=int(found["available"]) << 10,
            bound="MemAvailable",
            pinned=int(found["pinned"]) << 10,
            guests_only=True,
            per_guest=int(found["limit"]) << 10 if limited else None,
            # Measured with QEMU 10: 20 to 45 MiB, and nothing pinned but the guest's memory.
            besides=64 * MIB,
            overhead=4 * MIB,
        )

    def vector_limits(self, deadline: Deadline) -> VectorLimits:
        """Vectors of all its processors; VFIO takes as many as the guest's driver asks for."""
        found = self._numbers(_VECTORS, deadline=deadline)
        processors = int(found["processors"])
        return VectorLimits(
            name=f"{_VECTORS_OF_PROCESSOR} for each of {processors} processors",
            total=_VECTORS_OF_PROCESSOR * processors,
            used=int(found["used"]),
            whole_table=False,
        )

    def _numbers(self, script: str, *arguments: object, deadline: Deadline) -> dict[str, str]:
        """The words behind each first word that a script prints."""
        text = self._sh(script, *arguments, deadline=deadline)
        return dict(line.split(maxsplit=1) for line in text.splitlines())

    def functions(self, deadline: Deadline) -> tuple[Function, ...]:
        return parse_survey(self._survey("*", deadline), self.host)

    def function(self, address: Address, deadline: Deadline) -> Function:
        found = parse_survey(self._survey(str(address), deadline), self.host)
        if not found:
            raise LabError(
                f"host {self.host} has no PCI function {address}",
                host=self.host,
                hint="see what it has with: hil devices",
            )
        return found[0]

    def _survey(self, pattern: str, deadline: Deadline) -> str:
        agent = self._agent(deadline)
        if agent is not None:
            return str(agent.ask("survey", deadline, pattern=pattern))
        command = ["sh", "-c", SURVEY, "hil", pattern]
        return self.transport.run(command, deadline=deadline).check().stdout

    def _agent(self, deadline: Deadline) -> Agent | None:
        """A program on the host that answers faster than processes start, if it has Python."""
        running = self._running_agent
        if self._agent_tried and (running is None or not running.ended):
            return running
        code = program("hil.platforms.remote", "on_host")
        try:
            self._running_agent = Agent(self.transport, code, deadline)
        except AgentEndedError:
            self._running_agent = None
        self._agent_tried = True
        return self._running_agent

    def read_config(self, address: Address, deadline: Deadline) -> ConfigSpace:
        agent = self._agent(deadline)
        if agent is not None:
            text = agent.ask("config", deadline, address=str(address))
            return ConfigSpace(base64.b64decode(text))
        return ConfigSpace(self.transport.get(f"{SYSFS}/{address}/config", deadline=deadline))

    def write_config(self, address: Address, offset: int, value: bytes, deadline: Deadline) -> None:
        self.transport.run(
            [
                "dd",
                f"of={SYSFS}/{address}/config",
                f"bs={len(value)}",
                "count=1",
                f"seek={offset}",
                "oflag=seek_bytes",
                "conv=notrunc",
                "status=none",
            ],
            stdin=value,
            deadline=deadline,
        ).check()

    def reset(self, address: Address, deadline: Deadline, method: str = "") -> None:
        with events.step(f"reset {address} on {self.host}" + (f" by {method}" if method else "")):
            result = self.transport.run(
                ["sh", "-c", _RESET, "hil", str(address), method], deadline=deadline
            )
            if result.status != 0:
                raise ProductError(
                    f"the host could not reset {address}",
                    host=self.host,
                    seen=result.stderr,
                    hint="its reset methods stand in: hil devices",
                )

    # ---- reserve and return ------------------------------------------------------

    def reserve(self, addresses: Sequence[Address], deadline: Deadline) -> Reservation:
        everything = {f.address: f for f in self.functions(deadline)}
        chosen = [self._passable(everything, address) for address in addresses]
        for function in chosen:
            self._check_group(function, everything.values(), set(addresses))
            self._check_vfs(function, deadline, "its driver stays")
        self._load_stub(deadline)
        reservation = Reservation(
            tuple(addresses), {f.address: f.driver for f in chosen if not f.reserved}
        )
        with events.step(f"reserve {', '.join(map(str, addresses))} on {self.host}"):
            try:
                for function in chosen:
                    self._take(function, deadline)
            except HilError:
                self.give_back(reservation, deadline)
                raise
        return reservation

    def give_back(self, reservation: Reservation, deadline: Deadline) -> None:
        with events.step(f"return {', '.join(map(str, reservation.addresses))} on {self.host}"):
            for address in reservation.addresses:
                if self._held(address, deadline):
                    raise LabRefusalError(
                        f"{address} is held by a guest and cannot be returned",
                        host=self.host,
                        hint="destroy the guest first",
                    )
            failures: list[HilError] = []
            for address in reversed(reservation.addresses):
                try:
                    self._bind(
                        address, reservation.previous_drivers.get(address, _UNKNOWN), deadline
                    )
                    if entry := self._taken.pop(address, None):
                        self.journal.forget(entry)
                except HilError as error:
                    failures.append(error)
            raise_all(failures)

    def _load_stub(self, deadline: Deadline) -> None:
        agent = self._agent(deadline)
        if agent is not None:
            agent.ask("load", deadline, driver=STUB)
        else:
            self._sh(f"modprobe {STUB}", deadline=deadline)

    def _passable(self, everything: Mapping[Address, Function], address: Address) -> Function:
        function = passable(everything, address, self.host)
        if function.group is None:
            raise LabRefusalError(
                f"{address} has no IOMMU group: the IOMMU of {self.host} is off or absent",
                host=self.host,
                hint="switch on VT-d or AMD-Vi in the firmware and boot with intel_iommu=on",
            )
        return function

    def _check_group(
        self, function: Function, everything: Iterable[Function], chosen: set[Address]
    ) -> None:
        left_behind = [
            other
            for other in everything
            if other.group == function.group
            and other.address not in chosen
            and other.config.header_type == 0
            and not other.reserved
            and other.driver is not None
        ]
        if left_behind:
            names = ", ".join(f"{o.address} ({o.driver})" for o in left_behind)
            raise InventoryError(
                f"{function.address} shares IOMMU group {function.group} with {names}",
                host=self.host,
                hint="functions of one group travel together: name them all in the device",
            )

    def _check_vfs(self, function: Function, deadline: Deadline, what_stays: str) -> None:
        # The kernel would take an assigned VF out from under its guest (VFIO does not set
        # PCI_DEV_FLAGS_ASSIGNED), or wait for that guest for ever where the PF's driver goes; so
        # the refusal that users expect is made here.
        for vf in function.virtual_functions:
            if self._held(vf, deadline):
                raise LabRefusalError(
                    f"VF {vf} of {function.address} is held by a guest; {what_stays}",
                    host=self.host,
                    hint="destroy the guest first",
                )

    def _take(self, function: Function, deadline: Deadline) -> None:
        """Bind to the stub, the way back being recorded where it is known."""
        address = function.address
        undo = None
        if not function.reserved and address not in self._taken:
            undo = Undo(linux_undo.DRIVER.name, (str(address), function.driver or "none"))
        self._bind(address, STUB, deadline, undo, card_of(function.physical_function or address))

    def _bind(
        self,
        address: Address,
        driver: str | None,
        deadline: Deadline,
        undo: Undo | None = None,
        guard: str = "",
    ) -> None:
        """Bind to ``driver``; ``None`` leaves the choice to the kernel, as at boot."""
        override = STUB if driver == STUB else ""
        agent = self._agent(deadline)
        if agent is not None:
            ask = functools.partial(
                agent.ask,
                "bind",
                deadline,
                address=str(address),
                override=override,
                lease=self.journal.lease,
            )
            if undo is None:
                now, error = ask()
            else:
                self._taken[address], (now, error) = self.journal.change_by(
                    undo, lambda record: ask(record=record), guard=guard
                )
        else:
            command = ["sh", "-c", _BIND, "hil", str(address), override]
            if undo is None:
                result = self.journal.run_alone(command, deadline=deadline)
            else:
                self._taken[address], result = self.journal.change(
                    undo, command, deadline=deadline, guard=guard
                )
            now, error = result.stdout.strip().rpartition("/")[2], result.stderr
        if error or (driver != _UNKNOWN and (now or None) != driver):
            raise ProductError(
                f"{address} should be bound to {driver or 'no driver'} "
                f"but is bound to {now or 'no driver'}",
                host=self.host,
                seen=error or self.kernel_log(deadline)[-1000:],
            )

    def _held(self, address: Address, deadline: Deadline) -> bool:
        agent = self._agent(deadline)
        if agent is not None:
            return bool(agent.ask("held", deadline, address=str(address)))
        return self._script(linux_undo.HELD, address, deadline=deadline).status == 0

    def create_vfs(self, address: Address, count: int, deadline: Deadline) -> tuple[Address, ...]:
        with events.step(f"create {count} VFs of {address} on {self.host}"):
            # VFs have a link only if their PF had one when they were made (igb).
            for interface in self.function(address, deadline).interfaces:
                self._link_up(interface, deadline)
            try:
                script = 'echo "$2" > "/sys/bus/pci/devices/$1/sriov_numvfs"'
                self._made_vfs[address], result = self.journal.change(
                    Undo(linux_undo.VFS.name, (str(address),)),
                    ["sh", "-c", script, "hil", str(address), str(count)],
                    deadline=deadline,
                    guard=card_of(address),
                )
                result.check()
                # igb answers no VF that it has given no address.
                for interface in self.function(address, deadline).interfaces:
                    for index in range(count):
                        mac = f"02:68:69:{address.bus:02x}:{address.device:02x}:{index:02x}"
                        command = ["ip", "link", "set", interface, "vf", str(index), "mac", mac]
                        self.transport.run(command, deadline=deadline).check()
            except CommandError as error:
                self._unmake_vfs(address, deadline)
                raise ProductError(
                    f"{address} did not make {count} VFs", host=self.host, seen=error.seen
                ) from error
        made = self.function(address, deadline).virtual_functions
        if len(made) != count:
            self._unmake_vfs(address, deadline)
            raise ProductError(
                f"{address} was to make {count} VFs and has {len(made)}", host=self.host
            )
        return made

    def _unmake_vfs(self, address: Address, deadline: Deadline) -> None:
        # What cannot be undone now stays in the journal, which tries again and says so.
        with contextlib.suppress(LabError):
            self.journal.undo(self._made_vfs.pop(address), deadline)

    def _link_up(self, interface: str, deadline: Deadline) -> None:
        """Bring an interface up; a cable that is not plugged in is waited for in vain."""
        self._sh('ip link set "$1" up', interface, deadline=deadline)
        carrier = ["cat", f"/sys/class/net/{interface}/carrier"]
        with contextlib.suppress(DeadlineExceeded):
            poll(
                lambda: self.transport.run(carrier, deadline=deadline).stdout.strip() == "1",
                deadline.within(10, f"the link of {interface}"),
            )

    def remove_vfs(self, address: Address, deadline: Deadline) -> None:
        self._check_vfs(self.function(address, deadline), deadline, "the VFs stay")
        with events.step(f"remove the VFs of {address} on {self.host}"):
            script = 'echo 0 > "/sys/bus/pci/devices/$1/sriov_numvfs"'
            command = ["sh", "-c", script, "hil", str(address)]
            self.journal.run_alone(command, deadline=deadline).check()
            if entry := self._made_vfs.pop(address, None):
                self.journal.forget(entry)

    def replug(self, address: Address, deadline: Deadline) -> None:
        script = r"""
        echo 1 > "/sys/bus/pci/devices/$1/remove" || exit
        echo 1 > /sys/bus/pci/rescan
        [ -e "/sys/bus/pci/devices/$1" ]
        """
        with events.step(f"remove {address} on {self.host} and find it again"):
            result = self._script(script, address, deadline=deadline)
        if result.status != 0:
            raise ProductError(
                f"{address} was removed and is not found again", host=self.host, seen=result.stderr
            )

    # ---- guests ------------------------------------------------------------------

    def create_guest(self, spec: GuestSpec, deadline: Deadline) -> Machine:
        image = image_named(spec.image, self.images, self.host)
        machine = QemuMachine(self.host, self.transport, spec, image, self._directory, self.journal)
        with events.step(f"create guest {spec.name} on {self.host}"):
            machine.create(deadline)
        return machine

    def guests(self, deadline: Deadline) -> tuple[str, ...]:
        text = self._sh(
            r"""
            for e in $(find /proc/[0-9]*/exe -lname '*/qemu-system-*' 2>/dev/null); do
                tr '\0' '\n' < "${e%/exe}/cmdline" | grep -A1 -x -e -name | sed -n 2p
            done
            true
            """,
            deadline=deadline,
        )
        return tuple(sorted(line.removeprefix("guest=").split(",")[0] for line in text.split()))

    # ---- the IOMMU, memory, interrupts -------------------------------------------

    def tables(self, deadline: Deadline) -> HostTables:
        dmar, ivrs = self._acpi(deadline)
        tables = host_tables(
            dmar=dmar,
            ivrs=ivrs,
            registers=_Registers(self.transport, self._out_of_band, deadline),
            memory=CachedMemory(self.physical_memory(deadline)),
            topology=lambda: Topology.of(self.functions(deadline)),
        )
        if not tables.enabled:
            raise ProductError(
                f"DMA remapping is off on {self.host}", seen=tables.describe(), host=self.host
            )
        return tables

    def _acpi(self, deadline: Deadline) -> tuple[bytes | None, bytes | None]:
        """The firmware's tables of IOMMUs, Intel's and AMD's; read once."""
        if self._acpi_read is None:
            listed = self.transport.run(["ls", ACPI], deadline=deadline).check().stdout.split()
            dmar, ivrs = (
                self.transport.get(f"{ACPI}/{name}", deadline=deadline) if name in listed else None
                for name in ("DMAR", "IVRS")
            )
            self._acpi_read = dmar, ivrs
        return self._acpi_read

    _acpi_read: tuple[bytes | None, bytes | None] | None = None

    def iommu_in_use(self, deadline: Deadline) -> bool:
        return self.facts(deadline).iommu_enabled

    def faults(self, deadline: Deadline) -> tuple[FaultRecord, ...]:
        return parse_fault_log(self.kernel_log(deadline))

    def physical_memory(self, deadline: Deadline) -> PhysicalMemory:
        if self._out_of_band is not None:
            return self._out_of_band.physical_memory()
        return KcoreMemory(self.transport, deadline)

    def canary(self, size: int, deadline: Deadline) -> Canary:
        return FileCanary.fill(self.transport, self.journal, size, deadline)

    def interrupts(self, address: Address, deadline: Deadline) -> Mapping[str, int]:
        system = LinuxGuest()
        result = self.transport.run(system.list_interrupts(address), deadline=deadline)
        return system.parse_interrupts(result.check().stdout)

    def footprint(self, deadline: Deadline) -> Mapping[str, int]:
        agent = self._agent(deadline)
        if agent is not None:
            counts: dict[str, int] = agent.ask(
                "footprint", deadline, directory=self._directory, run=self.journal.run
            )
        else:
            text = self._sh(_FOOTPRINT, self._directory, self.journal.run, deadline=deadline)
            pairs = (line.split() for line in text.splitlines())
            counts = {key: int(value) for key, value in pairs}
        if self._shared:
            return {name: counts[name] for name in ("guests", "files", "canaries")}
        if Feature.TABLES in self.features:
            entries = list(self.tables(deadline).entries())
            counts["table entries"] = len(entries)
            counts["domains"] = len({entry.domain for entry in entries})
        return counts

    def kernel_log(self, deadline: Deadline) -> str:
        return self.transport.run(["dmesg"], deadline=deadline).check().stdout

    def _script(self, script: str, *arguments: object, deadline: Deadline) -> Result:
        command = ["sh", "-c", script, "hil", *map(str, arguments)]
        return self.transport.run(command, deadline=deadline)

    def _sh(self, script: str, *arguments: object, deadline: Deadline) -> str:
        return self._script(script, *arguments, deadline=deadline).check().stdout
