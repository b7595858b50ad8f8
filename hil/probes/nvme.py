"""NVMe: write, read back, compare hashes.  Base tools in the guest: dd and sha256sum."""

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

    All three are multiples of 512.
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
        transfers.append(Transfer(offset, size if size >= 4096 else size * 8, size))
        offset += size * 8 if size < 4096 else size
        offset += 512 * 3
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
        script = (
            'dd if="$1" bs="$2" skip="$3" count="$4" '
            "iflag=direct,skip_bytes,count_bytes status=none | sha256sum"
        )
        numbers = [str(transfer.block), str(transfer.offset), str(transfer.length)]
        result = guest.run(["sh", "-c", script, "hil", disk, *numbers], seconds=60).check()
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
    command = ["dd", f"of={disk}", f"bs={transfer.block}", f"seek={transfer.offset}"]
    command += ["iflag=fullblock", "oflag=direct,seek_bytes", "conv=notrunc", "status=none"]
    guest.run(command, stdin=data, seconds=60).check()


def _read(guest: Guest, disk: str, transfer: Transfer) -> bytes:
    command = ["dd", f"if={disk}", f"bs={transfer.block}", f"skip={transfer.offset}"]
    command += [f"count={transfer.length}", "iflag=direct,skip_bytes,count_bytes", "status=none"]
    return guest.run(command, seconds=60).check().out
