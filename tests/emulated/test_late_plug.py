"""Why devices are plugged in late on AMD: what QEMU's AMD-Vi makes of a function behind a port.

With no guest.  See :attr:`hil.emulated.host_image.Plan.plugs_late`.
"""

from __future__ import annotations

import random
import shutil
import socket
from functools import partial
from pathlib import Path

import pytest

from hil.deadline import Deadline, poll
from hil.emulated import host_image, machine
from hil.emulated.qtest import QTest
from hil.pci.address import Address
from hil.qmp import Monitor
from tests.iommu.amdvi_builder import Image
from tests.iommu.amdvi_machine import COMMANDS, EVENTS, UNIT, AmdviMachine
from tests.iommu.edu_machine import ARENA, EDU, TABLES, Case, disagreements
from tests.iommu.test_amdvi_qemu import reader_of

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"
)

PORT, FUNCTION = Address.parse("00:10.0"), Address.parse("01:00.0")
DEVICE = f"{EDU},id=edu0,bus=port-1"


class Behind(AmdviMachine):
    """``edu`` behind a root port, there from the start or plugged in late."""

    def __init__(self, folder: Path, *, late: bool) -> None:
        devices = ["amd-iommu,pt=off", "pcie-root-port,id=port-1,chassis=1,addr=0x10"]
        path = str(folder / "qmp")
        options = ["-qmp", f"unix:{path},server=on,wait=off"]
        self.qtest = QTest(devices if late else [*devices, DEVICE], options=options)
        if late:
            with socket.socket(socket.AF_UNIX) as end:
                end.connect(path)
                self._plug(Monitor(end, "QEMU", Deadline(60, "QEMU's monitor")))
        self.qtest.open_bridge(PORT, FUNCTION.bus)
        self.functions = {FUNCTION.requester_id: self.qtest.map_bar(FUNCTION)}
        self.qtest.enable(FUNCTION)
        buses = (Address.from_requester_id(device << 3) for device in range(32))
        self._own = next(a for a in buses if self.qtest.config(a).vendor == 0x1022)
        self._tail = 0
        for offset, value in ((0x08, COMMANDS | 8 << 56), (0x10, EVENTS | 8 << 56)):
            self.qtest.store(UNIT + offset, 8, value)

    def _plug(self, monitor: Monitor) -> None:
        deadline = Deadline(60, "a device to be plugged in")
        assert not host_image._numbered(monitor.execute("query-pci", deadline))
        self.qtest.open_bridge(PORT, FUNCTION.bus)  # what firmware does
        assert host_image._numbered(monitor.execute("query-pci", deadline))
        assert monitor.human(f"device_add {DEVICE}", deadline) == ""
        monitor.events()
        monitor.execute("system_reset", deadline)
        poll(lambda: "RESET" in monitor.events(), deadline)
        monitor.close()
        self.qtest._enable_ecam()


@pytest.mark.parametrize("late", [False, True])
def test_dma_goes_by_the_functions_own_entry(tmp_path: Path, late: bool) -> None:
    if not late and machine.find_qemu().version >= host_image._BUSES_BY_NAME:
        pytest.skip("this QEMU asks a bus for its number")
    image = Image(TABLES, table_pages=4)
    table = image.device(FUNCTION.requester_id, domain=2)
    image.map(table, (4, 3, 2, 1), 0x5000, ARENA)
    with Behind(tmp_path, late=late) as behind:
        case = Case(image, FUNCTION.requester_id, 0x5000, 8, True)
        found = disagreements(behind, case, partial(reader_of, behind), random.Random(4))
    assert bool(found) is not late, found
