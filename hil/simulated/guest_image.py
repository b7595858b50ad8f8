"""What a simulated guest's disk holds: one line that says which system would boot from it.

A real image would be gigabytes that nothing here could execute.  This one begins with a
line of JSON, and the rest of the disk is whatever its file has::

    {"hil-simulated-guest": 1, "os": "freebsd", "release": "13.2-RELEASE", …}
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

_MARK = "hil-simulated-guest"
#: Bytes in which the line must end.
HEAD = 4096


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A FreeBSD guest's system disk."""

    os: str = "freebsd"
    release: str = "13.2-RELEASE"
    kernel: str = "GENERIC"
    hostname: str = "bhyveguest"
    python: bool = True
    """Whether Python 3 is installed."""

    def contents(self) -> bytes:
        """The first bytes of the disk."""
        return json.dumps({_MARK: 1, **asdict(self)}).encode() + b"\n"

    @classmethod
    def parse(cls, head: bytes) -> GuestImage | None:
        """What the first :data:`HEAD` bytes of a disk say; ``None`` where nothing can boot."""
        line = head[:HEAD].partition(b"\n")[0]
        try:
            values = json.loads(line)
            if values.pop(_MARK) != 1:
                return None
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
