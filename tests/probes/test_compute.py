"""The OpenCL program, really run: PoCL makes an OpenCL device of the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hil.errors import GuestError, ProductError
from hil.oracles import gpu_memory
from hil.pci.address import Address
from hil.probes import compute
from hil.probes.compute import Compute, ComputeDevice, NoComputeError, choose
from hil.probes.remote import in_guest_opencl
from hil.transport.local import LocalTransport
from tests.opencl import first, limit, opened, path_to_this_python, pocl

pytestmark = pytest.mark.xdist_group("opencl")

#: Two pieces and a bit, in words that fill no piece.
SIZE = (34 << 20) + 4096
TAG, OTHER = 0xC0FFEE, 0x0DDBA1


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compute]:
    with pocl(tmp_path_factory.mktemp("pocl")), opened() as made:
        yield made


@pytest.fixture
def held(card: Compute) -> Iterator[Compute]:
    assert card.hold(SIZE) == SIZE
    yield card
    card.release()


def test_the_device_is_told(card: Compute) -> None:
    assert "Portable Computing Language" in card.device.platform
    assert not card.device.gpu
    assert card.device.address is None
    assert card.device.memory >= card.device.largest > 0


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_what_the_host_sends_comes_back(held: Compute, pinned: bool) -> None:
    sent = held.make_on_host(TAG, pinned=pinned)
    assert sent.bytes == SIZE
    assert sent.rate > 0
    back = held.verify_on_host(TAG, pinned=pinned)
    gpu_memory.check_moved(back, "there and back", SIZE)


def test_what_a_kernel_made_is_what_the_host_sees(held: Compute) -> None:
    held.make_on_device(TAG)
    gpu_memory.check_moved(held.verify_on_host(TAG, pinned=True), "made by a kernel", SIZE)


def test_what_the_host_made_is_what_a_kernel_sees(held: Compute) -> None:
    held.make_on_host(TAG, pinned=True)
    gpu_memory.check_moved(held.verify_on_device(TAG), "seen by a kernel", SIZE)


@pytest.mark.parametrize("by", ["verify_on_host", "verify_on_device"])
@pytest.mark.parametrize("made", ["make_on_host", "make_on_device"])
class TestControls:
    def made(self, held: Compute, made: str) -> None:
        if made == "make_on_host":
            held.make_on_host(TAG, pinned=False)
        else:
            held.make_on_device(TAG)

    def complaint(self, held: Compute, by: str, tag: int = TAG) -> str:
        moved = (
            held.verify_on_host(tag, pinned=False)
            if by == "verify_on_host"
            else held.verify_on_device(tag)
        )
        with pytest.raises(ProductError) as caught:
            gpu_memory.check_moved(moved, "corrupted", SIZE)
        return caught.value.explain()

    def test_a_flipped_bit_is_seen(self, held: Compute, made: str, by: str) -> None:
        self.made(held, made)
        held.flip((20 << 20) + 3, 6)
        text = self.complaint(held, by)
        assert f"corrupted: 8 of {SIZE} bytes are wrong" in text
        assert "1 word(s) from 0x1400000" in text
        assert "bit 30 is the other way round" in text

    def test_a_swapped_page_shows_where_it_came_from(
        self, held: Compute, made: str, by: str
    ) -> None:
        self.made(held, made)
        held.swap(0x3000, 0x2100000)
        text = self.complaint(held, by)
        assert f"corrupted: 8192 of {SIZE} bytes are wrong" in text
        assert "this run's bytes for 0x2100000, found at 0x3000" in text
        if by == "verify_on_host":  # a kernel keeps the first few words of a block only
            assert "512 word(s) from 0x3000" in text
            assert "this run's bytes for 0x3000, found at 0x2100000" in text

    def test_the_bytes_of_another_run_are_foreign(self, held: Compute, made: str, by: str) -> None:
        self.made(held, made)
        text = self.complaint(held, by, OTHER)
        assert f"corrupted: {SIZE} of {SIZE} bytes are wrong" in text
        assert "foreign content" in text


def test_several_queues_do_not_meet(card: Compute) -> None:
    moved = card.queues(TAG, count=4, size=1 << 20, rounds=3)
    gpu_memory.check_moved(moved, "four queues", 12 << 20)


def test_queues_that_take_each_other_s_buffers_are_seen(card: Compute) -> None:
    moved = card.queues(TAG, count=4, size=1 << 20, rounds=1, cross=True)
    with pytest.raises(ProductError, match=f"crossed: {4 << 20} of") as caught:
        gpu_memory.check_moved(moved, "crossed", 4 << 20)
    assert "this run's bytes for 0x100000, found at 0x0" in caught.value.seen


def test_nothing_of_a_run_that_never_was_is_found(held: Compute) -> None:
    held.make_on_device(OTHER)
    search = held.search(TAG)
    assert search.bytes == SIZE
    gpu_memory.check_no_remains(search, SIZE)


def test_planted_remains_are_found_with_where_and_how_much(held: Compute) -> None:
    held.make_on_device(OTHER)
    # Somebody's page, given out again at another place, among what is another's.
    held.swap(0x10000, 0x2000000)
    held.flip(0x10000 - 8, 63)
    held.flip(0x11000, 63)
    search = held.search(OTHER)
    with pytest.raises(ProductError, match=f"data leak: {SIZE - 128} of {SIZE} bytes") as caught:
        gpu_memory.check_no_remains(search, SIZE)
    assert "4096 bytes at 0x10000, where their maker had them at 0x2000000" in caught.value.seen


def test_a_word_that_looks_like_the_pattern_is_no_remnant(held: Compute) -> None:
    held.make_on_device(OTHER)
    held.flip(0x100000, 0)
    search = held.search(OTHER)
    assert search.found == SIZE - 64
    assert [(run.address, run.size, run.said) for run in search.runs] == [
        (0, 0x100000, 0),
        (0x100040, SIZE - 0x100040, 0x100040),
    ]


def test_more_memory_than_there_is_is_not_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """PoCL promises all that is asked for; drivers of cards do not."""
    blocks: list[int] = []

    def memory(size: int) -> Any:
        if len(blocks) == 3:
            raise MemoryError
        blocks.append(size)
        return SimpleNamespace(release=blocks.pop)

    small = SimpleNamespace(
        blocks=[],
        device=SimpleNamespace(max_mem_alloc_size=(1 << 20) + 8),
        cl=SimpleNamespace(Error=LookupError),
        memory=memory,
        kernel=lambda *_: None,
        queue=SimpleNamespace(finish=lambda: None),
    )
    monkeypatch.setattr(in_guest_opencl, "card", small, raising=False)
    card: Any = SimpleNamespace(
        hold=in_guest_opencl.do_hold,
        device=SimpleNamespace(memory=(3 << 20) + 70),
    )
    with pytest.raises(GuestError, match="3 MiB of device memory were to be had, not 16 MiB"):
        gpu_memory.hold(card, 16 << 20)
    assert gpu_memory.hold(card, (3 << 20) + 7) == 3 << 20
    assert gpu_memory.hold_most(card) == int(card.device.memory * 0.9) // 64 * 64
    in_guest_opencl.do_release()
    assert not blocks


def test_looking_at_too_little_is_no_success(held: Compute) -> None:
    held.make_on_device(TAG)
    with pytest.raises(GuestError, match="bytes were looked at"):
        gpu_memory.check_moved(held.verify_on_device(TAG), "half", 2 * SIZE)
    with pytest.raises(GuestError, match="bytes were searched"):
        gpu_memory.check_no_remains(held.search(OTHER), 2 * SIZE)


def test_what_goes_wrong_in_the_guest_is_told_in_its_words(held: Compute) -> None:
    with pytest.raises(GuestError, match="flip failed") as caught:
        held.flip(SIZE, 0)
    assert "no memory is held at that address" in caught.value.seen
    assert gpu_memory.hold(held, 4096) == 4096


# ---- what is missing ---------------------------------------------------------------------


def test_a_guest_without_python_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoComputeError, match="cannot run the OpenCL program") as caught:
        Compute(LocalTransport("here"), limit, first)
    assert "Python 3" in caught.value.hint


def fake_opencl(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str) -> None:
    """Another pyopencl, found before the real one."""
    (folder / "pyopencl.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PATH", path_to_this_python())


def missing(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str) -> str:
    fake_opencl(monkeypatch, folder, module)
    with pytest.raises(NoComputeError) as caught:
        Compute(LocalTransport("here"), limit, first)
    return caught.value.message


FAKE = """
class Error(Exception): pass
class Platform:
    name = "Vendor's OpenCL"
    def get_devices(self):
        raise Error("clGetDeviceIDs failed: DEVICE_NOT_FOUND")
"""


def test_a_guest_without_pyopencl_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = missing(monkeypatch, tmp_path, "raise ImportError('none here')")
    assert told.startswith("Python has no pyopencl (none here): install python3-pyopencl")


def test_a_guest_without_a_vendor_s_opencl_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = missing(
        monkeypatch, tmp_path, FAKE + "def get_platforms(): raise Error('PLATFORM_NOT_FOUND_KHR')"
    )
    assert "no vendor's OpenCL is registered in /etc/OpenCL/vendors" in told
    assert "PLATFORM_NOT_FOUND_KHR" in told


def test_a_guest_whose_driver_is_not_loaded_has_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = FAKE + "def get_platforms(): return [Platform()]"
    fake_opencl(monkeypatch, tmp_path, module)
    with pytest.raises(GuestError, match="OpenCL in the guest has no device") as caught:
        Compute(LocalTransport("here"), limit, lambda devices: choose(devices, HERE))
    assert not isinstance(caught.value, NoComputeError)
    assert "driver" in caught.value.hint


# ---- which device ------------------------------------------------------------------------


def device(index: int, address: Address | None, *, gpu: bool = True) -> ComputeDevice:
    return ComputeDevice(index, f"card {index}", "X", "3.0", "1", gpu, 1 << 30, 1 << 28, address)


HERE, THERE = Address(0, 0, 16, 0), Address(0, 0, 17, 0)


def test_the_device_at_the_card_s_address_is_chosen() -> None:
    devices = [device(0, None, gpu=False), device(1, THERE), device(2, HERE)]
    assert choose(devices, HERE).index == 2


def test_a_single_gpu_that_tells_no_address_is_taken() -> None:
    assert choose([device(0, None, gpu=False), device(1, None)], HERE).index == 1


@pytest.mark.parametrize(
    "devices",
    [
        [],
        [device(0, None, gpu=False)],
        [device(0, THERE)],
        [device(0, None), device(1, None)],
    ],
)
def test_a_device_is_not_guessed(devices: list[ComputeDevice]) -> None:
    with pytest.raises(GuestError, match=r"no device at 0000:00:10\.0"):
        choose(devices, HERE)


@pytest.mark.parametrize(
    ("device", "told"),
    [
        (
            SimpleNamespace(int_ptr=0, pci_domain_id_nv=1, pci_bus_id_nv=0x3B, pci_slot_id_nv=0x09),
            [1, 0x3B, 1, 1],
        ),
        (
            # Signed bytes.
            SimpleNamespace(
                int_ptr=0, topology_amd=SimpleNamespace(type=1, bus=-61, device=0, function=0)
            ),
            [0, 0xC3, 0, 0],
        ),
        (SimpleNamespace(int_ptr=0), None),
    ],
)
def test_the_address_is_asked_in_each_vendor_s_way(
    device: Any, told: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_device: Any) -> list[int]:
        raise LookupError

    monkeypatch.setattr(in_guest_opencl, "khr_place", unknown)
    assert in_guest_opencl.place(device) == told


def test_the_address_by_the_common_extension_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        status = 0

        def clGetDeviceInfo(self, pointer: Any, number: int, size: Any, raw: Any, _: None) -> int:  # noqa: N802
            assert (pointer.value, number, size.value) == (77, 0x410F, 16)
            raw[:] = [0, 3, 0, 1]
            return self.status

    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    assert in_guest_opencl.place(SimpleNamespace(int_ptr=77)) == [0, 3, 0, 1]
    library.status = -30
    assert in_guest_opencl.place(SimpleNamespace(int_ptr=77)) is None


ROW: dict[str, Any] = {
    "name": "NVIDIA X",
    "platform": "NVIDIA CUDA",
    "version": "OpenCL 3.0 CUDA",
    "driver": "580.1",
    "gpu": True,
    "memory": 80 << 30,
    "largest": 20 << 30,
    "place": [0, 0, 16, 0],
}


def test_what_the_program_tells_is_read() -> None:
    (found,) = compute.parse_devices({"devices": [ROW], "reason": ""})
    assert found.address == HERE
    assert str(found) == "NVIDIA X (NVIDIA CUDA, driver 580.1, 81920 MiB)"
