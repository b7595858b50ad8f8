"""Address-tagged patterns: memory content that tells where it belongs.

Each 8 bytes hold a 24-bit tag and their own 40-bit address, so that a wrong content says
what it is: old bytes, another place's bytes (a swapped page), or another run's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

WORD = 8
_ADDRESS_BITS = 40
_ADDRESS = (1 << _ADDRESS_BITS) - 1


def tagged(tag: int, address: int, length: int) -> bytes:
    """``length`` bytes of the pattern of ``tag`` (24 bits) from ``address`` on."""
    first = address - address % WORD
    last = -(-(address + length) // WORD) * WORD
    head = (tag & 0xFFFFFF) << _ADDRESS_BITS
    words = struct.pack(
        f"<{(last - first) // WORD}Q",
        *(head | (at & _ADDRESS) for at in range(first, last, WORD)),
    )
    return words[address - first : address - first + length]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A run of wrong bytes.  ``address`` is where it starts, ``length`` in bytes."""

    address: int
    length: int
    expected: bytes
    got: bytes
    """The first bytes of each, at most 16."""
    origin: str
    """What the wrong content is, as far as it tells."""

    def __str__(self) -> str:
        return (
            f"{self.length} wrong bytes at {self.address:#x}: expected {self.expected.hex()}…, "
            f"got {self.got.hex()}… ({self.origin})"
        )


def compare(expected: bytes, got: bytes, address: int, tag: int = -1) -> tuple[Mismatch, ...]:
    """Where ``got`` differs from ``expected``; empty if they are the same.

    ``tag`` is that of the expected pattern, to tell a misplaced word from a foreign one.
    At most 64 runs are told.
    """
    if expected == got:
        return ()
    mismatches = []
    for start, end in _runs(expected, got):
        first = start - (address + start) % WORD if (address + start) % WORD <= start else start
        word = got[first : first + WORD]
        mismatches.append(
            Mismatch(
                address + start,
                end - start,
                expected[start : start + 16],
                got[start : start + 16],
                origin(word, tag, address + first),
            )
        )
        if len(mismatches) == 64:
            break
    if len(expected) != len(got):
        short = min(len(expected), len(got))
        mismatches.append(
            Mismatch(
                address + short,
                abs(len(expected) - len(got)),
                expected[short : short + 16],
                got[short : short + 16],
                f"{len(got)} bytes instead of {len(expected)}",
            )
        )
    return tuple(mismatches)


def _runs(expected: bytes, got: bytes) -> Iterator[tuple[int, int]]:
    """Ranges of difference; ranges less than a word apart are joined."""
    start = end = -1
    for index, (a, b) in enumerate(zip(expected, got, strict=False)):
        if a == b:
            continue
        if start >= 0 and index - end < WORD:
            end = index + 1
            continue
        if start >= 0:
            yield start, end
        start, end = index, index + 1
    if start >= 0:
        yield start, end


def origin(word: bytes, tag: int, address: int) -> str:
    """What the 8 bytes at ``address`` are, where the pattern of ``tag`` should be; in words."""
    if len(word) < WORD:
        return "too short to tell"
    if word == bytes(WORD):
        return "zeros"
    if word == b"\xff" * WORD:
        return "all ones"
    (value,) = struct.unpack("<Q", word)
    if tag >= 0 and value >> _ADDRESS_BITS == tag & 0xFFFFFF:
        return f"this run's bytes for {value & _ADDRESS:#x}, found at {address:#x}"
    return "foreign content"
