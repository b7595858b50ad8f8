from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import InventoryError
from hil.pci.address import Address

addresses = st.builds(
    Address,
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 255),
    st.integers(0, 31),
    st.integers(0, 7),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0000:03:00.0", Address(0, 3, 0, 0)),
        ("03:1f.7", Address(0, 3, 31, 7)),
        ("0001:FF:0a.1", Address(1, 255, 10, 1)),
        ("10000:e1:00.0", Address(0x10000, 0xE1, 0, 0)),
        ("pci0:3:0:0", Address(0, 3, 0, 0)),
        ("pci2:10:31:7", Address(2, 10, 31, 7)),
        ("pci3:0:1", Address(0, 3, 0, 1)),
        ("3/0/0", Address(0, 3, 0, 0)),
        ("255/31/7", Address(0, 255, 31, 7)),
        (" 3/0/0\n", Address(0, 3, 0, 0)),
    ],
)
def test_every_form_is_read(text: str, expected: Address) -> None:
    assert Address.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "3", "em0", "3/0", "03:00", "03:00.8", "03:20.0", "256/0/0", "3/32/0", "3/0/8",
     "0000:103:00.0", "pci0:256:0:0", "pci0:3:0:0:0", "03:00.0x", "٣/0/0", "x" * 5000],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InventoryError) as caught:
        Address.parse(text)
    assert "0000:03:00.0" in caught.value.hint
    assert len(caught.value.message) < 200


@given(addresses)
def test_each_form_leads_back(address: Address) -> None:
    assert Address.parse(address.bdf) == address
    assert Address.parse(address.selector) == address
    assert Address.parse(address.slashes) == Address(0, *address_without_domain(address))
    assert Address.from_requester_id(address.requester_id, address.domain) == address
    assert str(address) == address.bdf


def address_without_domain(address: Address) -> tuple[int, int, int]:
    return address.bus, address.device, address.function


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with contextlib.suppress(InventoryError):
        Address.parse(text)


def test_they_sort_by_number_and_serve_as_keys() -> None:
    low, high = Address.parse("02:0a.0"), Address.parse("10:00.0")
    assert sorted([high, low]) == [low, high]
    assert {low: 1}[Address(0, 2, 10, 0)] == 1


def test_a_requester_id_has_16_bits() -> None:
    assert Address.parse("03:02.1").requester_id == 0x0311
    with pytest.raises(InventoryError):
        Address.from_requester_id(0x10000)
