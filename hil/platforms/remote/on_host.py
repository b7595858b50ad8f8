"""Answers what a Linux lab host's PCI functions are; runs *on the host*.

Prints of a survey the very lines that the shell script of :mod:`hil.platforms.linux` prints,
so that one parser reads both.  Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import base64
import fcntl
import glob
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Optional

SYSFS = "/sys/bus/pci/devices/"
TEXTS = ("vendor", "device", "resource", "reset_method", "sriov_totalvfs")


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def lines_of(path: str) -> list[str]:
    text = read(path).decode("utf-8", "replace")
    return text.rstrip("\n").split("\n") if text else []


def survey(pattern: str) -> Iterator[str]:
    names = sorted(os.path.basename(path) for path in glob.glob(SYSFS + pattern))
    configs = [read(SYSFS + name + "/config") for name in names]
    for name, config in zip(names, configs):
        yield "size %s/config %d" % (name, len(config))
    yield "configs " + base64.b64encode(b"".join(configs)).decode()
    for name in names:
        for entry in os.scandir(SYSFS + name):
            if entry.is_symlink():
                yield "link %s/ %s %s" % (name, entry.name, os.readlink(entry.path))
        for text in TEXTS:
            for line in lines_of(SYSFS + name + "/" + text):
                yield "text %s/%s:%s" % (name, text, line)
    for kind in ("net", "block"):
        base = "/sys/class/" + kind + "/"
        for name in sorted(os.listdir(base)) if os.path.isdir(base) else []:
            if os.path.islink(base + name):
                yield "interface %s %s" % (name, os.readlink(base + name))
    parts = glob.glob("/sys/class/net/*/lower_*") + glob.glob("/sys/class/block/*/slaves/*")
    for path in sorted(parts):
        yield "part " + path
    for line in lines_of("/proc/mounts"):
        yield "mount " + line
    for line in lines_of("/proc/swaps")[1:]:
        yield "swap " + line
    if os.environ.get("SSH_CONNECTION"):
        yield "ssh " + os.environ["SSH_CONNECTION"]
    yield from addresses()
    for line in lines_of("/proc/net/route"):
        words = line.split()
        if len(words) > 1 and words[1] == "00000000":
            yield "default " + words[0]


def addresses() -> Iterator[str]:
    """Asked of ip(8) once: the management NIC does not change under a run."""
    if not KNOWN:
        done = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=False)
        KNOWN.extend("addr " + line for line in done.stdout.splitlines())
    yield from KNOWN


KNOWN: list[str] = []


def driver_of(address: str) -> str:
    try:
        return os.path.basename(os.readlink(SYSFS + address + "/driver"))
    except OSError:
        return ""


def write(path: str, text: str, mode: str = "w") -> None:
    with open(path, mode) as file:
        file.write(text)


def do_survey(pattern: str) -> str:
    return "\n".join(survey(pattern))


def do_config(address: str) -> str:
    with open(SYSFS + address + "/config", "rb") as file:
        return base64.b64encode(file.read()).decode()


def do_load(driver: str) -> None:
    """Load the module of a PCI driver that is not there."""
    if not os.path.isdir("/sys/bus/pci/drivers/" + driver):
        done = subprocess.run(["modprobe", driver], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip() or "modprobe failed without a word")


def do_bind(
    address: str, override: str, lease: str, record: Optional[dict[str, str]] = None
) -> list[str]:
    """The driver afterwards, and what went wrong."""
    if not lease:
        return bind(address, override, record)
    # As hil.journal has it: whoever recovers waits for what is being done.
    with open(lease + ".busy", "a") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        if not read(lease):
            if os.path.exists(busy.name):
                os.unlink(busy.name)
            raise OSError("hil: the journal: the leases of this run have lapsed")
        return bind(address, override, record)


def begin(record: dict[str, str]) -> str:
    """Write an entry of the journal as the script of hil.journal does; return its path."""
    folder = record["folder"]
    for name in record["old"].split():
        try:
            os.unlink(folder + "/" + name)
        except FileNotFoundError:
            continue
    if not os.path.isdir(folder):
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        os.mkdir(folder, 0o700)
        sync(os.path.dirname(folder))
    path = folder + "/" + record["name"]
    write(path, record["text"] + "\n")
    sync(path)
    sync(folder)
    return path


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bind(address: str, override: str, record: Optional[dict[str, str]]) -> list[str]:
    entry = begin(record) if record else ""
    error = ""
    try:
        write(SYSFS + address + "/driver_override", override + "\n")
        if driver_of(address):
            write(SYSFS + address + "/driver/unbind", address)
        write("/sys/bus/pci/drivers_probe", address)
        if entry:
            write(entry, "made\n", "a")
    except OSError as problem:
        error = str(problem)
    return [driver_of(address), error]


def do_held(address: str) -> bool:
    """Opening a VFIO group is exclusive: EBUSY tells that a guest holds it."""
    try:
        group = os.path.basename(os.readlink(SYSFS + address + "/iommu_group"))
        os.close(os.open("/dev/vfio/" + group, os.O_RDWR))
    except OSError as error:
        return error.errno == 16
    return False


def do_footprint(directory: str, run: str) -> dict[str, int]:
    """Of guests, files and canaries those of the run: others may come and go."""
    memory = {
        match[1]: int(match[2])
        for match in re.finditer(r"(\w+): *(\d+)", read("/proc/meminfo").decode("ascii", "replace"))
    }
    guests = 0
    for path in glob.glob("/proc/[0-9]*/exe"):
        try:
            if "/qemu-system-" in os.readlink(path):
                guests += "path=%s/" % directory in read(path[:-3] + "cmdline").decode(
                    "utf-8", "replace"
                )
        except OSError:
            continue
    vfio = os.listdir("/dev/vfio") if os.path.isdir("/dev/vfio") else []
    return {
        "guests": guests,
        "files": sum(len(names) + len(files) for _, names, files in os.walk(directory)),
        "groups": sum(name.isdigit() for name in vfio),
        "canaries": len(glob.glob("/dev/shm/hil-canary.%s.*" % run)),
        "locked_kib": memory.get("Mlocked", 0),
        "huge_pages": memory.get("HugePages_Total", 0),
    }
