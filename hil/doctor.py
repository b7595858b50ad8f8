"""What this machine and a lab's hosts have and lack, with the command that mends it.

Nothing is changed.  Each check looks at one thing and never fails itself: what cannot
be seen is reported as such, with what stood in the way.
"""

from __future__ import annotations

import enum
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hil.deadline import Deadline
from hil.errors import HilError
from hil.transport.base import Transport


class State(enum.StrEnum):
    """What a check saw."""

    FOUND = "found"
    MISSING = "not found"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the doctor's table."""

    where: str
    """``this machine`` or a host's name."""
    name: str
    state: State
    evidence: str
    """What was seen, and where."""
    remedy: str = ""
    """The command that mends it, or in brackets what to do by hand."""
    needed: bool = True
    """Without it hil does not work there; what is not needed only makes things better."""

    @property
    def bad(self) -> bool:
        return self.needed and self.state is State.MISSING


HERE = "this machine"

#: For an emulated lab with its two images, their saved state, and a report.
DISK_NEEDED = 4 << 30
#: The emulated host's memory, QEMU's own, and hil.
MEMORY_NEEDED = 5 << 30


def controller(tool: Transport, deadline: Deadline, *, emulated: bool) -> list[Check]:
    """Checks of the machine that runs hil.

    Args:
        tool: runs commands on this machine.
        deadline: for all of them.
        emulated: whether the emulated lab is to run here; otherwise what only it needs
            is left out.
    """
    checks = [_python()]
    if emulated:
        checks += [
            *_qemu(tool, deadline),
            _command("mmdebstrap", "builds the lab's images", "apt-get install mmdebstrap"),
            _command("sqfstar", "packs the lab's images", "apt-get install squashfs-tools"),
            _command("zstd", "unpacks kernels", "apt-get install zstd"),
            _command("depmod", "indexes kernel modules", "apt-get install kmod"),
            _disk(_cache()),
            _memory(),
            _kvm(),
        ]
    checks.append(_allure(tool, deadline))
    return checks


def _python() -> Check:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    state = State.FOUND if good else State.MISSING
    return Check(HERE, "Python 3.11 or newer", state, f"{version}, {sys.executable}", "./dev setup")


def _which(command: str) -> str | None:
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(command, path=f"{path}:/usr/sbin:/sbin")


def _command(command: str, purpose: str, remedy: str, *, needed: bool = True) -> Check:
    path = _which(command)
    state = State.FOUND if path else State.MISSING
    evidence = path or f"no {command} on PATH; it {purpose}"
    return Check(HERE, command, state, evidence, remedy, needed)


def _qemu(tool: Transport, deadline: Deadline) -> list[Check]:
    remedy = "apt-get install qemu-system-x86"
    name = "QEMU for x86"
    program = _which("qemu-system-x86_64")
    if program is None:
        evidence = "no qemu-system-x86_64 on PATH"
        return [Check(HERE, name, State.MISSING, evidence, remedy)]
    status, text = _ask(tool, deadline, program, "--version")
    version = re.search(r"version (\S+)", text)
    if status != 0 or version is None:
        evidence = f"{program} --version: {text or f'status {status}'}"
        return [Check(HERE, name, State.UNKNOWN, evidence, remedy)]
    checks = [Check(HERE, name, State.FOUND, f"{version[1]}, {program}", remedy)]
    status, text = _ask(tool, deadline, program, "-device", "igb,help")
    state = {0: State.FOUND, 1: State.MISSING}.get(status, State.UNKNOWN)
    evidence = {
        State.FOUND: "emulates igb, the network card with SR-IOV",
        State.MISSING: f"QEMU {version[1]} has no igb (8.0 is the first that has); "
        "tests that need an SR-IOV network card are skipped",
        State.UNKNOWN: text,
    }[state]
    remedy = "./dev setup"
    checks.append(Check(HERE, "QEMU's igb", state, evidence, remedy, needed=False))
    return checks


def _cache() -> Path:
    if given := os.environ.get("HIL_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hil"


def _disk(folder: Path) -> Check:
    name = "disk for images"
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Check(HERE, name, State.UNKNOWN, f"{place}: {error.strerror}")
    state = State.FOUND if free >= DISK_NEEDED else State.MISSING
    evidence = f"{_gib(free)} free in {folder}, of {_gib(DISK_NEEDED)} needed"
    return Check(HERE, name, state, evidence, "[free space, or name another disk in HIL_CACHE]")


def _memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    name = "memory for the emulated host"
    try:
        text = meminfo.read_text()
    except OSError as error:
        return Check(HERE, name, State.UNKNOWN, f"{meminfo}: {error.strerror}")
    available = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    if available is None:
        return Check(HERE, name, State.UNKNOWN, f"{meminfo} has no MemAvailable")
    size = int(available[1]) << 10
    state = State.FOUND if size >= MEMORY_NEEDED else State.MISSING
    evidence = f"{_gib(size)} available, of {_gib(MEMORY_NEEDED)} needed"
    return Check(HERE, name, state, evidence, "[end other programs]")


def _kvm(device: Path = Path("/dev/kvm")) -> Check:
    name = "KVM"
    if not device.exists():
        evidence = f"no {device}: the lab runs in software emulation, which is slower"
        return Check(HERE, name, State.MISSING, evidence, "modprobe -a kvm_intel kvm_amd", False)
    if not os.access(device, os.R_OK | os.W_OK):
        evidence = f"{device} cannot be opened by this user"
        return Check(HERE, name, State.MISSING, evidence, 'usermod -aG kvm "$USER"', False)
    # That it opens proves little; only a kernel that boots under it does.
    evidence = f"{device} opens; whether a kernel runs under it is tried when the lab first starts"
    return Check(HERE, name, State.UNKNOWN, evidence, "hil lab up", False)


def _allure(tool: Transport, deadline: Deadline) -> Check:
    name = "Allure, for the HTML page"
    from hil.reporting.html import find_allure

    try:
        program = str(find_allure())
    except HilError as error:
        return Check(HERE, name, State.MISSING, error.message, "./dev setup", needed=False)
    status, text = _ask(tool, deadline, program, "--version")
    state = State.FOUND if status == 0 else State.MISSING
    evidence = f"{text if status == 0 else f'status {status}: {text}'}, {program}"
    return Check(HERE, name, state, evidence, "./dev setup", needed=False)


def _ask(tool: Transport, deadline: Deadline, *command: str) -> tuple[int, str]:
    """Status and first line of what ``command`` printed; -1 and why if it did not run."""
    try:
        result = tool.run(command, deadline=deadline.within(20, command[0]), limit=65536)
    except HilError as error:
        return -1, error.message
    lines = (result.stdout.strip() or result.stderr.strip()).splitlines()
    return result.status, lines[0][:200] if lines else ""


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


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
if [ -d /sys/bus/pci/drivers/vfio-pci ]; then echo vfio=loaded
elif modprobe -n -q vfio-pci; then echo vfio=loadable
elif command -v modprobe >/dev/null; then echo vfio=none
fi
if [ -c /dev/kvm ]; then echo kvm=yes; else echo kvm=no; fi
echo "qemu=$(qemu-system-x86_64 --version 2>/dev/null | head -n 1)"
[ -r /proc/meminfo ] && grep MemAvailable /proc/meminfo | sed 's/: */=/'
exit 0
"""


def linux_host(host: str, transport: Transport, deadline: Deadline) -> list[Check]:
    """Checks of a host with the platform ``linux-vfio``."""
    try:
        result = transport.run(["sh", "-c", LINUX_SURVEY], deadline=deadline, limit=65536)
    except HilError as error:
        return [Check(host, "answers", State.MISSING, error.message, error.hint)]
    return judge_linux(host, parse_survey(result.stdout))


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
