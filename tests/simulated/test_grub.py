"""grub-bhyve on the simulated host: what it loads, what it refuses, and what bhyve makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from hil.deadline import Deadline, poll
from hil.errors import InventoryError
from hil.lab.assemble import bench_of
from hil.lab.live import open_lab
from hil.lab.load import load
from hil.simulated.host import SimulatedHost
from tests.simulated.machine import Outcome, run

BHYVE = "bhyve -A -H -P -m 256M -s 0,hostbridge -s 31,lpc -s 4,virtio-blk,/vm/linux.img"


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost("freebsd-15-intel")
    run(host.system, "mkdir /root/g; echo '(hd0) /vm/linux.img' >/root/g/device.map")
    yield host
    host.close()


def grub(host: SimulatedHost, options: str, config: str = "") -> Outcome:
    """One run with a configuration of its own, in a terminal."""
    host.system.files.write("/root/g/grub.cfg", config.encode())
    command = f"TERM=vt100 grub-bhyve -m /root/g/device.map {options} g1"
    return run(host.system, f"chmod 755 /root; {command}")


LINUX = """\
linux (host)/vm/linux/vmlinuz root=/dev/vda1 quiet
initrd (host)/vm/linux/initrd.img
boot
exit
"""


def test_a_kernel_of_the_host_is_loaded_by_its_own_configuration(host: SimulatedHost) -> None:
    found = grub(host, "-M 256 -r host -d /root/g", LINUX)
    assert (found.status, found.err) == (0, b"")
    assert "Welcome to GRUB!" in found.text
    assert "error" not in found.text
    loaded = host.system.loaded["g1"]
    assert loaded.os == "linux"
    # console=ttyS0 is put before the rest, unless it is there or -n forbids it
    assert loaded.arguments == (
        "console=ttyS0 BOOT_IMAGE=(host)/vm/linux/vmlinuz root=/dev/vda1 quiet"
    )
    grub(host, "-n -M 256 -r host -d /root/g", LINUX)
    assert "console" not in host.system.loaded["g1"].arguments


def test_a_disks_own_menu_is_taken_after_its_time(host: SimulatedHost) -> None:
    found = grub(host, "-M 256 -r hd0,msdos1")
    assert "Booting `Debian GNU/Linux'" in found.text
    assert host.system.loaded["g1"].arguments.endswith("root=/dev/vda1 ro console=ttyS0")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("linux (hd1)/boot/vmlinuz\nexit\n", "disk `hd1' not found"),
        ("linux (hd0,msdos1)/vmlinuz\nexit\n", "file `/vmlinuz' not found"),
        ("linux (hd0,msdos2)/vmlinuz\nexit\n", "no such partition"),
        ("linux (host)/vm/guest.img\nexit\n", "invalid magic number"),
        ("linux (host)/vm/none\nexit\n", "can't open `/vm/none': No such file or directory"),
        ("initrd (host)/vm/linux/initrd.img\nexit\n", "you need to load the kernel first"),
        ("boot\nexit\n", "you need to load the kernel first"),
        ("bootlinux\nexit\n", "can't find command `bootlinux'"),
    ],
)
def test_what_fails_is_told_and_its_status_is_0(
    host: SimulatedHost, config: str, words: str
) -> None:
    found = grub(host, "-M 256 -r host -d /root/g", config)
    assert found.status == 0
    assert f"error: {words}.\r\n" in found.text
    assert "g1" not in host.system.loaded
    ran = run(host.system, f"{BHYVE} g1")
    assert ran.status == 134
    assert b"vm exit[0]\n\treason\t\tVMX\n" in ran.err


def test_it_has_given_up_root_when_it_reads_files_of_the_host(host: SimulatedHost) -> None:
    run(host.system, "chmod 600 /vm/linux/vmlinuz-*")
    found = grub(host, "-M 256 -r host -d /root/g", LINUX)
    assert "can't open `/vm/linux/vmlinuz': Permission denied" in found.text


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("TERM=vt100 grub-bhyve -M 256", 1, "Required VM name parameter not supplied\n"),
        ("TERM=vt100 grub-bhyve -M x g1", 1, "Invalid guest memory size `x'.\n"),
        ("grub-bhyve -M 256 g1", 1, "Error opening terminal: unknown.\n"),
    ],
)
def test_what_it_refuses(host: SimulatedHost, command: str, status: int, words: str) -> None:
    found = run(host.system, command)
    assert found.status == status
    assert words in found.err.decode()


@pytest.mark.parametrize(
    ("line", "words"),
    [("/vm/linux.img", "missing `(' symbol"), ("(hd0)", "filename expected")],
)
def test_a_device_map_that_is_none(host: SimulatedHost, line: str, words: str) -> None:
    host.system.files.write("/root/g/device.map", f"{line}\n".encode())
    found = grub(host, "-M 256 -r host -d /root/g", LINUX)
    assert found.status == 1
    assert found.err.decode() == f"grub-bhyve: error: /root/g/device.map:1: {words}.\n"


def test_wired_memory_must_be_the_same_for_loader_and_bhyve(host: SimulatedHost) -> None:
    grub(host, "-M 256 -r host -d /root/g", LINUX)
    refused = run(host.system, f"{BHYVE} -S g1")
    assert refused == Outcome(4, b"", b"Unable to setup memory (17)\n")
    again = grub(host, "-S -M 256 -r host -d /root/g", LINUX)
    assert again.status == 1
    assert again.err == b"Could not setup memory for VM\nError in initializing VM\n"


def test_at_a_terminal_commands_are_typed_there(host: SimulatedHost) -> None:
    run(host.system, "kldload nmdm; touch /root/out; chmod 755 /root")
    run(
        host.system, "(sleep 1000 <>/dev/nmdmgA) & (stty raw -echo; cat >/root/out) <>/dev/nmdmgB &"
    )
    run(host.system, "grub-bhyve -c /dev/nmdmgA -m /root/g/device.map -M 256 g1 &")

    def until(wanted: str) -> None:
        poll(
            lambda: wanted in host.system.files.read("/root/out").decode(),
            Deadline(60, f"{wanted!r} on the console"),
            last_seen=lambda: host.system.files.read("/root/out").decode(),
        )

    until("grub> ")
    run(host.system, "printf 'ls\\r' >/dev/nmdmgB")
    until("(hd0) (host)")
    run(host.system, "printf 'linux (host)/vm/linux/vmlinuz\\rboot\\r' >/dev/nmdmgB")
    poll(lambda: "g1" in host.system.loaded, Deadline(60, "a loaded kernel"))


def test_bhyveload_finds_nothing_on_a_linux_disk(host: SimulatedHost) -> None:
    found = run(host.system, "bhyveload -m 256M -d /vm/linux.img g1")
    assert "ERROR: cannot open /boot/lua/loader.lua" in found.text
    assert "g1" not in host.system.loaded


# ---- what hil makes of it -----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words", "seen"),
    [
        (
            {"kernel": "/vm/linux/none"},
            "GRUB loaded nothing for guest plain-1: can't open `/vm/linux/none': No such file",
            "exit_reason\t33",
        ),
        (
            {"kernel": None, "initrd": None, "grub_root": "hd0,msdos1", "root": "/vm/guest.img"},
            "GRUB found nothing to boot for guest plain-1 on hd0,msdos1, and waits at its prompt",
            "grub>",
        ),
    ],
)
def test_a_guest_that_grub_does_not_load_is_the_inventorys_fault(
    change: dict[str, str | None], words: str, seen: str
) -> None:
    lab = load("freebsd-15-intel-linux")
    images = {name: entry.model_copy(update=change) for name, entry in lab.images.items()}
    deadline = Deadline(300, "the lab")
    with open_lab(dataclasses.replace(lab, images=images), deadline) as live:
        bench = bench_of(live, deadline)
        with pytest.raises(InventoryError) as raised:
            bench.guests.fresh(host=bench.host)
        assert raised.value.message.startswith(words)
        assert seen in raised.value.seen
        assert "\x1b" not in raised.value.seen
        bench.close()
        left = bench.host.platform.transport.run(["ls", "/dev/vmm"], deadline=deadline)
        assert left.status != 0
