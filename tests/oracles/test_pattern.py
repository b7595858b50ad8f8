from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from hil.oracles.pattern import compare, tagged

TAG, ADDRESS = 0xABCDEF, 0x12_3456_7000


def test_each_word_holds_the_tag_and_its_own_address() -> None:
    words = struct.unpack("<4Q", tagged(TAG, ADDRESS, 32))
    assert words == tuple(TAG << 40 | ADDRESS + 8 * n for n in range(4))


@given(st.integers(0, 1 << 40), st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 3000))
def test_a_part_of_a_pattern_is_the_pattern_of_that_part(
    address: int, length: int, start: int, size: int
) -> None:
    whole = tagged(TAG, address, length)
    assert len(whole) == length
    start, end = min(start, length), min(start + size, length)
    assert whole[start:end] == tagged(TAG, address + start, end - start)


@given(
    st.integers(0, 1 << 39),
    st.integers(1, 5000),
    st.dictionaries(st.integers(0, 4999), st.integers(1, 255), max_size=30),
)
def test_every_changed_byte_is_in_a_run_that_is_told(
    address: int, length: int, flips: dict[int, int]
) -> None:
    expected = tagged(TAG, address, length)
    got = bytearray(expected)
    wrong = {at for at in flips if at < length}
    for at in wrong:
        got[at] ^= flips[at]
    runs = compare(expected, bytes(got), address, TAG)
    assert bool(runs) == bool(wrong)
    told = [(run.address - address, run.address - address + run.length) for run in runs]
    for at in wrong:
        assert any(start <= at < end for start, end in told)
    for start, end in told:
        assert {start, end - 1} <= wrong
        assert expected[start] != got[start]


def test_swapped_pages_are_recognised() -> None:
    pages = [tagged(TAG, ADDRESS + 4096 * n, 4096) for n in range(2)]
    (first,) = compare(b"".join(pages), pages[1] + pages[0], ADDRESS, TAG)
    assert ADDRESS <= first.address < ADDRESS + 8
    assert first.length > 8000
    assert first.origin == f"this run's bytes for {ADDRESS + 4096:#x}, found at {ADDRESS:#x}"
    assert f"at {first.address:#x}: expected" in str(first)


def test_what_the_wrong_bytes_are_is_told() -> None:
    expected = tagged(TAG, ADDRESS, 64)
    for content, origin in (
        (bytes(8), "zeros"),
        (b"\xff" * 8, "all ones"),
        (tagged(TAG ^ 1, ADDRESS + 8, 8), "foreign content"),
    ):
        (run,) = compare(expected, expected[:8] + content + expected[16:], ADDRESS, TAG)
        assert run.origin == origin
    (run,) = compare(expected[:3], b"\0\1\2", ADDRESS, TAG)
    assert run.origin == "too short to tell"


def test_missing_and_surplus_bytes_are_told() -> None:
    expected = tagged(TAG, ADDRESS, 64)
    (run,) = compare(expected, expected[:60], ADDRESS)
    assert (run.address, run.length) == (ADDRESS + 60, 4)
    (run,) = compare(expected, expected + b"x", ADDRESS)
    assert (run.address, run.length, run.got) == (ADDRESS + 64, 1, b"x")
    assert compare(expected, expected, ADDRESS) == ()


def test_no_more_runs_are_told_than_a_person_reads() -> None:
    expected = tagged(TAG, ADDRESS, 1 << 16)
    got = bytearray(expected)
    got[::256] = bytes(b ^ 1 for b in got[::256])
    assert len(compare(expected, bytes(got), ADDRESS, TAG)) == 64
