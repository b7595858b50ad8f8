"""Kernel variables of the modelled host, as sysctl(8) lists them."""

from __future__ import annotations

from hil.pci.address import Address
from hil.simulated import iommu
from hil.simulated.kernel import FIRST_MESSAGE_IRQ, Sysctl
from hil.simulated.machine import Machine
from hil.simulated.memory import PAGE
from hil.simulated.newbus import Device
from hil.simulated.pci import RootPort
from hil.simulated.remapping import AmdDriver

#: ``hw.vmm`` in the order of FreeBSD 13.2: name, and the value on AMD and on Intel.  Values in
#: braces come from the model.
_VMM = (
    ("amdvi.domain_id", "{domain_id}", "0"),
    ("amdvi.disable_io_fault", "0", "0"),
    ("amdvi.ptp_level", "4", "4"),
    ("amdvi.host_ptp", "1", "1"),
    ("amdvi.enable", "{amdvi}", "{amdvi}"),
    ("amdvi.count", "{units}", "0"),
    ("npt.pmap_flags", "508", "0"),
    ("svm.num_asids", "16", "0"),
    ("svm.disable_npf_assist", "0", "0"),
    ("svm.features", "9", "4294967295"),
    ("svm.vmcb_clean", "1023", "1023"),
    ("vmx.l1d_flush_sw", "0", "0"),
    ("vmx.l1d_flush", "0", "0"),
    ("vmx.vpid_alloc_failed", "0", "0"),
    ("vmx.posted_interrupt_vector", "-1", "-1"),
    ("vmx.cap.posted_interrupts", "0", "0"),
    ("vmx.cap.virtual_interrupt_delivery", "0", "0"),
    ("vmx.cap.tpr_shadowing", "0", "{vmx}"),
    ("vmx.cap.invpcid", "0", "{vmx}"),
    ("vmx.cap.monitor_trap", "0", "{vmx}"),
    ("vmx.cap.unrestricted_guest", "0", "{vmx}"),
    ("vmx.cap.rdtscp", "0", "{vmx}"),
    ("vmx.cap.rdpid", "0", "{vmx}"),
    ("vmx.cap.wbinvd_exit", "0", "{vmx}"),
    ("vmx.cap.pause_exit", "0", "{vmx}"),
    ("vmx.cap.halt_exit", "0", "{vmx}"),
    ("vmx.initialized", "0", "{vmx}"),
    ("vmx.cr4_zeros_mask", "0", "0"),
    ("vmx.cr4_ones_mask", "0", "{cr4}"),
    ("vmx.cr0_zeros_mask", "0", "0"),
    ("vmx.cr0_ones_mask", "0", "{cr0}"),
    ("vmx.no_flush_rsb", "0", "0"),
    ("ept.pmap_flags", "0", "{ept}"),
    ("vrtc.flag_broken_time", "1", "1"),
    ("ppt.devices", "{ppt}", "{ppt}"),
    ("iommu.enable", "{enable}", "{enable}"),
    ("iommu.initialized", "{initialized}", "{initialized}"),
    ("bhyve_xcpuids", "0", "0"),
    ("topology.cpuid_leaf_b", "1", "1"),
    ("create", "beavis", "beavis"),
    ("destroy", "beavis", "beavis"),
    ("maxcpu", "{cpus}", "{cpus}"),
    ("trap_wbinvd", "0", "0"),
    ("trace_guest_exceptions", "0", "0"),
    ("ipinum", "252", "252"),
    ("halt_detection", "1", "1"),
)
_TUNABLES = ("amdvi.enable", "amdvi.host_ptp", "amdvi.ptp_level", "iommu.enable")


def sysctls(machine: Machine) -> dict[str, Sysctl]:
    """See :meth:`hil.simulated.kernel.Kernel.sysctls`."""
    result = {
        "hw.ncpu": Sysctl(str(machine.spec.cpus)),
        "hw.physmem": Sysctl(str(machine.spec.memory)),
        "hw.pagesize": Sysctl(str(PAGE)),
        # sys/x86/x86/msi.c; the chipset's I/O APIC has 24 pins.
        "machdep.num_msi_irqs": Sysctl("2048"),
        "machdep.first_msi_irq": Sysctl(str(FIRST_MESSAGE_IRQ)),
        "machdep.acpi_root": Sysctl(str(machine.acpi.root)),
        "vm.max_user_wired": Sysctl(str(machine.vmm.wired_limit // PAGE), writable=True),
        "vm.stats.vm.v_user_wire_count": Sysctl(str(machine.vmm.wired // PAGE)),
        "vm.stats.vm.v_free_count": Sysctl(str(machine.memory.free // PAGE)),
        "vm.stats.vm.v_page_count": Sysctl(str(machine.spec.memory // PAGE)),
    }
    if machine.kernel.has_module("vmm"):
        result |= _vmm(machine)
        result |= _ppt(machine)
        result |= _amd(machine)
    return result


def _vmm(machine: Machine) -> dict[str, Sysctl]:
    vmm, spec = machine.vmm, machine.spec
    tunables = vmm.tunables
    driver = vmm.remapping.driver
    amd = isinstance(driver, AmdDriver)
    vmx = spec.vendor == "intel" and spec.virtualizes
    values = {
        "domain_id": driver.next_domain if isinstance(driver, AmdDriver) else 0,
        "amdvi": tunables.get("hw.vmm.amdvi.enable", "0"),
        "units": len(driver.units) if isinstance(driver, AmdDriver) else 0,
        "vmx": int(vmx),
        "cr4": 0x2000 if vmx else 0,
        "cr0": 0x20 if vmx else 0,
        "ept": 0x1FB if vmx else 0,
        "ppt": vmm.ppt_count,
        "enable": tunables.get("hw.vmm.iommu.enable", "1"),
        "initialized": int(vmm.remapping.initialized),
        "cpus": spec.cpus,
    }
    return {
        f"hw.vmm.{name}": Sysctl(
            (on_amd if amd else on_intel).format(**values), tunable=name in _TUNABLES
        )
        for name, on_amd, on_intel in _VMM
    }


def _ppt(machine: Machine) -> dict[str, Sysctl]:
    """``dev.ppt.N``: the newest unit first, as the kernel lists them."""
    result = {}
    devices = [d for d in machine.kernel.bus.in_order() if d.driver_name == "ppt" and d.attached]
    for device in sorted(devices, key=lambda each: -each.unit):
        prefix = f"dev.ppt.{device.unit}"
        result[f"{prefix}.%parent"] = Sysctl(f"pci{device.address.bus}")
        result[f"{prefix}.%pnpinfo"] = Sysctl(_pnpinfo(device))
        result[f"{prefix}.%location"] = Sysctl(_location(machine, device))
        result[f"{prefix}.%driver"] = Sysctl("ppt")
        result[f"{prefix}.%desc"] = Sysctl("")
    if result:
        result["dev.ppt.%parent"] = Sysctl("")
    return result


def _pnpinfo(device: Device) -> str:
    function = device.function
    subsystem = function.peek(0x2C, 4)
    return (
        f"vendor={function.vendor:#06x} device={function.device:#06x} "
        f"subvendor={subsystem & 0xFFFF:#06x} subdevice={subsystem >> 16:#06x} "
        f"class={function.class_code:#08x}"
    )


def _location(machine: Machine, device: Device) -> str:
    at = device.address
    return (
        f"slot={at.device} function={at.function} dbsf={device.selector} "
        f"handle={acpi_handle(machine, at)}"
    )


def acpi_handle(machine: Machine, at: Address) -> str:
    r"""A function's name in the firmware's tables, as recorded: ``\_SB_.PCI0.S28_``."""
    ports = (f for f in machine.fabric.in_order() if isinstance(f, RootPort))
    above = next((f.address for f in ports if at.bus and f.secondary == at.bus), None)
    path = [each for each in (above, at) if each is not None]
    return "\\_SB_.PCI0" + "".join(f".S{p.device << 3 | p.function:02X}_" for p in path)


def _amd(machine: Machine) -> dict[str, Sysctl]:
    driver = machine.vmm.remapping.driver
    if not isinstance(driver, AmdDriver) or not driver.attached:
        return {}
    result = {}
    where = next(each.address for each in machine.spec.functions if each.kind == "amd-iommu")
    for number, unit in enumerate(driver.units):
        prefix = f"dev.ivhd.{number}"
        for name, value in (
            ("event_tail", unit.register(iommu.EVENT_TAIL)),
            ("event_head", unit.register(iommu.EVENT_HEAD)),
            ("command_tail", unit.register(iommu.COMMAND_TAIL)),
            ("command_head", unit.register(iommu.COMMAND_HEAD)),
            ("pci_rid", where.requester_id),
            ("command_count", unit.commands),
            ("event_intr_count", unit.event_interrupts),
        ):
            result[f"{prefix}.{name}"] = Sysctl(str(value))
        for name, text in (
            ("%parent", "acpi0"),
            ("%pnpinfo", "unknown"),
            ("%location", ""),
            ("%driver", "ivhd"),
            ("%desc", "AMD-Vi/IOMMU ivhd with EFR"),
        ):
            result[f"{prefix}.{name}"] = Sysctl(text)
    result["dev.ivhd.%parent"] = Sysctl("")
    device = machine.kernel.bus.devices[where.requester_id]
    for name, text in (
        ("0.%parent", "pci0"),
        ("0.%pnpinfo", _pnpinfo(device)),
        ("0.%location", _location(machine, device)),
        ("0.%driver", "amdiommu"),
        ("0.%desc", "AMD-Vi/IOMMU PCI function"),
        ("%parent", ""),
    ):
        result[f"dev.amdiommu.{name}"] = Sysctl(text)
    return result
