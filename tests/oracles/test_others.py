"""Preflight, leftovers, race, interrupts, reset, ownership, crosstalk, silence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hil.bench import Bench, BenchDevice
from hil.errors import GuestError, LabError, ProductError
from hil.guests.guest import Guest
from hil.iommu.faults import FaultRecord
from hil.oracles import crosstalk, interrupts, leftovers, ownership, preflight, race, reset, traffic
from hil.oracles.crosstalk import Pair
from hil.oracles.dma import HostCanary
from hil.pci.address import Address
from hil.platforms.contract import Bar, Function, GuestSpec, HostFacts, MachineState
from hil.probes import nic
from tests.fakes import (
    DISK,
    FLR,
    MSI,
    MSIX,
    NIC,
    PM_KEEPS,
    PM_RESETS,
    FakeMachine,
    FakeOS,
    FakePlatform,
    FakeTransport,
    bench_device,
    config,
    function,
    silent,
)

# ---- preflight ---------------------------------------------------------------------


def facts(iommu: str = "vt-d", enabled: bool = True) -> HostFacts:
    return HostFacts("os", "k", "hv", "cpu", 1, iommu, enabled, {"cmdline": "quiet"})


def test_an_iommu_must_be_there_and_used() -> None:
    preflight.check_iommu(facts())
    with pytest.raises(ProductError, match="neither a DMAR nor an IVRS"):
        preflight.check_iommu(facts("none", enabled=False))
    with pytest.raises(ProductError, match="kernel does not use it") as caught:
        preflight.check_iommu(facts(enabled=False))
    assert caught.value.seen == "quiet"


def test_a_message_interrupt_must_be_there() -> None:
    for capability in (MSI, MSIX):
        preflight.check_interrupts(function(config=config(capabilities=[capability])))
    with pytest.raises(ProductError, match="neither MSI nor MSI-X"):
        preflight.check_interrupts(function(config=config(capabilities=[FLR])))


@pytest.mark.parametrize(
    ("bar", "good"),
    [
        (Bar(0, 0xFE000000, 0x1000, memory=True), True),
        (Bar(0, 0xD000, 0x20, memory=False), True),
        (Bar(0, 0xFE000000, 0x800, memory=True), False),
        (Bar(0, 0xFE000800, 0x1000, memory=True), False),
    ],
)
def test_memory_bars_are_whole_pages(bar: Bar, good: bool) -> None:
    if good:
        preflight.check_bars(function(bars=[bar]))
    else:
        with pytest.raises(ProductError, match="not page aligned"):
            preflight.check_bars(function(bars=[bar]))


def test_a_reset_of_its_own_is_promised() -> None:
    preflight.check_reset(function())
    preflight.check_reset(function(config=config(capabilities=[PM_RESETS])))
    for capabilities in ([MSI], [PM_KEEPS]):
        with pytest.raises(ProductError, match="no reset of its own"):
            preflight.check_reset(
                function(config=config(capabilities=capabilities), reset_methods=["bus"])
            )


def test_functions_that_travel_together_are_named_together() -> None:
    nic, twin = function(), function(Address.parse("01:00.1"), group=2)
    port = function(Address.parse("00:10.0"), config=config(header_type=1))
    stranger = function(DISK, group=3)
    preflight.check_whole([nic, twin], [nic, twin, port, stranger])
    with pytest.raises(ProductError, match=r"0000:01:00.1 travels with") as caught:
        preflight.check_whole([nic], [nic, twin])
    assert "card" in caught.value.seen
    with pytest.raises(ProductError) as caught:
        preflight.check_whole([nic], [nic, replace(stranger, group=1)])
    assert "group" in caught.value.seen


def test_a_vf_travels_without_its_pf_and_its_sisters() -> None:
    pf = function(virtual_functions=[Address.parse("01:00.1")])
    vfs = [
        function(Address.parse(f"01:00.{n}"), group=10 + n, physical_function=NIC) for n in (1, 2)
    ]
    preflight.check_whole(vfs[:1], [pf, *vfs])
    preflight.check_whole([pf], [pf, *vfs])
    with pytest.raises(ProductError, match="travels with"):
        preflight.check_whole(vfs[:1], [replace(pf, group=11), *vfs])


def test_what_the_host_needs_is_not_free() -> None:
    preflight.check_free(function())
    with pytest.raises(ProductError, match="is the host's root disk"):
        preflight.check_free(function(in_use_as="root disk"))


# ---- leftovers ---------------------------------------------------------------------


def test_counts_may_go_down_and_may_take_a_moment() -> None:
    device, platform = bench_device()
    platform.counts = [{"files": 2, "guests": 1}, {"files": 3}, {"files": 2, "guests": 0}]
    with leftovers.none_expected(device.host):
        pass


def test_what_stays_is_told_by_name() -> None:
    device, platform = bench_device()
    platform.counts = [{"files": 2}, {"files": 2, "domains": 1}]
    with (
        pytest.raises(ProductError, match="left behind") as caught,
        leftovers.none_expected(device.host),
    ):
        pass
    assert caught.value.seen == "domains: 0 before, 1 after"


def test_a_failure_in_the_block_is_told_instead() -> None:
    device, platform = bench_device()
    platform.counts = [{"files": 2}, {"files": 3}]
    with pytest.raises(ZeroDivisionError), leftovers.none_expected(device.host):
        _ = 1 / 0


# ---- race --------------------------------------------------------------------------


def bench(device: BenchDevice) -> Bench:
    return Bench("lab", {"lab1": device.host}, {device.name: device})


def test_of_two_guests_one_wins_and_both_are_gone_afterwards() -> None:
    device, platform = bench_device()
    platform.new_stream = silent
    outcome = race.two_guests(bench(device), device)
    race.check_one_won(outcome)
    assert [machine.destroyed for machine in platform.machines] == [1]


def test_without_a_device_both_win_which_is_the_control() -> None:
    device, platform = bench_device()
    platform.new_stream = silent
    outcome = race.two_guests(bench(device), None)
    with pytest.raises(ProductError, match="2 guests have the device"):
        race.check_one_won(outcome)
    assert all(machine.at is MachineState.DESTROYED for machine in platform.machines)


def test_the_loser_must_be_told_why() -> None:
    race.check_one_won(race.Outcome(("a",), ("vfio: Device or resource Busy",)))
    with pytest.raises(ProductError, match="not told that the device is busy"):
        race.check_one_won(race.Outcome(("a",), ("no such file",)))
    with pytest.raises(ProductError, match="0 guests"):
        race.check_one_won(race.Outcome((), ("busy", "busy")))


# ---- interrupts --------------------------------------------------------------------


def test_each_message_counts_once_at_its_own_vector() -> None:
    assert interrupts.check_each_once([(1, 0, 0), (0, 1, 0), (0, 0, 1)]) == 3
    assert interrupts.check_each_once([(1, 0, 0)]) == 1
    assert interrupts.check_each_once([(1,)]) == 1


@pytest.mark.parametrize(
    "counts",
    [
        [],
        [(0,)],
        [(2,)],
        [(0, 1), (1, 0)],
        [(1, 0), (0, 0)],
        [(1, 1), (0, 1)],
        [(1,), (0,)],
        [()],
    ],
)
def test_a_message_lost_doubled_or_misled_is_told(counts: list[tuple[int, ...]]) -> None:
    with pytest.raises(ProductError):
        interrupts.check_each_once(counts)


def test_silence_and_noise_on_the_host() -> None:
    device, platform = bench_device()
    platform.counts = [{"24 vfio": 5}]
    interrupts.check_silent(device, 0.01)
    platform.counts = [{"24 vfio": 5}, {"24 vfio": 5, "25 vfio": 1}]
    with pytest.raises(ProductError, match="which nobody owns") as caught:
        interrupts.check_silent(device, 0.01)
    assert caught.value.seen == "25 vfio: 0 before, 1 after"


def guest_over(transport: FakeTransport, name: str = "g1") -> Guest:
    spec = GuestSpec(name, "linux", devices=(NIC,))
    return Guest(FakeMachine(spec, silent(), transport), FakeOS(), pace=0.05)


@pytest.mark.parametrize(("after", "good"), [(164, True), (163, False)])
def test_a_disk_makes_an_interrupt_for_each_request(after: int, good: bool) -> None:
    counts = iter([100, after])

    def answer(command: tuple[str, ...], _stdin: bytes) -> tuple[int, str, str]:
        if "/proc/interrupts" in " ".join(command):
            return 0, f"irqs 24 0\n CPU0\n 24: {next(counts)} PCI-MSI nvme0q1\n", ""
        return 0, "/dev/nvme0n1\n", ""

    device, _ = bench_device()
    guest = guest_over(FakeTransport(answer))
    if good:
        interrupts.check_disk_interrupts(guest, device)
    else:
        with pytest.raises(ProductError, match="only 63 interrupts"):
            interrupts.check_disk_interrupts(guest, device)


# ---- reset -------------------------------------------------------------------------


REGISTERS = Bar(0, 0xC000_0000, 0x20000, memory=True)


def with_register(value: str) -> BenchDevice:
    """A device whose sentinel register reads so."""
    device, platform = bench_device()
    platform.known[NIC] = function(bars=[REGISTERS])
    platform.transport = FakeTransport(lambda _c, _s: (0, value, ""))
    return device


def test_a_sentinel_is_planted_and_must_be_gone() -> None:
    device = with_register(str(0x5AC3_0FF1))
    mark = reset.plant(device)
    with pytest.raises(ProductError, match="its state survived the reset"):
        reset.check_gone(device, mark)
    assert reset.check_gone(with_register("0"), mark) == 0
    with pytest.raises(ProductError, match="has not come back"):
        reset.check_gone(with_register(str(0xFFFF_FFFF)), mark)


def test_a_register_that_does_not_hold_proves_nothing() -> None:
    with pytest.raises(LabError, match="reads 0x0 after"):
        reset.plant(with_register("0"))
    device, platform = bench_device()
    platform.known[NIC] = function(config=config(0x1AF4, 0x1050))
    with pytest.raises(LabError, match="no sentinel register is known"):
        reset.plant(device)
    platform.known[NIC] = function(bars=[REGISTERS])
    platform.transport = FakeTransport(lambda _c, _s: (1, "", "PermissionError: resource0"))
    with pytest.raises(LabError) as caught:
        reset.plant(device)
    assert "PermissionError" in caught.value.seen
    platform.known[NIC] = function()
    with pytest.raises(LabError, match="has no BAR 0"):
        reset.plant(device)


def test_bus_mastering_is_seen_and_restored() -> None:
    device, platform = bench_device()
    reset.check_cannot_reach_memory(device)
    with reset.bus_mastering(device):
        assert platform.known[NIC].config.command == 4
        with pytest.raises(ProductError, match="bus mastering is on"):
            reset.check_cannot_reach_memory(device)
    assert platform.known[NIC].config.command == 0
    reset.check_cannot_reach_memory(device)


class KeepsMastering(FakePlatform):
    masters_while_idle = property(lambda _: True)


def test_where_bus_mastering_stays_on_the_tables_must_block() -> None:
    device, platform = bench_device(platform=KeepsMastering(function()))
    with reset.bus_mastering(device):
        reset.check_cannot_reach_memory(device)
        platform.image.context(NIC.requester_id, domain=1)
        with pytest.raises(ProductError, match="bus mastering is on"):
            reset.check_cannot_reach_memory(device)
    reset.check_cannot_reach_memory(device)


def test_what_a_guest_left_is_told_by_register() -> None:
    before = config(command=0x2, capabilities=[MSI])
    reset.check_quiet(before, before, "the NIC")
    enabled = (0x05, b"\1" + bytes(11))
    for after, words in (
        (config(command=0x6, capabilities=[MSI]), "bus master"),
        (config(command=0x42, capabilities=[MSI]), "COMMAND: before the guest 0, after it 64"),
        (config(command=0x2, capabilities=[enabled]), "MSI is enabled"),
        (replace(before, data=b"\xff" * 256), "all ones"),
    ):
        with pytest.raises(ProductError, match="the NIC is not quiet") as caught:
            reset.check_quiet(before, after, "the NIC")
        assert words in caught.value.seen
    after = config(command=0x6, capabilities=[MSI])
    reset.check_quiet(before, after, "the NIC", mastering=True)
    with pytest.raises(ProductError, match="the NIC is not quiet"):
        reset.check_quiet(
            before, config(command=0x46, capabilities=[MSI]), "the NIC", mastering=True
        )


def reset_result(after: Function) -> BenchDevice:
    return bench_device(platform=FakePlatform(after))[0]


def test_a_function_answers_after_its_reset() -> None:
    device, platform = bench_device()
    assert reset.timed_reset(device) >= 0
    reset.d3_reset(device)
    assert platform.log == [f"reset {NIC}", f"reset {NIC} by pm"]
    absent = function(config=replace(config(), data=b"\xff" * 256))
    with pytest.raises(ProductError, match="all ones"):
        reset.timed_reset(reset_result(absent))
    pending = bytearray(FLR[1])
    pending[8] = 0x20
    with pytest.raises(ProductError, match="transactions pending"):
        reset.timed_reset(
            reset_result(function(config=config(capabilities=[(0x10, bytes(pending))])))
        )


# ---- ownership ---------------------------------------------------------------------


def test_the_guest_sees_what_was_passed() -> None:
    device, _ = bench_device()
    right = FakeTransport(lambda _c, _s: (0, "0000:00:10.0 0x8086 0x10c9 igb\n", ""))
    ownership.check_guest_sees(guest_over(right), device)
    other = FakeTransport(lambda _c, _s: (0, "0000:00:10.0 0x8086 0x10ca igbvf\n", ""))
    with pytest.raises(ProductError, match=r"sees 8086:10ca where 8086:10c9"):
        ownership.check_guest_sees(guest_over(other), device)


def test_the_driver_of_before_is_back() -> None:
    device, _ = bench_device()
    ownership.check_back_on_host(device, "igb")
    with pytest.raises(ProductError, match="bound to igb after its return, not to no driver"):
        ownership.check_back_on_host(device, None)
    absent = reset_result(function(config=replace(config(), data=b"\xff" * 256)))
    with pytest.raises(ProductError, match="does not answer on the host"):
        ownership.check_back_on_host(absent, "igb")


def test_a_guest_unharmed_answers() -> None:
    ownership.check_unharmed(guest_over(FakeTransport(lambda _c, _s: (0, "alive\n", ""))))
    with pytest.raises(GuestError):
        ownership.check_unharmed(guest_over(FakeTransport(lambda _c, _s: (1, "", "no"))))


# ---- crosstalk ---------------------------------------------------------------------


def pair(monkeypatch: pytest.MonkeyPatch, *, own: bool, leaks: bool) -> Pair:
    """Two guests: whether each holds its own tag, and the first one the second's too."""
    device, _ = bench_device()
    guests = (guest_over(FakeTransport(), "g1"), guest_over(FakeTransport(), "g2"))
    machines = [guest.machine for guest in guests]

    def echo(guest: Guest, _peer: object, *, sizes: object, tag: str) -> int:
        for machine, here in zip(machines, (own or leaks, own), strict=True):
            assert isinstance(machine, FakeMachine)
            if here and (guest.machine is machine or leaks):
                machine.found[tag] = (0x1000,)
        return 1

    monkeypatch.setattr(nic, "join", lambda *_: None)
    monkeypatch.setattr(nic, "echo", echo)
    return Pair(guests, (device, device))


def test_two_guests_hold_only_their_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    crosstalk.check_separate(pair(monkeypatch, own=True, leaks=False))
    with pytest.raises(ProductError, match="holds bytes of the other guest"):
        crosstalk.check_separate(pair(monkeypatch, own=True, leaks=True))
    with pytest.raises(ProductError, match="does not hold its own tag"):
        crosstalk.check_separate(pair(monkeypatch, own=False, leaks=False))


# ---- nothing arrives ---------------------------------------------------------------


def test_late_dma_is_seen_in_the_canary_and_in_the_fault_log() -> None:
    device, platform = bench_device()
    canary = HostCanary(device.host)
    record = FaultRecord(NIC.requester_id, 0x1000, 5, True, "DMAR: x")
    platform.fault_log = [record]
    traffic.check_nothing_arrives(device, [canary], 0.001)
    logs = iter([(record,), (record, record)])
    platform.faults = lambda deadline: next(logs)  # type: ignore[method-assign]
    with pytest.raises(ProductError, match="1 DMA faults"):
        traffic.check_nothing_arrives(device, [canary], 0.001)
    platform.faults = lambda deadline: ()  # type: ignore[method-assign]
    canary.spoil()
    with pytest.raises(ProductError, match="host memory changed"):
        traffic.check_nothing_arrives(device, [canary], 0.001)


def test_canary_memory_is_freed_whatever_happens() -> None:
    device, platform = bench_device()
    with pytest.raises(ZeroDivisionError), traffic.canary_in_freed_memory(device):
        _ = 1 / 0
    assert platform.canaries[0].closed
