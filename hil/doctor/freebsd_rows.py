"""Checks of a FreeBSD host with bhyve: what users of passthrough there struggle with.

Pure: facts in, rows out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hil.doctor.check import Check, State
from hil.doctor.devices import Devices, device_rows, memory_of
from hil.doctor.freebsd_traffic import Held, traffic_rows
from hil.errors import HilError
from hil.iommu.faults import parse_fault_log
from hil.lab.check import check_against
from hil.lab.models import Lab
from hil.pci.address import Address
from hil.platforms.bar_windows import BHYVE
from hil.platforms.contract import Function
from hil.platforms.freebsd_state import (
    Cause,
    HostState,
    Verdict,
    amdvi,
    host_driver,
    no_table,
    no_virtualization,
    switched_off,
    tunable,
)
from hil.platforms.freebsd_text import PPTDEVS, Release, pptdevs, pptdevs_ignored

PAGE = 4096
#: Of a guest, where no inventory says.
GUEST_MEMORY = 256 << 20
#: Two of them.
WIRED_NEEDED = 512 << 20
#: pptdevs lines: documented, and what the kernel's copy of the environment takes (KENV_MNAMELEN
#: and KENV_MVALLEN of sys/sys/kenv.h), name and ``=`` included.
LINE_DOCUMENTED, LINE_TAKEN = 128, 258


@dataclass(frozen=True, slots=True)
class Seen:
    """What a host answered, read; ``None`` where it did not answer, or cannot be read."""

    host: str
    state: HostState
    user: str | None = None
    loader: str | None = None
    acpi: str | None = None
    boot: str | None = None
    firmware: tuple[str, ...] | None = None
    grub: bool | None = None
    functions: tuple[Function, ...] | None = None
    held: tuple[Held, ...] = ()
    """Functions that guests have now."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Why something cannot be read, by what it is."""


def judge(seen: Seen, lab: Lab | None = None) -> list[Check]:
    """What the facts say of the host, and of the lab's devices in it."""
    checks = [
        _root(seen),
        _jail(seen),
        _securelevel(seen),
        _virtualization(seen),
        _vmm(seen),
        _firmware_iommu(seen),
        *_amd(seen),
        _allowed(seen),
        _initialized(seen),
        _own_driver(seen),
        *_units(seen),
        _pptdevs(seen),
        _stale(seen),
        _wired(seen),
        _unload(seen),
        _faults(seen),
        _bootrom(seen),
        _grub(seen),
    ]
    wanted, complaints = _wanted(seen, lab)
    checks += [*complaints, *(_device(seen, one) for found in wanted.values() for one in found)]
    checks += traffic_rows(seen.host, seen.held)
    memory = memory_of(lab, seen.host) if lab and lab.devices_of(seen.host) else GUEST_MEMORY
    return checks + device_rows(seen.host, wanted, seen.functions or (), BHYVE, memory)


# ---- rows ------------------------------------------------------------------------


def _row(
    seen: Seen,
    name: str,
    good: bool | None,
    evidence: str,
    remedy: str = "",
    *,
    needed: bool = True,
) -> Check:
    state = {True: State.FOUND, False: State.MISSING, None: State.UNKNOWN}[good]
    return Check(seen.host, name, state, evidence, remedy, needed)


def _from_cause(seen: Seen, name: str, cause: Cause, *, needed: bool = True) -> Check:
    """A cause of failure that is ruled out is what a healthy host has."""
    good = {Verdict.RULED_OUT: True, Verdict.HOLDS: False, Verdict.POSSIBLE: None}[cause.verdict]
    evidence = cause.why or "the host does not show it"
    return _row(seen, name, good, evidence, cause.remedy, needed=needed)


def _not_shown(seen: Seen, name: str, what: str, command: str, *, needed: bool = True) -> Check:
    evidence = seen.unread.get(what, "the host does not show it")
    return _row(seen, name, None, evidence, command, needed=needed)


def _root(seen: Seen) -> Check:
    name = "root's rights"
    if seen.user is None:
        return _not_shown(seen, name, "user", "id -u")
    return _row(seen, name, seen.user == "0", f"user id {seen.user}", "[set user = 'root']")


def _jail(seen: Seen) -> Check:
    name = "outside of a jail"
    value = seen.state.value("security.jail.jailed")
    if value is None:
        return _not_shown(seen, name, "sysctl", "sysctl security.jail.jailed")
    remedy = (
        "[name the jail's host in the inventory, or: jail -m name=NAME allow.vmm allow.vmm_ppt]"
    )
    return _row(seen, name, value == "0", f"security.jail.jailed: {value}", remedy)


def _securelevel(seen: Seen) -> Check:
    name = "securelevel"
    value = seen.state.value("kern.securelevel")
    if value is None or not re.fullmatch(r"-?\d{1,3}", value):
        return _not_shown(seen, name, "sysctl", "sysctl kern.securelevel")
    remedy = "sysrc kern_securelevel_enable=NO  # then reboot"
    return _row(seen, name, int(value) <= 0, f"kern.securelevel: {value}", remedy)


def _virtualization(seen: Seen) -> Check:
    name = "CPU virtualization"
    modules = seen.state.modules
    if modules is not None and ("vmm" in modules or "pci/ppt" in modules):
        # vmm.ko stays where its module vmm did not start: the CPU lacks what it needs.
        return _from_cause(seen, name, no_virtualization(seen.state))
    log = f"{seen.boot or ''}\n{seen.state.dmesg or ''}"
    # As sys/x86/x86/identcpu.c prints the CPU's features, indented; vmm's own "SVM: not
    # available." is not.
    told = re.search(r"^  +(?:VT-x|SVM): .*", log, re.MULTILINE)
    remedy = "[switch VT-x or SVM on in the firmware's setup]"
    if told:
        return _row(seen, name, True, told[0].strip(), remedy)
    whole = re.search(r"^CPU: .*", log, re.MULTILINE)
    if whole:
        evidence = f"neither VT-x nor SVM in the kernel's log after {whole[0].strip()!r}"
        return _row(seen, name, False, evidence, remedy)
    return _not_shown(seen, name, "boot", "kldload -n vmm; dmesg | tail")


def _vmm(seen: Seen) -> Check:
    name = "vmm"
    modules = seen.state.modules
    remedy = tunable("vmm_load=YES")
    if modules is None:
        return _not_shown(seen, name, "modules", "kldstat -v", needed=False)
    if "vmm" in modules:
        return _row(seen, name, True, "kldstat: module vmm is loaded", needed=False)
    evidence = "not loaded; a run loads it, but what pptdevs names is reserved by the loader's only"
    return _row(seen, name, False, evidence, remedy, needed=False)


def _firmware_iommu(seen: Seen) -> Check:
    return _from_cause(seen, "IOMMU in the firmware", no_table(seen.state))


def _tunable(seen: Seen, name: str) -> tuple[str | None, str]:
    """A tunable's value, by sysctl or (vmm not loaded) as the loader left it; and the evidence."""
    value = seen.state.value(name)
    if value is not None:
        return value, f"{name}: {value}"
    if seen.state.kenv is not None and name in seen.state.kenv:
        value = seen.state.kenv[name]
        return value, f'kenv: {name}="{value}"'
    return None, ""


def _amd(seen: Seen) -> list[Check]:
    if seen.state.amd is False:
        return []
    name = "AMD-Vi enabled"
    value, evidence = _tunable(seen, "hw.vmm.amdvi.enable")
    remedy = tunable("hw.vmm.amdvi.enable=1")
    if value is None and seen.state.kenv is not None and seen.state.amd:
        evidence = "hw.vmm.amdvi.enable is not set, and 0 is its default"
        return [_row(seen, name, False, evidence, remedy)]
    if value is None:
        return [_not_shown(seen, name, "sysctl", "sysctl hw.vmm.amdvi")]
    refused = amdvi(seen.state)
    if refused.verdict is Verdict.HOLDS:
        return [_from_cause(seen, name, refused)]
    count = seen.state.value("hw.vmm.amdvi.count")
    if count is not None:
        evidence += f", hw.vmm.amdvi.count: {count}"
    return [_row(seen, name, value != "0", evidence, remedy)]


def _allowed(seen: Seen) -> Check:
    name = "IOMMU allowed to bhyve"
    value, evidence = _tunable(seen, "hw.vmm.iommu.enable")
    if value is not None and seen.state.value("hw.vmm.iommu.enable") is not None:
        return _from_cause(seen, name, switched_off(seen.state))
    if value is None:
        if seen.state.kenv is None:
            return _not_shown(seen, name, "kenv", "sysctl hw.vmm.iommu.enable")
        evidence = "hw.vmm.iommu.enable is not set, and 1 is its default"
    return _row(seen, name, value != "0", evidence, tunable("hw.vmm.iommu.enable=1"))


def _initialized(seen: Seen) -> Check:
    name = "IOMMU in use by bhyve"
    value = seen.state.value("hw.vmm.iommu.initialized")
    intel_14_3 = (
        seen.state.release == Release(14, 3, "")
        and seen.state.amd is False
        and "14.3 with Intel: see FreeBSD's PR 290155"
    )
    refused = seen.state.logged(r"use hw\.vmm\.amdvi\.enable=1|iommu_init: unable")
    if value == "1":
        return _row(seen, name, True, "hw.vmm.iommu.initialized: 1")
    if value == "0" and refused:
        remedy = tunable("hw.vmm.amdvi.enable=1") if "amdvi" in refused else "dmesg"
        return _row(seen, name, False, refused, remedy)
    evidence = (
        "hw.vmm.iommu.initialized: 0, as always before the first device is passed"
        if value == "0"
        else "vmm is not loaded"
    )
    if intel_14_3:
        evidence += f"; {intel_14_3}"
    return _row(seen, name, None, evidence, "[pass a device, then look again]")


def _own_driver(seen: Seen) -> Check:
    cause = host_driver(seen.state)
    name = "host's own IOMMU driver off"
    if cause.verdict is Verdict.POSSIBLE and cause.why:
        evidence = f"{cause.why}: hosts were seen to freeze at the first passthrough with both"
        return _row(seen, name, False, evidence, cause.remedy)
    return _from_cause(seen, name, cause)


def _units(seen: Seen) -> list[Check]:
    """What is known to stop hosts at the first assignment, on Intel's."""
    text = seen.acpi or ""
    units = len(re.findall(r"^\s*Type=DRHD\s*$", text, re.MULTILINE))
    if not units:
        return []
    regions = re.findall(
        r"^\s*Type=RMRR\s*$(.*?)(?=^\s*Type=[A-Z]{4}\s*$|\*/)", text, re.MULTILINE | re.DOTALL
    )
    release = seen.state.release
    old = release is not None and release < Release(12, 1, "")
    checks = [
        _row(
            seen,
            "several remapping units",
            units == 1 or not old,
            f"{units} DRHD; before 12.1 (r349184, PR 229852) the host's storage died at the first "
            "assignment where there were several"
            if units > 1
            else "1 DRHD",
            "[upgrade to 12.1 or newer]",
            needed=False,
        )
    ]
    if regions:
        scopes = [
            f"bus {bus} path {path}"
            for region in regions
            for bus, path in re.findall(r"StartBusNumber=(\d+)\s+Path=\{([\d:, ]+)\}", region)
        ]
        evidence = f"{len(regions)} RMRR, for {', '.join(scopes[:8]) or 'devices not told'}"
        checks.append(
            _row(
                seen,
                "no memory reserved for devices (RMRR)",
                None,
                f"{evidence}: do not pass these, and expect them to stop at the first assignment",
                "acpidump -t",
                needed=False,
            )
        )
    return checks


def _pptdevs(seen: Seen) -> Check:
    name = "pptdevs"
    kenv = seen.state.kenv
    if kenv is None:
        return _not_shown(seen, name, "kenv", "kenv -q", needed=False)
    written = _settings(seen.loader or "", r"pptdevs\d*")
    problems = [*_pptdevs_lines(seen, kenv, written), *_pptdevs_taken(seen, kenv)]
    ignored = pptdevs_ignored(kenv)
    if ignored:
        problems.append((f"not read by the kernel: {', '.join(ignored)}", "[" + _FORM + "]"))
    if not problems:
        found = [f'{key}="{kenv[key]}"' for key in PPTDEVS if key in kenv]
        evidence = ", ".join(found) or "none: functions are reserved at run time, by devctl"
        return _row(seen, name, True, evidence, needed=False)
    evidence = "; ".join(problem for problem, _ in problems)
    return _row(seen, name, False, evidence, problems[0][1], needed=False)


_KEEP_OUT = "and keep devd from loading its driver: sysrc devmatch_blocklist+=MODULE"
_FORM = 'in /boot/loader.conf: pptdevs="5/0/0 6/0/0", decimal, at most pptdevs, pptdevs2, pptdevs3'


def _settings(text: str, name: str) -> dict[str, str]:
    """Settings of a loader.conf; the last of a name holds."""
    found = re.findall(rf'^\s*({name})\s*=\s*"?([^"\n]*)"?', text, re.MULTILINE)
    return {key: value.strip() for key, value in found}


def _pptdevs_lines(
    seen: Seen, kenv: Mapping[str, str], written: Mapping[str, str]
) -> Iterable[tuple[str, str]]:
    dropped = re.search(
        r"^.*too long kenv string.*", f"{seen.boot or ''}\n{seen.state.dmesg or ''}", re.MULTILINE
    )
    split = f"[{_FORM}: split the line over the three]"
    if dropped:
        yield f"the kernel has dropped a line: {dropped[0].strip()[:200]}", split
    for name, value in written.items():
        size = len(f"{name}={value}")
        if name in kenv and size > LINE_DOCUMENTED:
            yield f"{name} is {size} characters long, and 128 are documented", split
        elif name not in kenv and size > LINE_TAKEN:
            yield f"{name} is {size} characters long, and the kernel takes {LINE_TAKEN}", split
        elif name not in kenv or kenv[name] != value:
            yield (
                f"{name} in loader.conf is not the kernel's: changed since boot",
                "shutdown -r now",
            )
    if written and not re.fullmatch(
        "YES", _settings(seen.loader or "", "vmm_load").get("vmm_load", ""), re.IGNORECASE
    ):
        yield (
            "vmm is not loaded by the loader, so that the host's drivers take the functions first",
            tunable("vmm_load=YES"),
        )


def _pptdevs_taken(seen: Seen, kenv: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    drivers = seen.state.drivers
    if drivers is None or "pci/ppt" not in (seen.state.modules or ()):
        return
    for address in pptdevs(kenv):
        if address not in drivers:
            yield f"the host has no function at {address.slashes}: a card moved?", "pciconf -l"
        elif drivers[address] != "ppt":
            driver = drivers[address]
            yield (
                f"{address.slashes} has {driver or 'no driver'} instead of ppt",
                f"devctl set driver -f {address.selector} ppt  # {_KEEP_OUT}",
            )


def _stale(seen: Seen) -> Check:
    name = "no stale virtual machines"
    vms, processes = seen.state.vms, seen.state.processes
    if vms is None or processes is None:
        return _not_shown(seen, name, "processes", "ls /dev/vmm; ps -axww | grep bhyve")
    running = {process.vm for process in processes}
    stale = [vm for vm in vms if vm not in running]
    if stale:
        evidence = f"/dev/vmm has {', '.join(stale)} without a bhyve: they hold their devices"
        remedy = "; ".join(f"bhyvectl --vm={vm} --destroy" for vm in stale)
        return _row(seen, name, False, evidence, remedy)
    return _row(seen, name, True, f"{len(vms)} in /dev/vmm, each with its bhyve")


def _wired(seen: Seen) -> Check:
    name = "memory that may be wired"
    numbers = [
        seen.state.value(key) for key in ("vm.max_user_wired", "vm.stats.vm.v_user_wire_count")
    ]
    if not all(number and re.fullmatch(r"\d{1,20}", number) for number in numbers):
        return _not_shown(seen, name, "sysctl", "sysctl vm.max_user_wired")
    limit, used = (int(number or 0) for number in numbers)
    free = (limit - used) * PAGE
    evidence = f"{max(free, 0) >> 20} MiB of {limit * PAGE >> 20} MiB (vm.max_user_wired: {limit})"
    remedy = f"sysctl vm.max_user_wired={used + WIRED_NEEDED // PAGE}"
    return _row(seen, name, free >= WIRED_NEEDED, evidence, remedy)


def _unload(seen: Seen) -> Check:
    name = "vmm may be unloaded, the host suspended"
    if seen.functions is None:
        return _not_shown(seen, name, "functions", "pciconf -l | grep ^ppt", needed=False)
    held = [one.address.selector for one in seen.functions if one.reserved]
    if held:
        evidence = f"ppt is attached to {', '.join(held)}: hosts have panicked"
        remedy = "; ".join(f"devctl clear driver -f {one}" for one in held)
        return _row(seen, name, False, evidence, remedy, needed=False)
    return _row(seen, name, True, "ppt is attached to nothing", needed=False)


def _faults(seen: Seen) -> Check:
    name = "no DMA faults"
    if seen.state.dmesg is None:
        return _not_shown(seen, name, "dmesg", "dmesg", needed=False)
    count = seen.state.value("dev.ivhd.0.event_intr_count")
    found = parse_fault_log(seen.state.dmesg)
    if found or count not in (None, "0"):
        last = f"{len(found)} in the kernel's log" if found else "none in the kernel's log"
        evidence = f"{last}; dev.ivhd.0.event_intr_count: {count}" if count else last
        remedy = "dmesg | grep -iE 'DMAR|ivhd|IO_PAGE_FAULT'"
        return _row(seen, name, False, evidence, remedy, needed=False)
    intel = " (bhyve reports none on Intel: a run reads the unit's registers)"
    return _row(seen, name, True, "none logged" + ("" if seen.state.amd else intel), needed=False)


def _bootrom(seen: Seen) -> Check:
    name = "boot ROM for UEFI guests"
    roms = [file for file in seen.firmware or () if file.startswith("BHYVE_UEFI")]
    evidence = ", ".join(roms) or "none in /usr/local/share/uefi-firmware"
    return _row(seen, name, bool(roms), evidence, "pkg install edk2-bhyve", needed=False)


def _grub(seen: Seen) -> Check:
    evidence = "/usr/local/sbin/grub-bhyve" if seen.grub else "no /usr/local/sbin/grub-bhyve"
    return _row(
        seen,
        "loader for Linux guests",
        seen.grub,
        evidence,
        "pkg install grub2-bhyve",
        needed=False,
    )


# ---- devices ---------------------------------------------------------------------


def _wanted(seen: Seen, lab: Lab | None) -> tuple[Devices, list[Check]]:
    """The devices that the lab passes (without a lab: what is reserved), and what is amiss."""
    if seen.functions is None:
        return {}, [_not_shown(seen, "functions", "functions", "pciconf -lvbce")]
    if lab is None or not lab.devices_of(seen.host):
        cards: dict[str, list[Function]] = {}
        for one in seen.functions:
            if one.reserved:
                cards.setdefault(str(one.address).rpartition(".")[0], []).append(one)
        return cards, []
    try:
        return check_against(lab, seen.host, seen.functions), []
    except HilError as error:
        row = _row(
            seen, "the inventory's devices", False, error.message, error.hint or "hil devices"
        )
    named = {
        name: [one for one in seen.functions if one.address in device.functions]
        for name, device in lab.devices_of(seen.host).items()
    }
    return named, [row]


def _device(seen: Seen, function: Function) -> Check:
    """Whether a function can be passed at all, and what is to be expected of it."""
    blocks: list[str] = []
    warnings: list[str] = []
    remedy = ""
    if function.in_use_as:
        blocks.append(f"the host needs it: {function.in_use_as}")
        remedy = "[name another device in the inventory]"
    if function.address.domain:
        blocks.append(f"PCI domain {function.address.domain}, and bhyve passes from 0 only")
    if function.config.msi is None and function.config.msix is None:
        blocks.append("neither MSI nor MSI-X")
    blocks += [
        f"BAR{bar.index} is not whole pages: {bar.address:#x}, size {bar.size:#x}"
        for bar in function.bars
        if bar.memory and bar.size and (bar.size % PAGE or bar.address % PAGE)
    ]
    if not function.reset_methods:
        warnings.append("no reset of its own: its state and its DMA go on to the next guest")
    alone = _left_behind(seen, function)
    if alone:
        warnings.append(f"of the same card, and with a driver of the host: {', '.join(alone)}")
        remedy = remedy or "[pass all functions of the card together]"
    interrupts = "MSI-X" if function.config.msix else "MSI"
    good = (
        f"{function.vendor:04x}:{function.device:04x}, {function.driver or 'no driver'}, "
        f"{interrupts}, reset by {' '.join(function.reset_methods) or 'nothing'}"
    )
    evidence = "; ".join(blocks + warnings) or good
    name = f"{function.address.slashes} can be passed"
    needed = bool(blocks) or not warnings
    return _row(seen, name, not (blocks or warnings), evidence, remedy, needed=needed)


def _left_behind(seen: Seen, function: Function) -> list[str]:
    if function.physical_function is not None:
        return []
    place = (function.address.domain, function.address.bus, function.address.device)
    return [
        f"{other.address.slashes} ({other.driver})"
        for other in seen.functions or ()
        if _place(other.address) == place
        and other.address != function.address
        and other.driver not in (None, "ppt")
        and other.physical_function is None
    ]


def _place(address: Address) -> tuple[int, int, int]:
    return address.domain, address.bus, address.device
