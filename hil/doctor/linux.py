"""Checks of a Linux host with QEMU/KVM and VFIO."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from hil.deadline import Deadline
from hil.doctor.check import Check, State
from hil.doctor.devices import device_rows, memory_of, memory_rows
from hil.errors import HilError
from hil.lab.check import check_against
from hil.lab.models import Lab
from hil.platforms.bar_windows import address_bits, q35
from hil.platforms.linux import LinuxVfio
from hil.transport.base import Transport

#: Prints ``name=value`` lines; a value that cannot be read is left out.  Changes nothing.
LINUX_SURVEY = r"""
PATH=$PATH:/usr/sbin:/sbin
echo "user=$(id -u)"
echo "kernel=$(uname -r)"
[ -d /sys/class/iommu ] && echo "iommus=$(ls /sys/class/iommu | tr '\n' ' ')"
[ -d /sys/firmware/acpi/tables ] && echo "tables=$(ls /sys/firmware/acpi/tables | tr '\n' ' ')"
[ -d /sys/kernel/iommu_groups ] && echo "groups=$(ls /sys/kernel/iommu_groups | wc -l)"
[ -r /proc/cmdline ] && echo "cmdline=$(cat /proc/cmdline)"
[ -r /proc/cpuinfo ] && echo "cpu=$(grep -m1 '^vendor_id' /proc/cpuinfo | cut -d: -f2)"
[ -r /proc/cpuinfo ] && echo "bits=$(grep -m1 '^address sizes' /proc/cpuinfo | tr -cs 0-9 ' ')"
if [ -d /sys/bus/pci/drivers/vfio-pci ]; then echo vfio=loaded
elif modprobe -n -q vfio-pci; then echo vfio=loadable
elif command -v modprobe >/dev/null; then echo vfio=none
fi
if [ -c /dev/kvm ]; then echo kvm=yes; else echo kvm=no; fi
echo "qemu=$(qemu-system-x86_64 --version 2>/dev/null | head -n 1)"
[ -r /proc/meminfo ] && grep MemAvailable /proc/meminfo | sed 's/: */=/'
exit 0
"""


def linux_host(
    host: str, transport: Transport, deadline: Deadline, lab: Lab | None = None
) -> list[Check]:
    """Checks of a host with the platform ``linux-vfio``, and of the lab's devices in it."""
    try:
        result = transport.run(["sh", "-c", LINUX_SURVEY], deadline=deadline, limit=65536)
    except HilError as error:
        return [Check(host, "answers", State.MISSING, error.message, error.hint)]
    seen = parse_survey(result.stdout)
    checks = judge_linux(host, seen)
    if lab is None or not lab.devices_of(host):
        return checks
    platform = LinuxVfio(host, transport, python=False)
    try:
        functions = platform.functions(deadline)
        devices = check_against(lab, host, functions)
        memory = memory_rows(host, lab, lambda: platform.pinning(deadline))
    except HilError as error:
        name = "the inventory's devices"
        return [*checks, Check(host, name, State.MISSING, error.message, error.hint)]
    windows = q35(address_bits(seen.get("bits", "")))
    rows = device_rows(host, devices, functions, windows, memory_of(lab, host))
    return checks + rows + memory


def parse_survey(text: str) -> dict[str, str]:
    """The ``name=value`` lines of a survey."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value.strip() for name, sep, value in pairs if sep}


def judge_linux(host: str, seen: Mapping[str, str]) -> list[Check]:
    """What a survey of a Linux host says of it."""
    amd = "AMD" in seen.get("cpu", "")

    def row(
        name: str, key: str, good: Callable[[str], bool], evidence: str, remedy: str, needed: bool
    ) -> Check:
        if key not in seen:
            return Check(host, name, State.UNKNOWN, "the host does not show it", remedy, needed)
        state = State.FOUND if good(seen[key]) else State.MISSING
        return Check(host, name, state, evidence.format(seen[key] or "nothing"), remedy, needed)

    tables = " ".join(re.findall(r"\b(?:DMAR|IVRS)\b", seen.get("tables", "")))
    option = "amd_iommu=on" if amd else "intel_iommu=on"
    grub = (
        f"""echo 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {option}"' """
        "> /etc/default/grub.d/hil.cfg && update-grub && reboot"
    )
    firmware = f"[switch {'AMD-Vi' if amd else 'VT-d'} on in the firmware's set-up]"
    # Where the firmware describes no IOMMU, no kernel option brings one.
    without_iommu = grub if tables else firmware
    return [
        row("root's rights", "user", "0".__eq__, "user id {}", "[set user = 'root']", True),
        row(
            "IOMMU in the firmware",
            "tables",
            lambda _: bool(tables),
            f"ACPI tables: {tables or 'neither DMAR nor IVRS'}",
            firmware,
            True,
        ),
        row("IOMMU on", "iommus", bool, "/sys/class/iommu: {}", without_iommu, True),
        row("isolation groups", "groups", _positive, "{} groups", without_iommu, True),
        row(
            "vfio-pci",
            "vfio",
            lambda value: value != "none",
            f"{{}} (kernel {seen.get('kernel', '?')})",
            'apt-get install "linux-modules-extra-$(uname -r)"  [Ubuntu; others: a stock kernel]',
            True,
        ),
        row("QEMU", "qemu", bool, "{}", "apt-get install qemu-system-x86", True),
        row(
            "KVM",
            "kvm",
            "yes".__eq__,
            "/dev/kvm: {}",
            f"modprobe {'kvm_amd' if amd else 'kvm_intel'}",
            False,
        ),
    ]


def _positive(number: str) -> bool:
    return number.isdigit() and int(number) > 0
