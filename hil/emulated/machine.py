"""The emulated lab: one QEMU process that is a host with VT-d and devices to pass.

A q35 machine with Intel's IOMMU and interrupt remapping, two processors with nested
virtualization, and behind PCIe root ports two ``igb`` cabled together, ``nvme``, two
``edu``, ``e1000e``, two ``virtio-gpu`` (the first with an option ROM of ours) and a
``bochs-display``.  Its system is the image :data:`hil.emulated.images.HOST`; the images for its
guests are on a second disk, mounted at /images.

The first boot's state is saved in the cache, and later labs start from it; ``nvme`` and
``edu``, of which QEMU saves no state, are plugged in after that.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hil import events
from hil.console.console import Console
from hil.deadline import Deadline, poll
from hil.emulated import accel, cache, images
from hil.emulated.accel import Accelerator
from hil.emulated.process import QemuProcess, run_folder
from hil.errors import DeadlineExceeded, GuestError, HilError, InventoryError, LabError
from hil.gpu import option_rom
from hil.iommu.memory import PhysicalMemory
from hil.transport import keys
from hil.transport.ssh import SshTransport

Progress = Callable[[str], None]

#: The lab host's memory, bytes.  All of it below 4 GiB, so that SeaBIOS puts the windows of
#: bridges there too: QEMU 10.0 drops the upper half of the address of a VF's BARs.
MEMORY = 2560 << 20
#: Disk that a saved state takes, at most, bytes (measured: 0.2 GB).
STATE_SPACE = 1 << 30
#: Size of the NVMe disk, bytes; sparse.
NVME_SIZE = 256 << 20
#: Where QEMU's VT-d has its registers (include/hw/i386/intel_iommu.h).
DRHD_BASE, DRHD_SIZE = 0xFED9_0000, 0x1000
#: Raise it when what is saved changes though the command line does not.
_STATE_FORMAT = 4
#: Seconds for a panicking host to print its trace.
_LAST_WORDS = 1.0
#: Seconds for the host to be done with a connection that was closed.
_QUIET = 2.0

#: Root ports in the order of their bus numbers, from bus 1; what is behind each.
PORTS = ("nic0", "peer0", "nvme0", "edu0", "nic1", "gpu0", "gpu1", "edu1", "vram0")
_PLUGGED_LATER = ("nvme0", "edu0", "edu1")
#: One more root port, for a disk that only some runs need.
_SPARE = "spare"
#: Root ports are functions of the slots from here on, eight of each.
_ROOT_PORT_SLOT = 0x10
#: What has a display, with its model.  A small screen: the state that is saved holds it.
_DISPLAYS = {
    "gpu0": "virtio-gpu-pci,iommu_platform=on,disable-legacy=on,xres=640,yres=480",
    "gpu1": "virtio-gpu-pci,iommu_platform=on,disable-legacy=on,xres=640,yres=480",
    "vram0": "bochs-display,vgamem=4194304",
}
#: What has an option ROM, and where the host keeps what it reads in it (the inventory's ``rom``).
ROM_OF, ROM_FILE = "gpu0", "/run/gpu0.rom"
#: Its file in the folder of a lab.
ROM = "gpu0.rom"
# As the owner of a card gets it.  The kernel shows no more than the images in it.
_READ_ROM = """
    echo 1 >"$1" && cat "$1" >"$2"
    status=$?
    echo 0 >"$1"
    exit $status
"""
# A smaller state is read sooner: of the page cache, keep what every lab needs.
_SLIM = """
    exec >/dev/null
    sync; echo 3 >/proc/sys/vm/drop_caches
    date; busybox true; qemu-system-x86_64 --version
    python3 -c 'import base64, fcntl, glob, json, os, re, subprocess, sys, typing'
"""
_FIRST_IGB, _FIRST_SAVED_STATE = (8, 0), (8, 2)


@dataclass(frozen=True, slots=True)
class Qemu:
    """The QEMU of this machine."""

    path: str
    version: tuple[int, int]
    words: str
    """Its version as it says it, with the package's."""

    @property
    def has_igb(self) -> bool:
        """Whether it emulates igb, with SR-IOV: since 8.0."""
        return self.version >= _FIRST_IGB

    @property
    def saves_to_file(self) -> bool:
        """Whether it can migrate to a file: since 8.2."""
        return self.version >= _FIRST_SAVED_STATE


@functools.cache
def find_qemu() -> Qemu:
    """QEMU for x86-64: ``$HIL_QEMU``, or what is on PATH.

    Raises:
        InventoryError: ``$HIL_QEMU`` names no program.
        LabError: it is not installed, or cannot run.
    """
    given = os.environ.get("HIL_QEMU", "")
    path = shutil.which(given or "qemu-system-x86_64")
    if path is None and given:
        raise InventoryError(f"{given} is no program", hint="see HIL_QEMU, or hil lab up --qemu")
    if path is None:
        raise LabError(
            "QEMU is not installed: no qemu-system-x86_64",
            hint="apt-get install qemu-system-x86 (on Debian 12 from bookworm-backports)",
        )
    done = subprocess.run([path, "--version"], capture_output=True, check=False, timeout=60)
    words = done.stdout.decode("utf-8", "replace").partition("\n")[0]
    match = re.search(r"version (\d+)\.(\d+)", words)
    if match is None:
        said = done.stderr.decode("utf-8", "replace")
        raise LabError(f"{path} does not tell its version", seen=words + said)
    version = (int(match[1]), int(match[2]))
    if version < (7, 2):
        raise LabError(
            f"QEMU {match[1]}.{match[2]} is too old: 7.2 is needed, 8.2 or newer has all devices",
            hint="on Debian 12: apt-get install -t bookworm-backports qemu-system-x86",
        )
    return Qemu(path, version, words)


def more_arguments() -> list[str]:
    """Arguments for QEMU that the user adds: ``$HIL_QEMU_ARGS``, split as a shell does.

    Raises:
        InventoryError: a quote in it has no end.
    """
    given = os.environ.get("HIL_QEMU_ARGS", "")
    try:
        return shlex.split(given)
    except ValueError as error:
        raise InventoryError(f"HIL_QEMU_ARGS cannot be split: {error}", seen=given) from None


class Plan(Protocol):
    """What a machine is made of."""

    @property
    def qemu(self) -> Qemu: ...
    @property
    def accelerator(self) -> Accelerator: ...
    @property
    def iommu(self) -> bool: ...
    @property
    def images(self) -> Sequence[Path]:
        """What its disks are made of: folders of the cache, or the user's files."""
        ...

    def key(self) -> str:
        """Names all of it; the same for machines that are the same."""
        ...

    def command(self, console: str, monitor: str, given: Path) -> list[str]:
        """QEMU's arguments; ``given`` is the folder with the machine's keys."""
        ...


@dataclass(frozen=True, slots=True)
class _Plan:
    """The Debian host's: all that its saved state depends on."""

    qemu: Qemu
    accelerator: Accelerator
    host: images.Image
    guests: Path
    iommu: bool

    @property
    def images(self) -> Sequence[Path]:
        return self.host.root.parent, self.guests.parent

    def key(self) -> str:
        words = [
            str(_STATE_FORMAT),
            self.qemu.words,
            self.host.key,
            str(self.guests),
            # A state saved under KVM holds the processor's own registers.
            accel.processor() if self.accelerator.name == "kvm" else "",
            hashlib.sha256(rom()).hexdigest(),
            *self.command("console", "monitor", Path("keys")),
        ]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]

    def command(self, console: str, monitor: str, given: Path) -> list[str]:
        """QEMU's arguments; ``given`` is the folder with the machine's keys."""
        kvm = self.accelerator.name == "kvm"
        command = base_arguments(self.qemu)
        if kvm:
            command += ["-accel", "kvm", "-cpu", "host"]
        else:
            # SVM is the one nested virtualization that TCG has.
            command += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "EPYC,+svm,+npt"]
        if self.iommu:
            command += ["-device", "intel-iommu,intremap=on,caching-mode=off"]
        words = ["console=ttyS0", "root=/dev/vda", "net.ifnames=0", "intel_iommu=on"]
        if not kvm:
            # Software emulation is slow, not wrong: its timers and TSC need no watching, and
            # its one leak would be to itself.  What hardens a kernel costs a quarter of a boot.
            words += ["no_timer_check", "tsc=reliable", "mitigations=off", "init_on_alloc=0"]
            words += ["hardened_usercopy=off", "randomize_kstack_offset=off", "nokaslr"]
        command += ["-kernel", str(self.host.kernel), "-initrd", str(self.host.initrd)]
        command += ["-append", " ".join(words)]
        for name, path, slot in (("root", self.host.root, 2), ("images", self.guests, 3)):
            command += ["-blockdev", block(name, path, read_only=True)]
            command += ["-device", f"virtio-blk-pci,drive={name},serial={name},addr={slot}"]
        # A restored host need not tell a network of one where it is, nor ask for IPv6.
        command += ["-netdev", "user,id=management,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"]
        nic = "virtio-net-pci,netdev=management,guest_announce=off,romfile=,addr=4"
        command += ["-device", nic]
        for name, file in (
            ("authorized_keys", "client.pub"),
            ("ssh_host_key", "host"),
        ):
            command += ["-fw_cfg", f"name=opt/org.hil/{name},file={_in_options(given / file)}"]
        command += port_arguments(console, monitor)
        for device in devices(self.qemu, given / ROM):
            command += ["-device", device]
        return [*command, *more_arguments()]


def base_arguments(qemu: Qemu) -> list[str]:
    """QEMU and the machine's chipset, number of processors and memory."""
    command = [qemu.path, "-name", "hil-lab", "-nodefaults", "-no-user-config"]
    command += ["-display", "none", "-no-shutdown"]
    # No lab uses SMM, SATA or SMBus, and each makes QEMU slower to start and to restore:
    # with SMM every processor has a second address space, rendered anew at each change.
    command += ["-machine", "q35,kernel-irqchip=split,smm=off,sata=off,smbus=off"]
    return [*command, "-smp", "2", "-m", f"{MEMORY >> 20}M"]


def port_arguments(console: str, monitor: str) -> list[str]:
    """Console, monitor, root ports, and the cables between network cards.

    Args:
        console: its chardev's options.
        monitor: likewise.
    """
    command = ["-chardev", console, "-serial", "chardev:console"]
    command += ["-chardev", monitor, "-mon", "chardev=monitor,mode=control"]
    for index, name in enumerate((*PORTS, _SPARE)):
        port = f"pcie-root-port,id=port-{name},chassis={index + 1}"
        port += f",addr={_ROOT_PORT_SLOT + index // 8:#x}.{index % 8},multifunction=on"
        command += ["-device", port]
    # By default edu's DMA reaches 28 bits only.
    command += ["-global", f"edu.dma_mask={(1 << 64) - 1:#x}"]
    # A hub is the cable; nic1's has no far end.
    for name, cable in {"nic0": 0, "peer0": 0, "nic1": 1}.items():
        command += ["-netdev", f"hubport,id=cable-{name},hubid={cable}"]
    return command


def rom() -> bytes:
    """The option ROM of :data:`ROM_OF`, which has QEMU's ids and class of a virtio-gpu-pci."""
    return option_rom.make(0x1AF4, 0x1050, 0x038000, f"hil {ROM_OF}")


def devices(qemu: Qemu, rom_file: Path | None = None) -> list[str]:
    """The devices behind the root ports that can be saved, as ``-device`` takes them.

    ``rom_file``: with the option ROM of :data:`ROM_OF`, if it is to have one.
    """
    found = []
    for index, name in enumerate(("nic0", "peer0", "nic1")):
        model = "e1000e" if name == "nic1" else "igb"
        if model == "e1000e" or qemu.has_igb:
            device = f"{model},id={name},bus=port-{name},netdev=cable-{name},romfile="
            found.append(f"{device},mac=52:54:00:68:69:{index:02x}")
    for name, model in _DISPLAYS.items():
        driver, _, options = model.partition(",")
        file = _in_options(rom_file) if rom_file is not None and name == ROM_OF else ""
        found.append(f"{driver},id={name},bus=port-{name},romfile={file},{options}")
    return found


def _in_options(path: Path) -> str:
    """A path among the comma-separated options of one argument."""
    return str(path).replace(",", ",,")


def block(name: str, path: Path, *, read_only: bool) -> str:
    return json.dumps(
        {
            "driver": "raw",
            "node-name": name,
            "read-only": read_only,
            "file": {"driver": "file", "filename": str(path), "locking": "off"}
            if read_only
            else {"driver": "file", "filename": str(path), "discard": "unmap"},
        }
    )


class EmulatedLab:
    """An emulated lab host that is up.  Made by :meth:`up`.

    Attributes:
        console: the host's serial console, read from the machine's first byte on.
        accelerator: what runs its instructions.
        how: ``restored`` or ``booted``.
        times: seconds that each part of coming up took.
        missing: devices that this QEMU cannot emulate, with the reason.
        ssh_port: on 127.0.0.1.
        key_file: OpenSSH private key for root there, mode 0600.
        host_key: the host's key, ``ecdsa-sha2-nistp256 AAAA…``.
    """

    console: Console
    ssh_port: int

    def __init__(self, plan: Plan, folder: Path, given: Path) -> None:
        self.accelerator = plan.accelerator
        self.how = "booted"
        self.times: dict[str, float] = {}
        self.missing: dict[str, str] = {}
        if not plan.qemu.has_igb:
            reason = f"{plan.qemu.words} has no igb: it takes 8.0 or newer"
            self.missing = {"nic0": reason, "peer0": reason}
        self._plan = plan
        self._folder = folder
        self._ssh: SshTransport | None = None
        self._ssh_lock = threading.Lock()
        self._closed = False
        for name in ("client", "client.pub", "host", "host.pub"):
            (folder / name).touch(mode=0o600)
            (folder / name).write_bytes((given / name).read_bytes())
        self.key_file = folder / "client"
        self.host_key = (folder / "host.pub").read_text().strip()

    # ---- coming up -------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        *,
        iommu: bool = True,
        fresh: bool = False,
        progress: Progress = lambda _: None,
        deadline: Deadline,
    ) -> EmulatedLab:
        """A lab host that answers by SSH, with all its devices plugged in.

        Args:
            iommu: with VT-d, or a machine that has none.
            fresh: boot it, although a saved state may exist.
            progress: told, one line at a time, what is being done.
            deadline: for all of it, the making of images included.

        Raises:
            LabError: QEMU or a tool is missing, memory or disk is short, an image could
                not be made, or the host did not come up (with its console's last lines).
        """
        qemu = find_qemu()
        require_memory(MEMORY)
        host = images.build(images.HOST, progress)
        guest = images.build(images.GUEST, progress)
        guests = images.bundle([guest], progress)
        accelerator = accel.choose(qemu.path, qemu.words, host, progress)
        plan = _Plan(qemu, accelerator, host, guests, iommu)
        if fresh or not qemu.saves_to_file:
            return cls._boot(plan, progress, deadline)
        booted: list[EmulatedLab] = []

        def make(place: Path) -> None:
            memory = os.memfd_create("lab")
            try:
                lab = cls._boot(plan, progress, deadline, memory=memory)
                booted.append(lab)
                progress("saving the lab host's state")
                lab._save(place, memory, deadline)  # noqa: SLF001 - this class's own
            finally:
                os.close(memory)

        try:
            state = cache.entry(
                f"states/{plan.key()}",
                make,
                deadline=deadline,
                progress=progress,
                space=STATE_SPACE,
            )
            if not booted:
                return cls._restore_or_boot(plan, state, progress, deadline)
            booted[0]._ready(deadline)  # noqa: SLF001
        except BaseException:
            for lab in booted:
                lab.close()
            raise
        return booted[0]

    @classmethod
    def _boot(
        cls, plan: _Plan, progress: Progress, deadline: Deadline, *, memory: int | None = None
    ) -> EmulatedLab:
        """``memory``: a file to be its memory; then what cannot be saved is not plugged in yet."""
        progress(f"booting the lab host ({plan.accelerator.name}: {plan.accelerator.reason})")
        folder = run_folder()
        lab = cls(plan, folder, new_keys(folder))
        with lab._coming_up("boot"):
            lab._start([] if memory is None else _memory(_descriptor(memory)), deadline)
            lab._monitor("cont", deadline)
            lab._wait_for_login(0, deadline)
            lab._read_rom(deadline)
            if memory is None:
                lab._ready(deadline)
        return lab

    @classmethod
    def _restore_or_boot(
        cls, plan: _Plan, state: Path, progress: Progress, deadline: Deadline
    ) -> EmulatedLab:
        try:
            return cls._restore(plan, state, progress, deadline)
        except DeadlineExceeded:
            raise
        except LabError as error:
            # A damaged file, say: the next lab saves a new one.
            progress(f"the saved state is of no use ({error.message})")
            shutil.rmtree(state, ignore_errors=True)
            return cls._boot(plan, progress, deadline)

    @classmethod
    def _restore(
        cls, plan: _Plan, state: Path, progress: Progress, deadline: Deadline
    ) -> EmulatedLab:
        progress(f"restoring the lab host's saved state ({plan.accelerator.name})")
        lab = cls(plan, run_folder(), state)
        lab.how = "restored"
        with lab._coming_up("restore"):
            _read_ahead(state / "memory")
            lab._start([*_memory(state / "memory", copied=True), "-incoming", "defer"], deadline)
            lab._leave_out_memory(deadline)
            lab._monitor("migrate-incoming", deadline, channels=_channel(state / "state"))
            poll(
                lambda: lab._migrated("the saved state could not be restored", deadline),
                deadline.within(120, "QEMU to read the saved state"),
                interval=0.005,
            )
            lab._plug_the_rest(deadline)  # sooner done while its processors stand
            lab._monitor("cont", deadline)
            lab._wait_for_devices(deadline)
        return lab

    @contextlib.contextmanager
    def _coming_up(self, what: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(AttributeError):
                tail = self.console.log.tail(30)
                if isinstance(error, HilError) and not error.console:
                    error.console = tuple(tail)
            self.close()
            if isinstance(error, GuestError):
                # To its users the lab host is the lab, not a guest.
                raise LabError(
                    f"the lab host did not {what}: {error.message}",
                    seen=error.seen,
                    console=error.console,
                    hint="hil lab up says more",
                ) from error
            raise
        self.times[what] = time.monotonic() - begin
        events.emit(events.PhaseReached("the lab host", self.how))

    def _start(self, more: Sequence[str], deadline: Deadline) -> None:
        with (self._folder / "nvme.img").open("wb") as disk:
            disk.truncate(NVME_SIZE)
        (self._folder / ROM).write_bytes(rom())
        self._process = QemuProcess(
            self._folder,
            lambda console, monitor: [
                *self._plan.command(console, monitor, self._folder),
                "-S",
                *more,
            ],
            deadline,
        )
        self.console = Console("the lab host", self._process.console)
        self.console.log.when_panicked = self._panicked
        text = self._process.monitor.human("info usernet", deadline)
        found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", text)
        if found is None:
            raise LabError("QEMU forwards no port to the lab host", seen=text)
        self.ssh_port = int(found[1])

    def _wait_for_login(self, start: int, deadline: Deadline) -> None:
        """Wait until the host asks for a log-in; ``start``: where its console stood before.

        Raises:
            LabError: it panicked, or QEMU ended.
        """
        cursor = self.console.log.follow(start)
        seen = b""
        limit = deadline.within(300, "the lab host to boot")
        again = self._plan.accelerator.name != "kvm"
        while b"login: " not in seen:
            chunk = cursor.read(min(limit.remaining, 1.0))
            if chunk == b"":
                raise LabError(
                    f"QEMU ended while the lab host booted, {self._process.how_it_ended()}",
                    seen=self._process.errors(),
                    console=self.console.log.tail(30),
                )
            if self.console.log.panic is not None:
                raise LabError("the lab host did not boot", console=self.console.log.tail(30))
            if limit.expired:
                raise limit.exceeded("\n".join(self.console.log.tail(5)))
            seen = seen[-100:] + (chunk or b"")
            if again and b"timer wakeup didn't happen" in seen:
                # An emulated processor has missed its timer's interrupt, and waits for ever.
                again, seen = False, b""
                self._monitor("system_reset", deadline)

    def _ready(self, deadline: Deadline) -> None:
        self._plug_the_rest(deadline)
        self._wait_for_devices(deadline)

    def _wait_for_devices(self, deadline: Deadline) -> None:
        """Set the clock, wait until the host has all that was plugged in."""
        script = """
            date -s "@$1" >/dev/null || exit; shift
            tries=500
            until [ -e "$1" ] && [ -e "$2" ] && [ -e "$3" ]; do
                [ $((tries -= 1)) -gt 0 ] || { ls /sys/bus/pci/devices /sys/block; exit 1; }
                sleep 0.02
            done
        """
        engines = [name for name in _PLUGGED_LATER if name != "nvme0"]
        awaited = [f"/sys/bus/pci/devices/{self.address(name)}" for name in engines]
        awaited.append("/sys/block/nvme0n1")
        host = self.ssh(deadline)
        command = ["sh", "-c", script, "hil", f"{time.time():.3f}", *awaited]
        host.run(command, deadline=deadline).check()

    def _read_rom(self, deadline: Deadline) -> None:
        """Have the host keep the option ROM as it reads it in the card."""
        place = f"/sys/bus/pci/devices/{self.address(ROM_OF)}/rom"
        command = ["sh", "-c", _READ_ROM, "hil", place, ROM_FILE]
        self.ssh(deadline).run(command, deadline=deadline).check()

    def _plug_the_rest(self, deadline: Deadline) -> None:
        """Plug in what is not saved."""
        for device in _PLUGGED_LATER:
            self._plug(device, deadline)

    def _plug(self, device: str, deadline: Deadline) -> None:
        port = f"port-{device}"
        if device == "nvme0":
            node = json.loads(block("nvme", self._folder / "nvme.img", read_only=False))
            self._monitor("blockdev-add", deadline, **node)
            self._monitor(
                "device_add", deadline, driver="nvme", id=device, bus=port, drive="nvme",
                serial="hil-nvme0",
            )  # fmt: skip
        else:
            self._monitor("device_add", deadline, driver="edu", id=device, bus=port)

    # ---- the saved state -------------------------------------------------------------

    def _save(self, place: Path, memory: int, deadline: Deadline) -> None:
        """Save its state; its memory, the file ``memory``, as a file by itself."""
        host = self.ssh(deadline)
        host.run(["sh", "-c", _SLIM], deadline=deadline).check()
        self._drop_ssh()
        self.ssh(deadline).run(["true"], deadline=deadline)
        self._drop_ssh()
        time.sleep(_QUIET)  # or every restored lab would end that connection's processes first
        self._monitor("stop", deadline)
        self._leave_out_memory(deadline)
        self._monitor("migrate", deadline, channels=_channel(place / "state"))
        poll(
            lambda: self._migrated("the state could not be saved", deadline),
            deadline.within(300, "QEMU to save the state"),
        )
        _copy_sparsely(_descriptor(memory), place / "memory")
        for name in ("client", "client.pub", "host", "host.pub"):
            shutil.copy(self._folder / name, place / name)
        self._monitor("cont", deadline)

    def _leave_out_memory(self, deadline: Deadline) -> None:
        """Have the state hold all but the host's memory, which is a file by itself."""
        wanted = [{"capability": "x-ignore-shared", "state": True}]
        self._monitor("migrate-set-capabilities", deadline, capabilities=wanted)

    def _migrated(self, failure: str, deadline: Deadline) -> bool:
        info = self._monitor("query-migrate", deadline)
        if info.get("status") in ("failed", "cancelled"):
            raise LabError(
                failure,
                seen=f"{info.get('error-desc', '')}\n{self._process.errors()}",
            )
        return bool(info.get("status") == "completed")

    def _monitor(self, command: str, deadline: Deadline, **arguments: object) -> Any:
        return self._process.monitor.execute(command, deadline, **arguments)

    # ---- what a lab has --------------------------------------------------------------

    def address(self, device: str) -> str:
        """Where the host has ``device`` (a name of :data:`PORTS`): ``0000:BB:00.0``."""
        return f"0000:{PORTS.index(device) + 1:02x}:00.0"

    @property
    def devices(self) -> Mapping[str, str]:
        """Address on the host of each device that is there, by name."""
        return {name: self.address(name) for name in PORTS if name not in self.missing}

    @property
    def key(self) -> str:
        """Names all that the host is made of; the same for labs that are the same."""
        return self._plan.key()

    @property
    def made_of(self) -> Mapping[str, str]:
        """What decides how it behaves, for a report; images of the cache by their place in it."""
        place = cache.directory()
        images = [
            str(image.relative_to(place)) if image.is_relative_to(place) else str(image)
            for image in self._plan.images
        ]
        accelerator = f"{self.accelerator.name}: {self.accelerator.reason}"
        return {
            "QEMU": self._plan.qemu.words,
            "accelerator": accelerator,
            "images": ", ".join(images),
        }

    def plug_disk(self, path: Path, deadline: Deadline, *, read_only: bool) -> str:
        """Plug a raw disk image into the host; its path there.  There is room for one."""
        node = json.loads(block(_SPARE, path, read_only=read_only))
        self._monitor("blockdev-add", deadline, **node)
        self._monitor(
            "device_add", deadline, driver="virtio-blk-pci", id=_SPARE, bus=f"port-{_SPARE}",
            drive=_SPARE, serial=_SPARE,
        )  # fmt: skip
        script = """
            tries=500
            until name=$(grep -lx "$1" /sys/block/vd*/serial); do
                [ $((tries -= 1)) -gt 0 ] || exit 1
                usleep 20000
            done
            name=${name%/serial}
            echo "/dev/${name##*/}"
        """
        command = ["busybox", "sh", "-c", script, "hil", _SPARE]
        found = self.ssh(deadline).run(command, deadline=deadline).check().stdout.strip()
        if not re.fullmatch(r"/dev/vd[a-z]", found):
            raise LabError("the lab host shows no disk that was plugged in", seen=found)
        return found

    def ssh(self, deadline: Deadline) -> SshTransport:
        """Root's shell on the host: one connection, made anew where it broke."""
        with self._ssh_lock:
            if self._ssh is None or not self._ssh.alive:
                self._ssh = SshTransport.connect(
                    "host",
                    "127.0.0.1",
                    port=self.ssh_port,
                    key_file=self.key_file,
                    host_key=self.host_key,
                    key_exchange=keys.KEY_EXCHANGE,
                    deadline=deadline,
                )
            return self._ssh

    def _drop_ssh(self) -> None:
        with self._ssh_lock:
            if self._ssh is not None:
                self._ssh.close()
            self._ssh = None

    # ---- out of band -----------------------------------------------------------------

    @property
    def panic(self) -> str:
        """What the host's kernel said of its end; empty while it lives."""
        panic = self.console.log.panic
        return panic.line if panic is not None else ""

    def _panicked(self) -> None:
        # Whoever waits for the host or for what runs on it waits in vain.  A moment later,
        # so that the kernel's trace stands in the evidence of the test.
        timer = threading.Timer(_LAST_WORDS, self._drop_ssh)
        timer.daemon = True
        timer.start()

    def has_power(self, deadline: Deadline) -> bool:
        """False after :meth:`power_off`, and after the host has switched itself off."""
        status = self._monitor("query-status", deadline)["status"]
        return status not in ("prelaunch", "shutdown")

    def power_off(self, deadline: Deadline) -> None:
        """Stop its processors and forget their state; :meth:`power_cycle` boots it again."""
        self._drop_ssh()
        self._monitor("stop", deadline)
        self._monitor("system_reset", deadline)

    def power_cycle(self, deadline: Deadline) -> None:
        """Off and on: returns when the host answers again.  Connections to it are gone."""
        self._drop_ssh()
        self.console.forget_panic()
        start = self.console.log.end
        self._monitor("system_reset", deadline)
        self._monitor("cont", deadline)
        self._wait_for_login(start, deadline)
        self._read_rom(deadline)

    def nmi(self, deadline: Deadline | None = None) -> None:
        """Send a non-maskable interrupt to every processor."""
        self._monitor("inject-nmi", deadline or Deadline(10, "the NMI"))

    def physical_memory(self) -> PhysicalMemory:
        """The host's RAM, read without the host's help."""
        return _PhysicalMemory(self._save_physical)

    def drhd_registers(self) -> bytes:
        """The 4 KiB of VT-d registers at :data:`DRHD_BASE`.

        Raises:
            LabError: this lab has no IOMMU.
        """
        if not self._plan.iommu:
            raise LabError("this emulated lab was brought up without an IOMMU")
        return self._save_physical(DRHD_BASE, DRHD_SIZE)

    def _save_physical(self, address: int, length: int) -> bytes:
        deadline = Deadline(60, "physical memory")
        with self._scratch() as path:
            self._monitor("pmemsave", deadline, val=address, size=length, filename=str(path))
            data = path.read_bytes()
        if len(data) != length:
            raise LabError(f"QEMU gave {len(data)} of {length} bytes at {address:#x}")
        return data

    def screenshot(self, display: str = "gpu0", deadline: Deadline | None = None) -> bytes:
        """What the display of a device (a name of :data:`PORTS`) shows, as PNG.

        Where nobody has drawn yet, QEMU says so in the picture.

        Raises:
            LabError: the device has no display.
        """
        if display not in _DISPLAYS:
            raise LabError(f"{display} of the emulated lab has no display")
        with self._scratch() as path:
            self._monitor(
                "screendump", deadline or Deadline(30, "a screenshot"), filename=str(path),
                device=display, format="png",
            )  # fmt: skip
            return path.read_bytes()

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        path = self._folder / f"scratch-{threading.get_ident()}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """End the machine; nothing of it stays but caches.  Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._drop_ssh()
        if hasattr(self, "console"):
            self.console.close()
        if hasattr(self, "_process"):
            self._process.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def new_keys(folder: Path) -> Path:
    """A folder below ``folder`` with the keys of a machine that boots for the first time."""
    given = folder / "given"
    given.mkdir()
    for name in ("client", "host"):
        pair = keys.generate()
        (given / name).write_text(pair.private)
        (given / f"{name}.pub").write_text(f"{pair.public}\n")
    return given


def _memory(file: Path, *, copied: bool = False) -> list[str]:
    """Have ``file`` be the machine's memory (QEMU's templates of virtual machines).

    ``copied``: change a copy, page by page as they are written, so that nothing is read before
    it is used; else the file itself.
    """
    access = "share=off,readonly=on,rom=off" if copied else "share=on"
    backend = f"memory-backend-file,id=ram,size={MEMORY},mem-path={_in_options(file)},{access}"
    return ["-object", backend, "-machine", "memory-backend=ram"]


def _descriptor(number: int) -> Path:
    """An open file of this process, as others of its user find it."""
    return Path(f"/proc/{os.getpid()}/fd/{number}")


def _copy_sparsely(source: Path, target: Path) -> None:
    """Copy a file without its zeros (a saved lab has 0.2 of 2.5 GiB)."""
    command = ["cp", "--sparse=always", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise LabError("the lab host's memory cannot be saved", seen=done.stderr[-2000:])


def _read_ahead(path: Path) -> None:
    """Have the kernel read what is in a sparse file, before page after page is asked for."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        number, at = file.fileno(), 0
        while True:  # until there is no more data: ENXIO, lseek(2)
            at = os.lseek(number, at, os.SEEK_DATA)
            end = os.lseek(number, at, os.SEEK_HOLE)
            os.posix_fadvise(number, at, end - at, os.POSIX_FADV_WILLNEED)
            at = end


def _channel(path: Path) -> list[dict[str, object]]:
    address = {"transport": "file", "filename": str(path), "offset": 0}
    return [{"channel-type": "main", "addr": address}]


class _PhysicalMemory:
    def __init__(self, save: Callable[[int, int], bytes]) -> None:
        self._save = save

    def read(self, address: int, length: int) -> bytes:
        """As :meth:`hil.iommu.memory.PhysicalMemory.read`."""
        if address < 0 or length < 0 or address + length > MEMORY:
            raise LabError(f"the lab host has no memory at {address:#x}+{length:#x}")
        return self._save(address, length) if length else b""


def labs_that_fit() -> int:
    """How many labs this machine can well run at a time, two at most.

    A lab keeps one processor busy, now and then two (measured: the default run took 534 s with
    one lab and 386 s with two, on two processors).
    """
    processors = len(os.sched_getaffinity(0))
    return max(1, min(2, processors, _available_memory() // (MEMORY + (1 << 30))))


def _available_memory() -> int:
    """Bytes that could be had now; what cannot be told is taken for plenty."""
    with contextlib.suppress(OSError):
        found = re.search(
            r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE
        )
        if found is not None:
            return int(found[1]) << 10
    return 1 << 62


def require_memory(size: int) -> None:
    available = _available_memory()
    if available < size:
        raise LabError(
            f"the emulated lab needs {size / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available",
            hint="end other programs",
        )
