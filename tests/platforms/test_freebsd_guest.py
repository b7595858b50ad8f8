"""A guest under bhyve: the keeper's program runs here for real, among tools that only pretend."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hil.deadline import Deadline, poll
from hil.errors import Fault, GuestError, InventoryError, LabError, LabRefusalError
from hil.guests.images import GuestImage, Loader
from hil.iommu.memory import PhysicalMemory
from hil.iommu.tables import Mapping, Tables, Translation, TranslationFault
from hil.iommu.vtd import Reason
from hil.journal import FREEBSD, Journal
from hil.pci.address import Address
from hil.platforms.contract import GivesEvidence, GuestSpec, LetInByConsole, MachineState
from hil.platforms.freebsd_guest import (
    SSH_PORT,
    BhyveMachine,
    Passed,
    Refusal,
    _stretches,
)
from hil.platforms.freebsd_undo import GUEST, KINDS
from hil.transport.base import OUTPUT_LIMIT, ByteStream, Result
from hil.transport.local import LocalTransport
from tests.fakes import Answer, FakeTransport

NIC = Address.parse("0000:00:05.0")
DISK = Address.parse("0000:00:07.0")
FREEBSD_IMAGE = GuestImage("freebsd", "freebsd", root="/vm/guest.img")


def soon() -> Deadline:
    return Deadline(60, "a test's step")


class Tables1:
    """Maps guest addresses below 64 KiB one page up from 1 MiB."""

    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        if requester_id == NIC.requester_id and address < 0x10000:
            return Translation(0x100000 + address, 4096, readable=True, writable=True)
        return TranslationFault(next(iter(Reason)), "not mapped")

    def mappings(self, requester_id: int, limit: int = 1) -> tuple[Mapping, ...]:
        return (
            Mapping(0, 0x100000, 0x1000, readable=True, writable=True),
            Mapping(0x1000, 0x101000, 0xF000, readable=True, writable=True),
        )


class Memory:
    def __init__(self) -> None:
        self.data = bytearray(0x10000)

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.data[address - 0x100000 :][:length])


class Tools(LocalTransport):
    """This machine with FreeBSD's tools, which are shell scripts that note what they are told."""

    def __init__(self, directory: Path) -> None:
        super().__init__("lab1")
        self.directory = directory
        (directory / "bin").mkdir()
        (directory / "dev" / "vmm").mkdir(parents=True)
        self.has("ifconfig", "")
        self.has("bhyvectl", f'rm -f "{directory}/dev/vmm/${{1#--vm=}}"')
        self.has("bhyveload", self.making + 'printf "loading\\n" >"$console"')
        # Like bhyve with a debug port: waits for a debugger, then for the end it is told.
        self.has(
            "bhyve",
            self.making
            + f"""
case "$*" in
*" -G "*)
    touch {directory}/listening
    until [ -e {directory}/connected ]; do sleep 0.02; done
    ;;
esac
printf 'booted\\n' >"$console"
until [ -s {directory}/end ]; do sleep 0.02; done
read -r status <{directory}/end
rm {directory}/end
exit "$status"
""",
        )
        self.has(
            "sockstat",
            f'[ ! -e {directory}/listening ] || echo "root bhyve 1 5 tcp4 127.0.0.1:$4 *:*"',
        )
        self.has("nc", f"touch {directory}/connected")

    @property
    def making(self) -> str:
        return f"""
for last; do :; done
touch "{self.directory}/dev/vmm/$last"
console={self.directory}/dev/console
"""

    def has(self, name: str, script: str) -> None:
        path = self.directory / "bin" / name
        text = f'#!/bin/sh\necho {name} "$@" >>{self.directory}/log\n{script}\n'
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def ends(self, status: int) -> None:
        (self.directory / "new").write_text(f"{status}\n")
        (self.directory / "new").rename(self.directory / "end")

    @property
    def log(self) -> list[str]:
        path = self.directory / "log"
        return path.read_text().splitlines() if path.exists() else []

    def _here(self, command: Sequence[str]) -> list[str]:
        # The guest's own paths, brought below the test's directory.
        words = [
            word.replace("/dev/vmm", f"{self.directory}/dev/vmm").replace(
                "/dev/nmdm", f"{self.directory}/dev/nmdm"
            )
            for word in command
        ]
        return ["env", f"PATH={self.directory}/bin:{os.environ['PATH']}", *words]

    def run(
        self,
        command: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        limit: int = OUTPUT_LIMIT,
    ) -> Result:
        return super().run(self._here(command), deadline=deadline, stdin=stdin, limit=limit)

    def open_stream(self, command: Sequence[str], *, deadline: Deadline) -> ByteStream:
        return super().open_stream(self._here(command), deadline=deadline)


class Notes(Journal):
    """A journal of a host that nobody else uses: kept here."""

    def __init__(self) -> None:
        super().__init__(FakeTransport(), FREEBSD, KINDS)


def made(
    transport: LocalTransport | FakeTransport,
    directory: str = "/var/run/hil",
    *,
    image: GuestImage = FREEBSD_IMAGE,
    devices: Sequence[Address] = (NIC,),
    memory: PhysicalMemory | None = None,
    name: str = "nic0-1",
) -> BhyveMachine:
    def tables(_deadline: Deadline) -> tuple[Tables, PhysicalMemory]:
        return Tables1(), memory or Memory()  # type: ignore[return-value]

    return BhyveMachine(
        host="lab1",
        transport=transport,
        spec=GuestSpec(name, "freebsd", memory=512 << 20, devices=tuple(devices)),
        image=image,
        passed=[Passed(address, f"ppt{index}") for index, address in enumerate(devices)],
        directory=directory,
        explain=lambda program, status, seen: Refusal(
            f"{program} {status} {seen!r}", Fault.LAB, "mend it"
        ),
        tables=tables,
        journal=Notes(),
        number=0x12,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


@pytest.fixture
def machine(tools: Tools, tmp_path: Path) -> Iterator[BhyveMachine]:
    """A guest whose null-modem pair is a terminal (B) and a file (A)."""
    image = tmp_path / "guest.img"
    image.write_bytes(b"a disk")
    found = made(tools, str(tmp_path / "run" / "1"), image=GuestImage("f", "freebsd", str(image)))
    main, terminal = os.openpty()
    tty.setraw(main)
    (tmp_path / f"dev/nmdm{found.vm}B").symlink_to(os.ttyname(terminal))
    (tmp_path / "dev/console").symlink_to(os.ttyname(terminal))
    (tmp_path / f"dev/nmdm{found.vm}A").touch()
    yield found
    with contextlib.suppress(LabError):
        found.destroy(soon())
    os.close(main)
    os.close(terminal)


def until(machine: BhyveMachine, state: MachineState) -> None:
    poll(lambda: machine.state(soon()) is state, soon(), last_seen=machine.failure)


# ---- the life of a guest -----------------------------------------------------------


def test_a_prepared_guest_has_been_loaded_and_waits(machine: BhyveMachine, tools: Tools) -> None:
    machine.create(soon())
    assert machine.state(soon()) is MachineState.PREPARED
    bhyve = [line for line in tools.log if line.startswith("bhyve ")]
    assert len(bhyve) == 1
    assert f"-G w127.0.0.1:{machine.debug_port}" in bhyve[0]
    assert (tools.directory / "dev/vmm" / machine.vm).exists()
    assert Path(machine.disk).read_bytes() == b"a disk"


def test_a_debugger_that_comes_and_goes_starts_it(machine: BhyveMachine, tools: Tools) -> None:
    machine.create(soon())
    machine.start(soon())
    assert machine.state(soon()) is MachineState.RUNNING
    assert f"nc -z 127.0.0.1 {machine.debug_port}" in tools.log


def test_a_restart_destroys_loads_and_starts_without_waiting(
    machine: BhyveMachine, tools: Tools
) -> None:
    machine.create(soon())
    machine.start(soon())
    tools.ends(0)
    poll(lambda: machine.restarts() == 1, soon())
    poll(lambda: len([x for x in tools.log if x.startswith("bhyve ")]) == 2, soon())
    assert machine.state(soon()) is MachineState.RUNNING
    words = [line.split()[0] for line in tools.log if line.startswith("bhyve")]
    assert words == ["bhyveload", "bhyve", "bhyvectl", "bhyveload", "bhyve"]
    assert "-G" not in next(x for x in reversed(tools.log) if x.startswith("bhyve "))


def test_a_restart_that_is_refused_ends_the_console_and_is_told(
    machine: BhyveMachine, tools: Tools
) -> None:
    machine.create(soon())
    console = machine.console(soon())
    machine.start(soon())
    assert machine.why_ended() is None
    tools.has("bhyveload", 'echo "vm_create: Device not configured" >&2; exit 1')
    tools.ends(0)
    while console.read():
        pass
    reason = machine.why_ended()
    assert isinstance(reason, LabRefusalError)
    assert "bhyveload refused to start guest nic0-1" in reason.message


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (1, MachineState.STOPPED),
        (2, MachineState.STOPPED),
        (3, MachineState.CRASHED),
        (4, MachineState.CRASHED),
    ],
)
def test_the_end_is_told_by_bhyve_s_status(
    machine: BhyveMachine, tools: Tools, status: int, state: MachineState
) -> None:
    machine.create(soon())
    machine.start(soon())
    tools.ends(status)
    until(machine, state)
    # Its devices stay assigned until it is destroyed, whatever ended it.
    assert not any(line.startswith("bhyvectl") for line in tools.log)


def test_a_killed_guest_is_crashed_and_its_virtual_machine_stays(
    machine: BhyveMachine, tools: Tools
) -> None:
    machine.create(soon())
    machine.start(soon())
    machine.kill(soon())
    assert machine.state(soon()) is MachineState.CRASHED
    assert (tools.directory / "dev/vmm" / machine.vm).exists()
    machine.destroy(soon())
    assert not (tools.directory / "dev/vmm" / machine.vm).exists()


def test_the_end_takes_all_back_last_first(machine: BhyveMachine, tools: Tools) -> None:
    machine.create(soon())
    machine.start(soon())
    assert machine.journal.outstanding
    machine.destroy(soon())
    assert machine.state(soon()) is MachineState.DESTROYED
    ends = [line for line in tools.log if "destroy" in line]
    assert ends == [
        f"bhyvectl --vm={machine.vm} --destroy",
        "ifconfig bridge1018 destroy",
        "ifconfig tap1018 destroy",
    ]
    assert not (tools.directory / "run" / "1").exists()
    assert not machine.journal.outstanding
    machine.destroy(soon())


def test_the_end_of_the_channel_takes_all_back(machine: BhyveMachine, tools: Tools) -> None:
    machine.create(soon())
    machine.start(soon())
    keeper = machine._keeper
    assert keeper is not None
    keeper.close()
    poll(lambda: not (tools.directory / "run" / "1").exists(), soon(), last_seen=machine.failure)
    poll(lambda: "ifconfig tap1018 destroy" in tools.log, soon())
    poll(lambda: not (tools.directory / "dev/vmm" / machine.vm).exists(), soon())


def test_what_cannot_be_taken_back_is_told_with_its_command(
    machine: BhyveMachine, tools: Tools
) -> None:
    machine.create(soon())
    tools.has("ifconfig", 'case $1$2 in tap*destroy) echo "ifconfig: busy" >&2; exit 1 ;; esac')
    with pytest.raises(LabError, match="could not be taken back") as raised:
        machine.destroy(soon())
    assert "ifconfig tap1018 destroy" in raised.value.hint
    assert "ifconfig: busy" in raised.value.seen
    assert machine.journal.outstanding, "the journal tries again"


def test_a_refusal_of_bhyve_is_decoded_and_leaves_nothing(
    machine: BhyveMachine, tools: Tools
) -> None:
    tools.has("bhyve", 'echo "bhyve: passthru requires guest memory to be wired" >&2; exit 4')
    with pytest.raises(LabRefusalError, match="bhyve 4 'bhyve: passthru requires") as raised:
        machine.create(soon())
    assert raised.value.hint == "mend it"
    assert raised.value.command[0] == "bhyve"
    assert not (tools.directory / "run" / "1").exists()
    assert "ifconfig bridge1018 destroy" in tools.log


def test_a_late_refusal_of_bhyve_is_told_at_the_start(machine: BhyveMachine, tools: Tools) -> None:
    machine.create(soon())
    tools.has("nc", "exit 1")
    machine.kill(soon())
    with pytest.raises(LabRefusalError, match="bhyve refused to start guest nic0-1"):
        machine.start(soon())


def test_a_refusal_of_the_loader_is_told_as_its_own(machine: BhyveMachine, tools: Tools) -> None:
    tools.has("bhyveload", 'echo "vm_create: Device not configured" >&2; exit 1')
    with pytest.raises(LabRefusalError, match="bhyveload refused"):
        machine.create(soon())
    assert not any(line.startswith("bhyve ") for line in tools.log)


def test_what_cannot_be_made_is_the_lab_s_fault_and_undone(
    machine: BhyveMachine, tools: Tools
) -> None:
    tools.has("ifconfig", 'case $1$2 in bridge*create) echo "File exists" >&2; exit 1 ;; esac')
    with pytest.raises(LabError, match="could not be made") as raised:
        machine.create(soon())
    assert "File exists" in raised.value.seen
    assert "ifconfig tap1018 destroy" in tools.log
    assert "ifconfig bridge1018 destroy" not in tools.log, "it is not ours"
    assert not any(line.startswith("bhyve") for line in tools.log)
    assert not (tools.directory / "run" / "1").exists()


def test_the_console_is_read_from_before_the_loader_starts(
    machine: BhyveMachine, tools: Tools
) -> None:
    started = tools.open_stream

    order: list[str] = []

    def note(command: Sequence[str], *, deadline: Deadline) -> ByteStream:
        order.append("console" if "reader" in command[2] else "keeper")
        if order[-1] == "console":
            assert not any(line.startswith("bhyveload") for line in tools.log)
        return started(command, deadline=deadline)

    tools.open_stream = note  # type: ignore[method-assign]
    machine.create(soon())
    assert order == ["keeper", "console"]
    assert machine.console(soon()) is machine._console


# ---- command lines -----------------------------------------------------------------


def test_bhyve_s_command_line_wires_memory_only_for_passed_devices() -> None:
    machine = made(FakeTransport(), devices=(NIC, DISK))
    assert shlex.join(machine.command()) == (
        "bhyve -S -A -H -P -c 1 -m 512M -s 0,hostbridge -s 31,lpc "
        "-l com1,/dev/nmdmhil-nic0-1-0012A "
        "-s 3,virtio-net,tap1018,mac=02:68:69:6c:00:12 "
        "-s 4,virtio-blk,/var/run/hil/hil-nic0-1-0012/disk -s 5,virtio-rnd "
        "-s 8,passthru,ppt0 -s 9,passthru,ppt1 hil-nic0-1-0012"
    )
    assert shlex.join(machine.loader_command()) == (
        "bhyveload -S -m 512M -c /dev/nmdmhil-nic0-1-0012A "
        "-e hw.physmem=520093696 -e hil.dma=0x1f000000:0x1000000 "
        "-d /var/run/hil/hil-nic0-1-0012/disk hil-nic0-1-0012"
    )
    plain = made(FakeTransport(), devices=())
    assert "-S" not in plain.command()
    assert "-S" not in plain.loader_command()


def test_passed_functions_stand_from_slot_8() -> None:
    machine = made(FakeTransport(), devices=(NIC, DISK))
    assert machine.guest_addresses == {
        NIC: Address.parse("0000:00:08.0"),
        DISK: Address.parse("0000:00:09.0"),
    }
    with pytest.raises(InventoryError, match="at most 23"):
        made(FakeTransport(), devices=[NIC] * 24)


def test_firmware_loads_by_itself() -> None:
    image = GuestImage("f", "freebsd", "/vm/a", loader=Loader.UEFI, bootrom="/rom/BHYVE_UEFI.fd")
    machine = made(FakeTransport(), image=image)
    assert machine.loader_command() == []
    assert "bootrom,/rom/BHYVE_UEFI.fd" in machine.command()


def test_grub_takes_a_kernel_of_the_host_or_the_guest_s_own_menu() -> None:
    kernel = GuestImage(
        "l", "linux", "/vm/l", "/vm/kernel", "/vm/initrd", ("root=/dev/vda",), loader=Loader.GRUB
    )
    machine = made(FakeTransport(), image=kernel)
    files = "/var/run/hil/hil-nic0-1-0012"
    assert machine.loader_command() == [
        "env", "TERM=vt100", "grub-bhyve", "-S", "-m", f"{files}/device.map", "-M", "512",
        "-r", "host", "-d", files, "hil-nic0-1-0012",
    ]  # fmt: skip
    written = {step.do[4]: step.do[5:] for step in machine.steps() if step.do[0] == "sh"}
    assert written[f"{files}/grub.cfg"] == (
        "linux (host)/vm/kernel console=ttyS0 root=/dev/vda",
        "initrd (host)/vm/initrd",
        "boot",
        "exit",
    )
    # It has given up root when it reads that.
    assert machine.steps()[0].do[:4] == ("mkdir", "-p", "-m", "711")
    assert written[f"{files}/device.map"] == (f"(hd0) {files}/disk",)
    assert "-w" in machine.command()
    menu = GuestImage("l", "linux", "/vm/l", loader=Loader.GRUB, grub_root="hd0,msdos1")
    machine = made(FakeTransport(), image=menu)
    command = machine.loader_command()
    assert command[command.index("-r") + 1] == "hd0,msdos1"
    assert "-d" not in command
    assert not any("grub.cfg" in str(step) for step in machine.steps())


def test_a_zvol_is_cloned_beside_itself_and_destroyed() -> None:
    image = GuestImage("f", "freebsd", snapshot="zroot/vm/freebsd@ready")
    machine = made(FakeTransport(), image=image)
    step = machine.steps()[1]
    assert step.do == ("zfs", "clone", "zroot/vm/freebsd@ready", "zroot/vm/freebsd-hil-nic0-1-0012")
    assert step.undo == ("zfs", "destroy", "zroot/vm/freebsd-hil-nic0-1-0012")
    assert machine.disk == "/dev/zvol/zroot/vm/freebsd-hil-nic0-1-0012"


@pytest.mark.parametrize("name", ["a" * 42, "../x", "", "a b"])
def test_a_strange_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="no name for a guest"):
        made(FakeTransport(), name=name)


def test_a_long_name_is_cut_to_what_every_release_takes() -> None:
    machine = made(FakeTransport(), name="n" * 40)
    assert len(machine.vm) == 31
    assert machine.vm.endswith("-0012")


@pytest.mark.parametrize("image", [
    FREEBSD_IMAGE,
    GuestImage("f", "freebsd", snapshot="zroot/vm/freebsd@ready"),
])  # fmt: skip
def test_the_journal_takes_what_it_is_told_of_a_guest(image: GuestImage) -> None:
    transport = FakeTransport()
    machine = made(transport, image=image)
    with pytest.raises(LabError, match="no stream here"):
        machine.create(soon())
    (entry,) = machine.journal.outstanding
    assert GUEST.fits(entry.undo)


# ---- ways in -----------------------------------------------------------------------


def test_buttons_are_bhyvectl_s() -> None:
    transport = FakeTransport()
    machine = made(transport)
    machine.reset(soon())
    machine.nmi(soon())
    assert transport.commands == [
        ("bhyvectl", "--vm=hil-nic0-1-0012", "--force-reset"),
        ("bhyvectl", "--vm=hil-nic0-1-0012", "--inject-nmi"),
    ]


@pytest.mark.parametrize(("image", "gstat"), [
    (FREEBSD_IMAGE, "gstat -b"),
    (GuestImage("f", "freebsd", snapshot="z/f@a"), "gstat -b -f ^zvol/z/f-hil-nic0-1-0012$"),
])  # fmt: skip
def test_a_guest_s_evidence_is_what_could_be_had(image: GuestImage, gstat: str) -> None:
    texts = {"bhyvectl --vm=hil-nic0-1-0012 --get-stats": "vcpu0 stats:\n", gstat: "dT: 1.0s\n"}

    def answer(command: tuple[str, ...], _stdin: bytes) -> Answer:
        text = texts.get(" ".join(command))
        return (1, "", "no\n") if text is None else (0, text, "")

    machine = made(FakeTransport(answer), image=image)
    assert isinstance(machine, GivesEvidence)
    assert list(machine.evidence(soon()).values()) == ["vcpu0 stats:\n", "dT: 1.0s\n"]


def test_ssh_is_let_in_by_what_root_types_at_the_console() -> None:
    machine = made(FakeTransport())
    assert isinstance(machine, LetInByConsole)
    with pytest.raises(LabError, match="has not been logged in to"):
        machine.ssh(soon())
    typed: list[Sequence[str]] = []

    def console(command: Sequence[str]) -> str:
        typed.append(command)
        return "ssh-ed25519 AAAAC3Nza root@guest\n"

    machine.let_in(console)
    assert machine._host_key == "ssh-ed25519 AAAAC3Nza"
    assert typed[0][4:6] == ["02:68:69:6c:00:12", "198.19.0.74/30"]
    assert typed[0][7] == str(SSH_PORT)


def test_a_guest_that_starts_no_ssh_server_is_told_with_its_words() -> None:
    with pytest.raises(GuestError, match="started no SSH server") as raised:
        made(FakeTransport()).let_in(lambda _command: "sh: ssh-keygen: not found\n")
    assert "not found" in str(raised.value)


def test_memory_is_read_where_the_tables_lead() -> None:
    memory = Memory()
    memory.data[0xFFE:0x1002] = b"abcd"
    machine = made(FakeTransport(), memory=memory)
    assert machine.read_physical(0xFFE, 4, soon()) == b"abcd"
    with pytest.raises(LabError, match="not in the IOMMU's tables"):
        machine.read_physical(0xFFFE, 4, soon())


def test_memory_is_searched_on_the_host_where_the_tables_lead(tools: Tools) -> None:
    memory = bytearray(0x110000)
    memory[0x100FF0:0x100FF4] = b"abcd"
    memory[0x101002:0x101006] = memory[0x105000:0x105004] = b"abcd"
    memory[0x100:0x104] = b"abcd"  # not the guest's
    (tools.directory / "mem").write_bytes(memory)
    tools.has(
        "dd",
        'for word; do case $word in if=*) ;; *) set -- "$@" "$word" ;; esac; shift; done\n'
        f'exec /bin/dd if={tools.directory}/mem "$@"',
    )
    machine = made(tools)
    assert machine.search_physical(["abcd", "abce"], soon()) == [(0xFF0, 0x1002, 0x5000), ()]
    assert [line for line in tools.log if line.startswith("dd ")][:2] == [
        "dd if=/dev/mem bs=4096 skip=256 count=1 status=none",
        "dd if=/dev/mem bs=4096 skip=257 count=15 status=none",
    ]


@pytest.mark.parametrize(
    ("mappings", "stretches"),
    [
        ([(0, 0x5000, 0x1000), (0x1000, 0x9000, 0x2000)], [(0, ["4096:5:1", "4096:9:2"])]),
        ([(0, 0, 0x1000), (0x4000, 0x4000, 0x4000)], [(0, ["4096:0:1"]), (0x4000, ["16384:1:1"])]),
        ([(0x1000, 0x1000, 1 << 40)], [(0x1000, ["4096:1:31"])]),
        ([(0x20000, 0, 0x1000)], []),
    ],
)
def test_what_is_searched_as_one_is_contiguous_in_the_guest(
    mappings: list[tuple[int, int, int]], stretches: list[tuple[int, list[str]]]
) -> None:
    ranges = [Mapping(*numbers, readable=True, writable=True) for numbers in mappings]
    assert list(_stretches(ranges, 0x20000)) == stretches


def test_a_long_range_is_searched_in_pieces() -> None:
    whole = [Mapping(0, 1 << 32, 40 << 20, readable=True, writable=True)]
    assert list(_stretches(whole, 1 << 40)) == [
        (0, ["1048576:4096:16"]),
        (16 << 20, ["1048576:4112:16"]),
        (32 << 20, ["1048576:4128:8"]),
    ]
    pages = [Mapping(n << 12, n << 13, 4096, readable=True, writable=True) for n in range(250)]
    found = list(_stretches(pages, 1 << 40))
    assert [(start, len(ranges)) for start, ranges in found] == [
        (0, 100),
        (100 << 12, 100),
        (200 << 12, 50),
    ]


def test_memory_of_a_guest_without_devices_cannot_be_read() -> None:
    with pytest.raises(LabError, match="no function is passed"):
        made(FakeTransport(), devices=()).read_physical(0, 4, soon())


def test_what_a_program_says_and_its_status_come_by_one_stream() -> None:
    # Of two sshd may send the later words first.
    assert made(FakeTransport()).keeper_script().split("\n")[1] == "exec 2>&1"
