"""The doctor's row for a device that is in its guest and does nothing there."""

from __future__ import annotations

import pytest

from hil.doctor.check import State
from hil.doctor.freebsd_traffic import Held, traffic_rows
from hil.iommu.faults import FaultRecord
from hil.platforms.contract import Bar
from tests.fakes import MSI, NIC, config, function

ENABLED = (MSI[0], b"\1" + MSI[1][1:])
FAULT = FaultRecord(NIC.requester_id, 0x5000, 5, True, "FRCD[0] 0x1:0x2")


def held(
    command: int = 6, *, on: bool = True, count: int = 7, faults: tuple[FaultRecord, ...] = ()
) -> Held:
    space = config(command=command, capabilities=[ENABLED if on else MSI])
    passed = function(config=space, bars=[Bar(0, 0xC000_0000, 0x4000, memory=True)])
    return Held(passed, {"irq35 ppt0": count}, faults)


def test_what_works_is_told_with_its_counts() -> None:
    (row,) = traffic_rows("beastie", [held()])
    assert row.state is State.FOUND
    assert row.evidence == "bus mastering and MSI are on, 7 interrupts, no DMA refused"
    assert not row.remedy


@pytest.mark.parametrize(
    ("one", "evidence", "remedy"),
    [
        (held(faults=(FAULT,)), "its DMA was refused: FRCD[0] 0x1:0x2", "driver in the guest"),
        (held(2), "bus mastering is off", "does a driver have it"),
        (held(4), "memory decoding is off", "does a driver have it"),
        (held(on=False, count=0), "neither MSI nor MSI-X is on", "does a driver have it"),
        (held(count=0), "MSI is on, and no interrupt has come", "vmstat -ia"),
        (held(0, count=0), "bus mastering is off: it can do no DMA; memory decoding", "a driver"),
    ],
)
def test_each_reason_why_nothing_comes_is_told(one: Held, evidence: str, remedy: str) -> None:
    (row,) = traffic_rows("beastie", [one])
    assert row.state is State.MISSING
    assert evidence in row.evidence
    assert remedy in row.remedy
    assert not row.bad, "hil works all the same"
