"""Whose a function is, where a host has several remapping units."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.iommu.acpi import Drhd, Ivhd, RequesterRange, Scope
from hil.iommu.scope import Topology, drhd_of, ivhd_of
from hil.pci.address import Address
from hil.pci.config import ConfigSpace


def rid(text: str) -> int:
    return Address.parse(text).requester_id


# 00:1c.4 is a root port to buses 2-4; behind it a switch: 02:00.0, with 03:01.0 to bus 4.
TOPOLOGY = Topology(
    buses={rid("00:1c.4"): range(2, 5), rid("02:00.0"): range(3, 5), rid("03:01.0"): range(4, 5)},
    physical_functions={rid("05:10.0"): rid("00:02.0")},
)


def unit(base: int, *scopes: Scope, include_all: bool = False) -> Drhd:
    return Drhd(base, 0, include_all, scopes)


GRAPHICS = unit(0xFED90000, Scope(1, 0, ((2, 0),)))
PORT = unit(0xFED91000, Scope(2, 0, ((0x1C, 4),)))
DEEP = unit(0xFED92000, Scope(1, 0, ((0x1C, 4), (0, 0), (1, 0), (0, 3))))
REST = unit(0xFED93000, Scope(3, 0xF0, ((0x1F, 0),), 2), include_all=True)


@pytest.mark.parametrize(
    ("function", "units", "owner"),
    [
        ("00:02.0", (REST, GRAPHICS), GRAPHICS),
        ("00:02.1", (REST, GRAPHICS), REST),
        ("00:03.0", (GRAPHICS, REST), REST),
        ("00:03.0", (GRAPHICS, PORT), None),
        ("00:1c.4", (REST, PORT), PORT),
        ("02:00.0", (REST, PORT), PORT),
        ("04:1f.7", (REST, PORT), PORT),
        ("05:00.0", (REST, PORT), REST),
        ("04:00.3", (REST, DEEP), DEEP),
        ("04:00.2", (REST, DEEP), REST),
        # the I/O APIC's path names no function
        ("f0:1f.0", (GRAPHICS, unit(0, Scope(3, 0xF0, ((0x1F, 0),)))), None),
        # a virtual function is its physical one's
        ("05:10.0", (REST, GRAPHICS), GRAPHICS),
        # a sole unit has all
        ("7f:00.0", (GRAPHICS,), GRAPHICS),
    ],
)
def test_whose_a_function_is(function: str, units: tuple[Drhd, ...], owner: Drhd | None) -> None:
    assert drhd_of(units, rid(function), TOPOLOGY) is owner


def test_a_path_over_a_bridge_that_is_not_there_names_nothing() -> None:
    assert drhd_of((GRAPHICS, DEEP), rid("04:00.3"), Topology()) is None
    assert drhd_of((GRAPHICS, PORT), rid("02:00.0"), Topology()) is None


def test_amd_s_units_name_ranges() -> None:
    low = Ivhd(0x11, 0xFEB80000, 0, 2, (RequesterRange(0, 0x3FFF),))
    high = Ivhd(0x11, 0xF4180000, 0, 0x4002, (RequesterRange(0x4000, 0x7FFF, 0x9000),))
    both = (low, high)
    assert ivhd_of(both, 0x3FFF, TOPOLOGY) is low
    assert ivhd_of(both, 0x4000, TOPOLOGY) is high
    assert ivhd_of(both, 0x9000, TOPOLOGY) is high
    assert ivhd_of(both, 0x8000, TOPOLOGY) is None
    assert ivhd_of((high,), 0x0000, TOPOLOGY) is high
    moved = Topology(physical_functions={0x8000: 0x4000})
    assert ivhd_of(both, 0x8000, moved) is high


SCOPES = st.builds(
    Scope,
    st.integers(0, 5),
    st.integers(0, 255),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=4).map(tuple),
)


@given(
    st.lists(st.lists(SCOPES, max_size=3), min_size=2, max_size=4),
    st.integers(0, 0xFFFF),
    st.dictionaries(st.integers(0, 0xFFFF), st.just(range(1, 3)), max_size=5),
)
def test_any_scopes_are_asked(
    scopes: list[list[Scope]], requester_id: int, buses: dict[int, range]
) -> None:
    """Never an error; and with a unit for all the rest, always a unit."""
    units = [unit(number, *some) for number, some in enumerate(scopes)]
    found = drhd_of(units, requester_id, Topology(buses))
    assert found is None or found in units
    assert drhd_of([*units, REST], requester_id, Topology(buses)) is (found or REST)


@dataclass(frozen=True)
class Function:
    address: Address
    config: ConfigSpace
    physical_function: Address | None = None


def config(header_type: int, buses: bytes = b"") -> ConfigSpace:
    data = bytearray(256)
    data[0:4] = b"\x86\x80\x01\x00"
    data[0x0E] = header_type
    data[0x18 : 0x18 + len(buses)] = buses
    return ConfigSpace(bytes(data))


def test_a_host_s_functions_tell_the_topology() -> None:
    functions = [
        Function(Address.parse("00:00.0"), config(0)),
        Function(Address.parse("00:1c.4"), config(1, bytes([0, 2, 4]))),
        Function(Address.parse("02:00.1"), config(0), Address.parse("02:00.0")),
        Function(Address.parse("0001:00:1c.0"), config(1, bytes([0, 9, 9]))),
    ]
    assert Topology.of(functions) == Topology({0xE4: range(2, 5)}, {0x0201: 0x0200})
    assert Topology.of(functions, segment=1) == Topology({0xE0: range(9, 10)})
