"""What canary memory is filled with on all platforms, and how a change of it is told.

Copies of one block whose every 8 bytes carry a random tag and their own offset, so that a
stray write shows wherever it lands.
"""

from __future__ import annotations

import secrets
import struct

BLOCK = 65536
"""Bytes of the block."""


def blocks(size: int) -> tuple[bytes, int]:
    """A block with a new tag, and how many of it make at least ``size`` bytes."""
    tag = secrets.randbits(48)
    block = b"".join(struct.pack("<Q", tag << 16 | at) for at in range(BLOCK // 8))
    return block, max(1, -(-size // BLOCK))


def changed(page: int, offset: int, was: int, now: int) -> str:
    """That the byte at ``offset``, in ``page``, is another one than it was."""
    return f"page {page}: byte {offset:#x} was {was:#04x} and is {now:#04x}"
