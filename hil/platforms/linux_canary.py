"""Canary memory on a Linux host: a tmpfs file that nothing may change.

Base tools only.  The file holds copies of the block of :mod:`hil.platforms.canary`.
"""

from __future__ import annotations

import re
import secrets

from hil.deadline import Deadline
from hil.journal import Entry, Journal, Undo
from hil.platforms import canary
from hil.platforms.linux_undo import FOLDER
from hil.transport.base import Transport

#: Blocks that one cat(1) writes: to start one takes longer than what it does.
_ROW = 16

_BLOCKS = f"""
blocks() {{
    i=0
    while [ "$i" -lt $(($2 / {_ROW})) ]; do cat "$1/row"; i=$((i + 1)); done
    i=0
    while [ "$i" -lt $(($2 % {_ROW})) ]; do cat "$1/block"; i=$((i + 1)); done
}}
"""

_FILL = f"""{_BLOCKS}
set -e
umask 077
mkdir "$1"
cat > "$1/block"
cat {'"$1/block" ' * _ROW}> "$1/row"
blocks "$1" "$2" > "$1/memory"
"""

# cmp(1) prints "offset octal octal" of each differing byte, offsets from 1.
_CHECK = (
    _BLOCKS
    + r"""
blocks "$1" "$2" | cmp -l - "$1/memory" 2>&1 |
    awk '{ page = int(($1 - 1) / 4096)
           if ($1 !~ /^[0-9]+$/) print "error " $0
           else if (page != last || NR == 1) print "page", page, $1 - 1, $2, $3
           last = page }' |
    head -n 200
[ "$(wc -c < "$1/memory")" -eq "$3" ] || echo "error its size is now $(wc -c < "$1/memory")"
"""
)


class FileCanary:
    """Filled with :meth:`fill`; see :class:`hil.platforms.contract.Canary`."""

    def __init__(
        self, transport: Transport, journal: Journal, entry: Entry, directory: str, blocks: int
    ) -> None:
        self._transport = transport
        self._journal = journal
        self._entry = entry
        self._directory = directory
        self._blocks = blocks

    @classmethod
    def fill(
        cls, transport: Transport, journal: Journal, size: int, deadline: Deadline
    ) -> FileCanary:
        """``size`` bytes (rounded up to 64 KiB) of the host's memory."""
        block, blocks = canary.blocks(size)
        directory = f"/dev/shm/hil-canary.{journal.run}.{secrets.token_hex(4)}"  # noqa: S108 - tmpfs
        entry, result = journal.change(
            Undo(FOLDER.name, (directory,)),
            ["sh", "-c", _FILL, "hil", directory, str(blocks)],
            stdin=block,
            deadline=deadline,
        )
        if result.status != 0:
            journal.undo(entry, deadline)
            result.check(hint="is there room in /dev/shm?")
        return cls(transport, journal, entry, directory, blocks)

    def changes(self, deadline: Deadline) -> tuple[str, ...]:
        """One line for each changed page, with its first wrong byte."""
        command = ["sh", "-c", _CHECK, "hil", self._directory]
        command += [str(self._blocks), str(self._blocks * canary.BLOCK)]
        text = self._transport.run(command, deadline=deadline).check().stdout
        return parse_changes(text)

    def spoil(self, offset: int, data: bytes, deadline: Deadline) -> None:
        """Change it on purpose."""
        command = ["dd", f"of={self._directory}/memory", f"bs={len(data)}", "count=1"]
        command += [f"seek={offset}", "oflag=seek_bytes", "conv=notrunc", "status=none"]
        self._transport.run(command, stdin=data, deadline=deadline).check()

    def close(self, deadline: Deadline) -> None:
        """Free the memory."""
        self._transport.run(["rm", "-rf", self._directory], deadline=deadline).check()
        self._journal.forget(self._entry)


def parse_changes(text: str) -> tuple[str, ...]:
    """Sentences from what the check printed; an unknown line is told as it stands."""
    changes = []
    for line in text.splitlines():
        match = re.fullmatch(r"page (\d+) (\d+) ([0-7]+) ([0-7]+)", line)
        if match:
            page, offset = int(match[1]), int(match[2])
            was, now = int(match[3], 8), int(match[4], 8)
            changes.append(canary.changed(page, offset, was, now))
        elif line.strip():
            changes.append(line.removeprefix("error ")[:300])
    return tuple(changes)
