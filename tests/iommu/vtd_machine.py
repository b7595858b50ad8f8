"""QEMU's VT-d and two ``edu`` DMA engines, driven without a guest."""

from __future__ import annotations

import base64

from hil.iommu.registers import DrhdRegisters
from hil.pci.address import Address
from tests.iommu.edu_machine import EDU, WINDOW, Case, EduMachine, FirstFault
from tests.iommu.memory_image import PAGE
from tests.iommu.vtd_builder import Image

UNIT = 0xFED90000


class VtdMachine(EduMachine[Image]):
    def __init__(self, width: int = 48) -> None:
        super().__init__(
            [
                f"intel-iommu,intremap=on,aw-bits={width}",
                f"{EDU},addr=2",
                "pcie-root-port,id=rp1,addr=3,chassis=1",
                f"{EDU},bus=rp1",
            ]
        )
        self.qtest.open_bridge(Address.parse("00:03.0"), 1)
        for text in ("00:02.0", "01:00.0"):
            address = Address.parse(text)
            self.functions[address.requester_id] = self.qtest.map_bar(address)
            self.qtest.enable(address)
        extended = self.registers().extended_capability
        self._iotlb = UNIT + (extended >> 8 & 0x3FF) * 16 + 8

    def registers(self) -> DrhdRegisters:
        answer = self.qtest.command(f"b64read {UNIT:#x} 0x1000")
        return DrhdRegisters(base64.b64decode(answer))

    def use(self, image: Image) -> None:
        self.store_image(image)
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
        for offset, data in self.registers().clearing_writes():
            self.qtest.store(UNIT + offset, len(data), int.from_bytes(data, "little"))

    def fill_buffer(self, case: Case[Image], payload: bytes) -> None:
        if case.window is not None:
            self.qtest.write(WINDOW, payload)
            self.dma(case.requester_id, case.window, case.length, write=False)
            self.clear_faults()

    def read_buffer(self, case: Case[Image]) -> bytes | None:
        if case.window is None:
            return None
        self.dma(case.requester_id, case.window, case.length, write=True)
        return self.qtest.read(WINDOW, case.length)

    def compare_fault(self, case: Case[Image], fault: FirstFault) -> list[str]:
        recorded = [
            (record.requester_id, record.address, record.reason, record.write)
            for record in self.registers().faults()
        ]
        wanted: list[tuple[int, int | None, int | None, bool | None]] = []
        if fault is not None and fault[1].recorded:
            address, outcome = fault
            page = address & ~(PAGE - 1)
            wanted.append((case.requester_id, page, outcome.reason.value, case.write))
        return [] if recorded == wanted else [f"recorded {recorded}, the reader says {wanted}"]
