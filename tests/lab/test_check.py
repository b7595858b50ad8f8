from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hil.lab.check import capabilities, check_against, identity
from hil.lab.document import InvalidFileError
from hil.lab.load import parse
from hil.lab.models import Lab
from hil.pci.address import Address
from hil.pci.config import ConfigSpace
from hil.platforms.contract import Function
from tests.inventories import WITH_GPU

SERIAL = 0x001B21FFFFAABBCC


def config(
    ids: str = "8086:10c9", subsystem: str = "8086:a03c", *, bridge: bool = False, serial: int = 0
) -> ConfigSpace:
    data = bytearray(4096)
    vendor, device = (int(part, 16) for part in ids.split(":"))
    struct.pack_into("<HH", data, 0, vendor, device)
    data[0x0E] = 1 if bridge else 0
    if not bridge:
        struct.pack_into("<HH", data, 0x2C, *(int(part, 16) for part in subsystem.split(":")))
        # Status: has capabilities. MSI-X, then PCI Express with FLR.
        struct.pack_into("<H", data, 6, 0x10)
        data[0x34] = 0x40
        data[0x40:0x42] = bytes([0x11, 0x50])
        data[0x50:0x54] = bytes([0x10, 0, 2, 0])
        struct.pack_into("<I", data, 0x54, 1 << 28)
    if serial:
        struct.pack_into("<IQ", data, 0x100, 0x00010003, serial)
    return ConfigSpace(bytes(data))


def function(
    address: str,
    space: ConfigSpace | None = None,
    *,
    in_use_as: str = "",
    interfaces: tuple[str, ...] = (),
    physical_function: Address | None = None,
) -> Function:
    space = space or config()
    return Function(
        address=Address.parse(address),
        vendor=space.vendor,
        device=space.device,
        config=space,
        driver="igb",
        reserved=False,
        group=1,
        bars=(),
        reset_methods=("flr",),
        interfaces=interfaces,
        in_use_as=in_use_as,
        physical_function=physical_function,
    )


def lab(device: str) -> Lab:
    text = """
    [lab]
    name = "bench"
    kind = "physical"
    [hosts.alpha]
    platform = "linux-vfio"
    address = "alpha"
    [hosts.beta]
    platform = "linux-vfio"
    address = "beta"
    [devices.nic0]
    kind = "nic"
    host = "alpha"
    """
    return parse(text + device, Path("bench.toml"))


def complaint(inventory: Lab, *functions: Function) -> str:
    with pytest.raises(InvalidFileError) as caught:
        check_against(inventory, "alpha", functions)
    return caught.value.explain()


def test_devices_are_found_by_address_in_the_inventorys_order() -> None:
    inventory = lab('functions = ["03:00.1", "03:00.0"]')
    functions = [function("03:00.0"), function("03:00.1"), function("04:00.0")]
    assert check_against(inventory, "alpha", functions) == {"nic0": (functions[1], functions[0])}


def test_a_card_is_found_by_its_identity_with_all_its_functions() -> None:
    inventory = lab('match = { id = "8086:10C9", serial = "00-1b-21-ff-ff-aa-bb-cc" }')
    ours = [function(f"04:00.{n}", config(serial=SERIAL)) for n in (1, 0)]
    others = [function("03:00.0"), function("05:00.0", config("8086:10d3", serial=SERIAL))]
    found = check_against(inventory, "alpha", [*others, *ours])
    assert [str(f.address) for f in found["nic0"]] == ["0000:04:00.0", "0000:04:00.1"]


def test_other_hosts_devices_are_not_looked_for() -> None:
    assert check_against(lab('functions = ["03:00.0"]'), "beta", []) == {}


def test_an_address_that_the_host_does_not_have() -> None:
    text = complaint(lab('functions = ["03:00.0", "03:00.1"]'), function("03:00.0"))
    assert "devices.nic0.functions[1]: alpha has no function at 0000:03:00.1" in text
    assert "hil devices --lab bench.toml" in text


def test_another_card_at_the_address_is_not_taken_for_ours() -> None:
    inventory = lab(
        'functions = ["03:00.0"]\nmatch = { id = "8086:10d3", subsystem = "1:2" }'.replace(
            "1:2", "0001:0002"
        )
    )
    moved = function("05:00.0", config("8086:10d3", "0001:0002"))
    text = complaint(inventory, function("03:00.0"), moved)
    assert "0000:03:00.0 is 8086:10c9 subsystem 8086:a03c, not 8086:10d3 subsystem" in text
    assert "a card that fits match is at 0000:05:00.0" in text


def test_no_card_fits() -> None:
    text = complaint(lab('match = { id = "1234:5678" }'), function("03:00.0"))
    assert "devices.nic0.match: alpha has no 1234:5678" in text


def test_two_cards_fit() -> None:
    functions = [function("03:00.0"), function("04:00.0")]
    text = complaint(lab('match = { id = "8086:10c9" }'), *functions)
    assert "fits 2 cards of alpha (0000:03:00.0, 0000:04:00.0); add serial" in text


def test_virtual_functions_do_not_make_a_second_card() -> None:
    pf = function("03:00.0")
    vf = function("03:10.0", physical_function=pf.address)
    found = check_against(lab('match = { id = "8086:10c9" }'), "alpha", [pf, vf])
    assert found == {"nic0": (pf,)}


@pytest.mark.parametrize("use", ["management NIC", "root disk", "console"])
@pytest.mark.parametrize("how", ['functions = ["03:00.0"]', 'match = { id = "8086:10c9" }'])
def test_what_the_host_itself_needs_is_refused(use: str, how: str) -> None:
    text = complaint(lab(how), function("03:00.0", in_use_as=use))
    assert f"devices.nic0.0000:03:00.0: alpha itself uses this function as its {use}" in text


def test_a_bridge_is_refused() -> None:
    text = complaint(lab('functions = ["03:00.0"]'), function("03:00.0", config(bridge=True)))
    assert "a bridge" in text


def test_a_function_of_two_devices_by_address_and_by_identity() -> None:
    inventory = lab(
        'functions = ["03:00.0"]\n'
        '[devices.nic1]\nkind="nic"\nhost="alpha"\nmatch={ id = "8086:10c9" }'
    )
    text = complaint(inventory, function("03:00.0"))
    assert "devices.nic1.0000:03:00.0: already a function of devices.nic0" in text


def test_a_stated_capability_that_is_not_there() -> None:
    text = complaint(
        lab('functions = ["03:00.0"]\ncapabilities = ["flr", "sriov", "ats"]'), function("03:00.0")
    )
    assert "devices.nic0.capabilities: 0000:03:00.0 does not have: ats, sriov" in text


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ('{ interface = "eth9" }', "alpha has no interface 'eth9'; it has: eth0, eth1"),
        ('{ function = "09:00.0" }', "alpha has no function at 0000:09:00.0"),
    ],
)
def test_a_peer_that_is_not_there(peer: str, expected: str) -> None:
    inventory = lab(f'functions = ["03:00.0"]\npeer = {peer}')
    text = complaint(inventory, function("03:00.0", interfaces=("eth0", "eth1")))
    assert expected in text


def test_all_mistakes_are_told_at_once() -> None:
    inventory = lab(
        'functions = ["03:00.0", "03:00.1"]\n'
        '[devices.disk]\nkind="nvme"\nhost="alpha"\nmatch={ id = "1234:5678" }'
    )
    text = complaint(inventory, function("03:00.0", in_use_as="root disk"))
    assert "3 mistakes" in text


def test_capabilities_come_from_config_space() -> None:
    assert capabilities(function("03:00.0")) == {"msix", "flr"}
    assert identity(function("3/0/0", config(serial=SERIAL))).endswith("serial 001b21ffffaabbcc")


def test_a_gpu_computes_if_its_vendor_serves_opencl() -> None:
    def display(ids: str) -> Function:
        data = bytearray(config(ids).data)
        data[9:12] = (0x030000).to_bytes(3, "little")
        return function("0000:03:00.0", ConfigSpace(bytes(data)))

    assert "compute" in capabilities(display("10de:1b39"))
    assert "compute" not in capabilities(display("1af4:1050"))
    assert "compute" not in capabilities(function("0000:03:00.0", config("10de:10ef")))


def gpu_lab(device: str) -> Lab:
    return parse(WITH_GPU + device, Path("x.toml"))


def card() -> list[Function]:
    return [
        function("0000:03:00.0", config("10de:1b39")),
        function("0000:03:00.1", config("10de:10f0")),
        function("0000:04:00.0", config("10de:10f0")),
    ]


def test_a_gpu_that_is_found_by_its_identity_is_its_whole_card() -> None:
    found = check_against(gpu_lab('match = { id = "10de:1b39" }'), "alpha", card())["gpu0"]
    assert [str(f.address) for f in found] == ["0000:03:00.0", "0000:03:00.1"]


def test_the_identity_of_a_gpu_is_that_of_its_first_function() -> None:
    match = 'match = { id = "10de:1b39" }'
    both = f'{match}\nfunctions = ["0000:03:00.0", "0000:03:00.1"]'
    assert len(check_against(gpu_lab(both), "alpha", card())["gpu0"]) == 2
    other = f'{match}\nfunctions = ["0000:03:00.1", "0000:03:00.0"]'
    with pytest.raises(InvalidFileError, match="is 10de:10f0"):
        check_against(gpu_lab(other), "alpha", card())
