"""What a Linux host says of its PCI functions, read."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import LabError
from hil.pci.address import Address
from hil.platforms.contract import Bar
from hil.platforms.linux import LinuxVfio
from hil.platforms.linux_survey import parse_survey
from tests.fakes import FLR, MSIX, FakeTransport, config, soon
from tests.platforms.survey import ROOT, Written, survey

IO, MEM, WIDE = 0x40101, 0x40200, 0x140204


def lab() -> list[Written]:
    """A bridge, a NIC with a VF, an NVMe disk, a device without a driver."""
    nic = Written(
        "0000:01:00.0",
        config(capabilities=[MSIX, FLR]),
        driver="igb",
        group="14",
        links={"virtfn0": "../0000:01:10.0"},
        resources=[
            (0xFE800000, 0xFE81FFFF, MEM),
            (0, 0, 0),
            (0xD000, 0xD01F, IO),
            (0x8_0000_0000, 0x8_0000_3FFF, WIDE),
        ],
        texts={"reset_method": "flr pm bus", "sriov_totalvfs": "7"},
        interfaces=["eth1"],
    )
    return [
        Written("0000:00:10.0", config(header_type=1), driver="pcieport", group="2"),
        nic,
        Written(
            "0000:01:10.0",
            config(0xFFFF, 0xFFFF),
            driver="vfio-pci",
            group="20",
            links={"physfn": "../0000:01:00.0"},
            texts={"vendor": "0x8086", "device": "0x10ca"},
        ),
        Written("0000:02:00.0", driver="nvme", group="15", interfaces=["nvme0n1", "nvme0n1p1"]),
        Written("0000:03:00.0", config(0x1234, 0x11E8), resources=[(0, 0, 0)] * 20),
    ]


def test_every_function_is_read_as_it_was_written() -> None:
    bridge, nic, vf, disk, edu = parse_survey(survey(lab()))
    assert bridge.config.header_type == 1
    assert (nic.address, nic.driver, nic.reserved, nic.group) == (
        Address.parse("0000:01:00.0"),
        "igb",
        False,
        14,
    )
    assert nic.bars == (
        Bar(0, 0xFE800000, 0x20000, memory=True),
        Bar(2, 0xD000, 0x20, memory=False),
        Bar(3, 0x8_0000_0000, 0x4000, memory=True, wide=True),
    )
    assert nic.reset_methods == ("flr", "pm", "bus")
    assert (nic.total_vfs, nic.virtual_functions) == (7, (vf.address,))
    assert nic.interfaces == ("eth1",)
    assert nic.config.pcie is not None
    # A VF's own ids read ffff; drivers know it by those that the kernel tells.
    assert (vf.vendor, vf.device) == (0x8086, 0x10CA)
    assert (vf.reserved, vf.physical_function) == (True, nic.address)
    assert disk.interfaces == ("nvme0n1", "nvme0n1p1")
    assert (edu.driver, edu.group, edu.bars) == (None, None, ())
    assert not any(f.in_use_as for f in (bridge, nic, vf, disk, edu))


def test_vfs_come_in_the_order_of_their_numbers() -> None:
    links = {f"virtfn{n}": f"../0000:01:{16 + n // 8:02x}.{n % 8}" for n in (10, 9, 0, 2)}
    (pf,) = parse_survey(survey([Written("0000:01:00.0", links=links)]))
    assert [str(a) for a in pf.virtual_functions] == [
        "0000:01:10.0",
        "0000:01:10.2",
        "0000:01:11.1",
        "0000:01:11.2",
    ]


@pytest.mark.parametrize(
    ("use", "more"),
    [
        ("root disk", ["mount /dev/nvme0n1p1 / ext4 rw 0 0"]),
        ("root disk", ["mount /dev/nvme0n1p1 / ext4 rw 0 0", "mount /dev/nvme0n1 /srv xfs rw 0 0"]),
        ("disk mounted at /srv", ["mount /dev/nvme0n1 /srv xfs rw 0 0"]),
        ("disk mounted at swap", ["swap /dev/nvme0n1p1 partition 1 0 -2"]),
        ("disk below dm-0", ["part /sys/class/block/dm-0/slaves/nvme0n1p1"]),
        ("disk below md127", ["part /sys/class/block/md127/slaves/nvme0n1"]),
        ("", ["mount tmpfs /run tmpfs rw 0 0", "mount /dev/sda1 / ext4 rw 0 0"]),
        ("", ["mount /dev/nvme0n12 /srv ext4 rw 0 0"]),
    ],
)
def test_a_disk_that_the_host_needs_is_known(use: str, more: list[str]) -> None:
    found = {str(f.address): f.in_use_as for f in parse_survey(survey(lab(), more))}
    assert found.pop("0000:02:00.0") == use
    assert not any(found.values())


def test_a_multipath_nvme_is_in_use_by_its_partitions() -> None:
    """Its disk and partitions stand below no PCI function; only its hidden path does."""
    disk = Written("0000:02:00.0", driver="nvme", interfaces=["nvme0c0n1"])
    more = [
        "interface nvme0n1p2 ../../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nvme0n1p2",
        "mount /dev/nvme0n1p2 / ext4 rw 0 0",
    ]
    (function,) = parse_survey(survey([disk], more))
    assert function.interfaces == ("nvme0n1",)
    assert function.in_use_as == "root disk"


SSH = "ssh 192.0.2.9 50000 192.0.2.1 22"


@pytest.mark.parametrize(
    ("use", "more"),
    [
        ("management NIC", [SSH, r"addr 2: eth1    inet 192.0.2.1/24 brd 192.0.2.255"]),
        ("management NIC", ["default eth1"]),
        (
            "management NIC",
            [
                SSH,
                "addr 5: br0.7    inet 192.0.2.1/24",
                "part /sys/class/net/bond0/lower_eth1",
                "part /sys/class/net/br0/lower_bond0",
                "part /sys/class/net/br0.7/lower_br0",
            ],
        ),
        ("", ["part /sys/class/net/br0/lower_eth1", "default eth0"]),
        ("", [SSH, "addr 2: eth1    inet 192.0.2.11/24", "default eth10"]),
    ],
)
def test_the_nic_by_which_the_host_is_reached_is_known(use: str, more: list[str]) -> None:
    found = {str(f.address): f.in_use_as for f in parse_survey(survey(lab(), more))}
    assert found.pop("0000:01:00.0") == use
    assert not any(found.values())


@pytest.mark.parametrize(
    "line",
    [
        "bash: find: command not found",
        "size 0000:01:00.0/config many",
        "configs ***",
        "link 0000:09:00.0/ driver ../igb",
        "text 0000:01:00.0/resource:0x0 0x0",
        "text 0000:01:00.0/sriov_totalvfs:eight",
        "text 0000:01:00.0/colour:red",
        "link 0000:01:00.0/ iommu_group ../x",
        "link 0000:01:00.0/ physfn ../nowhere",
        "part eth0",
        "ssh 192.0.2.9",
        "addr 2: eth1",
    ],
)
def test_a_strange_line_is_shown(line: str) -> None:
    with pytest.raises(LabError) as caught:
        parse_survey(survey(lab(), [line]), "lab1")
    assert caught.value.host == "lab1"
    assert caught.value.seen


def test_a_mount_point_may_hold_any_character() -> None:
    more = ["mount /dev/sdz1 /mnt/a\x0bb\x85c\u2028d ext4 rw 0 0"]
    assert len(parse_survey(survey(lab(), more))) == 5


WHOLE = survey(
    lab(),
    [
        SSH,
        "addr 2: eth1    inet 192.0.2.1/24 brd 192.0.2.255",
        "mount /dev/nvme0n1p1 / ext4 rw 0 0",
        "part /sys/class/net/br0/lower_eth1",
        f"interface lo {ROOT}/lo",
    ],
)


@settings(max_examples=150)
@given(st.data())
def test_damage_gives_functions_or_a_lab_error(data: st.DataObject) -> None:
    lines = WHOLE.split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["drop", "double", "cut", "replace", "insert"]))
        line = lines[index]
        if how == "drop":
            del lines[index]
        elif how == "double":
            lines.insert(index, line)
        elif how == "cut":
            lines[index] = line[: data.draw(st.integers(0, len(line)))]
        elif how == "insert":
            at = data.draw(st.integers(0, len(line)))
            lines[index] = line[:at] + data.draw(st.text(max_size=5)) + line[at:]
        else:
            lines[index] = line.partition(" ")[0] + " " + data.draw(st.text(max_size=40))
        lines = lines or [""]
    with contextlib.suppress(LabError):
        parse_survey("\n".join(lines))


@given(st.text())
def test_rubbish_gives_a_lab_error_or_nothing(text: str) -> None:
    with contextlib.suppress(LabError):
        assert parse_survey(text) == ()


@pytest.mark.parametrize(
    ("told", "end"),
    [("address sizes\t: 46 bits physical, 48 bits virtual\n", 1 << 46), ("", 1 << 39)],
)
def test_windows_for_bars_end_where_the_processor_s_addresses_do(told: str, end: int) -> None:
    platform = LinuxVfio("lab1", FakeTransport(lambda _c, _s: (0, told, "")), python=False)
    assert platform.bar_windows(soon()).high_end == end
