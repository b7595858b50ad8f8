"""Tells the next run on a host which of its devices the run before could not use any more.

A note a device, ``/var/lib/hil/quarantine/NAME`` on a Linux host: it is for people and for the
next run, which looks at the device anew, and keeps nobody from using it.
"""

from __future__ import annotations

from hil.deadline import Deadline
from hil.journal import Dialect
from hil.transport.base import Transport

_LIMIT = 500

# $1 the folder, $2 the file, $3 its text.
_WRITE = 'umask 077; mkdir -p "$1" && printf "%s\\n" "$3" > "$1/$2"'

# $1 the folder; then names.  What has been told is removed.
_READ = r"""
cd "$1" 2>/dev/null || exit 0
shift
for name in "$@"; do
    [ -f "$name" ] || continue
    printf '%s %s\n' "$name" "$(head -n 1 "$name" | head -c 500)"
    rm -f "$name"
done
exit 0
"""


def _folder(dialect: Dialect) -> str:
    return f"{dialect.journal.rpartition('/')[0]}/quarantine"


def note(
    transport: Transport, dialect: Dialect, device: str, reason: str, deadline: Deadline
) -> None:
    """Leave word of a device (its name in the inventory) for the next run."""
    line = " ".join(reason.split())[:_LIMIT]
    command = ["sh", "-c", _WRITE, "hil", _folder(dialect), device, line]
    transport.run(command, deadline=deadline).check()


def told(
    transport: Transport, dialect: Dialect, devices: list[str], deadline: Deadline
) -> dict[str, str]:
    """What the run before left word of, by device; it is told once."""
    command = ["sh", "-c", _READ, "hil", _folder(dialect), *devices]
    text = transport.run(command, deadline=deadline).check().stdout
    lines = (line.partition(" ") for line in text.split("\n"))
    return {name: reason for name, _, reason in lines if name in devices}
