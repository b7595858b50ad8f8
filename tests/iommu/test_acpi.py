from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import LabError
from hil.iommu.acpi import (
    Drhd,
    Ivhd,
    Ivmd,
    RequesterRange,
    Rmrr,
    Scope,
    parse_dmar,
    parse_ivrs,
)


def scope(kind: int, bus: int, *path: tuple[int, int], identity: int = 0) -> bytes:
    steps = b"".join(bytes(step) for step in path)
    return struct.pack("<BBHBB", kind, 6 + len(steps), 0, identity, bus) + steps


def structure(kind: int, body: bytes) -> bytes:
    return struct.pack("<HH", kind, 4 + len(body)) + body


def drhd(base: int, segment: int, flags: int, *scopes: bytes) -> bytes:
    return structure(0, struct.pack("<BBHQ", flags, 0, segment, base) + b"".join(scopes))


def rmrr(base: int, limit: int, *scopes: bytes) -> bytes:
    return structure(1, struct.pack("<HHQQ", 0, 0, base, limit) + b"".join(scopes))


def table(*structures: bytes) -> bytes:
    body = b"".join(structures)
    header = struct.pack(
        "<4sIBB6s8sI4sI", b"DMAR", 48 + len(body), 1, 0, b"BOCHS ", b"BXPC    ", 1, b"BXPC", 1
    )
    data = bytearray(header + struct.pack("<BB10x", 47, 1) + body)
    data[9] = -sum(data) & 0xFF
    return bytes(data)


SMALL = table(
    drhd(0xFED90000, 0, 0, scope(1, 0, (2, 0)), scope(2, 0, (28, 4), (0, 0))),
    structure(2, bytes(12)),
    drhd(0xFED91000, 0, 1, scope(3, 0xF0, (31, 0), identity=2)),
    rmrr(0x7B800000, 0x7FFFFFFF, scope(1, 0, (2, 0))),
)


def test_units_scopes_and_reserved_memory() -> None:
    dmar = parse_dmar(SMALL)
    assert dmar.host_address_width == 48
    assert dmar.interrupt_remapping
    assert dmar.problems == ()
    assert dmar.units == (
        Drhd(0xFED90000, 0, False, (Scope(1, 0, ((2, 0),)), Scope(2, 0, ((28, 4), (0, 0))))),
        Drhd(0xFED91000, 0, True, (Scope(3, 0xF0, ((31, 0),), 2),)),
    )
    assert dmar.units[1].scopes[0].kind == "I/O APIC"
    assert dmar.reserved == (Rmrr(0, 0x7B800000, 0x7FFFFFFF, (Scope(1, 0, ((2, 0),)),)),)


def test_a_bad_checksum_is_told() -> None:
    assert parse_dmar(SMALL[:-1] + b"\x05").problems == ("bad checksum",)


@pytest.mark.parametrize("data", [b"", b"DMAR", b"IVRS" + SMALL[4:], bytes(100)])
def test_another_table_is_refused(data: bytes) -> None:
    with pytest.raises(LabError, match="not an ACPI DMAR table"):
        parse_dmar(data)


@given(st.integers(48, len(SMALL)))
def test_a_cut_table_is_read_as_far_as_it_goes(length: int) -> None:
    dmar = parse_dmar(SMALL[:length])
    assert dmar.problems or length == len(SMALL)
    assert len(dmar.units) <= 2


@given(st.binary(max_size=300))
def test_any_structures_are_read(body: bytes) -> None:
    parse_dmar(table(body))


def test_a_structure_without_length_ends_the_list() -> None:
    dmar = parse_dmar(table(drhd(0xFED90000, 0, 1), bytes(8)))
    assert len(dmar.units) == 1
    assert "length 0" in dmar.problems[0]


# -- AMD ----------------------------------------------------------------------------------


def block(kind: int, rid: int, base: int, *entries: bytes, segment: int = 0) -> bytes:
    body = b"".join(entries)
    more = b"" if kind == 0x10 else struct.pack("<QQ", 0x29D3, 0)
    header = struct.pack("<BBHHHQHHI", kind, 0, 24 + len(more) + len(body), rid, 0x40, base,
                         segment, 0, 0)  # fmt: skip
    return header + more + body


def plain(kind: int, rid: int) -> bytes:
    return struct.pack("<BHB", kind, rid, 0)


def alias(kind: int, rid: int, as_rid: int) -> bytes:
    return struct.pack("<BHBBHB", kind, rid, 0, 0, as_rid, 0)


def ivmd(kind: int, flags: int, first: int, last: int, base: int, size: int) -> bytes:
    return struct.pack("<BBHHH8xQQ", kind, flags, 32, first, last, base, size)


def ivrs(*blocks: bytes) -> bytes:
    body = b"".join(blocks)
    header = struct.pack(
        "<4sIBB6s8sI4sI", b"IVRS", 48 + len(body), 1, 0, b"BOCHS ", b"BXPC    ", 1, b"BXPC", 1
    )
    data = bytearray(header + struct.pack("<I8x", 48 << 8 | 64 << 15) + body)
    data[9] = -sum(data) & 0xFF
    return bytes(data)


ACPI_DEVICE = struct.pack("<BHB8s8sBB", 0xF0, 0x0098, 0, b"AMDI0040", b"", 2, 4) + b"ABCD"
TWO = ivrs(
    block(0x10, 0x0002, 0xFEB80000, plain(0x02, 0x0008)),
    block(
        0x11,
        0x0002,
        0xFEB80000,
        plain(0x03, 0x0003),
        plain(0x04, 0x3FFE),
        alias(0x42, 0x0200, 0x0100),
        alias(0x43, 0x0300, 0x00A4),
        plain(0x04, 0x03FF),
        bytes(4),
        struct.pack("<BHBBHB", 0x48, 0, 0xD7, 33, 0x00A0, 1),
    ),
    block(0x40, 0x4002, 0xF4180000, struct.pack("<BHBI", 0x46, 0x4001, 0, 0), ACPI_DEVICE),
    ivmd(0x21, 0x08, 0x0010, 0, 0x7000_0000, 0x10_0000),
    ivmd(0x20, 0x07, 0x1234, 0, 0x8000_0000, 0x1000),
    ivmd(0x22, 0x07, 0x0100, 0x01FF, 0x9000_0000, 0x1000),
)


def test_blocks_ranges_and_memory() -> None:
    found = parse_ivrs(TWO)
    assert found.problems == ()
    assert (found.physical_bits, found.virtual_bits) == (48, 64)
    first, second, third = found.blocks
    assert first == Ivhd(0x10, 0xFEB80000, 0, 2, (RequesterRange(8, 8),))
    assert second.extended_features == 0x29D3
    assert second.ranges == (
        RequesterRange(0x0003, 0x3FFE),
        RequesterRange(0x0200, 0x0200, 0x0100),
        RequesterRange(0x0300, 0x03FF, 0x00A4),
    )
    assert third.ranges == (RequesterRange(0x4001, 0x4001), RequesterRange(0x0098, 0x0098))
    assert found.units == (second, third)
    assert found.reserved == (
        Ivmd(0x21, 0x10, 0x10, 0x7000_0000, 0x700F_FFFF, True),
        Ivmd(0x20, 0, 0xFFFF, 0x8000_0000, 0x8000_0FFF, False),
        Ivmd(0x22, 0x0100, 0x01FF, 0x9000_0000, 0x9000_0FFF, False),
    )


def test_a_block_for_all() -> None:
    (unit,) = parse_ivrs(ivrs(block(0x10, 2, 0x1000, plain(0x01, 0)))).units
    assert unit.ranges == (RequesterRange(0, 0xFFFF),)
    assert unit.has(0xFFFF)


def test_a_newer_block_is_preferred_wherever_it_stands() -> None:
    mixed = block(0x40, 2, 0x1000, plain(0x02, 1))
    old = block(0x10, 2, 0x1000, plain(0x02, 2))
    for order in ((mixed, old), (old, mixed)):
        (unit,) = parse_ivrs(ivrs(*order)).units
        assert unit.type == 0x40
    other = block(0x10, 2, 0x2000, plain(0x02, 3), segment=1)
    assert len(parse_ivrs(ivrs(old, other)).units) == 2


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([plain(0x03, 5)], "from 0x0005 has no end"),
        ([plain(0x04, 5)], "ends at 0x0005 without a start"),
        ([plain(0x03, 9), plain(0x04, 5)], "ends at 0x0005 without a start"),
        ([b"\x42\0\0\0"], "type 0x42 is cut off"),
        ([ACPI_DEVICE[:-1]], "type 0xf0 is cut off"),
    ],
)
def test_what_is_wrong_with_ranges_is_told(entries: list[bytes], words: str) -> None:
    (problem,) = parse_ivrs(ivrs(block(0x11, 2, 0x1000, *entries))).problems
    assert words in problem


def test_another_table_is_not_ivrs() -> None:
    with pytest.raises(LabError, match="not an ACPI IVRS table") as caught:
        parse_ivrs(SMALL)
    assert "AMD-Vi" in caught.value.hint


@given(st.integers(48, len(TWO)))
def test_a_cut_ivrs_is_read_as_far_as_it_goes(length: int) -> None:
    found = parse_ivrs(TWO[:length])
    assert found.problems or length == len(TWO)
    assert len(found.blocks) <= 3


@given(st.binary(max_size=300))
def test_any_blocks_are_read(body: bytes) -> None:
    for unit in parse_ivrs(ivrs(body)).units:
        assert all(part.first <= part.last for part in unit.ranges)


@given(st.sampled_from([0x10, 0x11, 0x40]), st.binary(max_size=100))
def test_any_device_entries_are_read(kind: int, entries: bytes) -> None:
    (unit,) = parse_ivrs(ivrs(block(kind, 2, 0x1000, entries))).units
    assert (unit.base, unit.requester_id) == (0x1000, 2)
