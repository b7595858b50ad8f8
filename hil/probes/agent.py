"""Talk to the user-space driver that runs in a guest (:mod:`hil.probes.remote.in_guest`)."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from hil.deadline import Deadline
from hil.errors import GuestError
from hil.guests.guest import Guest
from hil.pci.address import Address
from hil.transport.base import ByteStream

_LONGEST_ANSWER = 64 << 20


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """Locked, physically contiguous 2 MiB pages in a guest.

    ``pages`` are guest physical addresses of the pages in order.
    """

    id: int
    size: int
    pages: tuple[int, ...]

    PAGE = 2 << 20

    def physical(self, offset: int) -> int:
        """Guest physical address of the byte at ``offset``."""
        return self.pages[offset // self.PAGE] + offset % self.PAGE


class GuestAgent:
    """One such driver, running as long as this object is open.

    Raises:
        GuestError: the guest has no Python 3, or what is asked of it fails.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._buffer = b""
        code = files("hil.probes.remote").joinpath("in_guest.py").read_text("utf-8")
        deadline = guest.limit(30, "the in-guest driver")
        self._stream: ByteStream = guest.ssh.open_stream(
            ["python3", "-u", "-c", code], deadline=deadline
        )
        self._answer("start", deadline)

    def ask(self, what: str, *, seconds: float = 20, **arguments: object) -> Any:
        """Run one command of the driver and return its answer."""
        deadline = self._guest.limit(seconds, f"{what} by the in-guest driver")
        self._stream.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        return self._answer(what, deadline)

    def _answer(self, what: str, deadline: Deadline) -> Any:
        noise: list[bytes] = []  # stderr is merged in: a traceback, a warning
        while True:
            line = self._line(what, deadline, noise)
            try:
                answer = json.loads(line)
                return answer["ok"]
            except ValueError:
                noise.append(line)
            except KeyError:
                raise GuestError(
                    f"{what} failed in guest {self._guest.name}",
                    seen=str(answer.get("error"))[:2000],
                    console=self._guest.console.log.tail(10),
                ) from None

    def _line(self, what: str, deadline: Deadline, noise: list[bytes]) -> bytes:
        while b"\n" not in self._buffer:
            deadline.check(self._buffer[-500:].decode("utf-8", "replace"))
            data = self._stream.read()
            if not data or len(self._buffer) > _LONGEST_ANSWER:
                raise GuestError(
                    f"the in-guest driver of {self._guest.name} ended during {what}",
                    seen=b"\n".join([*noise[-20:], self._buffer[-2000:]]).decode(
                        "utf-8", "replace"
                    ),
                    hint="has the guest's image Python 3, and its kernel vfio-pci?",
                    console=self._guest.console.log.tail(10),
                )
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def open(self, address: Address) -> None:
        """Take the function from its driver in the guest and switch bus mastering on."""
        self.ask("open", address=str(address))

    def close_function(self, address: Address) -> None:
        """Give the function back to its driver in the guest."""
        self.ask("close", address=str(address))

    def allocate(self, size: int) -> GuestMemory:
        """At least ``size`` bytes of memory for DMA."""
        answer = self.ask("allocate", size=size)
        return GuestMemory(answer["id"], answer["size"], tuple(answer["pages"]))

    def fill(self, memory: GuestMemory, offset: int, data: bytes) -> None:
        """Write ``data`` by the guest's CPU."""
        self.ask("fill", memory=memory.id, offset=offset, data=base64.b64encode(data).decode())

    def dump(self, memory: GuestMemory, offset: int, length: int) -> bytes:
        """Read by the guest's CPU."""
        return base64.b64decode(self.ask("dump", memory=memory.id, offset=offset, length=length))

    def close(self) -> None:
        """End the driver; functions it held stay bound to vfio-pci in the guest."""
        self._stream.close()
