"""FreeBSD's functions from what pciconf and the other tools print of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import HilError, LabError
from hil.pci.address import Address
from hil.platforms.contract import Bar, Function
from hil.platforms.freebsd_pci import (
    Survey,
    functions,
    parse_bridges,
    parse_config_dump,
    parse_pciconf,
)
from tests.fakes import config
from tests.recorded import all_recorded, recorded

EM0, IGB0, NVME0 = Address(0, 0, 5, 0), Address(0, 0, 6, 0), Address(0, 0, 7, 0)
VIRTIO_NET, VIRTIO_DISK = Address(0, 0, 2, 0), Address(0, 0, 3, 0)
LISTING = recorded("1-host-setup/018").text
DEVINFO = recorded("1-host-setup/027").text


# ---- pciconf ---------------------------------------------------------------------


def test_every_recorded_listing_is_read() -> None:
    listings = [
        one
        for one in all_recorded()
        if one.command.startswith("pciconf -l") and ";" not in one.command and one.stdout
    ]
    assert len(listings) > 20
    for one in listings:
        assert parse_pciconf(one.text), one.name


def test_bridges_tell_the_buses_behind_them() -> None:
    text = "bridge pci0:0:8:0 00030100 \r\nbridge pci0:0:28:0 00ff0400 \n\n"
    assert parse_bridges(text) == {
        Address(0, 0, 8, 0): range(1, 4),
        Address(0, 0, 28, 0): range(4, 256),
    }


@pytest.mark.parametrize(
    "line",
    ["bridge pci0:0:8:0", "bridge pci0:0:8:0 0301", "bridge em0 00030100", "00030100", "x" * 999],
)
def test_a_line_that_tells_of_no_bridge_is_shown(line: str) -> None:
    with pytest.raises(LabError) as raised:
        parse_bridges(f"bridge pci0:0:8:0 00030100\n{line}\n")
    assert raised.value.seen == line[:300]


def test_ids_bars_and_capabilities_of_a_listing() -> None:
    entries = {entry.name: entry for entry in parse_pciconf(LISTING)}
    igb = entries["igb0"]
    assert (igb.address, igb.driver) == (IGB0, "igb")
    assert (igb.vendor, igb.device, igb.class_code) == (0x8086, 0x10C9, 0x020000)
    assert (igb.subsystem_vendor, igb.subsystem_device, igb.revision) == (0x1AF4, 0x1100, 1)
    assert igb.bars == (
        Bar(0, 0xC0320000, 131072, memory=True),
        Bar(1, 0xC0300000, 131072, memory=True),
        Bar(2, 0x70E0, 32, memory=False),
        Bar(3, 0xE02004C000, 16384, memory=True, wide=True),
    )
    sriov = next(one for one in igb.capabilities if one.extended and one.identity == 0x10)
    assert sriov.offset == 0x160
    assert "0 VFs configured out of 8 supported\nFirst VF RID Offset 0x0080" in sriov.text
    assert igb.descriptions["device"] == "82576 Gigabit Network Connection"
    assert entries["virtio_pci1"].driver == "virtio_pci"
    assert entries["none1"].driver is None
    assert entries["virtio_pci0"].bars[2].prefetchable


def test_older_releases_print_the_ids_as_card_and_chip() -> None:
    old = (
        "igb0@pci0:1:0:1:\tclass=0x020000 card=0x34dc8086 chip=0x10c98086 rev=0x01 hdr=0x00\n"
        "    bar   [10] = type Memory, range 32, base 0xfb820000, size 131072, enabled\n"
    )
    (entry,) = parse_pciconf(old)
    assert (entry.vendor, entry.device) == (0x8086, 0x10C9)
    assert (entry.subsystem_vendor, entry.subsystem_device) == (0x8086, 0x34DC)


def test_a_bar_of_2_gib_is_negative_in_older_releases() -> None:
    line = "    bar   [10] = type Memory, range 64, base 0, size -2147483648, disabled\n"
    (entry,) = parse_pciconf(LISTING.split("\n")[0] + "\n" + line)
    assert entry.bars[0].size == 1 << 31


def test_lines_of_other_kinds_are_kept_and_lines_of_nobody_shown() -> None:
    head = LISTING.split("\n")[0] + "\n"
    errors = (  # usr.sbin/pciconf/err.c, print_bits
        "    cap 10[e0] = PCI-Express 1 endpoint\n"
        "  PCI-e errors = Correctable Error Detected\n"
        "                 Unsupported Request Detected\n"
        "         Fatal = Malformed TLP\n"
    )
    (entry,) = parse_pciconf(head + errors)
    assert entry.capabilities[0].text == "PCI-Express 1 endpoint"
    assert entry.other == (
        "PCI-e errors = Correctable Error Detected",
        "Unsupported Request Detected",
        "Fatal = Malformed TLP",
    )
    odd = "    bar   [10] = type Something, range 32"
    for wrong in (
        *("what is this", odd),
        *("em0@pci0:0:5:0:\tclass=0x02", "em0@pci0:300:5:0:\tclass=0x1"),
    ):
        with pytest.raises(LabError) as caught:
            parse_pciconf(head + wrong)
        assert caught.value.seen == wrong


def test_a_dump_becomes_bytes_in_their_order() -> None:
    assert parse_config_dump(recorded("1-host-setup/023").text) == bytes.fromhex("8680d31007041000")
    assert parse_config_dump("8086 10d3\n") == bytes.fromhex("8680d310")
    # A function without extended configuration space reads ones there.
    short = parse_config_dump("00000000 " * 64 + "ffffffff " * 960)
    assert short == bytes(256)
    assert len(parse_config_dump("00000000 " * 1024)) == 4096
    for wrong in ("", "xyz", "1234 12345678", "123"):
        with pytest.raises(LabError, match="pciconf"):
            parse_config_dump(wrong)


@given(
    st.text()
    | st.tuples(st.sampled_from(LISTING.splitlines()), st.text(max_size=30)).map("\n".join)
    | st.tuples(st.just(LISTING[:200]), st.sampled_from(LISTING.splitlines())).map("".join)
)
def test_no_text_makes_the_parsers_fail_but_by_their_own_error(given_text: str) -> None:
    for parse in (parse_pciconf, parse_config_dump):
        try:
            parse(given_text)
        except HilError:
            continue


# ---- functions -------------------------------------------------------------------


def configs(listing: str = LISTING) -> dict[Address, bytes]:
    """A configuration space for every function of a listing, by its header type alone."""
    return {
        entry.address: config(
            vendor=entry.vendor, device=entry.device, header_type=entry.header_type
        ).data
        for entry in parse_pciconf(listing)
    }


def look(**texts: str) -> Mapping[Address, Function]:
    """The host of the recordings, with what else is told of it."""
    survey = replace(Survey(LISTING, configs(), devinfo=DEVINFO), **texts)  # type: ignore[arg-type]
    return {function.address: function for function in functions(survey)}


def uses(found: Mapping[Address, Function]) -> dict[Address, str]:
    return {address: one.in_use_as for address, one in found.items() if one.in_use_as}


def test_a_hosts_functions() -> None:
    found = look()
    assert list(found) == sorted(found)
    assert len(found) == 13
    assert found[EM0].driver == "em"
    assert not found[EM0].reserved
    assert found[Address(0, 0, 9, 0)].driver is None
    assert uses(found) == {}


def test_a_name_that_outlived_its_driver_is_no_driver() -> None:
    """Recorded in 1-host-setup/091: pptN stays after a detach."""
    listing = LISTING.replace("igb0@", "ppt0@").replace("nvme0@", "ppt1@")
    attached = DEVINFO.replace("igb0", "ppt0")
    survey = Survey(listing, configs(listing), devinfo=attached.replace("        nvme0\n", ""))
    found = {function.address: function for function in functions(survey)}
    assert (found[IGB0].driver, found[IGB0].reserved) == ("ppt", True)
    assert (found[NVME0].driver, found[NVME0].reserved) == (None, False)


def test_a_function_that_has_gone_meanwhile_is_left_out() -> None:
    survey = Survey(LISTING, {EM0: configs()[EM0]})
    assert [function.address for function in functions(survey)] == [EM0]


GEOM = """\
0 DISK vtbd0 3256879616 512 hd 16 sc 63
1 PART vtbd0p2 3256000000 512 i 2 o 20480 ty freebsd-ufs xs GPT xt 516e7cb6
2 LABEL gpt/rootfs 3256000000 512 i 0 o 0
0 DISK nvd0 67108864 512 hd 0 sc 0
"""


def test_the_root_disk_is_found_through_its_label() -> None:
    found = look(mounts="/dev/gpt/rootfs / ufs rw 1 1\ndevfs /dev devfs rw 0 0\n", geom=GEOM)
    assert uses(found) == {VIRTIO_DISK: "root disk"}
    assert found[VIRTIO_DISK].interfaces == ("vtbd0",)
    assert found[NVME0].interfaces == ("nvd0",)


def test_a_disk_is_known_by_its_name_where_geom_was_not_asked() -> None:
    found = look(mounts="/dev/vtbd0p2 / ufs rw 1 1\n/dev/nvd0 /mnt ufs rw 0 0\n", geom=GEOM)
    assert uses(found) == {VIRTIO_DISK: "root disk", NVME0: "disk mounted at /mnt"}


def test_disks_of_pools_and_swap_are_in_use() -> None:
    pool = "  pool: zroot\n\t  /dev/nvd0 ONLINE 0 0 0\n"
    found = look(
        geom=GEOM, zpool=pool, mounts="zroot/ROOT/default / zfs rw 0 0\n", swap="/dev/vtbd0p2 9\n"
    )
    assert uses(found) == {NVME0: "root disk", VIRTIO_DISK: "swap"}
    # A pool with nothing mounted is in use all the same.
    assert uses(look(geom=GEOM, zpool=pool)) == {NVME0: "disk of the pool zroot"}


def test_disks_of_cam_hang_on_their_buses_device() -> None:
    camcontrol = (
        "scbus0 on ahcich0 bus 0:\n<A 1> at scbus0 target 0 lun 0 (ada0,pass0)\n"
        "scbus6 on nvme0 bus 0:\n<B 1> at scbus6 target 0 lun 1 (nda0,pass1)\n"
    )
    found = look(camcontrol=camcontrol, mounts="/dev/ada0s1a / ufs rw 1 1\n")
    assert uses(found) == {Address(0, 0, 31, 2): "root disk"}
    assert found[NVME0].interfaces == ("nda0",)


def test_disks_that_are_devices_themselves_and_disks_of_memory() -> None:
    raid = "0 DISK mfid0 1 512 hd 0 sc 0\n1 PART mfid0p2 1 512\n0 MD md9 1 512 u 9\n"
    tree = DEVINFO.replace("        nvme0\n", "        nvme0\n          mfid0\n")
    found = look(
        geom=raid, devinfo=tree, mounts="/dev/mfid0p2 / ufs rw 1 1\n/dev/md9 /tmp ufs rw 0 0\n"
    )
    assert uses(found) == {NVME0: "root disk"}


def test_a_configuration_space_of_no_such_size_is_told_with_its_function() -> None:
    with pytest.raises(LabError, match="says of em0"):
        functions(Survey(LISTING, {EM0: bytes(100)}))


def test_where_the_root_disks_controller_is_not_known_every_candidate_is_spared() -> None:
    # nvd(4) does not tell its controller; with two namespaces the numbers say nothing.
    two = GEOM + "0 DISK nvd1 67108864 512 hd 0 sc 0\n"
    found = look(geom=two, mounts="/dev/nvd1 / ufs rw 1 1\n")
    assert set(uses(found).values()) == {"perhaps root disk"}
    assert NVME0 in uses(found)
    assert EM0 not in uses(found)


IFCONFIG = """\
vtnet0: flags=8843<UP> metric 0 mtu 1500
\tether 52:54:00:12:34:56
\tinet 10.0.2.15 netmask 0xffffff00 broadcast 10.0.2.255
em0: flags=8843<UP> metric 0 mtu 1500
\tether 52:54:00:aa:00:05
igb0: flags=8843<UP> metric 0 mtu 1500
\tether 52:54:00:aa:00:06
bridge0: flags=8843<UP> metric 0 mtu 1500
\tether 58:9c:fc:10:00:01
\tinet 192.0.2.9 netmask 0xffffff00
\tgroups: bridge
\tmember: igb0.5 flags=143<LEARNING>
\tmember: tap0 flags=143<LEARNING>
igb0.5: flags=8843<UP> metric 0 mtu 1500
\tether 52:54:00:aa:00:06
\tgroups: vlan
\tvlan: 5 vlanproto: 802.1q vlanpcp: 0 parent interface: igb0
"""


def test_the_management_nic_is_the_one_that_ssh_came_by() -> None:
    found = look(ifconfig=IFCONFIG, ssh_connection="10.0.2.2 50000 10.0.2.15 22")
    assert uses(found) == {VIRTIO_NET: "management NIC"}
    assert found[EM0].interfaces == ("em0",)


def test_the_management_nic_below_a_bridge_and_a_vlan() -> None:
    found = look(ifconfig=IFCONFIG, ssh_connection="192.0.2.2 50000 192.0.2.9 22\n")
    assert uses(found) == {IGB0: "management NIC"}


def test_the_default_routes_nic_is_a_management_nic() -> None:
    routes = "Destination Gateway Flags Netif Expire\ndefault 192.0.2.1 UGS em0\n"
    assert uses(look(ifconfig=IFCONFIG, routes=routes)) == {EM0: "management NIC"}


def test_a_renamed_management_nic_makes_every_unknown_nic_one_perhaps() -> None:
    renamed = IFCONFIG.replace("em0:", "uplink:")
    found = look(ifconfig=renamed, routes="a b c Netif\ndefault 192.0.2.1 UGS uplink\n")
    assert uses(found) == {
        EM0: "perhaps management NIC",
        Address(0, 1, 0, 0): "perhaps management NIC",
    }


def test_the_console_is_in_use() -> None:
    tree = DEVINFO.replace("        em0\n", "        puc0\n          uart2\n        vgapci0\n")
    listing = LISTING.replace("em0@", "puc0@").replace("none1@", "vgapci0@")
    survey = Survey(listing, configs(listing), devinfo=tree)
    serial = replace(survey, console="kern.console: ttyu2,/ttyu2,ttyv0,\n")
    screen = replace(survey, console="kern.console: ttyv0,/ttyv0,\nhw.pci.default_vgapci_unit: 0\n")
    named = [{f.address: f.in_use_as for f in functions(s)} for s in (serial, screen, survey)]
    vga = Address(0, 0, 9, 0)
    assert [(uses[EM0], uses[vga]) for uses in named] == [
        ("console", ""),
        ("", "console"),
        ("", ""),
    ]


def test_resets_that_freebsd_uses_and_virtual_functions() -> None:
    pf = bytearray(recorded_config())
    found = functions(Survey(PF_LISTING, {Address(0, 1, 0, 0): bytes(pf), VF: config().data}))
    by_address = {function.address: function for function in found}
    assert by_address[Address(0, 1, 0, 0)].virtual_functions == (VF,)
    assert by_address[Address(0, 1, 0, 0)].total_vfs == 8
    assert by_address[VF].physical_function == Address(0, 1, 0, 0)
    # Its vendor is what pciconf shows: a VF's own configuration space reads ffff.
    assert (by_address[VF].vendor, by_address[VF].device) == (0x8086, 0x10CA)
    assert by_address[Address(0, 1, 0, 0)].reset_methods == ("flr",)


VF = Address(0, 1, 16, 0)
PF_LISTING = "\n".join(
    f"{name}@{selector}:\tclass=0x020000 rev=0x01 hdr=0x00 vendor=0x8086 device={device} "
    "subvendor=0x8086 subdevice=0x0000"
    for name, selector, device in (
        ("igb0", "pci0:1:0:0", "0x10c9"),
        ("ppt0", "pci0:1:16:0", "0x10ca"),
    )
)


def recorded_config() -> bytes:
    """An igb's PF with one VF enabled, at requester id + 0x80: FLR, AF, and no D3hot."""
    data = bytearray(4096)
    data[0:4] = bytes.fromhex("8680c910")
    data[6] = 0x10  # STATUS: capabilities
    data[0x34] = 0xA0
    data[0xA0:0xA4] = bytes.fromhex("10b00200")
    data[0xA4:0xA8] = (1 << 28).to_bytes(4, "little")  # Device Capabilities: FLR
    data[0xB0:0xB4] = bytes.fromhex("13000603")  # Advanced Features: TP, FLR
    sriov = 0x100
    data[sriov : sriov + 4] = (0x0010 | 1 << 16).to_bytes(4, "little")
    data[sriov + 0x08 : sriov + 0x0A] = b"\x01\x00"  # VF Enable
    data[sriov + 0x0C : sriov + 0x12] = bytes.fromhex("080008000100")
    data[sriov + 0x14 : sriov + 0x18] = bytes.fromhex("80000200")
    data[sriov + 0x1A : sriov + 0x1C] = bytes.fromhex("ca10")
    return bytes(data)
