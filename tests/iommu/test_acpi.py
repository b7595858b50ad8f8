from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import LabError
from hil.iommu.acpi import Drhd, Rmrr, Scope, parse_dmar


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
