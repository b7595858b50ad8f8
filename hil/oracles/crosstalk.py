"""Two guests, two devices: do the bytes of one ever show in the other?"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

from hil.bench import BenchDevice, Peer
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.probes import nic
from hil.probes.edu import edu_engine

PAGE = 4096
#: Pages that each engine writes.
WRITES = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """Two guests and the device that each has."""

    guests: tuple[Guest, Guest]
    devices: tuple[BenchDevice, BenchDevice]

    @property
    def held_by(self) -> dict[Guest, BenchDevice]:
        """The device of each guest."""
        return dict(zip(self.guests, self.devices, strict=True))


def joined(pair: Pair) -> list[Peer]:
    """The far end of each device; both guests have an address of their own on its link."""
    held = zip(pair.guests, pair.devices, strict=True)
    return [nic.join(guest, device, index) for index, (guest, device) in enumerate(held)]


def check_separate(pair: Pair, *, leak: bool = False) -> None:
    """Both guests echo at once, each with a tag of its own in every packet.

    Afterwards each guest's memory, searched from the hypervisor's side, holds its own tag
    (so the search works) and nowhere the other's.  ``leak`` puts the second guest's tag
    into the first one's memory: the control.

    Raises:
        ProductError: packets were lost or changed, or a tag stands where it should not.
    """
    tags = [f"T{secrets.token_hex(5)}" for _ in pair.guests]
    peers = joined(pair)
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(nic.echo, guest, peer, sizes=nic.SIZES[-4:], tag=tag)
            for guest, peer, tag in zip(pair.guests, peers, tags, strict=True)
        ]
        for job in jobs:
            job.result()
    _check_tags(pair, tags, leak)


def check_engines_separate(pair: Pair, *, leak: bool = False) -> None:
    """The same for two DMA engines: both write at once, each its guest's tag all over a page.

    Raises:
        ProductError: a tag stands where it should not, or is not where it was written.
    """
    tags = [f"T{secrets.token_hex(5)}" for _ in pair.guests]
    started = Barrier(2)

    def write(guest: Guest, device: BenchDevice, tag: str) -> None:
        with edu_engine(guest, device) as (engine, memory):
            engine.agent.fill(memory, 0, (tag.encode() * PAGE)[:PAGE])
            engine.copy_in(memory.physical(0), PAGE)
            started.wait(guest.limit(60, "the other engine").remaining)
            for place in range(1, WRITES + 1):
                engine.copy_out(memory.physical(place * PAGE), PAGE)

    with ThreadPoolExecutor(2) as pool:
        for job in [
            pool.submit(write, guest, device, tag)
            for guest, device, tag in zip(pair.guests, pair.devices, tags, strict=True)
        ]:
            job.result()
    _check_tags(pair, tags, leak)


def _check_tags(pair: Pair, tags: list[str], leak: bool) -> None:
    """Each guest's memory holds its own tag, and nowhere the other's."""
    if leak:
        first = pair.guests[0]
        first.run(first.os.hold_text(), stdin=tags[1].encode() * 64).check()
    for guest, own, foreign in zip(pair.guests, tags, reversed(tags), strict=True):
        deadline = guest.limit(40, "the search of its memory")
        found, places = guest.machine.search_physical([own, foreign], deadline)
        if not found:
            raise ProductError(f"the memory of guest {guest.name} does not hold its own tag {own}")
        if places:
            raise ProductError(
                f"guest {guest.name} holds bytes of the other guest",
                seen=f"tag {foreign} at {', '.join(hex(p) for p in places[:10])}",
            )
