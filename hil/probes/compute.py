"""A GPU's memory, through OpenCL in the guest (:mod:`hil.probes.remote.in_guest_opencl`).

Nothing is installed: the program needs pyopencl and the vendor's OpenCL in the guest's image.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from hil import events
from hil.bench import BenchDevice
from hil.deadline import Deadline
from hil.errors import CommandError, GuestError
from hil.gpu.link import links
from hil.guests.guest import Guest
from hil.pci.address import Address
from hil.transport.agent import Agent, AgentEndedError, AgentError, program
from hil.transport.base import Transport

#: Bytes in a second that even the slowest way through memory does: for deadlines only.
_SLOWEST = 100 << 20


class NoComputeError(GuestError):
    """The guest's image lacks what OpenCL needs; the message says what, for a person."""


@dataclass(frozen=True, slots=True)
class ComputeDevice:
    """A device as OpenCL describes it.  Sizes are in bytes."""

    index: int
    name: str
    platform: str
    version: str
    driver: str
    gpu: bool
    memory: int
    largest: int
    """Largest buffer."""
    address: Address | None
    """In the guest; ``None`` where the vendor's OpenCL does not tell."""

    def __str__(self) -> str:
        return f"{self.name} ({self.platform}, driver {self.driver}, {self.memory >> 20} MiB)"


@dataclass(frozen=True, slots=True)
class WrongRun:
    """Words of 8 bytes, one after the other, that are not what they should be.

    ``address`` counts from the start of what is held.
    """

    address: int
    words: int
    got: bytes
    """What is there, its first 64 bytes at most."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What one step did: bytes, seconds, and (of a look) what was wrong."""

    bytes: int
    seconds: float
    tag: int
    wrong: int = 0
    """Words of 8 bytes."""
    runs: tuple[WrongRun, ...] = ()
    """The first of them, at most 64."""

    @property
    def rate(self) -> float:
        """Bytes in a second."""
        return self.bytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Remains:
    """Somebody else's pattern, found in memory that was given out."""

    address: int
    size: int
    """Bytes."""
    said: int
    """The address in its first word: where its maker had it."""


@dataclass(frozen=True, slots=True)
class Search:
    """``bytes`` looked at; ``found`` of them were the pattern, in ``runs`` (at most 64)."""

    bytes: int
    found: int
    runs: tuple[Remains, ...]


def parse_devices(answer: Mapping[str, Any]) -> tuple[ComputeDevice, ...]:
    """What the program's ``devices`` answers, as objects; shapes as it documents them."""
    return tuple(
        ComputeDevice(
            index=index,
            name=str(row["name"])[:100],
            platform=str(row["platform"])[:100],
            version=str(row["version"])[:100],
            driver=str(row["driver"])[:100],
            gpu=bool(row["gpu"]),
            memory=int(row["memory"]),
            largest=int(row["largest"]),
            address=Address(*row["place"]) if row["place"] else None,
        )
        for index, row in enumerate(answer["devices"])
    )


def choose(devices: Sequence[ComputeDevice], address: Address) -> ComputeDevice:
    """The one at ``address`` in the guest; else the only GPU, if none tells its address.

    Raises:
        GuestError: none is, or it cannot be told which.
    """
    for device in devices:
        if device.address == address:
            return device
    silent = [device for device in devices if device.gpu and device.address is None]
    if len(silent) == 1:
        return silent[0]
    raise GuestError(
        f"OpenCL in the guest has no device at {address}"
        + (f", and {len(silent)} GPUs that do not tell their addresses" if silent else ""),
        seen="\n".join(f"{device.address or 'no address'}: {device}" for device in devices),
        hint="is the vendor's driver for the card loaded, and its OpenCL installed?",
    )


class Compute:
    """An OpenCL device of the guest behind ``transport``.

    Args:
        transport: leads to the guest.
        limit: makes a deadline of the guest's pace, as :meth:`hil.guests.guest.Guest.limit`.
        choose: takes one of the devices that OpenCL lists.

    Raises:
        NoComputeError: there is no Python 3, no pyopencl, or no vendor's OpenCL.
        GuestError: there are, and still no device.
    """

    def __init__(
        self,
        transport: Transport,
        limit: Callable[[float, str], Deadline],
        choose: Callable[[Sequence[ComputeDevice]], ComputeDevice],
    ) -> None:
        self._limit = limit
        code = program("hil.probes.remote", "in_guest_opencl")
        try:
            self._agent = Agent(transport, code, limit(30, "the OpenCL program"))
        except (AgentEndedError, CommandError) as error:
            raise NoComputeError(
                "the guest cannot run the OpenCL program",
                seen=error.seen,
                hint="has its image Python 3?",
            ) from error
        try:
            answer = self._ask("devices", seconds=120)
            if answer["reason"]:
                raise NoComputeError(str(answer["reason"])[:500])
            self.device = choose(parse_devices(answer))
            self._ask("open", seconds=120, number=self.device.index)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program, which gives back all memory.  Safe to call twice."""
        self._agent.close()

    def hold(self, size: int, *, touch: bool = True) -> int:
        """Take ``size`` bytes of device memory in place of what was held; how many there were.

        ``touch=False`` leaves their content as the driver gives it.
        """
        return int(self._ask("hold", size=size, moved=size, touch=touch))

    def release(self) -> None:
        """Give all of it back."""
        self._ask("release")

    def make_on_device(self, tag: int) -> Moved:
        """A kernel fills what is held with the pattern of ``tag`` (24 bits)."""
        return self._moved("make_on_device", tag)

    def make_on_host(self, tag: int, *, pinned: bool) -> Moved:
        """The CPU makes the pattern and sends it."""
        return self._moved("make_on_host", tag, pinned=pinned)

    def verify_on_device(self, tag: int) -> Moved:
        """A kernel compares."""
        return self._moved("verify_on_device", tag)

    def verify_on_host(self, tag: int, *, pinned: bool) -> Moved:
        """All is fetched, and the CPU compares."""
        return self._moved("verify_on_host", tag, pinned=pinned)

    def queues(
        self, tag: int, *, count: int, size: int, rounds: int = 4, cross: bool = False
    ) -> Moved:
        """``count`` queues at once send, copy and fetch ``size`` bytes each; the CPU compares.

        ``cross``: each copies its neighbour's buffer, a control.
        """
        moved = rounds * count * size
        answer = self._ask(
            "queues", moved=moved, tag=tag, count=count, size=size, rounds=rounds, cross=cross
        )
        return _moved(answer, tag)

    def search(self, tag: int) -> Search:
        """Look for somebody else's pattern of ``tag`` in what is held, and not yet written to."""
        answer = self._ask("search", moved=self.device.memory, tag=tag)
        runs = tuple(Remains(*map(int, run)) for run in answer["runs"])
        return Search(int(answer["bytes"]), int(answer["found"]), runs)

    def flip(self, address: int, bit: int) -> None:
        """A control: change one bit of what is held."""
        self._ask("flip", address=address, bit=bit)

    def swap(self, first: int, second: int, size: int = 4096) -> None:
        """A control: exchange two pages of what is held."""
        self._ask("swap", first=first, second=second, size=size)

    def _moved(self, what: str, tag: int, **arguments: bool) -> Moved:
        return _moved(self._ask(what, moved=self.device.memory, tag=tag, **arguments), tag)

    def _ask(self, what: str, *, moved: int = 0, seconds: float = 60, **arguments: object) -> Any:
        words = f"{what.replace('_', ' ')} by OpenCL"
        deadline = self._limit(seconds + moved / _SLOWEST, words)
        try:
            return self._agent.ask(what, deadline, **arguments)
        except (AgentError, AgentEndedError) as error:
            raise GuestError(
                error.message, seen=error.seen, hint="the kernel's log in the guest may tell why"
            ) from error


def in_guest(guest: Guest, device: BenchDevice) -> Compute:
    """A passed device, by OpenCL in the guest that has it.

    Raises:
        NoComputeError: the guest's image lacks what OpenCL needs.
        GuestError: it does not, and OpenCL has no such device.
    """
    address = guest.address_of(device.address)
    return Compute(guest.ssh, guest.limit, lambda devices: choose(devices, address))


def report_rates(device: BenchDevice, moves: Mapping[str, Moved]) -> None:
    """Put how fast data went into the report, beside what the card's link can carry.

    ``moves``: by what moved, ``host to device, pinned``.
    """
    now, best = links(device.look().config.pcie)
    lines = [
        f"{what}: {moved.rate / 1e9:.2f} GB/s ({moved.bytes >> 20} MiB in {moved.seconds:.3f} s)"
        for what, moved in moves.items()
    ]
    lines += [f"link now: {now}", f"best link of the card: {best}"]
    name = f"{device.name}: bandwidth beside the link's limit"
    events.emit(events.Evidence(name, "\n".join(lines).encode()))


def _moved(answer: Mapping[str, Any], tag: int) -> Moved:
    runs = tuple(
        WrongRun(int(run["address"]), int(run["words"]), base64.b64decode(run["got"]))
        for run in answer.get("runs", ())
    )
    seconds = float(answer["seconds"])
    return Moved(int(answer["bytes"]), seconds, tag, int(answer.get("wrong", 0)), runs)
