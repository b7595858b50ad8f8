"""FreeBSD with bhyve.

Base system only: pciconf(8), devctl(8), iovctl(8), bhyve(8), bhyveload(8), bhyvectl(8) and
their like, each by a plain command.  What they print is read by :mod:`hil.platforms.freebsd_text`
and :mod:`hil.platforms.freebsd_pci`, what their errors mean by :mod:`hil.platforms.freebsd_errors`.
Sources: the manual pages, sys/amd64/vmm/io/ppt.c, sys/amd64/vmm/io/iommu.c,
sys/kern/subr_bus.c and sys/dev/pci/pci_iov.c.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hil import events
from hil.deadline import Deadline
from hil.errors import (
    HilError,
    InventoryError,
    LabError,
    LabRefusalError,
    ProductError,
)
from hil.guests.images import GuestImage, image_named
from hil.iommu.faults import FaultRecord, parse_fault_log
from hil.iommu.host import fault_clearing, host_faults, host_tables
from hil.iommu.memory import PhysicalMemory
from hil.iommu.tables import HostTables
from hil.journal import FREEBSD, Entry, Journal, Undo, card_of
from hil.pci.address import Address
from hil.pci.budget import Windows
from hil.pci.config import ConfigSpace
from hil.pci.vectors import VectorLimits
from hil.platforms import freebsd_undo
from hil.platforms.bar_windows import BHYVE
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
from hil.platforms.freebsd_errors import Diagnosis, decode, decode_bhyve
from hil.platforms.freebsd_guest import PREFIX, BhyveMachine, Passed, Refusal
from hil.platforms.freebsd_memory import (
    DevMemory,
    MdCanary,
    ReadAhead,
    acpi_table,
    device_registers,
)
from hil.platforms.freebsd_pci import (
    STUB,
    parse_config_dump,
    parse_pciconf,
)
from hil.platforms.freebsd_rules import not_started
from hil.platforms.freebsd_state import HostState
from hil.platforms.freebsd_text import (
    Release,
    parse_devinfo,
    parse_kenv,
    parse_ps,
    parse_sysctl,
    parse_vmstat,
    pptdevs,
)
from hil.platforms.freebsd_view import HostView
from hil.platforms.pinning import MIB, Pinning
from hil.platforms.reserving import passable, raise_all
from hil.transport.base import Result, Transport

#: The passthru form that names a ppt device, and with it checks the PCI domain
#: (usr.sbin/bhyve/pci_passthru.c).
PPT_NAMES = Release(13, 2, "")
#: ``-G`` takes an address before the port.
DEBUG_ADDRESS = Release(13, 2, "")
#: ppt switches decoding and bus mastering off when a guest lets go (main's ppt_unassign_device()
#: in sys/amd64/vmm/io/ppt.c, PR 205549, D46179 and its companion).  In 13's ppt.c the function is
#: reset and COMMAND restored as the guest left it; recorded on 13.2.
COMMAND_OFF_WHILE_IDLE = Release(15, 0, "")
#: r325039 and its merge to 11: what ppt holds and no guest has is in no domain.
NO_DOMAIN_WHILE_IDLE = Release(11, 2, "")

#: Until r325039, since r305485: what ppt holds and no guest has is in the host's domain.
_HOST_WHILE_IDLE: Mapping[Phase, Owner] = {
    Phase.BOOT: Owner.HOST,
    Phase.IDLE: Owner.HOST,
    Phase.ASSIGNED: Owner.GUEST,
    Phase.DESTROYED: Owner.HOST,
    Phase.RETURNED: Owner.HOST,
}
_NOBODY_WHILE_IDLE: Mapping[Phase, Owner] = {
    **_HOST_WHILE_IDLE,
    Phase.IDLE: Owner.NOBODY,
    Phase.DESTROYED: Owner.NOBODY,
}

#: APIC_NUM_IOINTS, sys/x86/include/apicvar.h.
_VECTORS_OF_PROCESSOR = 191
_PAGE = 4096


class FreebsdBhyve(Platform):
    """A FreeBSD host whose guests run under bhyve.

    Args:
        host: the host's name in the inventory.
        transport: a root shell on it.
        images: the guest images it has.
        directory: where guests' files go on the host, in a folder of the run; made when needed.
        shared: whether other runs use the host at the same time.
    """

    name = "freebsd-bhyve"
    system = "freebsd"
    stub_driver = STUB
    lazy_iommu = True
    one_host_domain = True
    dialect = FREEBSD
    undo_kinds = freebsd_undo.KINDS

    def __init__(
        self,
        host: str,
        transport: Transport,
        *,
        images: Iterable[GuestImage] = (),
        directory: str = "/var/run/hil",
        shared: bool = False,
    ) -> None:
        self.host = host
        self.transport = transport
        self._view = HostView(host, transport)
        self.journal = Journal(transport, self.dialect, self.undo_kinds)
        self.images = {image.name: image for image in images}
        self._directory = f"{directory.rstrip('/')}/{self.journal.run}"
        self._shared = shared
        self._taken: dict[Address, Entry] = {}
        self._made_vfs: dict[Address, Entry] = {}

    # ---- what is constant --------------------------------------------------------

    @property
    def release(self) -> Release:
        """Of the running kernel."""
        return self._view.release

    @property
    def domains(self) -> Mapping[Phase, Owner]:
        """Whose memory a function can reach at each phase, once the IOMMU is on."""
        recent = self.release >= NO_DOMAIN_WHILE_IDLE
        return _NOBODY_WHILE_IDLE if recent else _HOST_WHILE_IDLE

    @property
    def masters_while_idle(self) -> bool:
        """Before 15 COMMAND stays as the guest left it, and the tables alone block."""
        return self.release < COMMAND_OFF_WHILE_IDLE

    @functools.cached_property
    def features(self) -> frozenset[Feature]:
        """What this host can do, tried out once."""
        deadline = self._look("features")
        found = {Feature.SRIOV, Feature.NMI, Feature.RELOAD}
        facts = self.facts(deadline)
        if facts.iommu_enabled:
            found.add(Feature.IOMMU)
        if len(self.address_forms) > 1:
            found.add(Feature.ADDRESS_FORMS)
        if not self._shared:
            # Of several runs' guests the kernel tells one sum.
            found.add(Feature.PINNED_MEMORY)
        with contextlib.suppress(LabError):
            self._acpi(deadline)
            found.add(Feature.PHYSICAL_MEMORY)
            self.tables(deadline)
            # A guest's memory is read where the tables lead.
            found |= {Feature.TABLES, Feature.GUEST_MEMORY}
        # bhyve reports no faults of VT-d: they are read from its registers.
        if facts.iommu_enabled and (facts.iommu == "amd-vi" or Feature.TABLES in found):
            found.add(Feature.FAULTS)
            if facts.iommu == "amd-vi":
                found.add(Feature.EVENT_LOG)
        return frozenset(found)

    def _look(self, what: str) -> Deadline:
        return Deadline(60, f"a look at the {what} of {self.host}")

    # ---- facts -------------------------------------------------------------------

    def facts(self, deadline: Deadline) -> HostFacts:
        state = self.state(deadline)
        sysctl, kenv = state.sysctl or {}, state.kenv or {}
        tables = state.tables or frozenset()
        amd = "IVRS" in tables
        enabled = _setting(state, "hw.vmm.iommu.enable", "1") != "0" and (
            _setting(state, "hw.vmm.amdvi.enable", "0") == "1" if amd else "DMAR" in tables
        )
        loaded = "vmm" in (state.modules or ())
        settings = ("hw.vmm.iommu", "hw.vmm.amdvi", "hw.vmm.ppt", "kern.", "security.", "vm.")
        tunables = ("pptdevs", "hw.vmm.", "hw.dmar.", "hw.amdiommu.", "hw.iommu.")
        extra = {name: value for name, value in sysctl.items() if name.startswith(settings)}
        extra |= {f"kenv {n}": v for n, v in kenv.items() if n.startswith(tunables)}
        firmware = [kenv.get(f"smbios.bios.{n}", "") for n in ("vendor", "version", "reldate")]
        extra["firmware"] = " ".join(filter(None, firmware))
        return HostFacts(
            os=f"FreeBSD {self.release}",
            kernel=self._run("uname", "-v", deadline=deadline).stdout.strip(),
            hypervisor=f"bhyve of FreeBSD {self.release}" + ("" if loaded else ", vmm not loaded"),
            cpu=sysctl.get("hw.model", ""),
            memory=int(sysctl.get("hw.physmem", "0")),
            iommu="amd-vi" if amd else "vt-d" if "DMAR" in tables else "none",
            iommu_enabled=enabled,
            extra=extra,
        )

    def state(
        self, deadline: Deadline, vm: str = "", devices: tuple[Address, ...] = ()
    ) -> HostState:
        """Facts that tell one cause of a failure from another; changes nothing."""
        return self._view.state(deadline, vm, devices)

    # ---- functions ---------------------------------------------------------------

    def functions(self, deadline: Deadline) -> tuple[Function, ...]:
        return self._view.survey((), deadline)

    def function(self, address: Address, deadline: Deadline) -> Function:
        for function in self._view.survey([address], deadline):
            if function.address == address:
                return function
        raise LabError(
            f"host {self.host} has no PCI function {address}",
            host=self.host,
            hint="see what it has with: hil devices",
        )

    def read_config(self, address: Address, deadline: Deadline) -> ConfigSpace:
        command = ("pciconf", "-r", address.selector, "0:0xfff")
        return ConfigSpace(parse_config_dump(self._run(*command, deadline=deadline).stdout))

    def write_config(self, address: Address, offset: int, value: bytes, deadline: Deadline) -> None:
        while value:
            # pciconf writes words of 1, 2 or 4 bytes, each aligned.
            width = next(w for w in (4, 2, 1) if len(value) >= w and offset % w == 0)
            size = {4: (), 2: ("-h",), 1: ("-b",)}[width]
            number = f"{int.from_bytes(value[:width], 'little'):#x}"
            command = ("pciconf", "-w", *size, address.selector, f"{offset:#x}", number)
            self._run(*command, deadline=deadline)
            offset, value = offset + width, value[width:]

    def reset(self, address: Address, deadline: Deadline, method: str = "") -> None:
        function = self.function(address, deadline)
        usual = function.reset_methods[0] if function.reset_methods else ""
        if method and method != usual:
            raise LabError(
                f"FreeBSD resets {address} by {usual or 'nothing'}, and takes no other method",
                host=self.host,
                hint=f"it was to be {method}",
            )
        # A driver other than ppt is detached and attached again: few survive a reset.
        detach = ["-d"] if function.driver not in (None, STUB) else []
        before = self.kernel_log(deadline)
        with events.step(f"reset {address} on {self.host}"):
            self._devctl(
                "reset", *detach, address.selector, what=f"reset {address}", deadline=deadline
            )
        told = _news(before, self.kernel_log(deadline))
        pending = [line for line in told if re.search(r"[Tt]ransactions pending after FLR", line)]
        if not usual or pending:
            raise ProductError(
                f"{address} was not reset: "
                + ("it has neither FLR nor a reset by D3" if not usual else "see the kernel's log"),
                host=self.host,
                seen="\n".join(told),
            )

    # ---- reserve and return ------------------------------------------------------

    def reserve(self, addresses: Sequence[Address], deadline: Deadline) -> Reservation:
        everything = {f.address: f for f in self._view.survey(addresses, deadline)}
        chosen = [self._passable(everything, address) for address in addresses]
        self._load_vmm(deadline)
        # What is reserved already, by pptdevs or with its VF's making, is left as it is.
        fresh = [function for function in chosen if not function.reserved]
        reservation = Reservation(tuple(addresses), {f.address: f.driver for f in fresh})
        with events.step(f"reserve {', '.join(map(str, addresses))} on {self.host}"):
            try:
                for function in fresh:
                    self._take(function, deadline)
            except HilError:
                with contextlib.suppress(HilError):
                    self.give_back(reservation, deadline)
                raise
        return reservation

    def _passable(self, everything: Mapping[Address, Function], address: Address) -> Function:
        function = passable(everything, address, self.host)
        if address.domain != 0:
            raise InventoryError(
                f"{address} is in PCI domain {address.domain}; bhyve passes functions of domain 0 "
                "only, and would take another one for it",
                host=self.host,
            )
        return function

    def _load_vmm(self, deadline: Deadline) -> None:
        loaded = self._try("kldload", "-n", "vmm", deadline=deadline)
        # It succeeds also where the CPU cannot virtualize; the module then is not there.
        there = self._try("kldstat", "-q", "-m", "vmm", deadline=deadline)
        if loaded.status != 0 or there.status != 0:
            state = self.state(deadline)
            diagnosis = decode(loaded.stderr, state) if loaded.status != 0 else not_started(state)
            raise diagnosis.error(
                f"vmm cannot be loaded on {self.host}", host=self.host, command=loaded.command
            )

    def _take(self, function: Function, deadline: Deadline) -> None:
        """Attach it to ppt, the way back being recorded first."""
        address = function.address
        force = ["-f"] if function.driver else []
        entry, result = self.journal.change(
            Undo(freebsd_undo.DRIVER.name, (address.selector, function.driver or "none")),
            ["devctl", "set", "driver", *force, address.selector, STUB],
            deadline=deadline,
            guard=card_of(function.physical_function or address),
        )
        self._taken[address] = entry
        # The name of ppt's may also be of an attempt that failed.
        name, attached = self._driver_of(address, deadline)
        if result.status != 0 or not attached or not name.startswith(STUB):
            raise self._refused(f"{address} was not attached to {STUB}", result, deadline)

    def _driver_of(self, address: Address, deadline: Deadline) -> tuple[str, bool]:
        """Name of its driver and unit, and whether that is attached."""
        listed = parse_pciconf(
            self._run("pciconf", "-l", address.selector, deadline=deadline).stdout
        )
        attached = self._try("pciconf", "-a", address.selector, deadline=deadline).status == 0
        return (listed[0].name if listed else ""), attached

    def give_back(self, reservation: Reservation, deadline: Deadline) -> None:
        with events.step(f"return {', '.join(map(str, reservation.addresses))} on {self.host}"):
            failures: list[HilError] = []
            for address in reversed(reservation.addresses):
                try:
                    self._return(address, reservation, deadline)
                except HilError as error:
                    failures.append(error)
            raise_all(failures)

    def _return(self, address: Address, reservation: Reservation, deadline: Deadline) -> None:
        before = reservation.previous_drivers
        if address not in before:
            # Reserved before us: by the loader or a VF's maker on purpose, or by a run that died.
            kenv = parse_kenv(self._try("kenv", "-q", deadline=deadline).stdout)
            if address in pptdevs(kenv) or self.function(address, deadline).physical_function:
                return
            command = ["devctl", "clear", "driver", "-f", address.selector]
        else:
            script = freebsd_undo.DRIVER.script
            command = ["sh", "-c", script, "hil", address.selector, before[address] or "none"]
        result = self._try(*command, deadline=deadline)
        name, attached = self._driver_of(address, deadline)
        now = name.rstrip("0123456789") if attached else None
        if now == STUB or (before.get(address) and now != before[address]):
            shown = ("devctl", "clear", "driver", "-f", address.selector)
            if "busy" in result.stderr:
                message = f"{address} is held by a guest and cannot be returned"
                raise self._refused(message, replace(result, command=shown), deadline)
            had = before.get(address) or "no driver"
            raise ProductError(
                f"{address} should be with {had} and is with {now or 'no driver'}",
                host=self.host,
                command=shown,
                seen=result.stderr,
            )
        if entry := self._taken.pop(address, None):
            self.journal.forget(entry)

    def create_vfs(self, address: Address, count: int, deadline: Deadline) -> tuple[Address, ...]:
        name, attached = self._driver_of(address, deadline)
        if not attached:
            raise ProductError(f"{address} has no driver, and so makes no VFs", host=self.host)
        path = f"{self._directory}/iov-{name}.conf"
        with events.step(f"create {count} VFs of {address} on {self.host}"):
            for interface in self.function(address, deadline).interfaces:
                self._run("ifconfig", interface, "up", deadline=deadline)
            schema = self._try("iovctl", "-S", "-d", name, deadline=deadline).stdout
            self._run("mkdir", "-p", "-m", "711", self._directory, deadline=deadline)
            text = _iov_configuration(name, address, count, macs="mac-addr" in schema)
            self.transport.put(text.encode(), path, deadline=deadline)
            self._made_vfs[address], result = self.journal.change(
                Undo(freebsd_undo.VFS.name, (name,)),
                ["iovctl", "-C", "-f", path],
                deadline=deadline,
                guard=card_of(address),
            )
            self._try("rm", "-f", path, deadline=deadline)
            made = self.function(address, deadline).virtual_functions
            if result.status != 0 or len(made) != count:
                with contextlib.suppress(LabError):
                    self.journal.undo(self._made_vfs.pop(address), deadline)
                raise ProductError(
                    f"{address} was to make {count} VFs and has made {len(made)}",
                    host=self.host,
                    seen=result.stderr,
                    command=result.command,
                )
        return made

    def remove_vfs(self, address: Address, deadline: Deadline) -> None:
        name, _ = self._driver_of(address, deadline)
        with events.step(f"remove the VFs of {address} on {self.host}"):
            result = self._try("iovctl", "-D", "-d", name, deadline=deadline)
        left = self.function(address, deadline).virtual_functions
        if result.status != 0 or left:
            busy = "busy" in result.stderr
            raise (LabRefusalError if busy else ProductError)(
                f"the VFs of {address} stay: "
                + ("a guest holds one" if busy else "iovctl did not remove them"),
                host=self.host,
                seen=result.stderr,
                command=result.command,
            )
        if entry := self._made_vfs.pop(address, None):
            self.journal.forget(entry)

    def replug(self, address: Address, deadline: Deadline) -> None:
        with events.step(f"delete {address} on {self.host} and find it again"):
            what = f"forget {address}"
            self._devctl("delete", "-f", address.selector, what=what, deadline=deadline)
            what = f"find {address} again"
            self._devctl("rescan", f"pci{address.bus}", what=what, deadline=deadline)
        if address not in {function.address for function in self.functions(deadline)}:
            raise ProductError(f"{address} was deleted and is not found again", host=self.host)

    def reload(self, deadline: Deadline) -> None:
        with events.step(f"unload vmm on {self.host} and load it again"):
            try:
                unloaded = self._try("kldunload", "vmm", deadline=deadline)
                if unloaded.status == 0:
                    self._load_vmm(deadline)
            except HilError as error:
                raise ProductError(
                    f"{self.host} did not survive the unloading of vmm",
                    host=self.host,
                    seen=error.explain(),
                    hint="does it stand at db>?  see its console",
                ) from error
        if unloaded.status != 0:
            raise ProductError(
                f"vmm cannot be unloaded on {self.host}",
                host=self.host,
                seen=unloaded.stderr,
                command=unloaded.command,
            )

    # ---- guests ------------------------------------------------------------------

    def create_guest(self, spec: GuestSpec, deadline: Deadline) -> Machine:
        image = image_named(spec.image, self.images, self.host)
        self._load_vmm(deadline)
        self._run("kldload", "-n", "nmdm", deadline=deadline)
        passed = [
            replace(self._passed(address, spec.form, deadline), rom=spec.roms.get(address, ""))
            for address in spec.devices
        ]
        machine = BhyveMachine(
            host=self.host,
            transport=self.transport,
            spec=spec,
            image=image,
            passed=passed,
            directory=self._directory,
            explain=lambda program, status, seen: self._explain(machine, program, status, seen),
            tables=lambda limit: (self.tables(limit), self.physical_memory(limit)),
            journal=self.journal,
            debug_address="127.0.0.1:" if self.release >= DEBUG_ADDRESS else "",
        )
        with events.step(f"create guest {spec.name} on {self.host}"):
            machine.create(deadline)
        return machine

    def bar_windows(self, deadline: Deadline) -> Windows:
        """Where guests of this host get their BARs; the same on all releases that hil knows."""
        deadline.check()
        return BHYVE

    def pinning(self, deadline: Deadline) -> Pinning | None:
        """What may be wired for user programs, and is; ``None`` where there is no such bound.

        vm_map_wire_user_count_add() in sys/vm/vm_map.c, by way of vmm's vm_mmap_memseg().
        """
        found = self._view.sysctls(deadline)
        names = ("vm.max_user_wired", "vm.stats.vm.v_user_wire_count")
        if not all(found.get(name, "").isdigit() for name in names):
            return None
        limit, wired = (int(found[name]) * _PAGE for name in names)
        return Pinning(
            free=max(0, limit - wired),
            bound="vm.max_user_wired",
            pinned=None if self._shared else wired,
            # A boot ROM is a segment of the guest, and wired with the rest: at most 16 MiB
            # (usr.sbin/bhyve/bootrom.c, BOOTROM_SIZE).
            besides=16 * MIB,
            overhead=16 * MIB,
            remedy="sysctl vm.max_user_wired=PAGES raises the bound, if the host has the memory",
        )

    def vector_limits(self, deadline: Deadline) -> VectorLimits | None:
        """The kernel's message interrupts (msi_alloc() and msix_alloc() in sys/x86/x86/msi.c).

        ppt takes one for each entry of a function's MSI-X table as soon as the guest's driver
        switches MSI-X on, or refuses (ppt_setup_msix() in sys/amd64/vmm/io/ppt.c), and then
        bhyve ends: "vm_setup_pptdev_msix" (usr.sbin/bhyve/pci_passthru.c).
        """
        command = ("sysctl", "-i", "machdep.num_msi_irqs", "machdep.first_msi_irq", "hw.ncpu")
        found = parse_sysctl(self._try(*command, deadline=deadline).stdout)
        if not all(found.get(name, "").isdigit() for name in command[2:]):
            return None
        total, first, processors = (int(found[name]) for name in command[2:])
        lines = parse_vmstat(self._run("vmstat", "-ia", deadline=deadline).stdout)
        used = [line for line in lines if line.irq is not None and line.irq >= first and line.name]
        vectors = _VECTORS_OF_PROCESSOR * processors
        return VectorLimits(
            name=f"machdep.num_msi_irqs: {total}; {processors} processors have {vectors} vectors",
            total=min(total, vectors),
            used=len(used),
            whole_table=True,
        )

    @property
    def address_forms(self) -> tuple[str, ...]:
        """``ppt0``, ``3/0/0``, ``pci0:3:0:0``, ``ppt0`` by configuration variables.

        What this release's bhyve takes, the best first.
        """
        if self.release < PPT_NAMES:
            return ("slashes",)
        return ("name", "slashes", "selector", "variables")

    def _passed(self, address: Address, form: str, deadline: Deadline) -> Passed:
        """How bhyve is told a function."""
        if address.domain != 0:
            raise InventoryError(f"{address} is not in PCI domain 0", host=self.host)
        form = form or self.address_forms[0]
        if form in ("name", "variables"):
            name, attached = self._driver_of(address, deadline)
            if attached and name.startswith(STUB):
                return Passed(address, name, keys=form == "variables")
        # Also where it is not ppt's: bhyve itself is to say so.
        return Passed(address, address.selector if form == "selector" else address.slashes)

    def _explain(self, machine: BhyveMachine, program: str, status: int, seen: str) -> Refusal:
        deadline = Deadline(30, f"the reason why {program} refused")
        state = self.state(deadline, machine.vm, machine.spec.devices)
        diagnosis = decode_bhyve(status, seen, state) if program == "bhyve" else decode(seen, state)
        ours = {entry.undo.arguments[0] for entry in self.journal.outstanding}
        known = {process.vm for process in state.processes or ()} | ours
        hint = diagnosis.remedy
        for name in state.vms or ():
            command = f"bhyvectl --vm={name} --destroy"
            if name.startswith(PREFIX) and name not in known and command not in hint:
                hint = f"{hint}; left by a run of hil that died: {command}".removeprefix("; ")
        return Refusal(diagnosis.meaning, diagnosis.fault, hint, _causes(diagnosis))

    def guests(self, deadline: Deadline) -> tuple[str, ...]:
        return self._view.guests(deadline)

    # ---- the IOMMU, memory, interrupts -------------------------------------------

    def tables(self, deadline: Deadline) -> HostTables:
        dmar, ivrs = self._acpi(deadline)
        return host_tables(
            dmar=dmar,
            ivrs=ivrs,
            registers=device_registers(self.transport, deadline),
            memory=ReadAhead(self.transport, deadline),
            topology=lambda: self._view.topology(deadline),
        )

    def _acpi(self, deadline: Deadline) -> tuple[bytes | None, bytes | None]:
        """The firmware's tables of IOMMUs, Intel's and AMD's; read once."""
        if self._acpi_read is None:
            root = self._view.sysctls(deadline).get("machdep.acpi_root", "")
            if not root.strip().isdigit():
                raise LabError(f"{self.host} tells no address of its ACPI tables", seen=root)
            memory = ReadAhead(self.transport, deadline)
            dmar, ivrs = (acpi_table(memory, int(root), name) for name in ("DMAR", "IVRS"))
            self._acpi_read = (dmar, ivrs)
        return self._acpi_read

    _acpi_read: tuple[bytes | None, bytes | None] | None = None

    def iommu_in_use(self, deadline: Deadline) -> bool:
        name = "hw.vmm.iommu.initialized"
        said = self._try("sysctl", "-n", "-i", name, deadline=deadline).stdout
        return said.strip() == "1"

    def faults(self, deadline: Deadline) -> tuple[FaultRecord, ...]:
        found = parse_fault_log(self.kernel_log(deadline))
        with contextlib.suppress(LabError):
            dmar, ivrs = self._acpi(deadline)
            found += host_faults(
                dmar=dmar,
                ivrs=ivrs,
                registers=device_registers(self.transport, deadline),
                memory=ReadAhead(self.transport, deadline),
            )
        return found

    def clear_faults(self, deadline: Deadline) -> None:
        """On Intel: bhyve's driver looks at no fault record, and so clears none."""
        dmar, _ = self._acpi(deadline)
        registers = device_registers(self.transport, deadline)
        for address, data in fault_clearing(dmar=dmar, registers=registers):
            registers.write(address, data)

    def physical_memory(self, deadline: Deadline) -> PhysicalMemory:
        return DevMemory(self.transport, deadline)

    def canary(self, size: int, deadline: Deadline) -> Canary:
        return MdCanary.fill(self.transport, self.journal, size, deadline)

    def interrupts(self, address: Address, deadline: Deadline) -> Mapping[str, int]:
        name, _ = self._driver_of(address, deadline)
        tree = parse_devinfo(self._run("devinfo", "-rv", deadline=deadline).stdout)
        lines = parse_vmstat(self._run("vmstat", "-ia", deadline=deadline).stdout)
        return {
            f"{line.source} {line.name}".strip(): line.total
            for line in lines
            if line.name.partition(":")[0] == name or line.irq in tree.interrupts.get(name, ())
        }

    def footprint(self, deadline: Deadline) -> Mapping[str, int]:
        interfaces = self._run("ifconfig", "-l", deadline=deadline).stdout.split()
        processes = parse_ps(
            self._run("ps", "-axww", "-o", "pid=", "-o", "command=", deadline=deadline).stdout
        )
        sysctl = self._view.sysctls(deadline)
        find = ("find", self._directory, "-mindepth", "1")
        counts = {
            "guests": len(self.guests(deadline)),
            "processes": len([process for process in processes if process.vm]),
            "files": len(self._try(*find, deadline=deadline).stdout.splitlines()),
            "interfaces": len([n for n in interfaces if n.startswith(("tap", "bridge"))]),
            "memory disks": len(self._run("mdconfig", "-l", deadline=deadline).stdout.split()),
            "reserved": int(sysctl.get("hw.vmm.ppt.devices", "0")),
            "wired pages": int(sysctl.get("vm.stats.vm.v_user_wire_count", "0")),
        }
        if self._shared:
            return {"files": counts["files"]}
        if Feature.TABLES in self.features:
            entries = list(self.tables(deadline).entries())
            counts["table entries"] = len(entries)
            counts["domains"] = len({entry.domain for entry in entries})
        return counts

    def kernel_log(self, deadline: Deadline) -> str:
        return self._run("dmesg", deadline=deadline).stdout

    # ---- commands ----------------------------------------------------------------

    def _try(self, *command: str, deadline: Deadline) -> Result:
        return self.transport.run(command, deadline=deadline)

    def _run(self, *command: str, deadline: Deadline) -> Result:
        return self._try(*command, deadline=deadline).check()

    def _devctl(self, *words: str, what: str, deadline: Deadline) -> None:
        result = self._try("devctl", *words, deadline=deadline)
        if result.status != 0:
            raise self._refused(f"the host could not {what}", result, deadline)

    def _refused(self, message: str, result: Result, deadline: Deadline) -> HilError:
        """The error for a driver or bus that did not do what it was told, and what that means."""
        diagnosis = decode(result.stderr, self.state(deadline))
        return diagnosis.error(message, host=self.host, command=result.command)


def _causes(diagnosis: Diagnosis) -> str:
    """What was considered, a line each; empty if the words themselves tell."""
    return diagnosis.explain().partition("\n")[2]


def _setting(state: HostState, name: str, default: str) -> str:
    """A tunable of vmm's: what it took, or would take if it were loaded."""
    return state.value(name) or (state.kenv or {}).get(name, default)


def _iov_configuration(name: str, address: Address, count: int, *, macs: bool) -> str:
    """For iovctl(8), iovctl.conf(5): VFs that go to the host's own drivers first."""
    parts = [
        f'PF {{\n    device : "{name}";\n    num_vfs : {count};\n}}',
        "DEFAULT {\n    passthrough : false;\n}",
    ]
    if macs:
        parts += [
            f"VF-{index} {{\n    "
            f'mac-addr : "02:68:69:{address.bus:02x}:{address.device:02x}:{index:02x}";\n}}'
            for index in range(count)
        ]
    return "\n\n".join(parts) + "\n"


def _news(before: str, after: str) -> list[str]:
    """Lines that a log has got; all of it where its beginning has gone meanwhile."""
    if after.startswith(before):
        return after[len(before) :].splitlines()
    last = before.splitlines()[-1:]
    lines = after.splitlines()
    return lines[lines.index(last[0]) + 1 :] if last and last[0] in lines else lines
