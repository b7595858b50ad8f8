"""Checks of the machine that runs hil."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from hil.deadline import Deadline
from hil.doctor.check import Check, State
from hil.errors import HilError
from hil.lab.models import Device, Lab
from hil.transport.base import Transport

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


def capture(lab: Lab) -> list[Check]:
    """What this machine needs to see the displays whose cables end in it."""
    seen = [name for name, device in lab.devices.items() if _by_v4l2(device)]
    if not seen:
        return []
    purpose = f"captures what {', '.join(seen)} shows"
    return [_command("v4l2-ctl", purpose, "apt-get install v4l-utils")]


def _by_v4l2(device: Device) -> bool:
    return device.capture is not None and device.capture.by == "v4l2"


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
