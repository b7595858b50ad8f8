"""A simulated Linux guest: what it prints, what its devices really do, and how it ends."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pytest

from hil.console.patterns import classify
from hil.deadline import Deadline
from hil.guests.linux import LinuxGuest, parse_interrupts
from hil.pci.address import Address
from hil.simulated.guest_image import LINUX, GuestImage
from hil.simulated.machine import Machine
from hil.simulated.topology import lab
from hil.transport.agent import Agent, program
from hil.transport.keys import generate
from hil.transport.quoting import quote
from hil.transport.ssh import SshTransport
from tests.simulated.guests import TAP, Bhyve, Boot, joined
from tests.simulated.machine import run

IMAGE = dataclasses.replace(LINUX, arguments=LINUX.own_arguments)
ASKED = LinuxGuest()
PASSED = Address.parse("0000:00:08.0")


@pytest.fixture
def image() -> GuestImage:
    return IMAGE


@pytest.fixture
def host() -> Machine:
    return Machine(lab("15.0", "intel"))


def asked(guest: Bhyve, command: Sequence[str], stdin: bytes = b"") -> str:
    """What one of hil's own commands prints in the guest."""
    done = run(guest.guest.system, quote(command), stdin=stdin)
    assert (done.status, done.err) == (0, b"")
    return done.text


# ---- what is printed ----------------------------------------------------------------


def test_the_boot_tells_of_kernel_functions_and_drivers(host: Machine, boot: Boot) -> None:
    guest = boot(host, devices={8: "nic0", 9: "nvme0", 10: "nic1"}, tap=True)
    said = guest.expect(r"debian login: $")
    assert said.startswith("[    0.000000] Linux version 6.12.41+deb13-amd64 ")
    assert f"Command line: {LINUX.own_arguments}\r\n" in said
    assert re.search(r"pci 0000:00:08\.0: \[8086:10c9\] type 00 class 0x020000 ", said)
    assert re.search(r"pci 0000:00:08\.0: BAR 0 \[mem 0xc\w{7}-0xc\w{7}\]", said)
    assert "igb 0000:00:08.0 enp0s8: renamed from eth1\r\n" in said
    assert "nvme nvme0: pci function 0000:00:09.0\r\n" in said
    assert "e1000e 0000:00:0a.0 eth1: (PCI Express:2.5GT/s:Width x1) 52:54:00:68:69:02" in said
    stamps = [float(found) for found in re.findall(r"^\[ *(\d+\.\d{6})\]", said, re.MULTILINE)]
    assert stamps == sorted(stamps)
    assert not any(classify(line) for line in said.splitlines())


def test_firmware_tells_what_it_boots(host: Machine, boot: Boot) -> None:
    said = boot(host, LINUX.booted_by_firmware()).expect(r"debian login: $")
    assert said.startswith('BdsDxe: loading Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(')
    assert said.index("Loading initial ramdisk ...") < said.index("Linux version")


def test_only_root_logs_in_and_may_leave_again(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.expect(r"login: $")
    guest.type("mallory")
    guest.expect(r"Password: $")
    guest.type("secret")
    assert "Login incorrect" in guest.expect(r"login: $")
    guest.type("root")
    guest.expect(r":~# $")
    assert guest.run("echo $((6 * 7)); uname -sr") == "42\nLinux 6.12.41+deb13-amd64\n"
    assert guest.run(ASKED.is_up() + "; echo $?") == "0\n"
    guest.type("exit")
    guest.expect(r"logout\r\n[\s\S]*login: $")


def test_without_a_serial_console_nothing_is_said(host: Machine, boot: Boot) -> None:
    silent = dataclasses.replace(IMAGE, arguments="root=/dev/vda1 console=tty0")
    guest = boot(host, silent)
    guest.guest.power_button()
    assert guest.end() == 1
    assert guest.console == ""


@pytest.mark.parametrize("arguments", ["console=ttyS0", "console=ttyS0 root=/dev/vda2"])
def test_a_kernel_that_is_not_told_its_root_panics(
    host: Machine, boot: Boot, arguments: str
) -> None:
    guest = boot(host, dataclasses.replace(IMAGE, arguments=arguments))
    said = guest.expect(r"---\[ end Kernel panic[^\n]*\n")
    assert any(classify(line) for line in said.splitlines())
    assert guest.status is None


# ---- sysfs and procfs ---------------------------------------------------------------


def test_hils_probes_read_its_functions(host: Machine, boot: Boot) -> None:
    guest = boot(host, devices={8: "nic0", 9: "edu0"})
    guest.log_in()
    seen = ASKED.parse_functions(asked(guest, ASKED.list_functions()))
    drivers = {(f"{each.vendor:04x}:{each.device:04x}", each.driver) for each in seen}
    assert {("8086:10c9", "igb"), ("1234:11e8", None), ("1af4:1001", "virtio-pci")} <= drivers
    bars = ASKED.parse_bars(asked(guest, ASKED.list_bars(PASSED)))
    passed = {bar.index: (bar.address, bar.size) for bar in guest.passed(8).bars}
    assert {index: (bar.address, bar.size) for index, bar in bars.items()} == passed
    assert asked(guest, ASKED.interfaces(PASSED)) == "enp0s8\n"
    assert asked(guest, ASKED.hardware_address("enp0s8")) == "52:54:00:68:69:00\n"
    first, second = (asked(guest, ASKED.boot_id()) for _ in range(2))
    assert first == second


def test_a_driver_is_unbound_and_bound_and_the_function_reset_between(
    host: Machine, boot: Boot
) -> None:
    guest = boot(host, devices={8: "nic0"})
    guest.log_in()
    card = "/sys/bus/pci/devices/0000:00:08.0"
    guest.run(f"echo 0000:00:08.0 > {card}/driver/unbind")
    assert guest.run(f"readlink {card}/driver; ls {card}/net 2>/dev/null; true") == ""
    function = host.function_named("nic0")
    function.access_store(0, 0x5478, 4, 0x5AC3_0FF1)
    guest.run(f"echo 1 > {card}/reset")
    assert function.access_load(0, 0x5478, 4) == 0
    absent = run(guest.guest.system, "echo 0000:00:09.0 > /sys/bus/pci/drivers/igb/bind")
    assert absent.status != 0
    guest.run("echo 0000:00:08.0 > /sys/bus/pci/drivers/igb/bind")
    assert asked(guest, ASKED.interfaces(PASSED)) == "enp0s8\n"
    asked(guest, ASKED.reset_function(PASSED))
    assert guest.run(f"readlink {card}/driver").endswith("/drivers/igb\n")


# ---- devices ------------------------------------------------------------------------


def test_frames_cross_guest_memory_and_come_back_byte_for_byte(host: Machine, boot: Boot) -> None:
    joined(host, "igb1", "198.18.0.1/24")
    guest = boot(host, devices={8: "nic0"})
    guest.log_in()
    asked(guest, ASKED.configure_interface("enp0s8", "198.18.0.10/24"))
    before = parse_interrupts(asked(guest, ASKED.list_interrupts(PASSED)))
    said = asked(guest, ASKED.ping("198.18.0.1", size=1400, pattern=b"0123456789abcdef"))
    assert "1 packets transmitted, 1 received" in said
    assert "wrong data" not in said
    after = parse_interrupts(asked(guest, ASKED.list_interrupts(PASSED)))
    names = [name.split()[-1] for name in after]
    assert names == ["enp0s8", "enp0s8-TxRx-0"]
    grown = [after[name] - before[name] for name in after]
    assert grown[0] == 0
    assert grown[1] >= 1


def test_wrong_translation_shows_as_lost_frames(boot: Boot) -> None:
    host = Machine(lab("15.0", "intel"), faults=("1-no-translation",))
    joined(host, "igb1", "198.18.0.1/24")
    guest = boot(host, devices={8: "nic0"})
    guest.log_in()
    asked(guest, ASKED.configure_interface("enp0s8", "198.18.0.10/24"))
    assert " 0 received" in guest.run("ping -c 1 -W 1 198.18.0.1")


def test_a_disk_is_read_and_written_by_dma(host: Machine, boot: Boot) -> None:
    guest = boot(host, devices={8: "nvme0"})
    guest.log_in()
    assert asked(guest, ASKED.disks(PASSED)) == "/dev/nvme0n1\n"
    block = b"hil " + bytes(508)
    asked(guest, ASKED.disk_write("/dev/nvme0n1", 512, 9), block)
    assert asked(guest, ASKED.disk_read("/dev/nvme0n1", 512, 9, 1)) == block.decode()
    digest = asked(guest, ASKED.disk_digest("/dev/nvme0n1", 512, 8, 1)).split()
    assert digest[0] == "076a27c79e5ace2a3d47f9dd2e83e4ff6ea8872b3c2218f66c92b89b55f36560"
    assert sum(parse_interrupts(asked(guest, ASKED.list_interrupts(PASSED))).values()) > 3


def test_what_is_held_stands_in_guest_memory(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.log_in()
    asked(guest, ASKED.hold_text(), b"hil-5f1d9a\n")
    assert guest.vm.read(0, guest.vm.memory_size).count(b"hil-5f1d9a\n") == 1


def test_ip_shows_and_changes_addresses(host: Machine, boot: Boot) -> None:
    guest = boot(host, devices={8: "nic0"})
    guest.log_in()
    guest.run("ip link set enp0s8 up; ip addr add 192.0.2.1/24 dev enp0s8")
    shown = guest.run("ip addr show dev enp0s8")
    assert "<BROADCAST,MULTICAST,UP,LOWER_UP>" in shown
    assert "inet 192.0.2.1/24 scope global enp0s8" in shown
    assert "File exists" in guest.run("ip addr add 192.0.2.1/24 dev enp0s8")
    guest.run("ip addr del 192.0.2.1/24 dev enp0s8; ip link set dev enp0s8 down")
    assert "192.0.2.1" not in guest.run("ip addr")
    assert "Cannot find device" in guest.run("ip link set enp0s9 up")
    assert "is unknown" in guest.run("ip teapot")


# ---- SSH and Python -----------------------------------------------------------------


def reached(guest: Bhyve) -> SshTransport:
    """Log in by SSH, as hil does: root at the console lets a key in."""
    key = generate()
    said = asked(guest, ASKED.let_in(TAP, "198.19.0.2/30", key.public, 2222))
    assert asked(guest, ASKED.let_in(TAP, "198.19.0.2/30", key.public, 2222)) == said
    where = guest.networks.forward("198.19.0.2", 2222)
    assert where is not None
    return SshTransport.connect(
        "guest",
        where[0],
        port=where[1],
        key=key.load(),
        host_key=said.strip(),
        deadline=Deadline(60, "SSH"),
    )


def test_hils_in_guest_driver_moves_bytes_by_the_devices_dma(host: Machine, boot: Boot) -> None:
    guest = boot(host, devices={8: "edu0"}, tap=True)
    guest.log_in()
    transport = reached(guest)
    agent = Agent(transport, program("hil.probes.remote", "in_guest"), Deadline(60, "the driver"))

    def ask(what: str, **arguments: object) -> Any:
        return agent.ask(what, Deadline(60, what), **arguments)

    edu = str(PASSED)
    ask("open", address=edu)
    assert ask("read", address=edu, bar=0, offset=0, width=4) == 0x010000ED
    memory = ask("allocate", size=3 << 20)
    first, second = memory["pages"]
    assert first % (2 << 20) == second % (2 << 20) == 0
    ask("fill", memory=memory["id"], offset=0, data=base64.b64encode(b"by DMA!!").decode())
    assert guest.vm.read(first, 8) == b"by DMA!!"
    for source, target, command in ((first, 0x40000, 1), (0x40000, second + 64, 3)):
        writes = [[0x80, 8, source], [0x88, 8, target], [0x90, 8, 8], [0x98, 8, command]]
        ask("transfer", address=edu, bar=0, writes=writes, wait=[0x98, 8, 1, 0, 10])
    offset = (2 << 20) + 64
    got = base64.b64decode(ask("dump", memory=memory["id"], offset=offset, length=8))
    assert got == b"by DMA!!"
    assert guest.run("grep HugePages_ /proc/meminfo").split()[1::2][:2] == ["2", "0"]
    agent.close()
    transport.run(["true"], deadline=Deadline(60, "a command"))
    transport.close()


# ---- the end ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "last"),
    [
        ("poweroff", 1, "reboot: Power down"),
        ("reboot", 0, "reboot: Restarting system"),
        ("reboot -f", 0, "reboot: Restarting system"),
        ("halt", 2, "reboot: System halted"),
    ],
)
def test_how_it_ends_is_bhyves_status(
    host: Machine, boot: Boot, command: str, status: int, last: str
) -> None:
    guest = boot(host)
    guest.log_in()
    guest.type(command)
    assert guest.end() == status
    assert guest.console.rstrip().endswith(last)
    assert ("Reached target" in guest.console) is (command != "reboot -f")


def test_a_triple_fault_ends_bhyve_on_intel_only(boot: Boot) -> None:
    for vendor, status in (("intel", 3), ("amd", None)):
        guest = boot(Machine(lab("15.0", vendor)))
        guest.log_in()
        guest.type(quote(ASKED.triple_fault()))
        guest.expect(r"reboot: Restarting system\r\n")
        if status is not None:
            assert guest.end() == status
        else:
            assert guest.status is None


def test_a_crash_is_a_panic_and_stands(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.log_in()
    guest.guest.nmi()
    guest.expect(r"trying to continue\r\n")
    guest.type(quote(ASKED.crash()))
    said = guest.expect(r"---\[ end Kernel panic[^\n]*\n")
    assert any(classify(line) for line in said.splitlines())
    guest.type("echo alive")
    assert guest.status is None
    assert "alive" not in guest.console
    guest.guest.reset()
    assert guest.end() == 0
