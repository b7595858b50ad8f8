"""NVMe: write, read back, compare hashes.  Base tools in the guest: dd and SHA-256."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from hil.errors import GuestError
from hil.guests.guest import Guest
from hil.oracles.dma import check_equal
from hil.oracles.pattern import tagged

SECTOR = 512


@dataclass(frozen=True, slots=True)
class Transfer:
    """``length`` bytes at ``offset`` of the disk, in requests of ``block`` bytes.

    ``block`` is a multiple of 512, the others are multiples of ``block``.
    """

    offset: int
    length: int
    block: int


def default_transfers() -> tuple[Transfer, ...]:
    """Requests from one sector to 2 MiB, and one sector to either side of round sizes."""
    sizes = [512, 1024, 4096 - 512, 4096, 4096 + 512, 65536, (1 << 20) - 512, 1 << 20]
    sizes += [(1 << 20) + 512, (2 << 20) - 512, 2 << 20, (2 << 20) + 512]
    transfers, offset = [], 512
    for size in sizes:
        offset = -(-offset // size) * size
        length = size if size >= 4096 else size * 8
        transfers.append(Transfer(offset, length, size))
        offset += length + 512 * 3
    return tuple(transfers)


def write_and_read_back(
    guest: Guest, disk: str, transfers: Sequence[Transfer], *, spoil: bool = False
) -> int:
    """Each transfer reads back as it was written, by hash.  Returns the bytes written.

    The pattern says for each 8 bytes where on the disk they belong.  ``spoil`` overwrites
    one sector in between by another request: the control.

    Raises:
        ProductError: with the first bytes that differ.
    """
    written = 0
    tag = secrets.randbits(24)
    for transfer in transfers:
        data = tagged(tag, transfer.offset, transfer.length)
        _dd(guest, disk, transfer, data)
        if spoil:
            middle = transfer.offset + transfer.length // 2 // SECTOR * SECTOR
            _dd(guest, disk, Transfer(middle, SECTOR, SECTOR), secrets.token_bytes(SECTOR))
        digest = guest.os.disk_digest(disk, *_blocks(transfer))
        result = guest.run(digest, seconds=60).check()
        if result.stdout.split()[:1] != [hashlib.sha256(data).hexdigest()]:
            check_equal(
                data, _read(guest, disk, transfer), transfer.offset, f"{disk} {transfer}", tag
            )
            raise GuestError(
                f"{disk} hashed wrong and then read right",
                seen=result.stdout,
                hint="the device may return old data once: look at the transfers before",
            )
        written += transfer.length
    return written


def _dd(guest: Guest, disk: str, transfer: Transfer, data: bytes) -> None:
    block, number, _ = _blocks(transfer)
    guest.run(guest.os.disk_write(disk, block, number), stdin=data, seconds=60).check()


def _read(guest: Guest, disk: str, transfer: Transfer) -> bytes:
    return guest.run(guest.os.disk_read(disk, *_blocks(transfer)), seconds=60).check().out


def _blocks(transfer: Transfer) -> tuple[int, int, int]:
    """Size, number of the first, and count."""
    block = transfer.block
    return block, transfer.offset // block, transfer.length // block
