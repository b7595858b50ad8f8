"""vmm's own IOMMU code: which tables it lays out in memory, and when.

Modelled on FreeBSD's sys/amd64/vmm/io/iommu.c, intel/vtd.c and amd/amdvi_hw.c: their order of
writes, and what they leave behind.  The hardware that reads the tables is
:mod:`hil.simulated.iommu`.
"""

from __future__ import annotations

import array
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hil.simulated import iommu
from hil.simulated.errno import Errno
from hil.simulated.faults import FaultSet
from hil.simulated.memory import MIB, PAGE, HostMemory
from hil.simulated.panic import HostPanic

_ADDRESS = (1 << 52) - PAGE
_ENTRIES = 512


@dataclass(eq=False, slots=True)
class Domain:
    """A set of page tables, and its id."""

    id: int
    root: int
    """Physical address of the topmost table."""
    levels: int
    width: int
    """VT-d's AW field."""
    tables: list[int] = field(default_factory=list)
    """Pages of the tables below the topmost one."""


class IommuDriver(ABC):
    """One vendor's half of vmm's IOMMU code.

    Args:
        memory: where the tables are laid out.
        faults: the bugs that it has.
        log: a line for the kernel's message buffer.
    """

    def __init__(self, memory: HostMemory, faults: FaultSet, log: Callable[[str], None]) -> None:
        self.memory = memory
        self.faults = faults
        self.log = log
        self.domains: list[Domain] = []

    @abstractmethod
    def init(self, tunables: Mapping[str, str]) -> Errno | None:
        """Find the units.  What is wrong, if something is."""

    @abstractmethod
    def create_domain(self, limit: int) -> Domain:
        """A domain that can map addresses below ``limit``."""

    @abstractmethod
    def add_device(self, domain: Domain, requester_id: int) -> None:
        """Let a function's DMA go through a domain's tables."""

    @abstractmethod
    def remove_device(self, domain: Domain | None, requester_id: int) -> None:
        """Take it out; it is in no domain then."""

    @abstractmethod
    def block(self, requester_id: int) -> None:
        """Let a function's entry refuse everything, before the units are switched on."""

    @abstractmethod
    def enable(self) -> None:
        """Switch the units on."""

    @abstractmethod
    def disable(self) -> None:
        """Switch them off: nothing is translated."""

    @abstractmethod
    def invalidate(self, domain: Domain) -> None:
        """Drop cached translations."""

    @abstractmethod
    def unload(self) -> None:
        """Forget everything: the static memory of vmm.ko goes with it."""

    def destroy_domain(self, domain: Domain) -> None:
        """Free a domain and its tables."""
        for page in (domain.root, *domain.tables):
            self.memory.release(page, PAGE)
        self.domains.remove(domain)

    # -- page tables: alike on both, but for the bits ---------------------------------------

    @abstractmethod
    def _leaf(self, physical: int) -> int:
        """An entry that maps a page."""

    @abstractmethod
    def _branch(self, table: int, level: int) -> int:
        """An entry of ``level`` that leads to the next table."""

    def map(self, domain: Domain, address: int, physical: int, length: int) -> None:
        """Map pages of 4 KiB, as both drivers do whatever the length."""
        while length:
            table = self._last_table(domain, address)
            index = address // PAGE % _ENTRIES
            count = min(_ENTRIES - index, length // PAGE)
            first = self._leaf(physical)
            entries = array.array("Q", range(first, first + count * PAGE, PAGE))
            self.memory.write(table + 8 * index, entries.tobytes())
            address += count * PAGE
            physical += count * PAGE
            length -= count * PAGE

    def unmap(self, domain: Domain, address: int, length: int) -> None:
        """Take pages out; the tables stay."""
        while length:
            table = self._last_table(domain, address)
            index = address // PAGE % _ENTRIES
            count = min(_ENTRIES - index, length // PAGE)
            self.memory.write(table + 8 * index, bytes(8 * count))
            address += count * PAGE
            length -= count * PAGE

    def _last_table(self, domain: Domain, address: int) -> int:
        table = domain.root
        for level in range(domain.levels, 1, -1):
            at = table + 8 * (address >> 12 + 9 * (level - 1) & _ENTRIES - 1)
            if not self.memory.load(at):
                page = self.memory.allocate(PAGE)
                domain.tables.append(page)
                self.memory.store(at, self._branch(page, level))
            table = self.memory.load(at) & _ADDRESS
        return table


#: Translation type of a context entry: untranslated and translated requests (VT-d 9.3).
_DEVICE_TLB = 1 << 2


class VtdDriver(IommuDriver):
    """intel/vtd.c."""

    def __init__(
        self,
        memory: HostMemory,
        faults: FaultSet,
        log: Callable[[str], None],
        units: Sequence[iommu.VtdUnit],
    ) -> None:
        super().__init__(memory, faults, log)
        self._units = tuple(units)
        self._bases = tuple(unit.base for unit in units)
        self._root = 0
        self._contexts = 0

    def init(self, tunables: Mapping[str, str]) -> Errno | None:
        if not self._bases or "9-iommu-init-fails" in self.faults:
            return Errno.ENXIO
        if not self._root:
            # static in vmm.ko: one context table a bus, all of them present from the start
            self._root = self.memory.allocate(PAGE)
            self._contexts = self.memory.allocate(256 * PAGE)
            for bus in range(256):
                self.memory.store(self._root + 16 * bus, self._contexts + bus * PAGE | 1)
        return None

    def create_domain(self, limit: int) -> Domain:
        used = {domain.id for domain in self.domains}
        identity = next(n for n in range(1, 1 << 16) if n not in used)
        levels, width = (3, 1) if limit <= 1 << 39 else (4, 2)
        domain = Domain(identity, self.memory.allocate(PAGE), levels, width)
        self.domains.append(domain)
        return domain

    def _leaf(self, physical: int) -> int:
        return physical | 3

    def _branch(self, table: int, level: int) -> int:
        return table | 3

    def _context(self, requester_id: int) -> int:
        return self._contexts + (requester_id >> 8) * PAGE + 16 * (requester_id & 0xFF)

    def add_device(self, domain: Domain, requester_id: int) -> None:
        entry = self._context(requester_id)
        if self.memory.load(entry) & 1 and "27-double-bind" not in self.faults:
            owner = self.memory.load(entry + 8) >> 8 & 0xFFFF
            raise HostPanic(
                f"vtd_add_device: device {requester_id:x} is already owned by domain {owner}"
            )
        # the present bit is set last
        self.memory.store(entry + 8, domain.width | domain.id << 8)
        kind = _DEVICE_TLB if self._may_have_tlb(requester_id) else 0
        self.memory.store(entry, domain.root | kind | 1)

    def _may_have_tlb(self, requester_id: int) -> bool:
        """Whether the function's unit takes requests that its device has translated."""
        units = self._units
        if "7-multi-drhd" not in self.faults:
            units = tuple(unit for unit in units if unit.covers(requester_id))[:1]
        return any(self.memory.load(unit.base + 0x10) & 1 << 2 for unit in units)

    def remove_device(self, domain: Domain | None, requester_id: int) -> None:
        entry = self._context(requester_id)
        self.memory.store(entry, 0)
        self.memory.store(entry + 8, 0)

    def block(self, requester_id: int) -> None:
        """An entry that was never written is not present."""

    def enable(self) -> None:
        for base in self._bases:
            self.memory.store(base + 0x20, self._root)
            self.memory.store(base + 0x18, 1 << 30, 4)
            self.memory.store(base + 0x18, 1 << 31, 4)

    def disable(self) -> None:
        for base in self._bases:
            self.memory.store(base + 0x18, 0, 4)

    def invalidate(self, domain: Domain) -> None:
        for base in self._bases:
            self.memory.store(base + 0xF8, 1 << 63 | 1 << 60)

    def unload(self) -> None:
        if self._root:
            self.memory.release(self._root, PAGE)
            self.memory.release(self._contexts, 256 * PAGE)
            self._root = self._contexts = 0


#: Bits of an AMD device table entry's first quadword (AMD 2.2.2.1).
_VALID, _TRANSLATED, _READ, _WRITE = 1, 1 << 1, 1 << 61, 1 << 62
#: Translated by no table, and neither read nor write allowed.
_REFUSES_ALL = _VALID | _TRANSLATED
#: And of its second: log a fault once; log none.
_SUPPRESS_SECOND = 1 << 33
_DEVICE_TABLE_SIZE = 2 * MIB
_RING = 256


class AmdDriver(IommuDriver):
    """amd/amdvi_hw.c, and what it keeps for each unit (``ivhdN``)."""

    def __init__(
        self,
        memory: HostMemory,
        faults: FaultSet,
        log: Callable[[str], None],
        units: Sequence[iommu.AmdUnit],
    ) -> None:
        super().__init__(memory, faults, log)
        self.units = tuple(Ivhd(self, number, unit) for number, unit in enumerate(units))
        self.device_table = 0
        self.next_domain = 0
        self.attached = False

    def attach(self) -> None:
        """The units' drivers attach: with vmm's module, long before the first assignment."""
        if not self.units:
            return
        if not self.device_table:
            self.device_table = self.memory.allocate(_DEVICE_TABLE_SIZE)
        for unit in self.units:
            unit.attach()
        self.attached = True

    def detach(self) -> None:
        """They let go."""
        self.attached = False

    def init(self, tunables: Mapping[str, str]) -> Errno | None:
        if not self.units:
            return Errno.EIO
        if tunables.get("hw.vmm.amdvi.enable", tunables.get("hw.vmm.amdvi_enable", "0")) == "0":
            self.log(
                f"bhyve: Found {len(self.units)} AMD-Vi/IOMMU device(s), "
                "use hw.vmm.amdvi.enable=1 to enable pass-through."
            )
            return Errno.EINVAL
        return None

    def create_domain(self, limit: int) -> Domain:
        if not self.attached:
            # amdvi_do_inv_domain() follows the softc of a unit that has been detached
            raise HostPanic("page fault")
        domain = Domain(self.next_domain, self.memory.allocate(PAGE), 4, 0)
        self.next_domain += 1
        self.domains.append(domain)
        self.invalidate(domain)
        return domain

    def destroy_domain(self, domain: Domain) -> None:
        super().destroy_domain(domain)
        self.invalidate(domain)

    def _leaf(self, physical: int) -> int:
        return physical | _VALID | _READ | _WRITE

    def _branch(self, table: int, level: int) -> int:
        return table | (level - 1) << 9 | _VALID | _READ | _WRITE

    def _unit_of(self, requester_id: int) -> Ivhd | None:
        for unit in self.units:
            if unit.covers(requester_id):
                return unit
        return None

    def add_device(self, domain: Domain, requester_id: int) -> None:
        unit = self._unit_of(requester_id)
        if unit is None:
            return
        low = domain.root | domain.levels << 9 | _VALID | _TRANSLATED | _READ | _WRITE
        self._write_entry(unit, requester_id, low, domain.id)

    def remove_device(self, domain: Domain | None, requester_id: int) -> None:
        unit = self._unit_of(requester_id)
        if unit is None:
            return
        if "20-stale-device-table" in self.faults:
            before = self.memory.load(self.device_table + 32 * requester_id)
            self._write_entry(unit, requester_id, before | _VALID, domain.id if domain else 0)
            return
        self._write_entry(unit, requester_id, _REFUSES_ALL, 0)

    def block(self, requester_id: int) -> None:
        if self._unit_of(requester_id) is not None:
            self.memory.store(self.device_table + 32 * requester_id, _REFUSES_ALL)

    def _write_entry(self, unit: Ivhd, requester_id: int, low: int, domain: int) -> None:
        entry = struct.pack("<QQ", low, domain | _SUPPRESS_SECOND)
        self.memory.write(self.device_table + 32 * requester_id, entry)
        unit.command(2, requester_id)
        unit.wait()

    def invalidate(self, domain: Domain) -> None:
        for unit in self.units:
            unit.command(3, domain.id << 32, (1 << 63) - PAGE | 3)
            unit.wait()

    def enable(self) -> None:
        control = (
            iommu.IOMMU_ENABLE
            | iommu.EVENT_ENABLE
            | iommu.EVENT_INTERRUPT
            | iommu.COMMAND_ENABLE
            | 4 << 5
        )
        for unit in self.units:
            self.memory.store(unit.base + iommu.CONTROL, control)

    def disable(self) -> None:
        for unit in self.units:
            self.memory.store(unit.base + iommu.CONTROL, 0)

    def unload(self) -> None:
        self.detach()
        self.next_domain = 0
        if self.device_table:
            self.memory.release(self.device_table, _DEVICE_TABLE_SIZE)
            self.device_table = 0


class Ivhd:
    """``ivhdN``: the command ring and the event log of one AMD unit."""

    def __init__(self, driver: AmdDriver, number: int, unit: iommu.AmdUnit) -> None:
        self.name = f"ivhd{number}"
        self.base = unit.base
        self.commands = 0
        """``dev.ivhd.N.command_count``."""
        self.event_interrupts = 0
        """``dev.ivhd.N.event_intr_count``."""
        self._driver = driver
        self._unit = unit
        self._ring = self._log = self._completion = 0

    def register(self, offset: int) -> int:
        """One of the unit's 64-bit registers."""
        return self._driver.memory.load(self.base + offset)

    def covers(self, requester_id: int) -> bool:
        """Whether the IVHD lists the function, as this driver read it."""
        if not self._unit.covers(requester_id):
            return False
        if "8-wrong-rid-range" in self._driver.faults:
            part = next(p for p in self._unit.ranges if p.first <= requester_id <= p.last)
            return part.first == part.last or requester_id == part.first
        return True

    def attach(self) -> None:
        """Give the unit its device table, rings and interrupt handler."""
        memory = self._driver.memory
        if not self._ring:
            self._ring = memory.allocate(16 * _RING)
            self._log = memory.allocate(16 * _RING)
            self._completion = memory.allocate(PAGE)
        size = _DEVICE_TABLE_SIZE // PAGE - 1
        memory.store(self.base + iommu.DEVICE_TABLE, self._driver.device_table | size)
        memory.store(self.base + iommu.COMMAND_BASE, self._ring | 8 << 56)
        memory.store(self.base + iommu.EVENT_BASE, self._log | 8 << 56)
        for pointer in (
            iommu.COMMAND_HEAD,
            iommu.COMMAND_TAIL,
            iommu.EVENT_HEAD,
            iommu.EVENT_TAIL,
        ):
            memory.store(self.base + pointer, 0)
        self.commands = self.event_interrupts = 0
        self._unit.on_event = self._event_interrupt

    def command(self, code: int, low: int, high: int = 0) -> None:
        """Put a command into the ring."""
        memory = self._driver.memory
        tail = self.register(iommu.COMMAND_TAIL)
        memory.write(self._ring + tail, struct.pack("<QQ", low | code << 60, high))
        memory.store(self.base + iommu.COMMAND_TAIL, (tail + 16) % (16 * _RING))
        self.commands += 1

    def wait(self) -> None:
        """Wait for the ring to be worked off, if the unit is on."""
        if self.register(iommu.CONTROL) & iommu.IOMMU_ENABLE:
            self.command(1, self._completion | 1, 0xA5A5)

    def _event_interrupt(self) -> None:
        memory, log = self._driver.memory, self._driver.log
        status = self.register(iommu.EVENT_STATUS)
        head, tail = self.register(iommu.EVENT_HEAD), self.register(iommu.EVENT_TAIL)
        log(
            f"{self.name}: EVT INTR {self.event_interrupts} Status:{status:#x} "
            f"EVT Head:{head:#x} Tail:{tail:#x}]"
        )
        command_head = self.register(iommu.COMMAND_HEAD)
        command_tail = self.register(iommu.COMMAND_TAIL)
        log(f"  [CMD Total {self.commands:#x}] Tail:{command_tail:#x}, Head:{command_head:#x}.")
        self.event_interrupts += 1
        replay = "22-replayed-events" in self._driver.faults
        for number in range(_RING):
            word, address = struct.unpack("<QQ", memory.read(self._log + head, 16))
            # the bug: entries are never cleared, so an old one passes for a new one
            if not word >> 60 or (not replay and head == tail):
                break
            log(f"{self.name}: \t[Event{number}: Head:{head:#x} Tail:{tail:#x}]")
            log(_event_line(word, address))
            head = (head + 16) % (16 * _RING)
            memory.store(self.base + iommu.EVENT_HEAD, head)
        memory.store(self.base + iommu.EVENT_STATUS, status)


_FLAGS = ("GN", "NX", "US", "I", "PR", "RW", "PE", "RZ", "TR")


def _event_line(word: int, address: int) -> str:
    """As amdvi_decode_pf_evt() prints it, kernel printf's ``%b`` included."""
    flags = word >> 48 & 0x1FF
    names = ",".join(name for bit, name in enumerate(_FLAGS) if flags >> bit & 1)
    shown = f"0x{flags:x}<{names}>" if names else f"0x{flags:x}"
    domain = word >> 32 & 0xFFFF
    return (
        f"\t[IO_PAGE_FAULT EVT: devId:0x{word & 0xFFFF:x} DomId:0x{domain:x} "
        f"Addr:0x{address:x} {shown}]"
    )


class Remapping:
    """io/iommu.c: the host's domain, and the lazy start.

    Args:
        driver: the vendor's half; ``None`` where vmm knows none for this processor.
        memory: the host's memory.
        faults: the bugs that it has.
        functions: requester ids of all functions, and whether ppt holds each.
    """

    def __init__(
        self,
        driver: IommuDriver | None,
        memory: HostMemory,
        faults: FaultSet,
        functions: Callable[[], Iterable[tuple[int, bool]]],
    ) -> None:
        self.driver = driver
        self.host_domain: Domain | None = None
        self.initialized = False
        """``hw.vmm.iommu.initialized``."""
        self._memory = memory
        self._faults = faults
        self._functions = functions
        self._tried = False
        self._available = False

    def create_domain(self, limit: int, tunables: Mapping[str, str]) -> Domain | None:
        """A guest's domain; the first call starts the IOMMU.  ``None``: there is no IOMMU."""
        if not self._tried:
            self._tried = True
            self._init(tunables)
        if not self._available or self.driver is None:
            return None
        return self.driver.create_domain(limit)

    def _init(self, tunables: Mapping[str, str]) -> None:
        if "1-no-translation" in self._faults:
            return
        if (
            self.driver is None
            or tunables.get("hw.vmm.iommu.enable", "1") == "0"
            or self.driver.init(tunables) is not None
        ):
            self.initialized = "24-initialized-lies" in self._faults
            return
        self._available = self.initialized = True
        limit = self._memory.end
        host = self.host_domain = self.driver.create_domain(limit)
        self.driver.map(host, 0, 0, limit)
        for requester_id, with_ppt in self._functions():
            if not with_ppt or "3-host-domain-while-idle" in self._faults:
                self.driver.add_device(host, requester_id)
            elif "21-untouched-entry-passes" not in self._faults:
                self.driver.block(requester_id)
        self.driver.enable()

    def stop(self) -> None:
        """The module goes."""
        if self.driver is not None:
            if self._available:
                self.driver.disable()
            for domain in list(self.driver.domains):
                self.driver.destroy_domain(domain)
            self.driver.unload()
        self.host_domain = None
        self.initialized = self._available = self._tried = False

    # -- the host's domain ------------------------------------------------------------------

    def give_to_host(self, requester_id: int) -> None:
        """Put a function into the host's domain, if there is one."""
        if self.driver is not None and self.host_domain is not None:
            self.driver.add_device(self.host_domain, requester_id)

    def take_from_host(self, requester_id: int) -> None:
        """Take it out: it is in no domain then."""
        if self.driver is not None and self.host_domain is not None:
            self.driver.remove_device(self.host_domain, requester_id)

    # -- a guest's domain -------------------------------------------------------------------

    def map_guest(self, domain: Domain, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Map a guest's memory (guest address, host address, length) and hide it from the host."""
        assert self.driver is not None
        for guest, physical, length in pieces:
            self.driver.map(domain, guest, physical, length)
            if self.host_domain is not None:
                self.driver.unmap(self.host_domain, physical, length)
        if self.host_domain is not None:
            self.driver.invalidate(self.host_domain)

    def unmap_guest(
        self, domain: Domain, pieces: Iterable[tuple[int, int, int]], *, used: bool = True
    ) -> None:
        """The other way round; nothing to invalidate where no device ``used`` the domain."""
        assert self.driver is not None
        for guest, physical, length in pieces:
            self.driver.unmap(domain, guest, length)
            if self.host_domain is not None:
                self.driver.map(self.host_domain, physical, physical, length)
        if used:
            self.driver.invalidate(domain)
