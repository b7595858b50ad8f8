"""What commands do to the simulated host's model, beyond what the transcripts show."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hil.deadline import Deadline, poll
from hil.pci.address import Address
from hil.platforms import freebsd_pci, freebsd_text, freebsd_uses
from hil.simulated.host import SimulatedHost
from tests.simulated.machine import Outcome, run


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost("freebsd-15-intel")
    yield host
    host.close()


def text(host: SimulatedHost, script: str) -> str:
    found = run(host.system, script)
    assert found.err == b""
    return found.text


def until(host: SimulatedHost, script: str, wanted: str) -> None:
    poll(
        lambda: wanted in run(host.system, script).text,
        Deadline(60, f"{wanted!r} from {script}"),
        last_seen=lambda: run(host.system, script).text,
    )


# ---- what hil's own parsers make of it -----------------------------------------------


@pytest.mark.parametrize("name", ["freebsd-11-intel", "freebsd-15-amd", "freebsd-current-intel"])
def test_hils_parsers_read_every_release(name: str) -> None:
    host = SimulatedHost(name)
    entries = freebsd_pci.parse_pciconf(text(host, "pciconf -lvbce"))
    assert {entry.address for entry in entries} == {
        each.function.address for each in host.machine.kernel.devices()
    }
    assert "vmm.ko" in {each.name for each in freebsd_text.parse_kldstat(text(host, "kldstat -v"))}
    assert freebsd_text.parse_sysctl(text(host, "sysctl hw.vmm"))["hw.vmm.ppt.devices"] == "0"
    interfaces = freebsd_uses.parse_ifconfig(text(host, "ifconfig -a"))
    assert {"lo0", "vtnet0"} <= {each.name for each in interfaces}
    assert freebsd_text.parse_vmstat(text(host, "vmstat -ia"))
    assert freebsd_uses.parse_mounts(text(host, "mount -p"))
    assert freebsd_uses.parse_geom(text(host, "sysctl -n kern.geom.conftxt"))
    assert "xpt0" in freebsd_uses.parse_camcontrol(text(host, "camcontrol devlist -v"))
    dump = text(host, "pciconf -r pci0:1:0:0 0:0xfff")
    assert len(freebsd_pci.parse_config_dump(dump)) == 4096
    host.close()


# ---- memory --------------------------------------------------------------------------


def test_a_memory_disk_lies_in_the_hosts_memory(host: SimulatedHost) -> None:
    assert text(host, "mdconfig -a -t malloc -o reserve -s 128k") == "md0\n"
    data = bytes(range(256)) * 512
    write = "dd of=/dev/md0 obs=65536 conv=notrunc status=none"
    assert run(host.system, write, stdin=data) == Outcome(0, b"", b"")
    assert run(host.system, "dd if=/dev/md0 bs=65536 status=none").out == data
    (address, length), *_ = host.machine.kernel.md_units()[0].chunks
    command = f"dd if=/dev/mem bs=4096 skip={address // 4096} count=2 status=none"
    assert run(host.system, command).out == data[:8192]
    assert length == 131072
    host.machine.memory.write(address + 700, b"\xff\xff")
    spoiled = run(host.system, "dd if=/dev/md0 bs=512 skip=1 count=1 status=none").out
    assert spoiled == data[512:700] + b"\xff\xff" + data[702:1024]
    assert text(host, "mdconfig -d -u md0; ls /dev | grep -c md0; true") == "0\n"


def test_registers_are_read_through_dev_mem(host: SimulatedHost) -> None:
    # The version register of the first remapping unit (VT-d 11.4.1).
    version = run(
        host.system, f"dd if=/dev/mem bs=4 skip={0xFED90000 // 4} count=1 status=none"
    ).out
    assert version == b"\x10\0\0\0"


# ---- devices ---------------------------------------------------------------------------


def test_a_drivers_settings_change_what_pciconf_says(host: SimulatedHost) -> None:
    assert text(host, "devctl set driver -f pci0:1:0:0 ppt; pciconf -l pci0:1:0:0").startswith(
        "ppt0@"
    )
    assert text(host, "pciconf -a pci0:1:0:0") == "pci0:1:0:0: attached\n"
    assert "ppt0\n" in text(host, "devinfo")
    assert text(host, "sysctl -n hw.vmm.ppt.devices") == "1\n"
    assert text(host, "devctl clear driver -f ppt0; pciconf -l pci0:1:0:0").startswith("igb0@")


def test_configuration_space_is_written(host: SimulatedHost) -> None:
    before = int(text(host, "pciconf -r -h pci0:1:0:0 4"), 16)
    assert text(
        host, f"pciconf -w -h pci0:1:0:0 4 {before & ~4:#x}; pciconf -r -h pci0:1:0:0 4"
    ) == (f"{before & ~4:04x} \n")


def test_vfs_come_and_go(host: SimulatedHost) -> None:
    config = 'PF { device: "igb0"; num_vfs: 2; } DEFAULT { passthrough: false; }'
    config += " VF-1 { passthrough: true; }"
    made = text(host, f"echo '{config}' >/root/c; iovctl -C -f /root/c; pciconf -l | grep 0x10ca")
    assert [line.split("@")[0] for line in made.splitlines()] == ["igb2", "ppt0"]
    assert text(host, "iovctl -D -d igb0; pciconf -l | grep -c 0x10ca; true") == "0\n"


# ---- networks ----------------------------------------------------------------------------


def test_taps_and_bridges(host: SimulatedHost) -> None:
    assert text(host, "ifconfig tap create; ifconfig tap1000 create") == "tap0\n"
    script = "ifconfig bridge7 create; ifconfig bridge7 addm tap1000 up; "
    shown = text(host, f"{script} ifconfig bridge7 inet 198.19.0.1/30; ifconfig bridge7")
    (bridge,) = freebsd_uses.parse_ifconfig(shown)
    assert (bridge.name, [str(each) for each in bridge.addresses]) == ("bridge7", ["198.19.0.1"])
    assert "\tmember: tap1000 flags=" in shown
    assert "inet 198.19.0.1 netmask 0xfffffffc broadcast 198.19.0.3" in shown
    again = run(host.system, "ifconfig tap1000 create")
    assert again == Outcome(1, b"", b"ifconfig: SIOCIFCREATE2 (tap1000): File exists\n")
    text(host, "ifconfig bridge7 destroy; ifconfig tap1000 destroy; ifconfig tap0 destroy")
    gone = run(host.system, "ifconfig tap0")
    assert gone == Outcome(1, b"", b"ifconfig: interface tap0 does not exist\n")


def test_a_ping_goes_over_the_card(host: SimulatedHost) -> None:
    # Its far end is a machine that answers.
    before = host.machine.kernel.interfaces()["em0"].sent
    shown = text(host, "ifconfig em0 inet 10.0.50.1/24 up; ping -c 2 -t 30 -s 1000 -p a5 10.0.50.2")
    assert shown.startswith(
        "PATTERN: 0xa5\nPING 10.0.50.2 (10.0.50.2): 1000 data bytes\n1008 bytes"
    )
    assert "2 packets transmitted, 2 packets received, 0.0% packet loss" in shown
    assert host.machine.kernel.interfaces()["em0"].sent >= before + 3


# ---- disks ---------------------------------------------------------------------------------


def test_a_volume_is_cloned_per_guest(host: SimulatedHost) -> None:
    text(host, "zfs create tank; zfs create -V 1m tank/img; zfs create tank/hil")
    text(host, "dd if=/vm/guest.img of=/dev/zvol/tank/img bs=512 count=1 status=none")
    text(host, "zfs snapshot tank/img@base; zfs clone tank/img@base tank/hil/g1")
    text(host, "echo X | dd of=/dev/zvol/tank/hil/g1 status=none")
    assert text(host, "dd if=/dev/zvol/tank/hil/g1 bs=1 count=1 status=none") == "X"
    assert text(host, "dd if=/dev/zvol/tank/img bs=1 count=1 status=none") == "{"
    busy = run(host.system, "zfs destroy tank/img")
    assert busy.status == 1
    assert b"has children" in busy.err
    text(host, "zfs destroy tank/hil/g1")
    assert text(host, "zfs list -H -o name") == "tank\ntank/hil\ntank/img\n"


# ---- null modems -----------------------------------------------------------------------------


def test_a_null_modem_waits_for_its_other_end(host: SimulatedHost) -> None:
    text(host, "kldload nmdm")
    script = (
        "(exec 3</dev/nmdmxB; stty raw -echo <&3; : >/root/ready; cat <&3 >/root/out) & "
        "exec 4<>/dev/nmdmxA; stty raw -echo <&4; "
        "while [ ! -e /root/ready ]; do :; done; echo hello >&4; exec 4>&-; wait; cat /root/out"
    )
    # B's open waits for A's, and A's last close ends what reads at B.
    assert text(host, script) == "hello\n"


def test_output_is_fed_back_unless_the_reader_is_raw(host: SimulatedHost) -> None:
    text(host, "kldload nmdm")
    # B in its usual modes echoes what it receives: A reads its own words.
    found = text(
        host,
        "sleep 1000 <>/dev/nmdmyB & exec 4<>/dev/nmdmyA; stty raw -echo <&4; printf 'x\\n' >&4; "
        "dd bs=3 count=1 status=none <&4; kill $!",
    )
    assert found == "x\r\n"


def test_two_ends_that_both_echo(host: SimulatedHost) -> None:
    text(host, "kldload nmdm")
    script = "sleep 1000 <>/dev/nmdmzB & exec 4<>/dev/nmdmzA; echo x >&4; head -3 <&4; kill $!"
    # A's own words come back, and each passage makes two newlines of one.
    assert text(host, script) == "x\n\n\n"


# ---- bhyve ---------------------------------------------------------------------------------


def test_bhyve_holds_a_guest_until_a_debugger_has_come_and_gone(host: SimulatedHost) -> None:
    text(host, "kldload nmdm; devctl set driver -f pci0:1:0:0 ppt")
    text(host, "bhyveload -S -m 256M -d /vm/guest.img vm >/dev/null")
    usual = "-S -A -H -P -c 1 -m 256M -s 0,hostbridge -s 31,lpc -s 4,virtio-blk,/vm/guest.img"
    run(
        host.system,
        f"bhyve {usual} -s 8,passthru,ppt0 -l com1,/dev/nmdmvA -G w127.0.0.1:20001 vm 2>/root/e &",
    )
    until(host, "sockstat -4 -l -p 20001", "127.0.0.1:20001")
    # The device is assigned, and no instruction has run.
    assert host.machine.vmm.vms["vm"].devices[0].name == "ppt0"
    assert "vm" not in host.system.guests
    text(host, "nc -z 127.0.0.1 20001")
    poll(lambda: "vm" in host.system.guests, Deadline(60, "the guest to run"))
    refused = run(host.system, "devctl clear driver -f ppt0")
    assert refused.err == b"devctl: Failed to clear ppt0 driver: Device busy\n"
    text(host, "bhyvectl --vm=vm --destroy")
    until(host, "cat /root/e", "vm_run error -1, errno 6")
    assert text(host, "pgrep bhyve; true") == ""


@pytest.mark.parametrize(
    ("name", "wording"),
    [
        ("freebsd-13.2-amd", "device emulation initialization error: Device busy"),
        ("freebsd-15-amd", "Device emulation initialization error: Device busy"),
        ("freebsd-current-amd", "bhyve: vm_assign_pptdev: Device not configured"),
    ],
)
def test_no_iommu_is_told_as_each_release_tells_it(name: str, wording: str) -> None:
    host = SimulatedHost(name, iommu=False)
    text(host, "devctl set driver -f pci0:1:0:0 ppt")
    text(host, "bhyveload -S -m 256M -d /vm/guest.img vm >/dev/null")
    found = run(host.system, "bhyve -S -m 256M -s 0,hostbridge -s 8,passthru,1/0/0 vm")
    assert found.status == 4
    assert wording in found.err.decode()
    host.close()


def test_a_domain_that_only_the_name_tells_apart(host: SimulatedHost) -> None:
    # pci1:0:0:0 is read as bus 1, slot 0: the trap.
    text(
        host,
        "devctl set driver -f pci0:1:0:0 ppt; bhyveload -S -m 256M -d /vm/guest.img vm >/root/l",
    )
    run(host.system, "bhyve -S -m 256M -s 8,passthru,pci1:0:0:0 -G w127.0.0.1:20002 vm &")
    until(host, "sockstat -4 -l -p 20002", "20002")
    assert [each.address for each in host.machine.vmm.vms["vm"].devices] == [Address(0, 1, 0, 0)]


def test_how_bhyve_refuses_a_place_by_release(host: SimulatedHost) -> None:
    old = SimulatedHost("freebsd-11-intel")
    command = "bhyve -S -m 256M -s 8,passthru,pci0:1:0:0x,y -s 9,passthru,none vm"
    assert run(old.system, command).err == b"invalid passthru options\n"
    assert run(host.system, command).err == b'passthru: invalid options "none"\n'
    assert "chip=0x10c98086" in text(old, "pciconf -l pci0:1:0:0")
    old.close()


def test_a_pipelines_processes_see_one_another(host: SimulatedHost) -> None:
    assert len(text(host, "ps -axo pid= | cat | cat").splitlines()) == 4


@pytest.mark.parametrize("end", ["", "\\n", " and more\\n7\\n"])
def test_pkill_takes_the_process_that_a_file_names_and_no_other(
    host: SimulatedHost, end: str
) -> None:
    script = f"sleep 600 & printf '%d{end}' $! > /tmp/pid; sleep 601 & pkill -F /tmp/pid; echo $?"
    assert text(host, script) == "0\n"
    poll(
        lambda: text(host, "ps -axo command | grep '^sleep 60'") == "sleep 601\n",
        Deadline(60, "the end of one process"),
    )
    assert text(host, "pkill -F /tmp/pid; echo $?") == "1\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "Pidfile `/tmp/pid' is empty"),
        ("x", "Invalid pid in file `/tmp/pid'"),
        ("12x", "Invalid pid in file `/tmp/pid'"),
        ("1", "Invalid pid in file `/tmp/pid'"),
    ],
)
def test_pkill_refuses_a_file_without_a_number(host: SimulatedHost, words: str, told: str) -> None:
    assert text(host, f"printf '{words}' > /tmp/pid") == ""
    found = run(host.system, "pkill -F /tmp/pid")
    assert (found.status, found.err.decode()) == (3, f"pkill: {told}\n")


def test_lockf_keeps_a_lock_for_as_long_as_it_lives(host: SimulatedHost) -> None:
    inner = "lockf -k -s -t 0 /tmp/lock true; echo $?"
    assert text(host, f"lockf -k -s -t 0 /tmp/lock sh -c '{inner}'") == "75\n"
    assert text(host, inner) == "0\n"
    assert text(host, "lockf -s /tmp/lock sh -c 'exit 3'; echo $?; ls /tmp") == "3\n"
    run(host.system, "lockf -k -s /tmp/lock sleep 600 &")
    until(host, "ps -axo command", "sleep 600")
    assert text(host, inner) == "75\n"
    text(host, "pkill -9 lockf; true")
    until(host, inner, "0")
