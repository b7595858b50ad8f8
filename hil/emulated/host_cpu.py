"""Whether this machine's processor can run bhyve inside a virtual machine, and if not, why.

What bhyve asks of a processor: sys/amd64/vmm/amd/svm.c (check_svm_features: nested paging and
NRIP save) and sys/amd64/vmm/intel/vmx.c (EPT; an unrestricted guest for UEFI and for a guest's
second processor).  Under KVM the lab host has what the processor has and KVM's module hands
on, which it does by its parameter ``nested``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hil.errors import LabError

_CPUINFO, _MODULES = Path("/proc/cpuinfo"), Path("/sys/module")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A vendor's virtualization, by Linux's names."""

    module: str
    """KVM's."""
    extension: str
    needed: tuple[str, ...]
    """Flags of /proc/cpuinfo."""
    parameters: tuple[str, ...]
    """Of the module, that must be on for the lab host to have these."""


INTEL, AMD = "GenuineIntel", "AuthenticAMD"
_KINDS = {
    INTEL: _Kind("kvm_intel", "vmx", ("ept", "unrestricted_guest"), ("ept", "unrestricted_guest")),
    AMD: _Kind("kvm_amd", "svm", ("npt", "nrip_save"), ("npt",)),
}
#: Processors that are AMD's design under another name.
_COMPATIBLE = {"HygonGenuine": AMD}
_WHAT_FOR = {
    "ept": "nested paging (EPT)",
    "npt": "nested paging (NPT)",
    "nrip_save": "the address of the next instruction (NRIP save)",
    "unrestricted_guest": "unrestricted guests",
}


def vendor(cpuinfo: str) -> str:
    """:data:`INTEL`, :data:`AMD`, or what /proc/cpuinfo says in their place."""
    found = re.search(r"^vendor_id\s*: (\S+)", cpuinfo, re.MULTILINE)
    name = found[1] if found else ""
    return _COMPATIBLE.get(name, name)


def obstacle(cpuinfo: str, parameters: Mapping[str, str]) -> LabError | None:
    """Why bhyve could not run in a virtual machine of KVM's here; ``None`` if nothing is known.

    Args:
        cpuinfo: the contents of /proc/cpuinfo.
        parameters: of KVM's modules, ``kvm_amd/nested`` → ``1``, as below /sys/module; those
            of a module that is not loaded are missing.
    """
    maker = vendor(cpuinfo)
    kind = _KINDS.get(maker)
    if kind is None:
        return LabError(
            "bhyve needs a processor of Intel or AMD",
            seen=maker or "/proc/cpuinfo names no vendor_id",
        )
    found = re.search(r"^flags\s*: (.*)", cpuinfo, re.MULTILINE)
    # Since Linux 5.9 Intel's features of virtualization are on a line of their own.
    more = re.search(r"^vmx flags\s*: (.*)", cpuinfo, re.MULTILINE)
    flags = {*(found[1].split() if found else ()), *(more[1].split() if more else ())}
    if kind.extension not in flags:
        virtual = "hypervisor" in flags
        return LabError(
            f"bhyve needs {kind.extension.upper()}, which this processor does not show",
            hint="have the hypervisor below this machine hand it on (nested virtualization)"
            if virtual
            else "switch virtualization on in the firmware's settings",
        )
    for flag in kind.needed:
        # Before 5.9 that flag was shown nowhere: nothing is known then.
        hidden = flag == "unrestricted_guest" and more is None
        if flag not in flags and not hidden:
            return LabError(
                f"bhyve needs {_WHAT_FOR[flag]}, which this processor does not have",
                seen=f"no {flag} among the flags of /proc/cpuinfo",
            )
    for name in ("nested", *kind.parameters):
        value = parameters.get(f"{kind.module}/{name}", "Y").strip()
        if value in ("N", "0"):
            what = "give its machines virtualization" if name == "nested" else f"use {name}"
            return LabError(
                f"KVM does not {what} here, and bhyve in the lab host needs it",
                seen=f"/sys/module/{kind.module}/parameters/{name}: {value}",
                hint=f"end all virtual machines, then: modprobe -r {kind.module} && "
                f"modprobe {kind.module} {name}=1",
            )
    return None


def cpuinfo() -> str:
    """/proc/cpuinfo of this machine; empty where it cannot be read."""
    return _text(_CPUINFO)


def parameters() -> dict[str, str]:
    """Parameters of KVM's modules here, as :func:`obstacle` takes them."""
    found = {}
    for kind in _KINDS.values():
        for name in ("nested", *kind.parameters):
            if text := _text(_MODULES / kind.module / "parameters" / name):
                found[f"{kind.module}/{name}"] = text
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
