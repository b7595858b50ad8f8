"""A simulated guest, from its loader to its end, and what its devices really do."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from hil.console.patterns import classify
from hil.deadline import Deadline
from hil.simulated.guest_image import GuestImage
from hil.simulated.guest_text import loader_output
from hil.simulated.machine import Machine
from hil.simulated.topology import lab, recorded
from hil.transport.agent import Agent, program
from hil.transport.keys import generate
from hil.transport.ssh import SshTransport
from tests.recorded import recorded as recording
from tests.simulated.guests import TAP, Bhyve, Boot, joined

RECORDED = GuestImage(release="13.2-RELEASE", kernel="BHYVEHOST")


@pytest.fixture
def host() -> Machine:
    return Machine(lab("13.2", "intel"))


# ---- what is printed ----------------------------------------------------------------


def _masked(text: str) -> list[str]:
    text = re.sub(r"\d{4}-\d\d-\d\dT\S+|\w{3} \w{3} [ \d]\d [\d:]{8} UTC \d{4}", "DATE", text)
    text = re.sub(r"avail memory = .*", "AVAILABLE", text)
    text = re.sub(r"(port|mem) 0x[0-9a-fx,-]+", r"\1 RANGE", text)
    text = re.sub(r"\d+MB \(\d+ 512 byte sectors\)", "SIZE", text)
    return text.replace("\r", "").splitlines()


def test_the_boot_is_the_recorded_one(boot: Boot) -> None:
    real = recording("3-each-failure-from-fresh/036-console").text
    real = real[: real.index("login: ") + 7]
    machine = Machine(recorded("13.2", "amd"))
    machine.kernel.load_module("vmm")
    devices = {7: "em0", 8: "igb0", 9: "nvme0", 10: "edu0"}
    guest = boot(machine, devices=devices, image=RECORDED, memory=512 << 20)
    assert _masked(guest.expect(r"login: $")) == _masked(real)


def test_the_loader_s_last_line_is_the_recorded_one() -> None:
    real = recording("2-failures-then-guest/026").stdout
    assert loader_output().endswith(real)


def test_an_image_says_what_boots_and_anything_else_boots_nothing() -> None:
    image = GuestImage(release="15.0-RELEASE", python=False)
    assert GuestImage.parse(image.contents() + bytes(9000)) == image
    for data in (b"", b"\0" * 512, b"{}\n", b"[1]\n", image.contents().replace(b": 1", b": 2")):
        assert GuestImage.parse(data) is None


# ---- the console --------------------------------------------------------------------


def test_only_root_logs_in_and_may_leave_again(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.expect(r"login: $")
    guest.type("")
    guest.expect(r"login: $")
    guest.type("mallory")
    guest.expect(r"Password:$")
    guest.type("secret")
    assert "Login incorrect" in guest.expect(r"login: $")
    guest.type("root")
    guest.expect(r":~ # $")
    assert guest.run("echo $((6 * 7))") == "42\n"
    guest.type("exit")
    guest.expect(r"logout\r\n[\s\S]*login: $")


def test_the_kernel_speaks_in_the_midst_of_what_is_typed(host: Machine, boot: Boot) -> None:
    guest = boot(host, devices={8: "nic0"})
    guest.log_in()
    guest.run("stty -echo -opost")
    guest.type("ifconfig igb0 up")
    assert guest.expect(r"link state changed to UP\r\n")


# ---- devices ------------------------------------------------------------------------


def test_frames_cross_guest_memory_and_come_back_byte_for_byte(host: Machine, boot: Boot) -> None:
    joined(host, "igb1", "198.18.0.1/24")
    guest = boot(host, devices={8: "nic0"})
    guest.log_in()
    guest.run("ifconfig igb0 inet 198.18.0.10/24 up")
    said = guest.run("ping -c 3 -p 0123456789abcdef -s 1400 198.18.0.1")
    assert "3 packets received" in said
    assert "wrong data" not in said
    count = re.search(r"igb0:rxq0 +(\d+)", guest.run("vmstat -ia"))
    assert count is not None
    assert int(count[1]) >= 3


def test_wrong_translation_shows_as_lost_frames(boot: Boot) -> None:
    host = Machine(lab("13.2", "intel"), faults=("1-no-translation",))
    joined(host, "igb1", "198.18.0.1/24")
    guest = boot(host, devices={8: "nic0"})
    guest.log_in()
    guest.run("ifconfig igb0 inet 198.18.0.10/24 up")
    assert " 0 packets received" in guest.run("ping -c 1 -t 1 198.18.0.1")


def test_a_disk_is_read_and_written_by_dma(host: Machine, boot: Boot) -> None:
    guest = boot(host, devices={8: "nvme0"})
    guest.log_in()
    guest.run("printf 'hil %0509d' 7 | dd of=/dev/nvd0 ibs=512 obs=512 seek=9 status=none")
    assert guest.run("dd if=/dev/nvd0 bs=512 skip=9 count=1 status=none | cut -c 1-4") == "hil \n"
    assert guest.run("dd if=/dev/nvd0 bs=512 skip=8 count=1 status=none | sha256").strip() == (
        "076a27c79e5ace2a3d47f9dd2e83e4ff6ea8872b3c2218f66c92b89b55f36560"
    )


def test_a_passed_device_without_a_driver_is_there(host: Machine, boot: Boot) -> None:
    guest = boot(host, devices={8: "edu0"})
    guest.log_in()
    assert "none0@pci0:0:8:0" in guest.run("pciconf -l")


def test_what_was_written_to_a_file_stands_in_guest_memory(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.log_in()
    guest.run("echo hil-5f1d9a > /tmp/hil-text")
    memory = guest.vm.read(0, guest.vm.memory_size)
    assert memory.count(b"hil-5f1d9a\n") == 1


def test_the_guest_s_physical_memory_is_its_own(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.log_in()
    guest.vm.write(0x0300_0000, b"mark")
    out = guest.run(f"dd if=/dev/mem bs=4 skip={0x0300_0000 // 4} count=1 status=none; echo")
    assert out == "mark\n"


# ---- the end ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("shutdown -p now", 1),
        ("shutdown -r now", 0),
        ("poweroff", 1),
        ("reboot", 0),
    ],
)
def test_how_it_ends_is_bhyve_s_status(
    host: Machine, boot: Boot, command: str, status: int
) -> None:
    guest = boot(host)
    guest.log_in()
    guest.type(command)
    assert guest.end() == status
    said = guest.console
    assert "All buffers synced." in said
    assert ("acpi0: Powering system off" in said) is (status == 1)
    assert ("*** FINAL System shutdown message" in said) is command.startswith("shutdown")


def test_halt_waits_for_a_key(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.log_in()
    guest.type("halt")
    guest.expect(r"Please press any key to reboot\.\r\n\r\n")
    assert guest.status is None
    guest.guest.receive(b" ")
    assert guest.end() == 0


def test_the_power_button_shuts_it_down(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.log_in()
    guest.guest.power_button()
    assert guest.end() == 1
    assert "acpi0: Powering system off" in guest.console


@pytest.mark.parametrize("how", ["sysctl", "nmi"])
def test_a_panic_stands_at_the_debugger_until_it_is_reset(
    host: Machine, boot: Boot, how: str
) -> None:
    guest = boot(host)
    guest.log_in()
    if how == "nmi":
        guest.guest.nmi()
    else:
        guest.type("sysctl debug.kdb.panic=1")
    said = guest.expect(r"db> $")
    assert any(classify(line) for line in said.splitlines())
    guest.type("help me")
    guest.expect(r"No such command[\s\S]*db> $")
    assert guest.status is None
    guest.type("reset")
    assert guest.end() == 0


def test_killed_it_says_nothing_and_its_device_stays(host: Machine, boot: Boot) -> None:
    guest = boot(host, devices={8: "nic0"})
    guest.log_in()
    before = guest.console
    guest.kill()
    assert guest.status == 137
    assert guest.console == before
    assert [device.function.kind for device in guest.vm.devices] == ["igb"]


def test_destroyed_it_ends(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.log_in()
    guest.vm.on_destroy.append(guest.guest.stop)
    guest.vm.destroy()
    guest.end()


# ---- SSH and Python -----------------------------------------------------------------


LET_IN = """\
umask 077; echo '{key}' > /var/run/keys; ssh-keygen -q -t ed25519 -N '' -f /var/run/hil_key; \
/usr/sbin/sshd -f /dev/null -p 2222 -h /var/run/hil_key -o AuthorizedKeysFile=/var/run/keys"""


def reached(guest: Bhyve) -> SshTransport:
    """Log in by SSH, as hil does: root at the console lets a key in."""
    key = generate()
    guest.run(LET_IN.format(key=key.public))
    guest.run(f"ifconfig vtnet0 | grep -q {TAP} && ifconfig vtnet0 inet 198.19.0.2/30 up")
    where = guest.networks.forward("198.19.0.2", 2222)
    assert where is not None
    return SshTransport.connect(
        "guest",
        where[0],
        port=where[1],
        key=key.load(),
        host_key=guest.run("cat /var/run/hil_key.pub").strip(),
        deadline=Deadline(60, "SSH"),
    )


def test_it_is_reached_by_ssh_once_it_has_an_address(host: Machine, boot: Boot) -> None:
    guest = boot(host, tap=True)
    guest.log_in()
    assert guest.networks.forward("198.19.0.2", 2222) is None
    transport = reached(guest)
    assert guest.networks.forward("198.19.0.2", 22) is None
    done = transport.run(["hostname"], deadline=Deadline(60, "hostname"))
    assert done.stdout == "bhyveguest\n"
    assert "2222" in guest.run("sockstat -4 -l -p 2222")
    transport.close()
    guest.run("ifconfig vtnet0 down")
    assert guest.networks.forward("198.19.0.2", 2222) is None


KEPT = {"hw.physmem": str(192 << 20), "hil.dma": f"{192 << 20:#x}:{64 << 20:#x}"}


def test_hil_s_in_guest_driver_moves_bytes_by_the_device_s_dma(host: Machine, boot: Boot) -> None:
    image = GuestImage().with_environment(KEPT)
    guest = boot(host, devices={8: "edu0"}, tap=True, image=image)
    guest.log_in()
    transport = reached(guest)
    code = program("hil.probes.remote", "in_guest")
    agent = Agent(transport, code, Deadline(60, "the driver"))

    def ask(what: str, **arguments: object) -> Any:
        return agent.ask(what, Deadline(60, what), **arguments)

    edu = "0000:00:08.0"
    ask("open", address=edu)
    assert ask("read", address=edu, bar=0, offset=0, width=4) == 0x010000ED
    memory = ask("allocate", size=4096)
    assert memory["pages"] == [192 << 20]
    ask("fill", memory=memory["id"], offset=0, data=base64.b64encode(b"by DMA!!").decode())
    for source, target, command in ((192 << 20, 0x40000, 1), (0x40000, (192 << 20) + 64, 3)):
        writes = [[0x80, 8, source], [0x88, 8, target], [0x90, 8, 8], [0x98, 8, command]]
        ask("transfer", address=edu, bar=0, writes=writes, wait=[0x98, 8, 1, 0, 10])
    got = base64.b64decode(ask("dump", memory=memory["id"], offset=64, length=8))
    assert got == b"by DMA!!"
    assert guest.vm.read((192 << 20) + 64, 8) == b"by DMA!!"
    again = ask("allocate", size=4096)
    assert again["pages"] == [194 << 20]
    agent.close()
    transport.close()


def test_python_runs_only_hil_s_programs(host: Machine, boot: Boot) -> None:
    guest = boot(host)
    guest.log_in()
    assert "only hil's own programs" in guest.run("python3 -c 'print(1)'")
    bare = boot(host, image=GuestImage(python=False))
    bare.log_in()
    assert "not found" in bare.run("python3 -c 'print(1)'")
