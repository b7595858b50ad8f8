"""What FreeBSD guests are asked, run among tools that only pretend; and what they answer."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import GuestError, LabError
from hil.guests.freebsd import FreebsdGuest, parse_interrupts
from hil.guests.linux import LinuxGuest
from hil.guests.os import GuestOS, SeenFunction, guest_os
from hil.pci.address import Address
from tests.recorded import recorded

FREEBSD = FreebsdGuest()
EM = Address.parse("pci0:0:5:0")


class Tools:
    """Tools of a guest, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()

    def has(self, name: str, script: str = "") -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >>{self.log}\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        here = [
            word.replace("/var/run", str(self.folder))
            .replace("/run/", f"{self.folder}/")
            .replace("/usr/sbin/sshd", "sshd")
            .replace("/dev/n", f"{self.folder}/n")
            .replace("/sys/class/net", f"{self.folder}/net")
            for word in command
        ]
        environment = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}
        return subprocess.run(here, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    made = Tools(tmp_path)
    made.has("pciconf", 'echo "em0@$2:\tclass=0x020000"')
    made.has(
        "ssh-keygen",
        'for last; do :; done; echo key >"$last"; echo "ssh-ed25519 AAAA" >"$last.pub"',
    )
    made.has("sshd", f"touch {tmp_path}/serving")
    return made


# ---- the way in --------------------------------------------------------------------

LET_IN = ("02:68:69:6c:00:12", "198.19.0.74/30", "ssh-ed25519 OURS hil", 2222)


def freebsd_tools(tools: Tools) -> None:
    tools.has(
        "ifconfig",
        """
case "$*" in
-l) echo lo0 em0 vtnet0 ;;
vtnet0) echo "	ether 02:68:69:6c:00:12" ;;
em0) echo "	ether 52:54:00:00:00:01" ;;
esac
""",
    )
    tools.has(
        "sockstat", f"[ ! -e {tools.folder}/serving ] || echo root sshd 7 tcp4 '*:2222' '*:*'"
    )


def linux_tools(tools: Tools) -> None:
    for name, mac in (("lo", "00:00:00:00:00:00"), ("mgmt", LET_IN[0])):
        (tools.folder / "net" / name).mkdir(parents=True)
        (tools.folder / "net" / name / "address").write_text(f"{mac}\n")
    tools.has("ip")
    tools.has("sshd", f"echo $$ >{tools.folder}/hil_sshd.pid; touch {tools.folder}/serving")


@pytest.mark.parametrize("system", [FREEBSD, LinuxGuest()], ids=lambda system: system.name)
def test_root_is_let_in_with_the_key_given_and_a_new_host_key(
    tools: Tools, system: GuestOS
) -> None:
    freebsd_tools(tools) if system is FREEBSD else linux_tools(tools)
    result = tools.run(system.let_in(*LET_IN))
    assert result.stdout == "ssh-ed25519 AAAA\n", result.stderr
    assert (tools.folder / "hil_authorized_keys").read_text() == "ssh-ed25519 OURS hil\n"
    assert (tools.folder / "serving").exists()
    log = tools.log.read_text()
    assert ("ifconfig vtnet0 inet 198.19.0.74/30 up" in log) == (system is FREEBSD)
    assert ("ip addr replace 198.19.0.74/30 dev mgmt" in log) == (system is not FREEBSD)
    assert "-p 2222" in next(line for line in log.splitlines() if line.startswith("sshd"))


def test_a_server_that_runs_is_left_and_its_key_told_again(tools: Tools) -> None:
    freebsd_tools(tools)
    tools.run(FREEBSD.let_in(*LET_IN))
    result = tools.run(FREEBSD.let_in(*LET_IN))
    assert result.stdout == "ssh-ed25519 AAAA\n"
    log = tools.log.read_text().splitlines()
    assert len([line for line in log if line.startswith(("sshd", "ssh-keygen"))]) == 2


def test_a_server_that_does_not_start_is_an_error(tools: Tools) -> None:
    freebsd_tools(tools)
    tools.has("sshd", "echo no such option >&2; exit 1")
    result = tools.run(FREEBSD.let_in(*LET_IN))
    assert result.returncode != 0
    assert "no such option" in result.stderr


# ---- devices -----------------------------------------------------------------------


def test_a_function_s_interface_has_its_driver_s_name(tools: Tools) -> None:
    tools.has("ifconfig", "echo lo0 em0 em01")
    assert tools.run(FREEBSD.interfaces(EM)).stdout == "em0\n"
    tools.has("ifconfig", "echo lo0")
    assert tools.run(FREEBSD.interfaces(EM)).stdout == ""
    tools.has("pciconf", 'echo "mlx5_core1@$2:"')
    tools.has("ifconfig", "echo lo0 mce1")
    assert tools.run(FREEBSD.interfaces(EM)).stdout == "mce1\n"
    assert f"pciconf -l {EM.selector}" in tools.log.read_text()


@pytest.mark.parametrize("disk", ["nda2", "nvd2"])
def test_a_controller_s_disk_is_told_once(tools: Tools, disk: str) -> None:
    tools.has("pciconf", 'echo "nvme2@$2:"')
    (tools.folder / disk).touch()
    assert tools.run(FREEBSD.disks(EM)).stdout == f"{tools.folder}/{disk}\n"
    tools.has("pciconf", 'echo "em0@$2:"')
    assert tools.run(FREEBSD.disks(EM)).stdout == ""


def test_functions_are_pciconf_s() -> None:
    seen = FREEBSD.parse_functions(recorded("1-host-setup/015").text)
    assert SeenFunction(EM, 0x8086, 0x10D3, "em") in seen
    assert SeenFunction(Address.parse("pci0:0:9:0"), 0x1234, 0x11E8, None) in seen
    with pytest.raises(GuestError, match="no known form") as raised:
        FREEBSD.parse_functions("em0 at pci0\n")
    assert raised.value.seen == "em0 at pci0"


def test_interrupts_are_those_of_the_function_s_driver_and_unit() -> None:
    lines = recorded("3-each-failure-from-fresh/029").text
    assert parse_interrupts(f"ppt0@pci0:0:5:0:\tclass=0x020000\n{lines}") == {
        "irq29 ppt0": 19,
        "irq30 ppt0": 17,
    }
    assert parse_interrupts(f"em0@pci0:0:5:0:\tclass=0x020000\n{lines}") == {}
    with pytest.raises(GuestError, match="no known form"):
        parse_interrupts("pciconf: no such device\n")


@given(st.text(max_size=300))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (parse_interrupts, FREEBSD.parse_functions):
        with contextlib.suppress(GuestError):
            parse(text)


def test_frames_are_counted_by_the_link_s_own_line(tools: Tools) -> None:
    tools.has(
        "netstat",
        """cat <<'END'
Name    Mtu Network       Address              Ipkts Ierrs Idrop    Opkts Oerrs  Coll
em0    1500 <Link#2>      52:54:00:aa:00:05      123     0     0       45     0     0
END
""",
    )
    assert tools.run(FREEBSD.received_frames("em0")).stdout == "123\n"
    assert tools.run(FREEBSD.sent_frames("em0")).stdout == "45\n"


def test_the_mac_is_ifconfig_s(tools: Tools) -> None:
    tools.has("ifconfig", "printf 'em0: flags=8863\\n\\tether 52:54:00:aa:00:05\\n\\tmedia: x\\n'")
    assert tools.run(FREEBSD.hardware_address("em0")).stdout == "52:54:00:aa:00:05\n"


# ---- what it cannot ----------------------------------------------------------------


def test_what_the_base_system_cannot_do_is_said() -> None:
    with pytest.raises(LabError, match="no command that ends a CPU by a triple fault"):
        FREEBSD.triple_fault()
    with pytest.raises(LabError, match="cannot be saved"):
        FREEBSD.before_saving()
    with pytest.raises(LabError, match="g1 cannot continue"):
        FREEBSD.after_continuing("g1", 0.0, "ssh-ed25519 AAAA")


def test_both_systems_are_known_by_name() -> None:
    assert isinstance(guest_os("freebsd"), FreebsdGuest)
    assert isinstance(guest_os("linux"), LinuxGuest)
