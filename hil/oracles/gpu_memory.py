"""Is a GPU's memory what was put there, and nobody else's?"""

from __future__ import annotations

from hil.errors import GuestError, ProductError
from hil.oracles.pattern import WORD, origin, tagged
from hil.probes.compute import Compute, Moved, Search, WrongRun

#: Of a card's memory: the rest is its driver's.
MOST = 0.9


def hold(card: Compute, size: int, *, touch: bool = True) -> int:
    """Take ``size`` bytes of device memory; see :meth:`Compute.hold`.

    Raises:
        GuestError: so much was not to be had, and a test would say too little.
    """
    held = card.hold(size, touch=touch)
    # Blocks are of whole grains: up to 63 bytes are never asked for.
    if held < size - 63:
        raise GuestError(
            f"{held >> 20} MiB of device memory were to be had, not {size >> 20} MiB",
            hint="does the guest's own desktop, or another program, use the card?",
        )
    return held


def hold_most(card: Compute, *, touch: bool = True) -> int:
    """Take 90 % of the card's memory; how many bytes that are."""
    return hold(card, int(card.device.memory * MOST), touch=touch)


def check_moved(moved: Moved, what: str, size: int) -> None:
    """``size`` bytes were looked at, and each stood where it belongs.

    Args:
        moved: what a look found.
        what: how it came there, for the message: ``made by the CPU, seen by a kernel``.
        size: bytes that had to be looked at.

    Raises:
        ProductError: with the first wrong words, and where they come from.
    """
    if moved.bytes < size:
        raise GuestError(f"{what}: {moved.bytes} bytes were looked at, not {size}")
    if moved.wrong:
        lines = []
        for run in moved.runs[:20]:
            expected = tagged(moved.tag, run.address, WORD)
            lines.append(
                f"{run.words} word(s) from {run.address:#x}: expected {expected.hex()}, got "
                f"{run.got[:WORD].hex()} ({_what(run, expected, moved.tag)})"
            )
        raise ProductError(
            f"{what}: {moved.wrong * WORD} of {moved.bytes} bytes are wrong",
            seen="\n".join(lines),
            hint="addresses count from the start of the memory that was held",
        )


def _what(run: WrongRun, expected: bytes, tag: int) -> str:
    got = run.got[:WORD]
    wrong = int.from_bytes(got, "little") ^ int.from_bytes(expected, "little")
    # Addresses differ in one bit too: of a page that moved, many words do.
    if run.words == 1 and wrong.bit_count() == 1:
        return f"bit {wrong.bit_length() - 1} is the other way round"
    return origin(got, tag, run.address)


def check_no_remains(search: Search, size: int) -> None:
    """GP8: device memory that is given out holds nothing of whoever had it before.

    Args:
        search: for the pattern of whoever had it before.
        size: bytes that had to be looked at.

    Raises:
        ProductError: it does: a data leak, with where and how much.
    """
    if search.bytes < size:
        raise GuestError(f"{search.bytes} bytes were searched, not {size}")
    if search.found:
        raise ProductError(
            f"data leak: {search.found} of {search.bytes} bytes of device memory are another's",
            seen="\n".join(
                f"{run.size} bytes at {run.address:#x}, where their maker had them at {run.said:#x}"
                for run in search.runs[:20]
            ),
            hint="whoever passes the card on must clear its memory, or have its driver do so",
        )
