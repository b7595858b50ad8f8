"""Memory, frames and commands of any content: the model stays sound."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.simulated import nvme
from hil.simulated.devices import Edu
from hil.simulated.drivers import NvmeDriver
from hil.simulated.machine import Machine
from hil.simulated.memory import (
    GIB,
    HOLE,
    MIB,
    PAGE,
    SUPERPAGE,
    HostMemory,
    OutOfMemory,
    RangeAllocator,
)
from hil.simulated.net import Interface, Stack
from hil.simulated.pci import BUS_MASTER, COMMAND, MEMORY_DECODE
from hil.simulated.topology import lab
from tests.simulated.model import Guest, reserve

# -- memory -----------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.booleans(), st.integers(1, 40), st.sampled_from([1, 2, 8]), st.booleans()),
    max_size=60,
)


@settings(deadline=None)
@given(steps)
def test_what_is_given_out_never_overlaps_and_all_of_it_comes_back(
    actions: list[tuple[bool, int, int, bool]],
) -> None:
    allocator = RangeAllocator(64 * PAGE, 192 * PAGE)
    held: list[tuple[int, int]] = []
    for take, number, align, high in actions:
        if take:
            try:
                at = allocator.take(number * PAGE, align * PAGE, high=high)
            except OutOfMemory:
                continue
            assert at % (align * PAGE) == 0
            assert 64 * PAGE <= at <= at + number * PAGE <= 192 * PAGE
            assert all(at + number * PAGE <= a or b <= at for a, b in held)
            held.append((at, at + number * PAGE))
        elif held:
            start, end = held.pop(number % len(held))
            allocator.give(start, end - start)
        assert allocator.free == 128 * PAGE - sum(end - start for start, end in held)
    for start, end in held:
        allocator.give(start, end - start)
    assert allocator.take(128 * PAGE) == 64 * PAGE


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 4 * PAGE), st.integers(4 * GIB - PAGE, 4 * GIB + PAGE)),
            st.binary(max_size=2 * PAGE),
        ),
        max_size=12,
    )
)
def test_memory_reads_what_was_written_and_ones_where_nothing_is(
    writes: list[tuple[int, bytes]],
) -> None:
    memory = HostMemory(3 * GIB)
    expected: dict[int, int] = {}
    for address, data in writes:
        memory.write(address, data)
        expected |= {address + n: byte for n, byte in enumerate(data)}
    for start in (0, 4 * GIB - PAGE, 4 * GIB):
        seen = memory.read(start, PAGE)
        for offset, byte in enumerate(seen):
            at = start + offset
            wanted = expected.get(at, 0) if memory.is_ram(at) else 0xFF
            assert byte == wanted


def test_guest_memory_comes_from_the_top_and_is_all_or_nothing() -> None:
    memory = HostMemory(3 * GIB)
    free = memory.free
    with pytest.raises(OutOfMemory):
        memory.allocate_guest(64 * GIB)
    assert memory.free == free
    superpages = memory.allocate_guest(5 * MIB)
    assert len(superpages) == 3
    assert all(address >= HOLE.stop for address in superpages)
    memory.write(superpages[0], b"secret")
    memory.release_guest(superpages)
    assert memory.free == free
    assert memory.read(superpages[0], 6) == bytes(6)
    more = memory.allocate_guest(2 * GIB)  # goes on below 4 GiB
    assert len(more) == 2 * GIB // SUPERPAGE
    memory.release_guest(more)
    assert memory.free == free


# -- anything from a guest --------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x06", b"\x08\x00"]))
def test_no_frame_upsets_the_stack(data: bytes, kind: bytes) -> None:
    stack = Stack()
    sent: list[bytes] = []
    interface = Interface("em0", b"\x02" * 6, lambda frame: not sent.append(frame))  # type: ignore[func-returns-value]
    interface.addresses = [ipaddress.IPv4Interface("10.0.0.1/24")]
    interface.up = True
    stack.add(interface)
    interface.receive(b"\xff" * 6 + b"\x04" * 6 + kind + data if kind else data)
    assert len(sent) <= 1


accesses = st.lists(
    st.tuples(
        st.booleans(),
        st.one_of(st.integers(0, 0x100), st.integers(0x40000 - 8, 0x41008)),
        st.sampled_from([1, 2, 4, 8]),
        st.one_of(st.integers(0, 8), st.integers(0, (1 << 64) - 1), st.just(0x40000)),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(lab())


@settings(deadline=None)
@given(accesses)
def test_no_access_upsets_edu(machine: Machine, actions: list[tuple[bool, int, int, int]]) -> None:
    edu = machine.function_named("edu0")
    assert isinstance(edu, Edu)
    edu.config_write(COMMAND, 2, MEMORY_DECODE | BUS_MASTER)
    base = edu.bars[0].address
    for store, offset, width, value in actions:
        if store:
            machine.memory.write(
                base + offset, (value % (1 << 8 * width)).to_bytes(width, "little")
            )
        else:
            assert len(machine.memory.read(base + offset, width)) == width


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2), st.lists(st.binary(min_size=64, max_size=64), max_size=8), st.data())
def test_no_command_upsets_the_nvme_controller(
    queue: int, commands: list[bytes], data: st.DataObject
) -> None:
    machine = Machine(lab())
    reserve(machine, "nvme0")
    guest = Guest(machine)
    port = guest.take("nvme0")
    NvmeDriver(port, guest).attach()
    low, high = (port.bar_load(0, nvme.ASQ + at, 4) for at in (0, 4))
    base = (low | high << 32) + 2 * PAGE * min(queue, 1)
    start = 5 if queue == 0 else 0
    for number, command in enumerate(commands):
        opcode = data.draw(st.integers(0, 12))
        guest.write(base + 64 * ((start + number) % 16), bytes([opcode]) + command[1:])
    port.bar_store(0, nvme.DOORBELLS + 8 * queue, 4, (start + len(commands)) % 16)
    assert port.bar_load(0, nvme.CSTS, 4) & ~(nvme.READY | nvme.FATAL) == 0


def test_a_prp_list_that_leads_to_itself_ends_in_an_error() -> None:
    machine = Machine(lab())
    reserve(machine, "nvme0")
    guest = Guest(machine)
    port = guest.take("nvme0")
    driver = NvmeDriver(port, guest)
    driver.attach()
    low, high = (port.bar_load(0, nvme.ASQ + at, 4) for at in (0, 4))
    queue = (low | high << 32) + 2 * PAGE
    place = guest.allocate(PAGE) + PAGE - 8  # the last entry of its page: a pointer to a list
    guest.write(place, struct.pack("<Q", place))
    command = struct.pack("<BBHIQQQQIIIIII", 2, 0, 77, 1, 0, 0, 0, place, 0, 0, 63, 0, 0, 0)
    guest.write(queue, command)
    port.bar_store(0, nvme.DOORBELLS + 8, 4, 1)
    status = struct.unpack("<HH", guest.read(queue + PAGE + 12, 4))
    assert status == (77, nvme.TRANSFER_ERROR << 1 | 1)
