"""QEMU's VT-d and two ``edu`` DMA engines, driven without a guest."""

from __future__ import annotations

import base64
import struct
from types import TracebackType
from typing import Self

from hil.deadline import Deadline, poll
from hil.emulated.qtest import QTest
from hil.iommu.registers import DrhdRegisters
from hil.pci.address import Address
from tests.iommu.vtd_builder import Image

UNIT = 0xFED90000
DEVICE_BUFFER = 0x40000

TABLES = 0x100_0000
ARENA = 0x400_0000
"""2 MiB aligned; DMA is only ever aimed here."""
ARENA_SIZE = 128 << 10
WINDOW = 0x300_0000
"""Where the device's buffer is read back."""


class VtdMachine:
    """``functions``: requester id to the address of the edu's registers."""

    def __init__(self, width: int = 48) -> None:
        self.qtest = QTest(
            [
                f"intel-iommu,intremap=on,aw-bits={width}",
                "edu,addr=2,dma_mask=0xffffffffffffffff",
                "pcie-root-port,id=rp1,addr=3,chassis=1",
                "edu,bus=rp1,dma_mask=0xffffffffffffffff",
            ]
        )
        self.qtest.open_bridge(Address.parse("00:03.0"), 1)
        self.functions: dict[int, int] = {}
        for text in ("00:02.0", "01:00.0"):
            address = Address.parse(text)
            self.functions[address.requester_id] = self.qtest.map_bar(address)
            self.qtest.enable(address)
        extended = self.registers().extended_capability
        self._iotlb = UNIT + (extended >> 8 & 0x3FF) * 16 + 8

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.qtest.close()

    def registers(self) -> DrhdRegisters:
        answer = self.qtest.command(f"b64read {UNIT:#x} 0x1000")
        return DrhdRegisters(base64.b64decode(answer))

    def use(self, image: Image) -> None:
        """Put the tables into memory, and make the unit use them and nothing older."""
        for address, words in image.pages.items():
            self.qtest.write(address, struct.pack("<512Q", *words))
        self.qtest.store(UNIT + 0x20, 8, image.root)
        if not self.registers().translation_enabled:
            self.qtest.store(UNIT + 0x18, 4, 1 << 30)
            self.qtest.store(UNIT + 0x18, 4, 1 << 31)
        else:
            self.qtest.store(UNIT + 0x18, 4, 1 << 31 | 1 << 30)
        self.qtest.store(UNIT + 0x28, 8, 1 << 63 | 1 << 61)
        self.qtest.store(self._iotlb, 8, 1 << 63 | 1 << 60)
        self.clear_faults()

    def clear_faults(self) -> None:
        record = UNIT + self.registers().fault_record_offset
        self.qtest.store(record + 12, 4, 1 << 31)
        self.qtest.store(UNIT + 0x34, 4, 0x7F)

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
            Deadline(10, "the end of edu's DMA"),
            interval=0.0005,
        )
