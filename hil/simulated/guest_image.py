"""What a simulated guest's disk holds: one line that says which system would boot from it.

A real image would be gigabytes that nothing here could execute.  This one begins with a
line of JSON, and the rest of the disk is whatever its file has::

    {"hil-simulated-guest": 1, "os": "freebsd", "release": "13.2-RELEASE", …}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

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
    environment: tuple[tuple[str, str], ...] = ()
    """What the loader was told besides: it stands in the guest's kernel environment."""

    def with_environment(self, values: Mapping[str, str]) -> GuestImage:
        """The same image, its loader told ``values``."""
        return replace(self, environment=tuple(values.items()))

    def contents(self) -> bytes:
        """The first bytes of the disk."""
        values = {name: value for name, value in asdict(self).items() if name != "environment"}
        return json.dumps({_MARK: 1, **values}).encode() + b"\n"

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
