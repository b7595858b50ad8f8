"""The emulated lab itself: restored, with its devices, and a guest inside it.

All of it runs under software emulation where KVM does not work: minutes, not seconds.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator

import pytest

from hil.console.console import Console
from hil.deadline import Deadline, poll
from hil.emulated.machine import DRHD_BASE, ROM_FILE, EmulatedLab, rom
from hil.errors import LabError
from hil.iommu.registers import DrhdRegisters
from hil.transport.base import Transport

pytestmark = [
    pytest.mark.lab,
    pytest.mark.xdist_group("lab"),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
    ),
]


def limit(seconds: float = 300) -> Deadline:
    return Deadline(seconds, "a test of the emulated lab")


def sh(host: Transport, script: str, *arguments: str) -> str:
    command = ["sh", "-c", script, "sh", *arguments]
    return host.run(command, deadline=limit()).check().stdout


@pytest.fixture(scope="module")
def lab() -> Iterator[EmulatedLab]:
    lab = EmulatedLab.up(deadline=limit(900))
    yield lab
    lab.close()


@pytest.fixture
def host(lab: EmulatedLab) -> Transport:
    return lab.ssh(limit())


def test_the_devices_are_where_the_lab_says(lab: EmulatedLab, host: Transport) -> None:
    found = dict(re.findall(r"^(\S+) \S+ (\S+)", sh(host, "lspci -Dn"), re.MULTILINE))
    assert {name: found.get(address) for name, address in lab.devices.items()} == {
        "nic0": "8086:10c9",
        "peer0": "8086:10c9",
        "nvme0": "1b36:0010",
        "edu0": "1234:11e8",
        "nic1": "8086:10d3",
        "gpu0": "1af4:1050",
        "gpu1": "1af4:1050",
        "edu1": "1234:11e8",
        "vram0": "1234:1111",
    }
    assert lab.missing == {}


def test_the_host_can_pass_devices(host: Transport) -> None:
    assert sh(host, "ls /dev/kvm /dev/vfio/vfio /images/guest").split() == [
        "/dev/kvm", "/dev/vfio/vfio", "/images/guest:", "initrd", "kernel", "root.squashfs",
    ]  # fmt: skip
    methods = "cd /sys/bus/pci/devices; grep . */reset_method; ls -d 0000:03:00.0/iommu_group"
    text = sh(host, methods)
    assert "0000:01:00.0/reset_method:flr pm bus" in text
    assert "0000:03:00.0/reset_method:flr bus" in text
    assert "0000:05:00.0/reset_method:pm bus" in text
    assert "0000:04:00.0/reset_method:bus\n" in text, "edu has no reset of its own"


def test_the_host_has_the_option_rom_as_it_reads_it_in_the_card(host: Transport) -> None:
    assert host.get(ROM_FILE, deadline=limit()) == rom()


def test_the_clock_is_right(host: Transport) -> None:
    assert abs(float(sh(host, "date +%s.%N")) - time.time()) < 5


def test_a_frame_goes_from_one_end_of_the_cable_to_the_other(host: Transport) -> None:
    # Two ends in one kernel: the far one has a name space of its own.
    script = """
        ip netns add far
        near=$(ls /sys/bus/pci/devices/0000:01:00.0/net)
        far=$(ls /sys/bus/pci/devices/0000:02:00.0/net)
        ip link set "$far" netns far
        ip netns exec far ip address add 198.18.9.2/24 dev "$far"
        ip netns exec far ip link set "$far" up
        ip address add 198.18.9.1/24 dev "$near"
        ip link set "$near" up
        ping -c 3 -w 20 198.18.9.2; status=$?
        ip address flush dev "$near"
        ip netns exec far ip link set "$far" netns 1
        ip netns delete far
        exit $status
    """
    assert " 0% packet loss" in sh(host, script)


def test_physical_memory_is_what_the_host_has(lab: EmulatedLab, host: Transport) -> None:
    script = """
import mmap, os, struct, sys
page = mmap.mmap(-1, 4096)
page[:] = bytes.fromhex(sys.argv[1]) * 256
address = int(next(l for l in open("/proc/self/maps") if "zero" in l).split("-")[0], 16)
with open("/proc/self/pagemap", "rb") as f:
    f.seek(address // 4096 * 8)
    entry, = struct.unpack("<Q", f.read(8))
print(hex((entry & (1 << 55) - 1) * 4096), flush=True)
sys.stdin.read()
"""
    pattern = "00112233445566778899aabbccddeeff"
    stream = host.open_stream(["python3", "-c", script, pattern], deadline=limit())
    try:
        address = int(stream.read().split()[0], 16)
        assert lab.physical_memory().read(address, 4096) == bytes.fromhex(pattern) * 256
    finally:
        stream.close()


def test_the_iommus_registers(lab: EmulatedLab) -> None:
    registers = DrhdRegisters(lab.drhd_registers())
    assert registers.version == (1, 0)
    tables = registers.unit(lab.physical_memory(), DRHD_BASE).tables
    assert tables is not None
    assert 0x0100 in {entry.requester_id for entry in tables.entries()}, "nic0, by its driver"


def test_a_guest_with_a_virtual_function_boots_inside(host: Transport) -> None:
    sh(
        host,
        """
        d=/sys/bus/pci/devices
        nic=$(ls $d/0000:01:00.0/net)
        ip link set "$nic" up
        echo 1 >$d/0000:01:00.0/sriov_numvfs
        # A VF that its PF gave no address gets no answer from it, and no link.
        ip link set "$nic" vf 0 mac 52:54:00:68:69:80
        peer=$(ls $d/0000:02:00.0/net)
        ip address add 198.18.9.2/24 dev "$peer"; ip link set "$peer" up
        echo vfio-pci >$d/0000:01:10.0/driver_override
        [ -e $d/0000:01:10.0/driver ] && echo 0000:01:10.0 >$d/0000:01:10.0/driver/unbind
        echo 0000:01:10.0 >/sys/bus/pci/drivers_probe
        """,
    )
    image = "/images/guest"
    words = "console=ttyS0 root=/dev/vda net.ifnames=0 quiet pci=lastbus=0"
    command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-monitor", "none"]
    command += ["-machine", "q35,accel=kvm", "-cpu", "host", "-m", "256", "-serial", "stdio"]
    command += ["-kernel", f"{image}/kernel", "-initrd", f"{image}/initrd", "-append", words]
    command += ["-drive", f"file={image}/root.squashfs,format=raw,if=none,id=r,readonly=on"]
    command += ["-device", "virtio-blk-pci,drive=r", "-device", "vfio-pci,host=0000:01:10.0"]
    stream = host.open_stream(command, deadline=limit())
    guest = Console("guest", stream)
    try:
        guest.login("root", None, limit())
        guest.run("ip address add 198.18.9.3/24 dev eth0; ip link set eth0 up", limit()).check()
        ping = guest.run("ping -c 3 -w 30 198.18.9.2", limit())
        assert " 0% packet loss" in ping.check().output
        lost = guest.run("ping -c 1 -w 2 198.18.9.77", limit())
        assert lost.status != 0, "not every ping is answered"
    finally:
        guest.close()
        sh(
            host,
            """
            d=/sys/bus/pci/devices
            tries=100
            until echo 0 >$d/0000:01:00.0/sriov_numvfs || [ $((tries -= 1)) -eq 0 ]; do
                usleep 100000
            done
            ip address flush dev "$(ls $d/0000:02:00.0/net)"
            """,
        )


def test_the_display_can_be_seen(lab: EmulatedLab) -> None:
    assert lab.screenshot().startswith(b"\x89PNG\r\n")


def test_an_nmi_reaches_the_host(lab: EmulatedLab) -> None:
    start = lab.console.log.end
    lab.nmi()
    cursor = lab.console.log.follow(start)
    seen = bytearray()

    def heard() -> bool:
        seen.extend(cursor.read(1.0) or b"")
        return b"NMI" in seen

    poll(heard, limit(60), last_seen=lambda: seen.decode("utf-8", "replace"))


def test_two_labs_do_not_meet(lab: EmulatedLab) -> None:
    other = EmulatedLab.up(deadline=limit())
    try:
        assert other.how == "restored"
        assert other.ssh_port != lab.ssh_port
        sh(other.ssh(limit()), "echo other >/run/mark; echo other >/dev/nvme0n1")
        assert sh(lab.ssh(limit()), "cat /run/mark 2>&1; true") != "other\n"
        assert sh(lab.ssh(limit()), "head -c 5 /dev/nvme0n1 | tr -d '\\0'") == ""
    finally:
        other.close()
    assert sh(lab.ssh(limit()), "echo still here") == "still here\n"


def test_power_cycle(lab: EmulatedLab, host: Transport) -> None:
    sh(host, "echo 1 >/run/mark")
    lab.power_cycle(limit())
    host = lab.ssh(limit())
    assert sh(host, "cat /run/mark 2>/dev/null; cut -d. -f1 /proc/uptime").split()[:-1] == []
    assert "0000:04:00.0" in sh(host, "ls /sys/bus/pci/devices"), "edu stays plugged in"
    assert host.get(ROM_FILE, deadline=limit()) == rom()


def test_power_cycle_of_a_host_that_is_off(lab: EmulatedLab, host: Transport) -> None:
    with contextlib.suppress(LabError):  # it may go before it has answered
        host.run(["poweroff"], deadline=limit())
    lab.power_cycle(limit())
    assert sh(lab.ssh(limit()), "echo up") == "up\n"


def test_a_host_that_panics_ends_what_waits_for_it(lab: EmulatedLab) -> None:
    host = lab.ssh(limit())
    assert lab.panic == ""
    patience = limit()
    with pytest.raises(LabError):
        host.run(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 900"], deadline=patience)
    assert not patience.expired
    assert "Kernel panic" in lab.panic
    lab.power_cycle(limit())
    assert lab.panic == ""


def test_a_lab_without_an_iommu() -> None:
    lab = EmulatedLab.up(iommu=False, deadline=limit(600))
    try:
        found = sh(lab.ssh(limit()), "ls /sys/class/iommu /sys/kernel/iommu_groups")
        assert found.split() == ["/sys/class/iommu:", "/sys/kernel/iommu_groups:"]
    finally:
        lab.close()
