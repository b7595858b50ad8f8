"""QEMU's ``edu`` DMA engines behind an IOMMU, driven without a guest, and what is compared."""

from __future__ import annotations

import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

import pytest

from hil.deadline import Deadline, poll
from hil.emulated.qtest import QTest
from hil.errors import LabError
from hil.iommu.tables import Tables, TranslationFault
from tests.iommu.memory_image import PAGE, MemoryImage

EDU = "edu,dma_mask=0xffffffffffffffff"
DEVICE_BUFFER = 0x40000

TABLES = 0x100_0000
WINDOW = 0x300_0000
"""Where the device's buffer is filled from and read back to."""
ARENA = 0x400_0000
"""2 MiB aligned; DMA is only ever aimed here."""
ARENA_SIZE = 128 << 10

AnImage = TypeVar("AnImage", bound=MemoryImage)
FirstFault = tuple[int, TranslationFault] | None
"""Address of the first refused access, and why."""


@dataclass(frozen=True)
class Case(Generic[AnImage]):
    """One DMA through tables."""

    image: AnImage
    requester_id: int
    address: int
    length: int
    write: bool
    window: int | None = None
    """DMA address of the window in the case's own tables, where the machine needs that."""

    def __str__(self) -> str:
        kind = "write" if self.write else "read"
        return f"{kind} {self.length} bytes at {self.address:#x} by {self.requester_id:#x}"


class EduMachine(ABC, Generic[AnImage]):
    """``functions``: requester id to the address of the edu's registers."""

    def __init__(self, devices: Sequence[str], options: Sequence[str] = ()) -> None:
        self.qtest = QTest(devices, options=options)
        self.functions: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.qtest.close()

    @abstractmethod
    def use(self, image: AnImage) -> None:
        """Put the tables into memory, and make the unit use them and nothing older."""

    @abstractmethod
    def fill_buffer(self, case: Case[AnImage], payload: bytes) -> None:
        """Put ``payload`` into the device's buffer, if the machine can."""

    @abstractmethod
    def read_buffer(self, case: Case[AnImage]) -> bytes | None:
        """The device's buffer, if the machine can read it."""

    @abstractmethod
    def compare_fault(self, case: Case[AnImage], fault: FirstFault) -> list[str]:
        """Where the recorded fault and the reader's differ."""

    def store_image(self, image: AnImage) -> None:
        for address, words in image.pages.items():
            self.qtest.write(address, struct.pack("<512Q", *words))

    def dma(self, requester_id: int, address: int, length: int, *, write: bool) -> None:
        """Let the device write its buffer to ``address``, or read from there into it."""
        base = self.functions[requester_id]
        source, target = (DEVICE_BUFFER, address) if write else (address, DEVICE_BUFFER)
        self.qtest.store(base + 0x80, 8, source)
        self.qtest.store(base + 0x88, 8, target)
        self.qtest.store(base + 0x90, 8, length)
        self.qtest.store(base + 0x98, 8, 3 if write else 1)
        poll(
            lambda: not self.qtest.load(base + 0x98, 8) & 1,
            Deadline(60, "the end of edu's DMA"),
            interval=0.0005,
        )


def disagreements(
    machine: EduMachine[AnImage],
    case: Case[AnImage],
    reader_of: Callable[[], Tables],
    rng: random.Random,
) -> list[str]:
    """Do the case's DMA; say where the reader and the hardware differ.

    ``reader_of`` makes the reader once the machine uses the tables.
    """
    qtest = machine.qtest
    before = rng.randbytes(ARENA_SIZE)
    payload = rng.randbytes(case.length)
    qtest.write(ARENA, before)
    machine.use(case.image)
    if case.write:
        machine.fill_buffer(case, payload)
    reader = reader_of()
    expected = bytearray(before)
    read_back: list[tuple[int, bytes]] = []
    first_fault: FirstFault = None
    for start, size in chunks(case.address, case.length):
        done = start - case.address
        outcome = reader.translate(case.requester_id, start, case.write)
        if isinstance(outcome, TranslationFault):
            first_fault = first_fault or (start, outcome)
        else:
            offset = outcome.physical - ARENA
            if not 0 <= offset <= ARENA_SIZE - size:
                return [f"{start:#x}: the reader leads to {outcome.physical:#x}, outside"]
            if case.write:
                expected[offset : offset + size] = payload[done : done + size]
            else:
                read_back.append((done, before[offset : offset + size]))

    machine.dma(case.requester_id, case.address, case.length, write=case.write)

    found = machine.compare_fault(case, first_fault)
    after = qtest.read(ARENA, ARENA_SIZE)
    if after != expected:
        at = next(n for n in range(ARENA_SIZE) if after[n] != expected[n])
        found.append(f"memory differs from the expected at arena + {at:#x}")
    buffer = machine.read_buffer(case) if read_back else None
    if buffer is not None:
        found += [
            f"the device read something else at + {done:#x}"
            for done, data in read_back
            if buffer[done : done + len(data)] != data
        ]
    return found


def chunks(address: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of a DMA within one page each: address, length."""
    end = address + length
    while address < end:
        size = min(end, (address & ~(PAGE - 1)) + PAGE) - address
        yield address, size
        address += size


def check_caught(
    machine: EduMachine[AnImage],
    random_case: Callable[[random.Random, list[int]], Case[AnImage]],
    reader_of: Callable[[], Tables],
    name: str,
) -> None:
    """A wrong reader, called ``name``, disagrees with the hardware within 300 cases."""
    rng = random.Random(1)
    for _ in range(300):
        case = random_case(rng, list(machine.functions))
        try:
            if disagreements(machine, case, reader_of, rng):
                return
        except LabError as error:
            if "cannot be read" not in error.message:
                raise
            return  # it took data for tables and left memory: caught as well
    pytest.fail(f"{name} agreed with the hardware in 300 cases")
