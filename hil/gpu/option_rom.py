"""An option ROM of our own, for emulated cards: valid, recognisable, and without effect.

PCI Firmware Specification 3.0, section 5.1: a header (AA55h), a PCI data structure ("PCIR"), one
image for PCs.  Firmware that runs it comes back at once, so that a machine boots as without it.
"""

from __future__ import annotations

import struct

#: Bytes that an image's length counts.
UNIT = 512
#: Where the PCI data structure stands; a multiple of 4.
_PCIR = 0x1C
_REVISION, _LENGTH = 3, 0x1C
#: Code type: for PCs.  Indicator: the last image.
_PC, _LAST = 0, 0x80
#: Where the text begins.
TEXT = 0x40
#: x86's far return: all that the entry point does.
_RETURN = 0xCB


def make(vendor: int, device: int, class_code: int, text: str, units: int = 8) -> bytes:
    """A ROM with one image, whose bytes are as good as any other's.

    Args:
        vendor: the card's PCI vendor id.
        device: its device id.
        class_code: its class, 24 bits.
        text: stands there again and again, numbered, so that a part that is moved shows.
        units: its length, in units of :data:`UNIT` bytes, at most 127.
    """
    length = units * UNIT
    rom = bytearray(_numbered(text, length))
    rom[:_PCIR] = struct.pack("<HBB", 0xAA55, units, _RETURN).ljust(_PCIR, b"\0")
    struct.pack_into("<H", rom, 0x18, _PCIR)
    data = struct.pack(
        "<4sHHHHB3sHHBBHHH",
        *(b"PCIR", vendor, device, 0, _LENGTH, _REVISION, class_code.to_bytes(3, "little")),
        *(units, 1, _PC, _LAST, units, 0, 0),
    )
    rom[_PCIR:TEXT] = data.ljust(TEXT - _PCIR, b"\0")
    rom[-1] = 0
    rom[-1] = -sum(rom) & 0xFF  # all bytes of an image add up to 0 (5.1.1)
    return bytes(rom)


def _numbered(text: str, length: int) -> bytes:
    lines = (f"{text} {at:06x}\n" for at in range(length))
    filled = b""
    while len(filled) < length:
        filled += next(lines).encode("ascii")
    return filled[:length]
