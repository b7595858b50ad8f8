"""A disk: what was written reads back, in requests of every size."""

from __future__ import annotations

import pytest

from hil.bench import BenchDevice
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.probes import nvme


@pytest.mark.catalogue("DM1")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nvme", scratch=True)
def test_what_was_written_reads_back(device: BenchDevice, guest: Guest) -> None:
    disk = guest.disk_of(device.address)
    assert nvme.write_and_read_back(guest, disk, nvme.default_transfers()) > 8 << 20


@pytest.mark.catalogue("DM1")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nvme", scratch=True)
def test_control_one_foreign_sector_is_seen(device: BenchDevice, guest: Guest) -> None:
    disk = guest.disk_of(device.address)
    with pytest.raises(ProductError, match="bytes differ"):
        nvme.write_and_read_back(guest, disk, nvme.default_transfers()[4:5], spoil=True)
