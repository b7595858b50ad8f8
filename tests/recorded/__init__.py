"""What real hosts printed, kept to the byte (see README.md beside this)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
#: The release that a name without one stands for.
DEFAULT = "freebsd-13.2"

_HEAD = re.compile(rb"# command: (.*)\n# rc: (\d+)\n# seconds: (\d+)\n")
_STREAM = re.compile(rb"--- (stdout|stderr) \((\d+) bytes\) ---\n")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One command and what came of it."""

    name: str
    """``1-host-setup/017-pciconf-lvbc``"""
    command: str
    """As it was typed in a root shell."""
    status: int
    seconds: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output, decoded leniently."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def errors(self) -> str:
        """Standard error, decoded leniently."""
        return self.stderr.decode("utf-8", "replace")


def recorded(name: str, release: str = DEFAULT) -> Recorded:
    """The recording of that name: a folder and a file without its ``.txt``.

    The file's number alone will do: ``1-host-setup/017``.
    """
    folder, _, file = name.partition("/")
    found = [*(HERE / release / folder).glob(f"{file}.txt")] or [
        *(HERE / release / folder).glob(f"{file}-*.txt")
    ]
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} recordings are called {release}/{name}")
    return _read(found[0], release)


def all_recorded(release: str = DEFAULT) -> Iterator[Recorded]:
    """Every recording of a release, in order."""
    for path in sorted((HERE / release).glob("*/*.txt")):
        yield _read(path, release)


def console_log(name: str, release: str = DEFAULT) -> bytes:
    """A recorded console, as its bytes came: ``6-iommu-disabled/host-console``."""
    return (HERE / release / f"{name}.log").read_bytes()


def _read(path: Path, release: str) -> Recorded:
    data = path.read_bytes()
    head = _HEAD.match(data)
    if head is None:
        raise ValueError(f"{path}: no head")
    at = head.end()
    streams: dict[bytes, bytes] = {}
    for _ in range(2):
        title = _STREAM.match(data, at)
        if title is None:
            raise ValueError(f"{path}: no stream at byte {at}")
        at = title.end() + int(title[2])
        streams[title[1]] = data[title.end() : at]
    return Recorded(
        name=str(path.relative_to(HERE / release).with_suffix("")),
        command=head[1].decode("utf-8", "replace"),
        status=int(head[2]),
        seconds=int(head[3]),
        stdout=streams[b"stdout"],
        stderr=streams[b"stderr"],
    )
