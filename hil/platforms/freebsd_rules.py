"""Every error of bhyve and FreeBSD's other tools that hil knows, and what it means.

Sources: usr.sbin/bhyve/{bhyverun,pci_passthru,pci_emul}.c, usr.sbin/bhyveload/bhyveload.c,
usr.sbin/{bhyvectl,devctl,iovctl}, sbin/kld{load,unload}, and ``tests/recorded``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from hil.errors import Fault
from hil.platforms.freebsd_assign import ABSENT, BUSY, NO_DEVICE, not_using, parsed, vm_assign
from hil.platforms.freebsd_state import Diagnosis, HostState, no_virtualization


@dataclass(frozen=True, slots=True)
class Rule:
    """A line that is known, and what it means.

    ``make`` is the diagnosis, in which ``{0}``, ``{1}`` … stand for the pattern's groups, or
    what makes it from the match and the host's facts.
    """

    pattern: str
    make: Diagnosis | Callable[[re.Match[str], HostState], Diagnosis]

    def search(self, text: str) -> re.Match[str] | None:
        """Where in the text the line stands."""
        return re.search(self.pattern, text, re.MULTILINE)

    def diagnose(self, match: re.Match[str], state: HostState) -> Diagnosis:
        """What it means, with all of the text."""
        made = self.make
        found = made(match, state) if callable(made) else _fill(made, match)
        return replace(found, text=match.string)


def _fill(diagnosis: Diagnosis, match: re.Match[str]) -> Diagnosis:
    groups = [(group or "").strip()[:200] for group in match.groups()]

    def put(text: str) -> str:
        return re.sub(r"\{(\d)\}", lambda place: groups[int(place[1])], text)

    return replace(diagnosis, meaning=put(diagnosis.meaning), remedy=put(diagnosis.remedy))


# ---- memory ----------------------------------------------------------------------


def _setup_memory(match: re.Match[str], state: HostState) -> Diagnosis:
    vm = state.vm or "NAME"
    destroy = f"bhyvectl --vm={vm} --destroy"
    if match[1] == "17":
        return Diagnosis(
            "the virtual machine's memory is mapped already, in another way: a failed start or "
            "an end was not followed by a destroy, or the loader ran without -S",
            f"{destroy}, then load with -S, then start; the first failure's own words are the "
            "ones to read",
        )
    if match[1] == "22":
        return Diagnosis(
            "the virtual machine exists with another amount of memory: a stale one, or the loader "
            "had another -m",
            f"{destroy}, then load and start with the same -m",
        )
    if match[1] == "12":
        return _no_memory(match, state)
    return Diagnosis(f"the guest's memory could not be set up, errno {match[1]}", destroy)


def _no_memory(_match: re.Match[str], state: HostState) -> Diagnosis:
    limit = state.value("vm.max_user_wired")
    wired = state.value("vm.stats.vm.v_user_wire_count")
    told = f" (of {limit} pages that may be wired, {wired or '?'} are)" if limit else ""
    return Diagnosis(
        f"the host cannot wire that much memory for the guest{told}",
        "[give the guest less memory, end other guests, or raise the limit: "
        "sysctl vm.max_user_wired]",
    )


def not_started(state: HostState) -> Diagnosis:
    """Vmm is loaded, as a file, and its module did not start."""
    cause = no_virtualization(state)
    return Diagnosis(
        "this host cannot run virtual machines: vmm is loaded but did not start",
        cause.remedy or "dmesg | grep -iE 'vmx|svm|vmm'",
        (cause,),
    )


def _vm_create(match: re.Match[str], state: HostState) -> Diagnosis:
    errno = match[1].strip()
    if errno == NO_DEVICE:
        return not_started(state)
    return _permission(errno) or Diagnosis(f"the virtual machine could not be made: {errno}")


def _permission(errno: str) -> Diagnosis | None:
    if errno in ("Operation not permitted", "Permission denied"):
        return Diagnosis(
            f"not allowed to: {errno}. This needs root, outside of a jail (or in one with "
            "allow.vmm and allow.vmm_ppt), at securelevel 0 or below",
            "id -u; sysctl security.jail.jailed kern.securelevel",
        )
    return None


def _vm_open(match: re.Match[str], _state: HostState) -> Diagnosis:
    name, errno = match[1], match[2].strip()
    if errno == ABSENT:
        return Diagnosis(f"there is no virtual machine {name}", "ls /dev/vmm")
    return _permission(errno) or Diagnosis(f"virtual machine {name} cannot be opened: {errno}")


def _opened(match: re.Match[str], _state: HostState) -> Diagnosis:
    """``failed to open /dev/pci: …``, ``/dev/mem``, ``/dev/io``."""
    path, errno = match[1], match[2].strip()
    found = _permission(errno)
    if found:
        return replace(found, meaning=f"{path} cannot be opened: {found.meaning}")
    return Diagnosis(f"{path} cannot be opened: {errno}", f"ls -l {path}")


# ---- devctl ----------------------------------------------------------------------


def _devctl(match: re.Match[str], state: HostState) -> Diagnosis:
    verb, device, driver, errno = match[1], match[2], match[3] or "", match[4].strip()
    to_ppt = driver == "ppt"
    if errno == ABSENT:
        loaded = state.modules is not None and "pci/ppt" in state.modules
        if to_ppt and state.modules is not None and not loaded:
            return Diagnosis("vmm is not loaded, and so there is no ppt(4)", "kldload -n vmm")
        what = f", or no driver {driver}" if driver and not (to_ppt and loaded) else ""
        return Diagnosis(
            f"there is no device {device}{what}", "kldload -n vmm; pciconf -l" if to_ppt else ""
        )
    if errno == BUSY:
        if verb in ("clear", "detach", "set") and device.startswith("ppt"):
            return _ppt_busy(device, state)
        address = parsed(device)
        if address is not None and state.drivers and state.drivers.get(address) == "ppt":
            return _ppt_busy(device, state)
        if verb == "attach":
            return Diagnosis(f"{device} has a driver already", f"pciconf -l {device}")
        return Diagnosis(
            f"{device} has a driver that is attached, or its driver does not let go: it is in use, "
            "or a virtual machine holds it",
            f"[see what uses it: mount, ifconfig, ls /dev/vmm]; then devctl {verb} with -f",
        )
    if errno == NO_DEVICE:
        if verb == "clear":
            return Diagnosis(
                f"{device} was given up, and no driver of the host takes it: it has none, as before"
            )
        if verb == "set":
            why = "it is a bridge" if to_ppt else "every driver knows its own devices only"
            return Diagnosis(
                f"{driver} does not take {device}: {why}. What was attached there, and behind it, "
                "is detached now",
                f"devctl clear driver -f {device}",
                fault=Fault.INVENTORY,
            )
        return Diagnosis(f"{device} has no driver attached", f"pciconf -l {device}")
    if errno == "Operation not supported by device":
        return Diagnosis(f"{device} cannot do that: devctl {verb}", fault=Fault.PRODUCT)
    return _permission(errno) or Diagnosis(
        f"devctl {verb} of {device} failed: {errno}", fault=Fault.PRODUCT
    )


def _ppt_busy(device: str, state: HostState) -> Diagnosis:
    vms = state.vms
    which = f" ({', '.join(vms)})" if vms else ""
    return Diagnosis(
        f"a virtual machine{which} holds {device}: one that runs, or one that has ended and was "
        "not destroyed",
        f"bhyvectl --vm={vms[0] if vms else 'NAME'} --destroy",
        # Where there is no virtual machine, nobody can hold it.
        fault=Fault.PRODUCT if vms == () else Fault.LAB,
    )


# ---- kernel modules --------------------------------------------------------------


def _kldload(match: re.Match[str], _state: HostState) -> Diagnosis:
    module, why = match[1], match[2].strip()
    if "already loaded" in why:
        return Diagnosis(f"{module} is loaded already", f"kldload -n {module}")
    if why == ABSENT:
        return Diagnosis(f"the host has no kernel module {module}", "ls /boot/kernel /boot/modules")
    if why == "Exec format error":
        return Diagnosis(
            f"{module} does not fit this kernel, or one that it needs failed to load",
            "dmesg | tail; freebsd-version -kru",
        )
    return _permission(why) or Diagnosis(f"{module} cannot be loaded: {why}")


_HOST = Fault.LAB
_USER = Fault.INVENTORY
_BUG = Fault.PRODUCT

#: Most telling first: the first that is found anywhere in the text decides.
RULES: tuple[Rule, ...] = (
    # passthru
    Rule(
        r"passthru requires guest memory to be wired",
        Diagnosis(
            "a passed device needs wired memory, and bhyve was started without -S",
            "[give -S (memory.wired=true) to both the loader and bhyve]",
        ),
    ),
    Rule(r"PCI device at (\d+/\d+/\d+) is not using the ppt(?:\(4\))? driver", not_using),
    Rule(
        r"PCI device at (\d+) is not using the ppt driver",
        Diagnosis(
            "illumos's bhyve was refused the device with file descriptor {0}: it is not reserved, "
            "is held by another virtual machine, or there is no usable IOMMU",
            "pptadm list -a",
        ),
    ),
    Rule(r"\bvm_assign_pptdev: (.*)", vm_assign),
    Rule(
        r"failed to initialize MSI for PCI (\S+)",
        Diagnosis(
            "{0} cannot be passed: it has neither MSI nor MSI-X, nor a list of capabilities",
            "pciconf -lc",
            fault=_USER,
        ),
    ),
    Rule(
        r"passthru device (\S+) BAR (\d+): base (\S+) or size (\S+) not page aligned",
        Diagnosis(
            "{0} cannot be passed: its BAR {1} (base {2}, size {3}) is not whole pages of 4 KiB",
            "pciconf -lb",
            fault=_USER,
        ),
    ),
    Rule(
        r"Failed to map MSI-X table BAR on (\S+): (.*)",
        Diagnosis(
            "the BAR with {0}'s MSI-X table cannot be mapped ({1}): its memory decoding is off, "
            "as FreeBSD's PR 260148 leaves it after a guest's end",
            "[destroy the virtual machine and start anew; if it stays, set bit 1 of COMMAND: "
            "pciconf -w -h SELECTOR 4 6]",
            fault=_BUG,
        ),
    ),
    Rule(
        r"failed to initialize MSI-X table for PCI (\S+): (\d+)",
        Diagnosis("{0}'s MSI-X table cannot be set up, errno {1}", fault=_BUG),
    ),
    Rule(
        r"failed to initialize BARs for PCI (\S+)",
        Diagnosis(
            "there is no room for {0}'s BARs in the guest's address space",
            "pciconf -lb",
            fault=_USER,
        ),
    ),
    Rule(
        r"Passthru device (\S+) not found",
        Diagnosis(
            "the host has no {0}: the function is not reserved, or under another number",
            "pciconf -l | grep ^ppt",
        ),
    ),
    Rule(
        r"Passthru device (\S+) on unsupported domain",
        Diagnosis(
            "{0} is in a PCI domain other than 0, and bhyve passes from domain 0 only", fault=_USER
        ),
    ),
    Rule(
        r"(?:Invalid passthru device name|Passthru device name) (\S+)",
        Diagnosis("{0} is no name of a ppt device: they look like ppt0", fault=_USER),
    ),
    Rule(
        r"passthru: invalid options \"(.*)\"|(invalid passthru options)",
        Diagnosis(
            'bhyve cannot read the function "{0}": B/S/F, and from 13.1 on pciD:B:S:F and pptN, '
            "in decimal",
            fault=_USER,
        ),
    ),
    Rule(
        r"passthru: missing required (\w+) setting",
        Diagnosis("passthru needs a function, and was given none ({0})", fault=_USER),
    ),
    Rule(
        r"can't (?:open|fstat) romfile \"(.*)\"|romfile \"(.*)\" is empty",
        Diagnosis("the device's ROM file {0}{1} cannot be read or is empty", fault=_USER),
    ),
    # the machine
    Rule(r"Unable to setup memory \((\d+)\)", _setup_memory),
    Rule(
        r"^virtual machine cannot be booted",
        Diagnosis(
            "no loader ran before bhyve, and no boot ROM was given",
            "[run bhyveload or grub-bhyve first, or give -l bootrom,FILE]",
        ),
    ),
    Rule(
        r"pci slot (\S+) already occupied!",
        Diagnosis("two devices were given the guest's slot {0}", fault=_USER),
    ),
    Rule(
        r"pci slot (\S+): unknown device \"(.*)\"",
        Diagnosis('this bhyve knows no device "{1}" (slot {0})', fault=_USER),
    ),
    Rule(
        r"Error opening bootrom \"(.*)\": (.*)",
        Diagnosis("the boot ROM {0} cannot be opened: {1}", "pkg install edk2-bhyve", fault=_HOST),
    ),
    Rule(
        r"ROM boot failed: unrestricted guest|VM unrestricted guest capability required",
        Diagnosis("this CPU starts no guest in real mode, as boot ROMs and GRUB need it"),
    ),
    Rule(
        r"Could not open backing file: (\S+): (.*)",
        Diagnosis("the guest's disk {0} cannot be opened: {1}", "ls -l {0}"),
    ),
    Rule(
        r"Unable to initialize backend '(.*)' for LPC device (\w+)",
        Diagnosis("the guest's {1} cannot be opened: {0}", "kldload -n nmdm"),
    ),
    Rule(
        r"open of tap device (\S+) failed",
        Diagnosis("the guest's network needs {0}, which is absent or in use", "ifconfig {0}"),
    ),
    Rule(
        r"gdb socket (\w+)(?:: (.*))?",
        Diagnosis("bhyve's debugger port cannot be opened: {1}", "sockstat -l"),
    ),
    Rule(
        r"vm_set_topology|(\d+) vCPUs requested but only (\d+)",
        Diagnosis(
            "more CPUs were asked for than bhyve gives on this host",
            "sysctl hw.vmm.maxcpu hw.ncpu",
            fault=_USER,
        ),
    ),
    Rule(
        r"[Ii]nvalid memsize '(.*)'",
        Diagnosis("{0} is no amount of memory", fault=_USER),
    ),
    Rule(
        r"invalid (?:cpu topology|vcpu pinning configuration|lpc device configuration) '(.*)'",
        Diagnosis("bhyve cannot read {0}", fault=_USER),
    ),
    Rule(
        r"^Usage: bhyve \[",
        Diagnosis("this bhyve does not understand how it was called", "man bhyve"),
    ),
    Rule(
        r"Assertion failed: (.*)",
        Diagnosis("bhyve found itself in error: {0}", fault=_BUG),
    ),
    Rule(
        r"(Failed to emulate instruction.*|vm_loop: unexpected exitcode.*)",
        Diagnosis("bhyve could not go on with the guest: {0}", fault=_BUG),
    ),
    Rule(r"failed to open (/dev/\w+): (.*)", _opened),
    # loaders
    Rule(
        r"vm_setup_memory: File exists",
        Diagnosis(
            "the virtual machine has memory already: it is left from a start before",
            "[bhyvectl --vm=NAME --destroy, then load again]",
        ),
    ),
    Rule(r"vm_setup_memory: Cannot allocate memory", _no_memory),
    Rule(r"Could not setup memory for VM", _no_memory),
    Rule(
        r"vm_reinit: Device busy",
        Diagnosis(
            "the virtual machine runs: it cannot be loaded a second time",
            "[bhyvectl --vm=NAME --destroy, then load again]",
        ),
    ),
    Rule(r"^(?:\w+: )?vm_create: (.*)", _vm_create),
    Rule(r"vm_open: (\S+) could not be opened: (.*)", _vm_open),
    Rule(
        r"Could not (?:create|open|reinit) VM (\S+)",
        Diagnosis(
            "grub-bhyve cannot make or open the virtual machine {0}",
            "[kldload -n vmm; bhyvectl --vm={0} --destroy, then load again]",
        ),
    ),
    Rule(
        r"bhyveload: Could not open '(.*)'",
        Diagnosis("the loader cannot open {0}: a disk image or a console", "ls -l '{0}'"),
    ),
    Rule(
        r"Shared object \"(\S*userboot\S*)\" not found|Cannot open \"(\S*userboot\S*)\"",
        Diagnosis("the loader's {0}{1} is not installed on this host", "ls /boot/userboot*"),
    ),
    Rule(
        r"^error: (no such device.*|no such partition.*|file .* not found.*|unknown filesystem.*)",
        Diagnosis(
            "grub-bhyve finds no kernel or configuration: {0}",
            "[compare device.map and -r with the image's partitions]",
            fault=_USER,
        ),
    ),
    # tools
    Rule(r"devctl: Failed to (\w+) (\S+?)(?: driver)?(?: to (\S+))?: (.*)", _devctl),
    Rule(r"kldload: can't load (\S+): (.*)", _kldload),
    Rule(
        r"kldunload: can't unload file: Device busy",
        Diagnosis(
            "vmm cannot be unloaded while a virtual machine exists; after this refusal the next "
            "passthrough on this host may panic it (seen on 13.2)",
            "[pass nothing more through; destroy the virtual machines, then reboot the host]",
        ),
    ),
    Rule(
        r"kldunload: can't find file (\S+)|kldstat: can't find (?:file|module) (\S+?):",
        Diagnosis("{0}{1} is not loaded", "kldstat"),
    ),
    Rule(
        r"iovctl: Could not open device '(.*)': (.*)",
        Diagnosis(
            "{0} offers no VFs ({1}): it has no SR-IOV, or its driver is not attached",
            "ls /dev/iov",
        ),
    ),
    Rule(
        r"iovctl: Failed to configure SR-IOV: (.*)",
        Diagnosis(
            "the VFs could not be made: {0}; a PF that has VFs must lose them first", "ls /dev/iov"
        ),
    ),
    Rule(
        r"iovctl: Failed to delete VFs: (.*)",
        Diagnosis("the VFs could not be removed ({0}): one is held", "ls /dev/vmm"),
    ),
    Rule(
        r"pciconf: ioctl\(PCIOC(?:READ|WRITE)\): Operation not supported by device",
        Diagnosis("the host has no PCI function there", "pciconf -l"),
    ),
    Rule(
        r"sysctl: unknown oid '(hw\.vmm\S*)'",
        Diagnosis("vmm is not loaded, so that there is no {0}", "kldload -n vmm"),
    ),
    Rule(r"sysctl: unknown oid '(\S+)'", Diagnosis("this host has no sysctl {0}")),
    Rule(
        r"sysctl: oid '(\S+)' is a read only tunable",
        Diagnosis(
            "{0} is read when its module is loaded and cannot be changed after that",
            "[put it into /boot/loader.conf, then reboot]",
        ),
    ),
    Rule(
        r"cannot (\w+) '(.*)': (dataset .*|pool .*|.* does not exist)",
        Diagnosis("zfs cannot {0} {1}: {2}", "zfs list -t all"),
    ),
    Rule(
        r"(?:No space left on device|out of space)",
        Diagnosis("a file system or pool of the host is full", "df -h; zpool list"),
    ),
    Rule(
        r"(Operation not permitted|Permission denied)",
        lambda match, _state: _permission(match[1]) or Diagnosis(match[1]),
    ),
    # What comes after another line, and alone tells least.
    Rule(
        r"[Dd]evice emulation initialization error: (.*)",
        Diagnosis(
            "one of the guest's devices could not be set up, and bhyve does not say which; the "
            "reason it gives may be stale: {0}",
            fault=_BUG,
        ),
    ),
)
