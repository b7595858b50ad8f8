"""A lab at work, on a host and guests that are held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from hil.bench import GUEST_MEMORY, Bench, BenchDevice, BenchHost, Peer
from hil.deadline import Deadline
from hil.errors import GuestError, InventoryError, LabError, ProductError
from hil.guests.guest import GuestState
from hil.pci.address import Address
from hil.platforms.contract import (
    Feature,
    MachineState,
    Reservation,
    Template,
    TemplateLostError,
)
from tests.console.streams import ScriptedStream
from tests.fakes import (
    DISK,
    NIC,
    FakeMachine,
    FakeOS,
    FakePlatform,
    FakeTransport,
    function,
    soon,
)


class Lab:
    """A bench of one host with a NIC and a disk."""

    def __init__(self) -> None:
        self.platform = FakePlatform(function(NIC), function(DISK, driver="nvme"))
        self.host = BenchHost("lab1", self.platform)
        self.nic = BenchDevice("nic0", "nic", self.host, (NIC,))
        self.disk = BenchDevice("disk0", "nvme", self.host, (DISK,))
        self.closed: list[str] = []
        self.bench = Bench(
            "lab",
            {"lab1": self.host},
            {"nic0": self.nic, "disk0": self.disk},
            closer=lambda: self.closed.append("closed"),
        )
        self.guests = self.bench.guests

    def drivers(self) -> dict[Address, str | None]:
        return {address: f.driver for address, f in self.platform.known.items()}


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.platform.refusals.clear()
    for machine in made.platform.machines:
        machine.refusal = None
        machine.stream.close()
    made.bench.close()


def test_a_guest_is_shared_by_those_who_ask_for_the_same_devices(lab: Lab) -> None:
    first = lab.guests.shared(lab.nic)
    assert first.state is GuestState.READY
    assert lab.guests.shared(lab.nic) is first
    other = lab.guests.shared(lab.disk)
    assert other is not first
    assert lab.guests.living == (first, other)
    assert lab.platform.machines[0].spec.devices == (NIC,)


def test_devices_in_another_order_make_another_guest(lab: Lab) -> None:
    first = lab.guests.shared(lab.nic, lab.disk)
    second = lab.guests.shared(lab.disk, lab.nic)
    assert first.state is GuestState.DESTROYED
    assert second.machine.spec.devices == (DISK, NIC)


def test_who_needs_a_device_gets_it_from_the_guest_that_holds_it(lab: Lab) -> None:
    shared = lab.guests.shared(lab.nic)
    fresh = lab.guests.fresh(lab.nic)
    assert shared.state is GuestState.DESTROYED
    assert lab.guests.living == (fresh,)
    assert lab.guests.shared(lab.nic) is not shared


def test_a_guest_dropped_or_unwell_is_not_shared_again(lab: Lab) -> None:
    first = lab.guests.shared(lab.nic)
    lab.guests.drop(first)
    lab.guests.drop(first)
    second = lab.guests.shared(lab.nic)
    assert second is not first
    machine = lab.platform.machines[1]
    machine.transport = FakeTransport(lambda _c, _s: (1, "", "read-only file system"))
    second._close_ssh()
    third = lab.guests.shared(lab.nic)
    assert third is not second
    assert machine.at is MachineState.DESTROYED


def test_a_guest_whose_kernel_complained_is_not_shared_again(lab: Lab) -> None:
    first = lab.guests.shared(lab.nic)
    first.console.run(
        "printf '[   61.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!\\r\\n'", soon()
    )
    assert first.console.log.notices
    assert lab.guests.shared(lab.nic) is not first


def test_a_guest_that_does_not_boot_is_destroyed(lab: Lab) -> None:
    lab.platform.new_stream = lambda: ScriptedStream([b"panic: out of luck\r\n"])
    with pytest.raises(GuestError):
        lab.guests.fresh(lab.nic)
    assert lab.guests.living == ()
    assert lab.platform.machines[0].at is MachineState.DESTROYED
    assert not lab.nic.used


def test_a_guest_has_the_memory_that_its_devices_want(lab: Lab) -> None:
    assert lab.guests.fresh(lab.disk).machine.spec.memory == GUEST_MEMORY
    lab.nic.guest_memory = 2 * GUEST_MEMORY
    assert lab.guests.fresh(lab.nic, lab.disk).machine.spec.memory == 2 * GUEST_MEMORY
    assert lab.guests.fresh(lab.nic, memory=8 << 30).machine.spec.memory == 8 << 30


def test_option_roms_are_given_when_asked_for(lab: Lab) -> None:
    lab.nic.rom = "/roms/nic.rom"
    assert lab.guests.fresh(lab.nic).machine.spec.roms == {}
    assert lab.guests.fresh(lab.nic, lab.disk, roms=True).machine.spec.roms == {
        NIC: "/roms/nic.rom"
    }


def test_guests_for_each_device_are_booted(lab: Lab) -> None:
    guests = lab.guests.fresh_each(lab.nic, lab.disk)
    assert list(guests.values()) == [lab.nic, lab.disk]
    assert all(guest.state is GuestState.READY for guest in guests)
    assert len({guest.name for guest in guests}) == 2
    assert lab.guests.fresh_each() == {}


@pytest.fixture
def templates(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The lab, with guests that continue saved ones."""
    monkeypatch.setattr("hil.bench.guest_os", lambda _: FakeOS())
    lab.host.shelf = FakeShelf()
    lab.platform.can = frozenset({Feature.TEMPLATES})
    return lab


def test_one_guest_boots_and_the_others_continue_it(templates: Lab) -> None:
    first, second = (templates.guests.fresh(device) for device in (templates.nic, templates.disk))
    booted, *continued = templates.platform.machines
    assert booted.spec.devices == ()
    assert booted.spec.template is None
    assert booted.at is MachineState.DESTROYED
    assert [machine.spec.devices for machine in continued] == [(NIC,), (DISK,)]
    (template,) = {machine.spec.template for machine in continued}
    assert template is not None
    assert "about to be saved" not in first.console.log.text()
    assert f"continued as {second.name}" in second.console.log.text()


def test_a_guest_booted_cold_serves_all_and_a_continued_one_not(templates: Lab) -> None:
    continued = templates.guests.shared(templates.nic)
    assert templates.guests.shared(templates.nic) is continued
    cold = templates.guests.shared(templates.nic, cold=True)
    assert cold.machine.spec.template is None
    assert continued.state is GuestState.DESTROYED
    assert templates.guests.shared(templates.nic) is cold


def test_a_guest_of_another_size_boots(templates: Lab) -> None:
    guest = templates.guests.fresh(host=templates.host, memory=64 << 20)
    assert guest.machine.spec.template is None


def test_without_the_feature_every_guest_boots(templates: Lab) -> None:
    templates.platform.can = frozenset()
    templates.guests.fresh(templates.nic)
    assert len(templates.platform.machines) == 1


class FakeShelf:
    """Keeps what is made, as a cache does."""

    def __init__(self) -> None:
        self.kept: Template | None = None
        self.forgotten = 0

    def template(self, make: Callable[[str], Template], deadline: Deadline) -> Template:
        deadline.check()
        self.kept = self.kept or make("/dev/vdz")
        return self.kept

    def forget(self) -> None:
        self.kept = None
        self.forgotten += 1


def test_a_template_that_is_kept_is_not_made_again(templates: Lab) -> None:
    shelf = templates.host.shelf = FakeShelf()
    templates.guests.fresh(templates.nic)
    assert shelf.kept is not None
    assert shelf.kept.path == "/dev/vdz"
    again = Lab()
    again.platform.can = templates.platform.can
    again.host.shelf = shelf
    guest = again.guests.fresh(again.nic)
    assert guest.machine.spec.template == shelf.kept
    assert len(again.platform.machines) == 1
    again.bench.close()


def test_a_template_that_is_lost_is_forgotten_and_the_guest_boots(
    templates: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = templates.host.shelf = FakeShelf()

    def start(machine: FakeMachine, _: Deadline) -> None:
        if machine.spec.template is not None:
            raise TemplateLostError("the saved guest cannot be continued")

    monkeypatch.setattr(FakeMachine, "start", start)
    guest = templates.guests.fresh(templates.nic)
    assert guest.state is GuestState.READY
    assert guest.machine.spec.template is None
    assert templates.guests.living == (guest,)
    assert shelf.forgotten == 1
    assert templates.guests.fresh(templates.disk).machine.spec.template is None


def test_a_template_that_cannot_be_made_leaves_no_guest(templates: Lab) -> None:
    templates.platform.new_stream = lambda: ScriptedStream([b"panic: out of luck\r\n"])
    with pytest.raises(GuestError):
        templates.guests.fresh(templates.nic)
    assert templates.guests.living == ()
    assert templates.nic.reservation is None


def test_a_device_is_reserved_once_and_returned_once(lab: Lab) -> None:
    lab.nic.reserve()
    lab.nic.reserve()
    assert lab.nic.host_driver == "igb"
    lab.nic.give_back()
    lab.nic.give_back()
    assert lab.platform.log == [f"reserve {NIC}", f"give back {NIC}"]
    assert lab.nic.host_driver == "igb"


def test_the_driver_of_a_device_that_was_left_reserved_is_not_known(lab: Lab) -> None:
    lab.nic.reservation = Reservation((NIC,), {})
    with pytest.raises(LabError, match="run before has left it reserved"):
        _ = lab.nic.host_driver


def test_a_device_whose_return_failed_can_be_returned_again(lab: Lab) -> None:
    lab.nic.reserve()
    lab.platform.refusals[f"give back {NIC}"] = ProductError("busy")
    with pytest.raises(ProductError):
        lab.nic.give_back()
    assert lab.nic.reservation is not None
    lab.platform.refusals.clear()
    lab.nic.give_back()
    assert lab.nic.reservation is None


def test_after_guest_makes_a_guest_only_where_none_was(lab: Lab) -> None:
    lab.guests.after_guest(lab.nic)
    assert len(lab.platform.machines) == 1
    assert lab.nic.used
    lab.guests.after_guest(lab.nic)
    assert len(lab.platform.machines) == 1
    lab.nic.give_back()
    lab.guests.after_guest(lab.nic)
    assert len(lab.platform.machines) == 2
    assert lab.guests.living == ()


def test_after_return_gives_back_what_a_guest_had_only_where_none_did(lab: Lab) -> None:
    lab.guests.after_return(lab.nic)
    assert len(lab.platform.machines) == 1
    assert lab.nic.returned
    assert lab.nic.reservation is None
    lab.guests.after_return(lab.nic)
    assert len(lab.platform.machines) == 1
    lab.nic.reserve()
    assert not lab.nic.returned
    lab.nic.give_back()  # no guest had it since
    lab.guests.after_return(lab.nic)
    assert len(lab.platform.machines) == 2


def test_a_shared_guests_entry_in_the_tables_stays_known(lab: Lab) -> None:
    lab.platform.can = frozenset({Feature.TABLES})
    lab.guests.fresh(lab.nic).destroy()
    assert lab.nic.entry_in_guest is None
    lab.platform.image.context(NIC.requester_id, domain=7)
    lab.guests.shared(lab.nic)
    lab.guests.after_return(lab.nic)
    lab.platform.image.context(NIC.requester_id, domain=1)
    held = lab.nic.entry_in_guest
    assert held is not None
    assert held.domain == 7


def test_vfs_are_devices_and_go_when_the_pf_is_wanted(lab: Lab) -> None:
    one, two = lab.bench.make_vfs(lab.nic, 2)
    assert (one.name, one.parent, one.kind) == ("nic0.vf0", lab.nic, "nic")
    assert lab.bench.make_vfs(lab.nic, 2) == (one, two)
    guest = lab.guests.shared(one)
    lab.guests.fresh(lab.nic)
    assert guest.state is GuestState.DESTROYED
    log = lab.platform.log
    assert log.index(f"give back {one.address}") < log.index(f"remove VFs of {NIC}")
    assert log.index(f"remove VFs of {NIC}") < log.index(f"reserve {NIC}")


@pytest.mark.parametrize("way", ["release", "give_back"])
def test_a_device_that_is_released_has_no_vfs(lab: Lab, way: str) -> None:
    (one,) = lab.bench.make_vfs(lab.nic, 1)
    guest = lab.guests.shared(one)
    getattr(lab.guests, way)(lab.nic)
    assert guest.state is GuestState.DESTROYED
    assert f"remove VFs of {NIC}" in lab.platform.log


def test_another_number_of_vfs_is_made_anew(lab: Lab) -> None:
    with lab.bench.vfs(lab.nic, 1) as (vf,):
        assert str(vf) == "nic0.vf0 (0000:01:10.0)"
        assert len(lab.bench.make_vfs(lab.nic, 3)) == 3
    assert lab.platform.log.count(f"remove VFs of {NIC}") == 2
    assert all(f.physical_function is None for f in lab.platform.known.values())


def test_making_vfs_returns_the_pf_first(lab: Lab) -> None:
    guest = lab.guests.shared(lab.nic)
    lab.bench.make_vfs(lab.nic, 1)
    assert guest.state is GuestState.DESTROYED
    assert lab.nic.reservation is None


def test_settle_puts_everything_back(lab: Lab) -> None:
    before = lab.drivers()
    lab.guests.shared(lab.disk)
    lab.guests.shared(*lab.bench.make_vfs(lab.nic, 2))
    lab.bench.settle()
    assert lab.guests.living == ()
    assert lab.drivers() == before
    lab.bench.settle()


def test_settle_tries_everything_whatever_fails(lab: Lab) -> None:
    lab.guests.shared(lab.nic)
    lab.guests.shared(lab.disk)
    lab.platform.machines[1].refusal = LabError("cannot be killed")
    lab.platform.refusals[f"give back {NIC}"] = ProductError("driver did not come back")
    with pytest.raises(ExceptionGroup, match="could not be put back") as caught:
        lab.bench.settle()
    assert len(caught.value.exceptions) == 2
    assert lab.platform.machines[0].at is MachineState.DESTROYED
    assert lab.drivers()[DISK] == "nvme"


def test_close_ends_what_brought_the_hosts_up_even_after_a_failure(lab: Lab) -> None:
    lab.nic.reserve()
    lab.platform.refusals[f"give back {NIC}"] = ProductError("no")
    with pytest.raises(ExceptionGroup):
        lab.bench.close()
    assert lab.closed == ["closed"]


def test_a_device_that_the_lab_has_not_is_named_with_those_it_has(lab: Lab) -> None:
    assert lab.bench.device("nic0") is lab.nic
    with pytest.raises(InventoryError, match="no device 'gpu0'") as caught:
        lab.bench.device("gpu0")
    assert "nic0, disk0" in caught.value.hint


def test_devices_of_one_guest_are_on_one_host(lab: Lab) -> None:
    elsewhere = BenchDevice("far", "nic", BenchHost("lab2", FakePlatform()), (NIC,))
    with pytest.raises(InventoryError, match="must be on one host"):
        lab.guests.prepare(lab.nic, elsewhere)
    with pytest.raises(InventoryError):
        lab.guests.prepare()
    assert lab.guests.prepare(host=lab.host).machine.spec.devices == ()


def test_a_peer_gives_its_address_back_once(lab: Lab) -> None:
    peer = Peer(lab.host, "eth9", "198.18.3.1")
    peer.restore()
    assert lab.platform.fake_transport.commands == []
    peer.configure()
    peer.restore()
    peer.restore()
    assert len(lab.platform.fake_transport.commands) == 2
    assert peer.address_for(2) == "198.18.3.12/24"


def test_no_limit_goes_beyond_the_test_s_deadline_but_that_of_a_guest_s_end(lab: Lab) -> None:
    guest = lab.guests.shared(lab.nic)
    lab.bench.bind(Deadline(0, "the test"))
    assert lab.host.limit(60, "x").remaining == 0
    assert guest.limit(60, "x").remaining == 0
    guest.destroy()
    assert lab.platform.machines[0].at is MachineState.DESTROYED
    lab.bench.bind(None)
    assert lab.host.limit(60, "x").remaining > 0


def test_how_guests_died_is_known_until_it_is_forgotten(lab: Lab) -> None:
    first, second = lab.guests.fresh(lab.nic), lab.guests.fresh(lab.disk)
    assert lab.guests.deaths() == ()
    for machine in lab.platform.machines:
        machine.at = MachineState.CRASHED
    words = [
        f"guest {guest.name} crashed by itself, says its hypervisor" for guest in (first, second)
    ]
    assert lab.guests.deaths() == tuple(words)
    lab.guests.close()
    lab.guests.forget_deaths()
    assert lab.guests.deaths() == ()


def test_a_guest_that_dies_while_it_boots_is_remembered(lab: Lab) -> None:
    lab.platform.new_stream = lambda: ScriptedStream([b"panic: out of luck\r\n"])
    with pytest.raises(GuestError, match="failed while it booted"):
        lab.guests.fresh(lab.nic)
    assert lab.guests.living == ()
    (words,) = lab.guests.deaths()
    assert "reported a panic" in words


def test_a_guest_that_restarted_by_itself_is_not_shared_again(lab: Lab) -> None:
    first = lab.guests.shared(lab.nic)
    first._restarts = -1
    assert first.signs_of_death() == f"guest {first.name} restarted by itself"
    assert lab.guests.shared(lab.nic) is not first
    assert lab.guests.deaths() == ()


def test_a_shared_guest_that_died_while_nobody_used_it_is_nobodys_death(lab: Lab) -> None:
    first = lab.guests.shared(lab.nic)
    first._enter(GuestState.CRASHED)
    lab.platform.machines[0].at = MachineState.CRASHED
    assert lab.guests.shared(lab.nic) is not first
    assert lab.guests.deaths() == ()
