"""The adapter for FreeBSD against simulated hosts: over SSH, with a model behind the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hil import journal
from hil.deadline import Deadline, poll
from hil.doctor.check import Check, State
from hil.doctor.freebsd import freebsd_host
from hil.errors import LabRefusalError
from hil.guests.guest import Guest, GuestState
from hil.guests.images import GuestImage
from hil.guests.os import guest_os
from hil.pci.address import Address
from hil.platforms.contract import Feature, GuestSpec, Machine, MachineState
from hil.platforms.freebsd import FreebsdBhyve
from hil.simulated.host import SimulatedHost
from hil.simulated.pci import DmaAborted
from hil.transport.ssh import SshTransport

NIC = Address.parse("0000:01:00.0")
IMAGE = GuestImage("freebsd", "freebsd", "/vm/guest.img")
#: What a guest leaves for good: the IOMMU stays on.
LASTING = ("table entries", "domains")


def soon() -> Deadline:
    return Deadline(60, "a test's step")


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Iterator[SimulatedHost]:
    name = getattr(request, "param", "freebsd-15-intel")
    made = SimulatedHost(name.removesuffix(" without IOMMU"), iommu="without" not in name).start()
    yield made
    made.close()


def connect(host: SimulatedHost) -> SshTransport:
    key = host.key.load()
    return SshTransport.connect(
        "sim",
        "127.0.0.1",
        port=host.port,
        key=key,
        host_key=host.host_key,
        deadline=soon(),
    )


@pytest.fixture
def platform(host: SimulatedHost) -> Iterator[FreebsdBhyve]:
    transport = connect(host)
    yield FreebsdBhyve("sim", transport, images=[IMAGE])
    transport.close()


def create(platform: FreebsdBhyve, name: str, *devices: Address) -> Machine:
    return platform.create_guest(GuestSpec(name, "freebsd", devices=devices), soon())


def footprint(platform: FreebsdBhyve) -> dict[str, int]:
    counts = platform.footprint(soon())
    return {name: count for name, count in counts.items() if name not in LASTING}


@pytest.mark.parametrize(
    "host", ["freebsd-13.2-amd", "freebsd-14-intel", "freebsd-current-amd"], indirect=True
)
def test_a_device_goes_to_a_guest_and_back_and_leaves_nothing(platform: FreebsdBhyve) -> None:
    before = footprint(platform)
    assert platform.features >= {Feature.IOMMU, Feature.TABLES, Feature.GUEST_MEMORY}
    reservation = platform.reserve([NIC], soon())
    guest = Guest(create(platform, "nic0-1", NIC), guest_os("freebsd"))
    assert guest.machine.state(soon()) is MachineState.PREPARED
    guest.boot()
    assert guest.seen(NIC).driver == "igb"
    with guest.token() as token:
        ((place, *_),) = guest.machine.search_physical([token], soon())
        assert guest.machine.read_physical(place, len(token), soon()) == token.encode()
    guest.reboot()
    assert guest.run(["true"]).status == 0
    guest.power_off()
    assert guest.state is GuestState.STOPPED
    guest.destroy()
    platform.give_back(reservation, soon())
    assert platform.function(NIC, soon()).driver == "igb"
    assert footprint(platform) == before
    assert not platform.journal.outstanding


def test_a_killed_guest_holds_its_device_until_it_is_destroyed(platform: FreebsdBhyve) -> None:
    reservation = platform.reserve([NIC], soon())
    machine = create(platform, "nic0-1", NIC)
    machine.start(soon())
    machine.kill(soon())
    assert machine.state(soon()) is MachineState.CRASHED
    assert len(platform.guests(soon())) == 1
    with pytest.raises(LabRefusalError, match="held by a guest"):
        platform.give_back(reservation, soon())
    with pytest.raises(LabRefusalError, match="another virtual machine holds the function"):
        create(platform, "nic0-2", NIC)
    machine.destroy(soon())
    create(platform, "nic0-3", NIC).destroy(soon())
    platform.give_back(reservation, soon())
    assert platform.guests(soon()) == ()


@pytest.mark.parametrize(
    "host", ["freebsd-13.2-amd without IOMMU", "freebsd-15-intel without IOMMU"], indirect=True
)
def test_a_start_without_iommu_fails_and_says_which_cause_it_was(platform: FreebsdBhyve) -> None:
    assert Feature.IOMMU not in platform.features
    reservation = platform.reserve([NIC], soon())
    before = footprint(platform)
    # AMD has two switches for it.
    why = "switched bhyve's use of the IOMMU off|AMD-Vi is not enabled"
    with pytest.raises(LabRefusalError, match=why) as raised:
        create(platform, "nic0-1", NIC)
    assert re.search(r"hw\.vmm\.(iommu|amdvi)\.enable=\"1\"", raised.value.hint)
    assert footprint(platform) == before
    platform.give_back(reservation, soon())


def test_the_doctor_tells_a_device_that_works_in_its_guest_from_one_that_does_not(
    platform: FreebsdBhyve,
) -> None:
    def row() -> Check | None:
        checks = freebsd_host("sim", platform.transport, soon())
        return next((one for one in checks if one.name == "1/0/0 works in its guest"), None)

    reservation = platform.reserve([NIC], soon())
    assert row() is None
    guest = Guest(create(platform, "nic0-1", NIC), guest_os("freebsd"))
    # Assigned, and no driver has it yet.
    before = row()
    assert before is not None
    assert before.state is State.MISSING
    assert "neither MSI nor MSI-X is on" in before.evidence
    assert not before.bad
    guest.boot()
    after = row()
    assert after is not None
    assert "MSI-X" in after.evidence
    guest.destroy()
    assert row() is None
    platform.give_back(reservation, soon())


def test_vfs_stay_while_a_guest_holds_one(platform: FreebsdBhyve) -> None:
    vfs = platform.create_vfs(NIC, 2, soon())
    assert platform.function(NIC, soon()).virtual_functions == vfs
    assert platform.function(vfs[1], soon()).physical_function == NIC
    reservation = platform.reserve([vfs[0]], soon())
    machine = create(platform, "vf0-1", vfs[0])
    with pytest.raises(LabRefusalError, match="a guest holds one"):
        platform.remove_vfs(NIC, soon())
    machine.destroy(soon())
    platform.give_back(reservation, soon())
    platform.remove_vfs(NIC, soon())
    assert platform.function(NIC, soon()).virtual_functions == ()
    assert not platform.journal.outstanding


def test_what_a_dead_connection_left_is_taken_back(
    host: SimulatedHost, platform: FreebsdBhyve
) -> None:
    before = footprint(platform)
    platform.reserve([NIC], soon())
    create(platform, "nic0-1", NIC).start(soon())
    platform.canary(1 << 16, soon())
    platform.transport.close()

    transport = connect(host)
    after = FreebsdBhyve("sim", transport)
    # The keeper sees to the guest by itself, the journal to the rest.
    poll(lambda: not after.guests(soon()), soon())
    found = journal.read(transport, after.dialect, soon())
    kinds = {kind.name: kind for kind in after.undo_kinds}
    for entry in found.entries:
        assert journal.undo(entry, kinds, transport, after.dialect, soon())
    assert len(found.entries) == 3
    assert footprint(after) == before
    assert after.function(NIC, soon()).driver == "igb"
    transport.close()


def test_each_fault_is_seen_though_the_unit_keeps_one(
    host: SimulatedHost, platform: FreebsdBhyve
) -> None:
    reservation = platform.reserve([NIC], soon())
    create(platform, "nic0-1", NIC).destroy(soon())
    nic = host.machine.function_named("nic0")

    def told(address: int) -> list[int | None]:
        with pytest.raises(DmaAborted):
            host.machine.units.translate(nic.requester_id, address, True)
        return [fault.address for fault in platform.faults(soon())]

    assert told(0x5000) == [0x5000]
    assert told(0x6000) == [0x5000], "the record is taken"
    platform.clear_faults(soon())
    assert platform.faults(soon()) == ()
    assert told(0x7000) == [0x7000]
    platform.give_back(reservation, soon())
