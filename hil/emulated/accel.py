"""KVM where a kernel was seen to run under it, else software emulation (TCG).

That /dev/kvm opens proves little: in some virtual machines it does and a stock kernel
hangs in its first instructions.  So a kernel is tried once, for seconds, and the answer
is remembered for this boot, processor and QEMU.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hil.emulated import cache
from hil.emulated.images import Image, Progress

#: Seconds that a kernel gets to reach its first program; under working KVM it takes one.
TRIAL = 10.0
DEVICE = Path("/dev/kvm")
_MARK = re.compile(rb"hil: userland runs, nested virtualization: (yes|no)")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What runs the lab host's instructions."""

    name: str
    """``kvm`` or ``tcg``."""
    reason: str
    """Why this one, as a sentence."""


def no_device() -> str:
    """Why KVM need not be tried here; empty if its device can be opened."""
    if not DEVICE.exists():
        return "there is no /dev/kvm"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "this user may not open /dev/kvm"
    return ""


def choose(qemu: str, version: str, image: Image, progress: Progress) -> Accelerator:
    """The accelerator for ``qemu`` on this machine."""
    if reason := no_device():
        return Accelerator("tcg", reason)
    identity = "\n".join((_text("/proc/sys/kernel/random/boot_id"), processor(), version))
    key = hashlib.sha256(f"{identity}\n{image.key}".encode()).hexdigest()
    place = cache.directory() / f"kvm-{key[:16]}.json"
    try:
        found = json.loads(place.read_text())
        return Accelerator(str(found["name"]), str(found["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    progress("trying KVM")
    answer = _try(qemu, image)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = place.with_name(f"{place.name}.{os.getpid()}")
    new.write_text(json.dumps({"name": answer.name, "reason": answer.reason}))
    new.replace(place)
    return answer


def processor() -> str:
    """The machine's processor, as /proc/cpuinfo names it."""
    found = re.search(r"^model name\s*: (.*)", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _try(qemu: str, image: Image) -> Accelerator:
    command = [qemu, "-machine", "q35,accel=kvm,kernel-irqchip=split", "-cpu", "host", "-m", "512"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    command += ["-append", "console=ttyS0 hil.probe panic=-1", "-serial", "stdio"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=TRIAL
        )
        out, err = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        out, err = error.stdout or b"", b""
    mark = _MARK.search(out)
    if mark is None:
        if err.strip():
            said = err.decode("utf-8", "replace").strip().splitlines()[-1].split(": ", 1)[-1]
            return Accelerator("tcg", f"QEMU cannot use /dev/kvm ({said[:100]})")
        reached = "printed nothing" if b"Linux version" not in out else "did not reach its init"
        return Accelerator(
            "tcg", f"/dev/kvm opens, but a kernel under it {reached} in {TRIAL:.0f} s"
        )
    if mark[1] == b"no":
        return Accelerator("tcg", "KVM works here, but gives no nested virtualization")
    return Accelerator("kvm", "a kernel was seen to run under it")
