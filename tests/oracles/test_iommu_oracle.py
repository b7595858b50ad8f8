"""The IOMMU oracle on tables and memory that a test builds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.bench import BenchDevice
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.iommu.amdvi import AmdviTables
from hil.iommu.faults import FaultRecord
from hil.iommu.tables import HostTables, Unit
from hil.iommu.vtd import VtdTables
from hil.oracles import iommu, strayed
from hil.oracles.iommu import check_fault, check_phase, new_faults
from hil.pci.address import Address
from hil.platforms.contract import GuestSpec, Owner, Phase
from tests.fakes import (
    DISK,
    NIC,
    Answer,
    FakeMachine,
    FakeOS,
    FakePlatform,
    FakeTransport,
    bench_device,
    function,
    silent,
)
from tests.iommu import amdvi_builder

GUEST_PAGE, HOST_PAGE = 0x30_0000, 0x800_0000
MEMORY = 16 << 20


class GuestOnHost:
    """A guest whose token stands at GUEST_PAGE of its memory and at HOST_PAGE of the host's."""

    def __init__(self, platform: FakePlatform, *, really_at: int = HOST_PAGE) -> None:
        self.platform = platform
        self.really_at = really_at
        ssh = FakeTransport(self.command)
        spec = GuestSpec("g1", "linux", devices=(NIC,), memory=MEMORY)
        self.machine = FakeMachine(spec, silent(), ssh)
        self.guest = Guest(self.machine, FakeOS())

    def command(self, command: tuple[str, ...], stdin: bytes) -> Answer:
        if stdin:
            page = bytearray(4096)
            page[: len(stdin)] = stdin
            words = [int.from_bytes(page[at : at + 8], "little") for at in range(0, 4096, 8)]
            self.platform.image.pages[HOST_PAGE] = [0] * 512
            self.platform.image.pages[self.really_at] = words
            self.machine.found[stdin.decode()] = (GUEST_PAGE,)
        return 0, "", ""


@pytest.fixture
def lab() -> tuple[BenchDevice, FakePlatform]:
    return bench_device()


def assigned(platform: FakePlatform, *, to: int | None = HOST_PAGE, kind: int = 0) -> int:
    """Give the NIC tables of its own; returns their root."""
    table = platform.image.context(NIC.requester_id, domain=7, kind=kind)
    if to is not None:
        platform.image.map(table, 48, GUEST_PAGE, to)
    return table


Lab = tuple[BenchDevice, FakePlatform]


def test_a_guest_s_own_memory_is_reached(lab: Lab) -> None:
    device, platform = lab
    assigned(platform)
    entry = check_phase(device, Phase.ASSIGNED, guest=GuestOnHost(platform).guest)
    assert entry is not None
    assert entry.domain == 7


@pytest.mark.parametrize(
    ("to", "words"), [(HOST_PAGE + 0x5000, "does not hold the token"), (None, "is not mapped")]
)
def test_tables_that_lead_elsewhere_are_not_the_guest_s(
    lab: Lab, to: int | None, words: str
) -> None:
    device, platform = lab
    platform.image.pages[HOST_PAGE + 0x5000] = [0] * 512
    assigned(platform, to=to)
    with pytest.raises(ProductError, match="should reach the memory of guest") as caught:
        check_phase(device, Phase.ASSIGNED, guest=GuestOnHost(platform).guest)
    assert words in caught.value.seen


def test_without_an_entry_a_guest_has_nothing(lab: Lab) -> None:
    device, platform = lab
    with pytest.raises(ProductError, match="reaches that of nobody"):
        check_phase(device, Phase.ASSIGNED, guest=GuestOnHost(platform).guest)


def test_the_control_expects_the_wrong_owner(lab: Lab) -> None:
    device, platform = lab
    assigned(platform)
    with pytest.raises(ProductError, match="should reach the memory of host"):
        check_phase(device, Phase.ASSIGNED, guest=GuestOnHost(platform).guest, expected=Owner.HOST)


def test_after_its_guest_the_entry_must_be_another(lab: Lab) -> None:
    device, platform = lab
    assigned(platform)
    before = check_phase(device, Phase.ASSIGNED, guest=GuestOnHost(platform).guest)
    with pytest.raises(ProductError, match="reaches that of guest"):
        check_phase(device, Phase.DESTROYED, before=before)
    at = platform.image.context_address(NIC.requester_id)
    platform.image.set_qword(at, 0)
    left = check_phase(device, Phase.DESTROYED, before=before)
    assert left is not None
    assert not left.present
    platform.image.context(NIC.requester_id, domain=1)
    check_phase(device, Phase.RETURNED, before=before)
    with pytest.raises(ProductError, match="should reach the memory of nobody"):
        check_phase(device, Phase.IDLE, before=before)


def test_requests_must_be_translated_and_the_memory_be_there(lab: Lab) -> None:
    device, platform = lab
    guest = GuestOnHost(platform).guest
    with pytest.raises(ProductError, match="has no entry in"):
        iommu.check_translated(device, guest)
    table = assigned(platform, to=None)
    for at in range(0, MEMORY, 2 << 20):
        platform.image.map(table, 48, at, 0x1000_0000 + at, level=2)
    iommu.check_translated(device, guest)
    platform.image.set_qword(platform.image.entry_address(table, 48, 0, 2), 0)
    with pytest.raises(ProductError, match="less than the guest's memory"):
        iommu.check_translated(device, guest)
    assigned(platform, to=None, kind=2)
    with pytest.raises(ProductError, match="is not translated"):
        iommu.check_translated(device, guest)


def test_devices_of_two_guests_share_nothing(lab: Lab) -> None:
    nic, platform = lab
    platform.known[DISK] = function(DISK)
    disk = BenchDevice("disk0", "nvme", nic.host, (DISK,))
    root = platform.image.context(NIC.requester_id, domain=1)
    with pytest.raises(ProductError, match="has no entry in"):
        iommu.check_distinct([nic, disk])
    platform.image.context(DISK.requester_id, domain=2)
    iommu.check_distinct([nic, disk])
    platform.image.context(DISK.requester_id, domain=1)
    with pytest.raises(ProductError, match="share domain 0x1"):
        iommu.check_distinct([nic, disk])
    at = platform.image.context_address(DISK.requester_id)
    platform.image.set_qword(at, root | 1)
    platform.image.set_qword(at + 8, 2 | 2 << 8)
    with pytest.raises(ProductError, match="share page-table root"):
        iommu.check_distinct([nic, disk])


def test_dma_that_passes_untranslated_reaches_the_host(lab: Lab) -> None:
    device, platform = lab
    assigned(platform, kind=2)
    check_phase(device, Phase.IDLE, expected=Owner.HOST)
    with pytest.raises(ProductError, match="reaches that of host"):
        check_phase(device, Phase.ASSIGNED, guest=GuestOnHost(platform).guest)


def test_a_blocking_entry_is_nobody_s_whatever_it_points_to(lab: Lab) -> None:
    device, platform = lab
    assigned(platform)
    before = check_phase(device, Phase.ASSIGNED, guest=GuestOnHost(platform).guest)
    at = platform.image.context_address(NIC.requester_id)
    platform.image.set_qword(at, platform.image.qword(at) & ~1)
    check_phase(device, Phase.DESTROYED, before=before, expected=Owner.NOBODY)
    iommu.check_no_ghost(device)


def test_a_domain_id_means_something_within_its_unit_only(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    nic, platform = lab
    platform.known[DISK] = function(DISK)
    disk = BenchDevice("disk0", "nvme", nic.host, (DISK,))
    for address in (NIC, DISK):
        platform.image.context(address.requester_id, domain=1)
    units = [
        Unit("drhd", base, 0, VtdTables(platform.image, platform.image.root, unit=base))
        for base in (0xFED90000, 0xFED91000)
    ]
    tables = HostTables(units, lambda rid: units[rid == DISK.requester_id])
    with pytest.raises(ProductError, match="share domain 0x1"):
        iommu.check_distinct([nic, disk])
    monkeypatch.setattr(platform, "tables", lambda _deadline: tables)
    iommu.check_distinct([nic, disk])


def test_amd_s_entries_are_judged_by_what_they_let_pass(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catalogue 20 and 21: a pointer left behind is still the guest's, no entry is the host's."""
    device, platform = lab
    image = amdvi_builder.Image(table_pages=8)
    monkeypatch.setattr(platform, "tables", lambda _deadline: AmdviTables(image, image.register))
    untouched = check_phase(device, Phase.BOOT, expected=Owner.HOST)
    assert untouched is not None
    assert not untouched.present
    iommu.check_no_ghost(device)
    with pytest.raises(ProductError, match="reaches that of host"):
        check_phase(device, Phase.IDLE, expected=Owner.NOBODY)
    image.device(NIC.requester_id, domain=4)
    held = AmdviTables(image, image.register).entry(NIC.requester_id)
    with pytest.raises(ProductError, match="reaches that of guest") as caught:
        check_phase(device, Phase.DESTROYED, before=held, expected=Owner.NOBODY)
    assert "TV=1 mode 4" in caught.value.seen
    with pytest.raises(ProductError, match="still has an entry"):
        iommu.check_no_ghost(device)
    # as Linux blocks a function: valid, and no right to anything
    image.device(NIC.requester_id, mode=0, rights=0)
    check_phase(device, Phase.DESTROYED, before=held, expected=Owner.NOBODY)
    iommu.check_no_ghost(device)


def test_a_ghost_is_seen(lab: Lab) -> None:
    device, platform = lab
    iommu.check_no_ghost(device)
    platform.image.context(NIC.requester_id)
    with pytest.raises(ProductError, match="still has an entry"):
        iommu.check_no_ghost(device)


def fault(text: str = "x", **changes: object) -> FaultRecord:
    record = FaultRecord(NIC.requester_id, 0x10_0000_0000, 5, True, text)
    return replace(record, **changes)  # type: ignore[arg-type]


def test_a_fault_of_this_function_at_this_page_is_found() -> None:
    for record in (fault(), fault(address=None), fault(write=None), fault(address=0x10_0000_0FFF)):
        found = check_fault([fault(requester_id=8), record], NIC, dma_address=64 << 30, write=True)
        assert found is record


@pytest.mark.parametrize(
    "record",
    [
        fault(requester_id=DISK.requester_id),
        fault(address=0x10_0000_1000),
        fault(write=False),
    ],
)
def test_another_s_fault_is_not_taken_for_it(record: FaultRecord) -> None:
    with pytest.raises(ProductError, match=r"no DMA fault of 0000:01:00.0") as caught:
        check_fault([record], NIC, dma_address=64 << 30, write=True)
    assert caught.value.seen == record.text


def test_no_fault_at_all_is_said() -> None:
    with pytest.raises(ProductError) as caught:
        check_fault([], NIC, dma_address=0, write=True)
    assert caught.value.seen == "no fault at all"
    iommu.check_no_faults([])
    with pytest.raises(ProductError, match="1 DMA faults"):
        iommu.check_no_faults([fault()])


@given(
    st.lists(st.sampled_from("abc"), max_size=6),
    st.lists(st.sampled_from("abc"), max_size=6),
)
def test_all_that_a_log_grew_by_is_new_also_if_it_was_there_before(
    before: list[str], more: list[str]
) -> None:
    old, new = ([fault(text) for text in texts] for texts in (before, before + more))
    assert [record.text for record in new_faults(old, new)] == more


@given(st.integers(0, 8), st.integers(0, 8))
def test_a_log_that_lost_its_start_tells_the_new_ones(lost: int, more: int) -> None:
    records = [fault(f"line {n}") for n in range(8 + more)]
    assert new_faults(records[:8], records[lost:]) == tuple(records[8:])


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
def test_a_log_and_a_unit_that_both_grew(log: int, unit: int, more: int, again: int) -> None:
    """A host's faults are those of its log and of each unit, one list after the other."""
    lines = [fault(f"line {n}") for n in range(log + more)]
    records = [fault("record", source="ivhd @ 0xfed80000") for _ in range(unit + again)]
    found = new_faults(lines[:log] + records[:unit], lines + records)
    assert list(found) == lines[log:] + records[unit:]


class Stray:
    """Stands for edu_engine: the device's write becomes a fault line, if the IOMMU does."""

    def __init__(self, platform: FakePlatform, *, recorded_for: Address | None) -> None:
        self.platform = platform
        self.recorded_for = recorded_for

    def __call__(self, guest: Guest, device: BenchDevice) -> Stray:
        return self

    def __enter__(self) -> tuple[Stray, Stray]:
        return self, self

    def __exit__(self, *error: object) -> None:
        pass

    def physical(self, offset: int) -> int:
        return 0x40_0000

    def copy_out(self, target: int, length: int) -> None:
        if self.recorded_for is not None and target == strayed.OUTSIDE:
            rid = self.recorded_for.requester_id
            self.platform.fault_log.append(fault("DMAR: write", requester_id=rid, address=target))


def test_a_stray_write_must_be_recorded_each_time(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, platform = lab
    guest = GuestOnHost(platform).guest
    monkeypatch.setattr(strayed, "edu_engine", Stray(platform, recorded_for=NIC))
    # Twice alike: the second must not be taken for the first, nor be missed for it.
    for _ in range(2):
        assert strayed.check_blocked(device, guest).address == strayed.OUTSIDE
    with pytest.raises(ProductError, match="no DMA fault"):
        strayed.check_blocked(device, guest, inside=True)


@pytest.mark.parametrize("blamed", [None, DISK])
def test_a_stray_write_that_is_not_recorded_or_blamed_on_another(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, blamed: Address | None
) -> None:
    device, platform = lab
    monkeypatch.setattr(strayed, "edu_engine", Stray(platform, recorded_for=blamed))
    with pytest.raises(ProductError, match=r"no DMA fault of 0000:01:00.0"):
        strayed.check_blocked(device, GuestOnHost(platform).guest)
