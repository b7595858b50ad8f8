"""What changed between two readings of a configuration space, by register name."""

from __future__ import annotations

import difflib

from hil.pci.config import ConfigSpace
from hil.pci.words import describe


def difference(before: ConfigSpace, after: ConfigSpace) -> str:
    """A unified difference of both descriptions, without context; empty if they agree.

    Only what :func:`hil.pci.words.describe` shows counts: bytes of capabilities that
    it does not parse are compared as one line, ``other bytes``.
    """
    lines = difflib.unified_diff(
        [*describe(before).splitlines(), *_unparsed(before, after)],
        [*describe(after).splitlines(), *_unparsed(after, before)],
        "before",
        "after",
        lineterm="",
        n=0,
    )
    return "\n".join(line for line in lines if not line.startswith("@@"))


def _unparsed(config: ConfigSpace, other: ConfigSpace) -> list[str]:
    """A line that differs if both read alike and yet hold different bytes."""
    if config.data == other.data or describe(config) != describe(other):
        return []
    length = min(len(config.data), len(other.data))
    differing = [n for n in range(length) if config.data[n] != other.data[n]]
    shown = ", ".join(f"{n:#05x}={config.data[n]:02x}" for n in differing[:16])
    more = f" and {len(differing) - 16} more" if len(differing) > 16 else ""
    sizes = "" if len(config.data) == len(other.data) else f"{len(config.data)} bytes; "
    return [f"other bytes: {sizes}{shown}{more}"]
