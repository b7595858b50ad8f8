"""A FreeBSD disk image that the user brings, as the emulated lab's host: real bhyve at a desk.

The machine is the one of :mod:`hil.emulated.machine`, with the same devices behind the same
root ports, an IOMMU of the processor's vendor, and four disks by virtio::

    vtbd0  root: a qcow2 overlay in the lab's folder; the image itself is never written
    vtbd1  the guests' image without its first and last MiB, read-only
    vtbd2  empty, for the ZFS pool of the guests' disks
    vtbd3  a NoCloud seed for nuageinit or cloud-init

hil is let in by one script, which starts an SSH server of its own on port 2222 with keys of
its own.  It runs as root on the serial console where root logs in without a password
(BASIC-CI images), else from the seed (BASIC-CLOUDINIT images).

The guests' disk lacks its ends, where its partition table and its copy are: so the host finds
no second file system with the name of its own.  In a ZVOL that no GEOM looks at, disk and
ends are put together again, and a snapshot of it is what guests are cloned from.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hil.console.console import LOGIN
from hil.deadline import Deadline, poll
from hil.emulated import accel, cache, host_cpu, images
from hil.emulated.accel import Accelerator
from hil.emulated.image_store import Disk
from hil.emulated.machine import (
    MEMORY,
    EmulatedLab,
    Qemu,
    base_arguments,
    block,
    devices,
    find_qemu,
    more_arguments,
    new_keys,
    port_arguments,
    require_memory,
)
from hil.emulated.process import run_folder
from hil.errors import DeadlineExceeded, InventoryError, LabError
from hil.transport.quoting import quote

Progress = Callable[[str], None]

#: The host's snapshot of which guests get a clone each; the inventory names it.
SNAPSHOT = "hil/guest@ready"
#: Port of the SSH server that is started on the host, beside any that its image has.
SSH_PORT = 2222
MAC = "52:54:00:68:69:ff"
#: The first address that QEMU's user-mode network gives, and to which it forwards.
ADDRESS = "10.0.2.15/24"
_MIB = 1 << 20
#: Bytes that the guests' pool may grow to; the file is sparse.
_POOL = 64 << 30
#: Bytes that must be free for overlay and pool.
_SPACE = 6 << 30
#: Bytes of memory that ZFS may keep of what it read.
_ARC = 256 << 20
#: Seconds to boot; a first boot grows file systems and makes keys.
_BOOT = 900
#: Seconds without a prompt after which it is tried whether the SSH server answers.
_QUIET = 10
#: Seconds from a log-in prompt to the end of what the seed starts.
_SEED = 120
#: Cannot be plugged into a machine that runs.
_GPU = "virtio-gpu-pci,"
#: First QEMU whose AMD-Vi asks a bus for its number.
_BUSES_BY_NAME = (10, 2)
#: What stands on a console where nobody will ever log in.
_STUCK = rb"mountroot> ?$|Enter full pathname of shell"

# Before FreeBSD 14 root's shell is csh, which no command of ours is written for.  A client of
# DHCP on a network card that is passed, or comes back, would get in the way.
_LET_IN = r"""
umask 077
pw usermod root -s /bin/sh || exit
sysrc -x ifconfig_DEFAULT >/dev/null 2>&1
mkdir -p /root/.hil && cd /root/.hil || exit
printf '%s\n' {public} >authorized_keys
printf '%s' {private} >host_key
printf '%s' {start} >start
grep -q /root/.hil/start /etc/rc.local 2>/dev/null || echo 'sh /root/.hil/start' >>/etc/rc.local
sh start </dev/null
"""

# The tunable counts if set before vmm is loaded.
_START = r"""
kldstat -q -m vmm || kenv hw.vmm.amdvi.enable=1 >/dev/null
pkill -x dhclient
found=
for interface in $(ifconfig -l); do
    if ifconfig "$interface" | grep -q "ether {mac}"; then found=$interface; fi
done
[ -n "$found" ] || {{ echo "no interface has {mac}" >&2; ifconfig -a; exit 1; }}
ifconfig "$found" inet {address} up || exit
if [ -e /root/.hil/pool ]; then kldload -n zfs; zpool import hil 2>/dev/null; fi
sockstat -4 -l -p {port} | grep -q sshd && exit 0
/usr/sbin/sshd -f /dev/null -p {port} -h /root/.hil/host_key \
    -o PidFile=/var/run/hil_host_sshd.pid -o AuthorizedKeysFile=/root/.hil/authorized_keys \
    -o PermitRootLogin=prohibit-password -o UseDNS=no
"""

# Prints the path of the guests' disk.  volmode=dev: GEOM looks at no ZVOL.
_POOL_SCRIPT = r"""
image= pool=
for disk in /dev/vtbd[0-9]; do
    case $(diskinfo -s "$disk" 2>/dev/null) in
    hil-guest) image=$disk ;;
    hil-pool) pool=$disk ;;
    esac
done
[ -n "$image" ] && [ -n "$pool" ] || { ls /dev/vtbd*; sysctl kern.disks; exit 1; } >&2
kldload -n zfs || exit
sysctl vfs.zfs.arc_max="$2" >/dev/null 2>&1
zpool create -f -O mountpoint=none -O compression=lz4 -O volmode=dev hil "$pool" || exit
touch /root/.hil/pool
zfs create -s -V "$1" hil/guest || exit
echo "$image"
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the machine is made of."""

    qemu: Qemu
    accelerator: Accelerator
    amd: bool
    """Whether its processor, and so its IOMMU, is AMD's."""
    host: Disk
    guest: Disk
    iommu: bool

    @property
    def images(self) -> Sequence[Path]:
        """The files of its disks."""
        return self.host.path, self.guest.path

    def key(self) -> str:
        """Names all of it; the same for machines that are the same."""
        stamps = [
            f"{disk.path}:{disk.size}:{disk.path.stat().st_mtime_ns}"
            for disk in (self.host, self.guest)
        ]
        words = [self.qemu.words, *stamps, *self.command("console", "monitor", Path("folder"))]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]

    def command(self, console: str, monitor: str, given: Path) -> list[str]:
        """QEMU's arguments; ``given`` is the lab's folder."""
        command = base_arguments(self.qemu)
        if self.accelerator.name == "kvm":
            command += ["-accel", "kvm", "-cpu", "host"]
        else:
            command += ["-accel", "tcg,thread=multi,tb-size=512"]
            command += ["-cpu", "EPYC,+svm,+npt,+nrip-save"]
        if self.iommu:
            # QEMU's amd-iommu translates nothing but with pt=off; bhyve remaps no interrupts.
            # FreeBSD panics at a unit in caching mode.
            unit = "amd-iommu,pt=off" if self.amd else "intel-iommu,intremap=on,caching-mode=off"
            command += ["-device", unit]
        root = Disk(given / "root.qcow2", "qcow2", self.host.size)
        command += ["-blockdev", _disk_block("root", root, read_only=False)]
        command += ["-blockdev", _middle(self.guest)]
        command += ["-blockdev", block("pool", given / "pool.img", read_only=False)]
        seed = {"driver": "vvfat", "node-name": "seed", "read-only": True}
        seed |= {"dir": str(given / "seed"), "label": "cidata", "floppy": True}
        command += ["-blockdev", json.dumps(seed)]
        # In the order of their slots FreeBSD counts them: vtbd0 to vtbd3.
        for slot, name in ((2, "root"), (3, "guest"), (5, "pool"), (6, "seed")):
            first = ",bootindex=0" if name == "root" else ""
            device = f"virtio-blk-pci,drive={name},serial=hil-{name},addr={slot}{first}"
            command += ["-device", device]
        command += ["-netdev", f"user,id=management,hostfwd=tcp:127.0.0.1:0-:{SSH_PORT}"]
        command += ["-device", f"virtio-net-pci,netdev=management,romfile=,addr=4,mac={MAC}"]
        command += port_arguments(console, monitor)
        command += ["-blockdev", block("nvme", given / "nvme.img", read_only=False)]
        for device in () if self.plugs_late else self.devices:
            command += ["-device", device]
        return [*command, *more_arguments()]

    @property
    def devices(self) -> tuple[str, ...]:
        """What is behind the root ports, as ``-device`` takes it."""
        first = [d for d in devices(self.qemu) if not (self.plugs_late and d.startswith(_GPU))]
        nvme = "nvme,id=nvme0,bus=port-nvme0,drive=nvme,serial=hil-nvme0"
        return (*first, nvme, *(f"edu,id={name},bus=port-{name}" for name in ("edu0", "edu1")))

    @property
    def plugs_late(self) -> bool:
        """Whether devices must be plugged in once their buses have numbers.

        Until QEMU 10.2 a function has for its AMD-Vi the bus number of the moment it was made
        (hw/i386/amd_iommu.c; the fix: "Fix handling device on buses != 0"), 0 before firmware.
        """
        return self.amd and self.iommu and self.qemu.version < _BUSES_BY_NAME


def _file(disk: Disk) -> dict[str, object]:
    """The block driver of a disk that is only read."""
    file = {"driver": "file", "filename": str(disk.path), "locking": "off"}
    return {"driver": disk.format, "read-only": True, "file": {**file, "read-only": True}}


def _disk_block(name: str, disk: Disk, *, read_only: bool) -> str:
    file = {"driver": "file", "filename": str(disk.path), "discard": "unmap"}
    node = {"driver": disk.format, "node-name": name, "read-only": read_only, "file": file}
    return json.dumps(node)


def _middle(disk: Disk) -> str:
    """The disk without its first MiB, and without its last, whole or not."""
    node = {"driver": "raw", "node-name": "guest", "read-only": True}
    node |= {"offset": _MIB, "size": (_mebibytes(disk) - 2) * _MIB}
    return json.dumps({**node, "file": _file(disk)})


def _mebibytes(disk: Disk) -> int:
    """Whole ones in the disk."""
    if disk.size < 3 * _MIB:
        raise InventoryError(f"the image {disk.path} is too small for a system: {disk.size} bytes")
    return disk.size // _MIB


def choose(qemu: Qemu, progress: Progress) -> tuple[Accelerator, bool]:
    """What can run a host with bhyve here, and whether its processor is AMD's.

    KVM with nesting, where this processor has what bhyve asks for; or a QEMU whose software
    emulation has it, which no released one does (NRIP save).

    Raises:
        LabError: neither; says why.
    """
    cpuinfo = host_cpu.cpuinfo()
    problem = host_cpu.obstacle(cpuinfo, host_cpu.parameters())
    if problem is None and (reason := accel.no_device()):
        problem = LabError(f"bhyve needs KVM under its host: {reason}")
    if problem is None:
        tried = images.build(images.HOST, progress)
        chosen = accel.choose(qemu.path, qemu.words, tried, progress)
        if chosen.name == "kvm":
            return chosen, host_cpu.vendor(cpuinfo) == host_cpu.AMD
        problem = LabError(f"bhyve needs KVM under its host: {chosen.reason}")
    if _emulates_all(qemu):
        reason = f"{problem.message}; this QEMU emulates all that bhyve needs"
        return Accelerator("tcg", reason), True
    raise LabError(
        f"bhyve cannot run in a host on this machine: {problem.message}",
        seen=problem.seen,
        hint=problem.hint or "use a machine with KVM and nested virtualization, or a physical lab",
    )


def _emulates_all(qemu: Qemu) -> bool:
    """Whether software emulation has NRIP save.  Runs no instruction."""
    command = [qemu.path, "-accel", "tcg", "-machine", "q35", "-nodefaults", "-display", "none"]
    command += ["-cpu", "qemu64,+svm,+npt,+nrip-save,enforce", "-S", "-monitor", "stdio"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command, input=b"quit\n", capture_output=True, check=False, timeout=60
        )
        return done.returncode == 0
    return False


def let_in_script(client: str, host_key: str) -> str:
    """What lets us in, for sh(1), run by root; safe to run twice.

    Args:
        client: our public key, as in a ``.pub`` file.
        host_key: the server's private key, in OpenSSH's format.
    """
    start = _START.format(mac=MAC, address=ADDRESS, port=SSH_PORT)
    return _LET_IN.format(
        public=quote([client]), private=quote([host_key]), start=quote([start])
    ).strip()


def user_data(script: str) -> str:
    """A NoCloud ``user-data`` that runs ``script``.

    nuageinit reads scripts as YAML too (libexec/nuageinit/nuageinit, load_userdata): a
    comment and one plain scalar are both.
    """
    packed = base64.b64encode(script.encode()).decode()
    return f"#!/bin/sh\necho {packed} | b64decode -r | sh\n"


class FreebsdLab(EmulatedLab):
    """An emulated lab whose host is the user's FreeBSD.  Made by :meth:`boot`."""

    _plan: Plan

    @classmethod
    def boot(
        cls,
        host: Disk,
        guest: Disk | None = None,
        *,
        iommu: bool = True,
        progress: Progress = lambda _: None,
        deadline: Deadline,
    ) -> FreebsdLab:
        """A host that answers by SSH and has its guests' disk at :data:`SNAPSHOT`.

        Args:
            host: the image it boots from; not written to.
            guest: the image its guests boot from; by default the same.
            iommu: with an IOMMU, or without.
            progress: told, one line at a time, what is being done.
            deadline: for all of it.

        Raises:
            LabError: bhyve cannot run here, a tool, memory or disk is short, or the host did
                not come up (with its console's last lines).
            InventoryError: an image cannot be used, or its root asks for a password.
        """
        qemu = find_qemu()
        accelerator, amd = choose(qemu, progress)
        tool = _qemu_img(qemu)
        plan = Plan(qemu, accelerator, amd, host, guest or host, iommu)
        _mebibytes(plan.guest)
        require_memory(MEMORY)
        folder = run_folder(cache.directory() / "run")
        lab = cls(plan, folder, new_keys(folder))
        lab.missing["vram0"] = "bhyve passes no function that has neither MSI nor MSI-X"
        if plan.plugs_late:
            for gpu in ("gpu0", "gpu1"):
                lab.missing[gpu] = (
                    f"behind a root port {qemu.words} gives it the wrong requester id for AMD-Vi: "
                    "it takes 10.2 or newer"
                )
        progress(f"booting {host.path.name} ({accelerator.name}: {accelerator.reason})")
        with lab._coming_up("boot"):
            lab._make_disks(tool)
            lab._start([], deadline)
            lab._monitor("cont", deadline)
            if plan.plugs_late:
                lab._plug_late(deadline)
            lab._let_in(deadline.within(_BOOT, "the lab host to boot"))
            progress("putting the guests' disk into a pool on the host")
            lab._provide_guests_disk(tool, deadline)
        return lab

    def _make_disks(self, tool: str) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < _SPACE:
            raise LabError(
                f"{self._folder.parent} has {free / 2**30:.1f} GiB of free disk, "
                f"{_SPACE / 2**30:.1f} GiB are needed",
                hint="free space there, or name a folder on another disk in HIL_CACHE",
            )
        host = self._plan.host
        overlay = self._folder / "root.qcow2"
        backing = ["-F", host.format, "-b", str(host.path.resolve())]
        _run([tool, "create", "-q", "-f", "qcow2", *backing, str(overlay)])
        with (self._folder / "pool.img").open("wb") as disk:
            disk.truncate(_POOL)
        seed = self._folder / "seed"
        seed.mkdir()
        (seed / "meta-data").write_text(f"instance-id: {self._folder.name}\n")
        (seed / "user-data").write_text(user_data(self._script()))

    def _script(self) -> str:
        client = (self._folder / "client.pub").read_text().strip()
        return let_in_script(client, (self._folder / "host").read_text())

    def _plug_late(self, deadline: Deadline) -> None:
        """Plug in all devices when firmware has numbered the buses, and start over."""
        poll(
            lambda: _numbered(self._monitor("query-pci", deadline)),
            deadline.within(60, "the firmware to number the buses"),
            interval=0.01,
        )
        self._monitor("stop", deadline)
        for device in self._plan.devices:
            if said := self._process.monitor.human(f"device_add {device}", deadline).strip():
                raise LabError(f"QEMU does not take the device {device}", seen=said)
        # A port that has a device at a reset is as if it always had it.
        self._monitor("system_reset", deadline)
        self._monitor("cont", deadline)

    def _let_in(self, deadline: Deadline) -> None:
        """Wait for the host's SSH server, having started it where the console allows."""
        if self._prompted(deadline):
            try:
                self.console.login("root", None, deadline)
            except InventoryError as refusal:
                # Then the seed's script is on its way, or nobody reads the seed.
                try:
                    self.ssh(deadline.within(_SEED, "the host to run its seed's script"))
                except LabError:
                    raise InventoryError(
                        "the image does not let us in: root has a password on the serial "
                        "console, and nothing in it reads a NoCloud seed",
                        seen=refusal.message,
                        console=self.console.log.tail(30),
                        hint="use a BASIC-CI or BASIC-CLOUDINIT image of FreeBSD",
                    ) from None
                return
            self.console.run(["sh", "-c", self._script()], deadline).check(
                hint="hil's SSH server could not be started on the host"
            )
            self.console.release(deadline)
        self.ssh(deadline)

    def _prompted(self, deadline: Deadline) -> bool:
        """Wait for a log-in prompt (True), or for the SSH server to answer by itself."""
        while True:
            try:
                met = self.console.expect(
                    [LOGIN, _STUCK], deadline.within(_QUIET, "a log-in prompt")
                )
            except DeadlineExceeded:
                if deadline.expired:
                    hint = (
                        'has it console="comconsole" in its loader.conf, or does it read a '
                        "NoCloud seed? see the lab owners' guide"
                    )
                    last = "\n".join(self.console.log.tail(5))
                    raise deadline.exceeded(last, hint=hint) from None
                with contextlib.suppress(LabError):
                    self.ssh(deadline.within(3, "the host's SSH server"))
                    return False
                continue
            if met.index == 1:
                raise LabError(
                    "the lab host does not find its system, or stopped in single-user mode",
                    console=self.console.log.tail(30),
                )
            return True

    def _provide_guests_disk(self, tool: str, deadline: Deadline) -> None:
        guest, host = self._plan.guest, self.ssh(deadline)
        size = _mebibytes(guest)
        made = host.run(
            ["sh", "-c", _POOL_SCRIPT, "hil", f"{size + 1}M", str(_ARC)], deadline=deadline
        )
        image = made.check(hint="a FreeBSD with ZFS in its base system is needed").stdout.strip()
        volume = "/dev/zvol/" + SNAPSHOT.partition("@")[0]
        poll(
            lambda: host.run(["test", "-e", volume], deadline=deadline).status == 0,
            deadline.within(60, f"{volume} to appear"),
        )
        to = [f"of={volume}", f"bs={_MIB}", "status=none"]
        copy = ["dd", f"if={image}", *to, "oseek=1", "conv=sparse"]
        host.run(copy, deadline=deadline).check()
        for offset, length in ((0, _MIB), ((size - 1) * _MIB, guest.size - (size - 1) * _MIB)):
            host.put(self._cut(tool, offset, length), "/root/.hil/part", deadline=deadline)
            part = ["dd", "if=/root/.hil/part", *to, f"oseek={offset // _MIB}", "conv=sync"]
            host.run(part, deadline=deadline).check()
        host.run(["zfs", "snapshot", SNAPSHOT], deadline=deadline).check()

    def _cut(self, tool: str, offset: int, length: int) -> bytes:
        node = {"driver": "raw", "offset": offset, "size": length, "file": _file(self._plan.guest)}
        with self._scratch() as path:
            _run([tool, "convert", "-O", "raw", f"json:{json.dumps(node)}", str(path)])
            return path.read_bytes()

    def power_cycle(self, deadline: Deadline) -> None:
        """Off and on: returns when the host answers again.  Connections to it are gone."""
        self._drop_ssh()
        self.console.forget_panic()
        self._monitor("system_reset", deadline)
        self._monitor("cont", deadline)
        # The server is started by rc.local now.
        self.ssh(deadline.within(_BOOT, "the lab host to boot again"))


def _numbered(buses: list[dict[str, Any]]) -> bool:
    """Whether each root port's bus has a number, by what ``query-pci`` says."""
    bridges = [device for bus in buses for device in bus["devices"] if "pci_bridge" in device]
    return bool(bridges) and all(device["pci_bridge"]["bus"]["secondary"] for device in bridges)


def _qemu_img(qemu: Qemu) -> str:
    """qemu-img, which belongs to this QEMU or to another."""
    beside = Path(qemu.path).with_name("qemu-img")
    found = str(beside) if beside.is_file() else shutil.which("qemu-img")
    if found is None:
        raise LabError("qemu-img is not installed", hint="apt-get install qemu-utils")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(
            f"{Path(command[0]).name} {command[1]} failed",
            seen=done.stderr.decode("utf-8", "replace"),
            command=command,
        )
