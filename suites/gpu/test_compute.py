"""A GPU's memory, by OpenCL in the guest: what is put there stays, and is nobody else's."""

from __future__ import annotations

import secrets

import pytest

from hil.bench import BenchDevice, GuestPool
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.oracles import gpu_memory
from hil.probes.compute import Compute, in_guest, report_rates

pytestmark = pytest.mark.needs(device="gpu", capability="compute")

#: Bytes of the controls, which need no more.
SOME = 64 << 20


def new_tag() -> int:
    return secrets.randbits(24)


@pytest.mark.catalogue("GP2")
@pytest.mark.danger(1)
@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_what_the_host_sends_comes_back(
    device: BenchDevice, compute: Compute, pinned: bool
) -> None:
    size = gpu_memory.hold_most(compute)
    tag = new_tag()
    there = compute.make_on_host(tag, pinned=pinned)
    back = compute.verify_on_host(tag, pinned=pinned)
    how = "pinned" if pinned else "pageable"
    report_rates(device, {f"host to device, {how}": there, f"device to host, {how}": back})
    gpu_memory.check_moved(back, f"sent and fetched, {how}", size)


@pytest.mark.catalogue("GP3")
@pytest.mark.danger(1)
def test_what_a_kernel_made_is_what_the_host_sees(compute: Compute) -> None:
    size = gpu_memory.hold_most(compute)
    tag = new_tag()
    compute.make_on_device(tag)
    gpu_memory.check_moved(compute.verify_on_host(tag, pinned=True), "made by a kernel", size)


@pytest.mark.catalogue("GP3")
@pytest.mark.danger(1)
def test_what_the_host_made_is_what_a_kernel_sees(compute: Compute) -> None:
    size = gpu_memory.hold_most(compute)
    tag = new_tag()
    compute.make_on_host(tag, pinned=True)
    gpu_memory.check_moved(compute.verify_on_device(tag), "made by the host", size)


@pytest.mark.catalogue("GP2")
@pytest.mark.danger(1)
def test_several_queues_at_once_do_not_meet(device: BenchDevice, compute: Compute) -> None:
    moved = compute.queues(new_tag(), count=4, size=32 << 20, rounds=8)
    report_rates(device, {"four queues, there, within and back": moved})
    gpu_memory.check_moved(moved, "four queues at once", 4 * 8 * (32 << 20))


@pytest.mark.catalogue("GP2")
@pytest.mark.danger(1)
def test_control_a_bit_that_flipped_is_seen(compute: Compute) -> None:
    gpu_memory.hold(compute, SOME)
    tag = new_tag()
    compute.make_on_host(tag, pinned=True)
    compute.flip(SOME // 2, 3)
    with pytest.raises(ProductError, match=r"flipped: 8 of \d+ bytes are wrong"):
        gpu_memory.check_moved(compute.verify_on_host(tag, pinned=True), "flipped", SOME)


@pytest.mark.catalogue("GP3")
@pytest.mark.danger(1)
def test_control_two_pages_that_were_swapped_are_seen(compute: Compute) -> None:
    gpu_memory.hold(compute, SOME)
    tag = new_tag()
    compute.make_on_device(tag)
    compute.swap(0x1000, SOME // 2)
    with pytest.raises(ProductError, match=r"swapped: 8192 of \d+ bytes are wrong"):
        gpu_memory.check_moved(compute.verify_on_device(tag), "swapped", SOME)


@pytest.mark.catalogue("GP2")
@pytest.mark.danger(1)
def test_control_queues_that_take_each_others_memory_are_seen(compute: Compute) -> None:
    moved = compute.queues(new_tag(), count=4, size=1 << 20, rounds=1, cross=True)
    with pytest.raises(ProductError, match="bytes are wrong"):
        gpu_memory.check_moved(moved, "crossed queues", 4 << 20)


@pytest.mark.catalogue("GP8")
@pytest.mark.danger(1)
def test_a_killed_guest_leaves_nothing_in_the_cards_memory(
    device: BenchDevice, compute: Compute, guest: Guest, guests: GuestPool
) -> None:
    tag = new_tag()
    gpu_memory.hold_most(compute)
    compute.make_on_device(tag)
    guest.kill()  # with its memory held: no driver gets to clear it
    guest.destroy()
    with in_guest(guests.fresh(device, cold=True), device) as next_guests:
        size = gpu_memory.hold_most(next_guests, touch=False)
        gpu_memory.check_no_remains(next_guests.search(tag), size)


@pytest.mark.catalogue("GP8")
@pytest.mark.danger(1)
def test_control_planted_remains_are_found(compute: Compute) -> None:
    gpu_memory.hold(compute, SOME)
    tag = new_tag()
    compute.make_on_device(tag)
    with pytest.raises(ProductError, match="data leak"):
        gpu_memory.check_no_remains(compute.search(tag), SOME)
