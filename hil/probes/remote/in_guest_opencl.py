"""A GPU's memory, filled and looked at by OpenCL *inside the guest*, by ``python3 -c`` over SSH.

It is sent as text and answers questions as :mod:`hil.transport.agent` says.  It needs pyopencl,
with the NumPy that this brings, and a vendor's OpenCL; without them it says what is missing.

Memory is taken in blocks and never seen whole by the host: what moves goes through a buffer of
16 MiB.  The pattern is that of :mod:`hil.oracles.pattern`: each 8 bytes hold a tag of 24 bits and
their own 40-bit address, counted from the start of the first block.

Sources: The OpenCL Specification 3.0; pyopencl's reference; cl_khr_pci_bus_info,
cl_nv_device_attribute_query and cl_amd_device_attribute_query of the OpenCL registry.
"""

from __future__ import annotations

import base64
import ctypes
import importlib
import sys
import time
from typing import Any

#: Bytes of one block of device memory, at most, and of a piece that moves at a time.
BLOCK, PIECE = 256 << 20, 16 << 20
WORD = 8
ADDRESS = (1 << 40) - 1
#: Bytes that the search tells apart: eight words that follow one another are no coincidence.
GRAIN = 64
#: Runs of wrong words that are told, and the first bytes of each.
RUNS, SAMPLE = 64, 64
#: Wrong words that a kernel keeps of each block.
KEPT = 256

KERNELS = """
#define ADDRESS 0xffffffffffUL

__kernel void make(__global ulong *words, ulong head, ulong first)
{
    size_t i = get_global_id(0);
    words[i] = head | ((first + 8 * i) & ADDRESS);
}

__kernel void verify(__global const ulong *words, ulong head, ulong first,
                     __global uint *count, __global ulong *kept)
{
    size_t i = get_global_id(0);
    ulong got = words[i];
    if (got != (head | ((first + 8 * i) & ADDRESS))) {
        uint n = atomic_inc(count);
        if (n < KEPT) {
            kept[2 * n] = i;
            kept[2 * n + 1] = got;
        }
    }
}

__kernel void search(__global const ulong *words, ulong tag, __global uchar *found)
{
    size_t i = get_global_id(0);
    ulong start = words[8 * i];
    uchar same = (start >> 40) == tag;
    for (int n = 1; n < 8; n++)
        same &= words[8 * i + n] == start + 8 * n;
    found[i] = same;
}

__kernel void copy(__global const ulong *from, __global ulong *to)
{
    size_t i = get_global_id(0);
    to[i] = from[i];
}
"""

TRADE = "install python3-pyopencl (Debian), py311-pyopencl (FreeBSD)"


class Card:
    """An OpenCL device, its kernels, and the blocks of its memory that are held."""

    def __init__(self, cl: Any, device: Any) -> None:
        self.cl, self.device = cl, device
        self.context = cl.Context([device])
        self.queue = cl.CommandQueue(self.context)
        program = cl.Program(self.context, KERNELS)
        self.kernels = program.build(["-DKEPT=%d" % KEPT])
        self.blocks: list[tuple[Any, int]] = []
        """Buffers and their sizes in bytes."""
        self.staging: dict[bool, Any] = {}

    def memory(self, size: int, host: bool = False) -> Any:
        flags = self.cl.mem_flags
        more = flags.ALLOC_HOST_PTR if host else 0
        return self.cl.Buffer(self.context, flags.READ_WRITE | more, size)

    def kernel(self, name: str, words: int, *arguments: Any, queue: Any = None) -> None:
        """Run a kernel once for each of ``words``; a new kernel object, for queues share none."""
        kernel = self.cl.Kernel(self.kernels, name)
        kernel(queue or self.queue, (words,), None, *arguments)

    def pinned(self, size: int) -> Any:
        """Words of host memory that the driver has chosen and the device can reach by itself."""
        buffer = self.memory(size, host=True)
        flags = self.cl.map_flags
        array, _ = self.cl.enqueue_map_buffer(
            self.queue, buffer, flags.READ | flags.WRITE, 0, (size // WORD,), np().uint64
        )
        return array

    def stage(self, pinned: bool) -> Any:
        """The words of host memory through which all goes."""
        if pinned not in self.staging:
            empty = np().empty(PIECE // WORD, np().uint64)
            self.staging[pinned] = self.pinned(PIECE) if pinned else empty
        return self.staging[pinned]

    def pieces(self) -> Any:
        """Parts of what is held: buffer, offset in it, address of all, bytes."""
        address = 0
        for buffer, size in self.blocks:
            for offset in range(0, size, PIECE):
                yield buffer, offset, address + offset, min(PIECE, size - offset)
            address += size


card: Card


def np() -> Any:
    return importlib.import_module("numpy")


def head(tag: int) -> Any:
    return np().uint64((tag & 0xFFFFFF) << 40)


def pattern(tag: int, address: int, size: int) -> Any:
    words = np().arange(address, address + size, WORD, dtype=np().uint64)
    return (words & np().uint64(ADDRESS)) | head(tag)


def differences(tag: int, address: int, got: Any) -> list[list[int]]:
    """Runs of wrong words: address of the first, how many, and the first of what is there."""
    wrong = np().flatnonzero(got != pattern(tag, address, got.nbytes))
    if not len(wrong):
        return []
    starts = np().flatnonzero(np().diff(wrong, prepend=wrong[0] - 2) != 1)
    ends = np().append(starts[1:], len(wrong))
    found = []
    for start, end in zip(starts.tolist(), ends.tolist()):
        first = int(wrong[start])
        sample = got[first : first + min(end - start, SAMPLE // WORD)]
        found.append([address + first * WORD, end - start, *sample.tolist()])
    return found


def joined(words: list[list[int]]) -> list[list[int]]:
    """Runs, as above, of wrong words that are told one by one: address and what is there."""
    runs: list[list[int]] = []
    for address, got in words:
        if runs and address == runs[-1][0] + runs[-1][1] * WORD:
            runs[-1][1] += 1
            runs[-1].append(got)
            del runs[-1][2 + SAMPLE // WORD :]
        else:
            runs.append([address, 1, got])
    return runs


class Wrong:
    """Runs of wrong words, all counted and the first kept."""

    def __init__(self) -> None:
        self.words = 0
        self.runs: list[list[int]] = []

    def add(self, runs: list[list[int]]) -> None:
        self.words += sum(run[1] for run in runs)
        for run in runs[: RUNS - len(self.runs)]:
            self.runs.append(run)

    def told(self) -> dict[str, Any]:
        told = [
            {
                "address": address,
                "words": words,
                "got": base64.b64encode(np().array(got, "<u8").tobytes()).decode(),
            }
            for address, words, *got in self.runs
        ]
        return {"wrong": self.words, "runs": told}


# ---- which devices there are -----------------------------------------------------------


def khr_place(device: Any) -> list[int]:
    """By cl_khr_pci_bus_info, which pyopencl does not know: four numbers of 32 bits."""
    number, raw = 0x410F, (ctypes.c_uint32 * 4)()
    library = ctypes.CDLL("libOpenCL.so.1" if sys.platform == "linux" else "libOpenCL.so")
    pointer, size = ctypes.c_void_p(device.int_ptr), ctypes.c_size_t(ctypes.sizeof(raw))
    if library.clGetDeviceInfo(pointer, number, size, raw, None) != 0:
        raise LookupError("not told")
    return list(raw)


def nvidia_place(device: Any) -> list[int]:
    slot = device.pci_slot_id_nv  # device and function
    return [device.pci_domain_id_nv, device.pci_bus_id_nv, slot >> 3, slot & 7]


def amd_place(device: Any) -> list[int]:
    at = device.topology_amd
    return [0, at.bus & 0xFF, at.device & 0xFF, at.function & 0xFF]


def place(device: Any) -> list[int] | None:
    """PCI domain, bus, device and function, as far as the vendor's OpenCL tells."""
    for told in (khr_place, nvidia_place, amd_place):
        try:
            return told(device)
        except Exception:  # each vendor has its own way to know nothing of the others'
            continue
    return None


def listed() -> tuple[list[Any], str]:
    """OpenCL's devices; where there is no OpenCL, what is missing, in a sentence."""
    try:
        cl = importlib.import_module("pyopencl")
    except ImportError as error:
        return [], "Python has no pyopencl (%s): %s" % (error, TRADE)
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:
        return [], "no vendor's OpenCL is registered in /etc/OpenCL/vendors (%s)" % error
    devices = []
    for platform in platforms:
        try:
            devices += platform.get_devices()
        except cl.Error:
            continue
    return devices, ""


def do_devices() -> dict[str, Any]:
    devices, reason = listed()
    told = []
    for device in devices:
        kind = importlib.import_module("pyopencl").device_type
        told.append(
            {
                "name": device.name.strip(),
                "platform": device.platform.name.strip(),
                "version": device.version.strip(),
                "driver": device.driver_version.strip(),
                "gpu": bool(device.type & kind.GPU),
                "memory": device.global_mem_size,
                "largest": device.max_mem_alloc_size,
                "place": place(device),
            }
        )
    return {"devices": told, "reason": reason}


def do_open(number: int) -> bool:
    global card
    card = Card(importlib.import_module("pyopencl"), listed()[0][number])
    return True


# ---- its memory ------------------------------------------------------------------------


def do_hold(size: int, touch: bool) -> int:
    """Take ``size`` bytes of its memory, in blocks; tells how many were to be had.

    ``touch``: write to each block, for drivers give memory at the first use.
    """
    do_release()
    largest = min(BLOCK, card.device.max_mem_alloc_size) // GRAIN * GRAIN
    left = size // GRAIN * GRAIN
    while left:
        block = min(left, largest)
        try:
            buffer = card.memory(block)
            if touch:
                card.kernel("make", block // WORD, buffer, head(0), np().uint64(0))
                card.queue.finish()
        except (MemoryError, card.cl.Error):
            break
        card.blocks.append((buffer, block))
        left -= block
    return sum(size for _, size in card.blocks)


def do_release() -> bool:
    for buffer, _ in card.blocks:
        buffer.release()
    card.blocks = []
    return True


def do_make_on_device(tag: int) -> dict[str, Any]:
    """The pattern, made by a kernel."""
    address, begin = 0, time.monotonic()
    for buffer, size in card.blocks:
        card.kernel("make", size // WORD, buffer, head(tag), np().uint64(address))
        address += size
    card.queue.finish()
    return {"bytes": address, "seconds": time.monotonic() - begin}


def do_verify_on_device(tag: int) -> dict[str, Any]:
    """The pattern, looked at by a kernel."""
    wrong, address, spent = Wrong(), 0, 0.0
    count = np().zeros(1, np().uint32)
    kept = np().zeros(2 * KEPT, np().uint64)
    counter, keeper = card.memory(count.nbytes), card.memory(kept.nbytes)
    for buffer, size in card.blocks:
        count[0] = 0
        card.cl.enqueue_copy(card.queue, counter, count)
        begin = time.monotonic()
        first = np().uint64(address)
        card.kernel("verify", size // WORD, buffer, head(tag), first, counter, keeper)
        card.queue.finish()
        spent += time.monotonic() - begin
        card.cl.enqueue_copy(card.queue, count, counter)
        card.cl.enqueue_copy(card.queue, kept, keeper)
        seen = sorted(kept[: 2 * min(int(count[0]), KEPT)].reshape(-1, 2).tolist())
        wrong.add(joined([[address + index * WORD, got] for index, got in seen]))
        wrong.words += int(count[0]) - len(seen)
        address += size
    return dict(wrong.told(), bytes=address, seconds=spent)


def do_make_on_host(tag: int, pinned: bool) -> dict[str, Any]:
    """The pattern, made by the CPU and sent."""
    stage, moved, spent = card.stage(pinned), 0, 0.0
    for buffer, offset, address, size in card.pieces():
        words = stage[: size // WORD]
        words[:] = pattern(tag, address, size)
        begin = time.monotonic()
        card.cl.enqueue_copy(card.queue, buffer, words, dst_offset=offset)
        card.queue.finish()
        spent += time.monotonic() - begin
        moved += size
    return {"bytes": moved, "seconds": spent}


def do_verify_on_host(tag: int, pinned: bool) -> dict[str, Any]:
    """The pattern, fetched and looked at by the CPU."""
    wrong, stage, moved, spent = Wrong(), card.stage(pinned), 0, 0.0
    for buffer, offset, address, size in card.pieces():
        words = stage[: size // WORD]
        words[:] = 0  # what was sent before is not taken for what came back
        begin = time.monotonic()
        card.cl.enqueue_copy(card.queue, words, buffer, src_offset=offset)
        card.queue.finish()
        spent += time.monotonic() - begin
        wrong.add(differences(tag, address, words))
        moved += size
    return dict(wrong.told(), bytes=moved, seconds=spent)


def at(address: int) -> tuple[Any, int]:
    """The buffer that holds an address, and where in it."""
    for buffer, size in card.blocks:
        if address < size:
            return buffer, address
        address -= size
    raise ValueError("no memory is held at that address")


def do_flip(address: int, bit: int) -> bool:
    """Change one bit of what is held: a control."""
    buffer, offset = at(address - address % WORD)
    word = np().zeros(1, np().uint64)
    card.cl.enqueue_copy(card.queue, word, buffer, src_offset=offset)
    word[0] ^= np().uint64(1 << (8 * (address % WORD) + bit))
    card.cl.enqueue_copy(card.queue, buffer, word, dst_offset=offset)
    return True


def do_swap(first: int, second: int, size: int) -> bool:
    """Exchange two pages of what is held: a control."""
    pages = []
    for address in (first, second):
        pages.append(np().empty(size // WORD, np().uint64))
        buffer, offset = at(address)
        card.cl.enqueue_copy(card.queue, pages[-1], buffer, src_offset=offset)
    for address, page in zip((second, first), pages):
        buffer, offset = at(address)
        card.cl.enqueue_copy(card.queue, buffer, page, dst_offset=offset)
    return True


def do_search(tag: int) -> dict[str, Any]:
    """Where in what is held, and not yet written to, stands the pattern of ``tag``.

    ``runs``: address, bytes, and the address that the first word there says it has.
    """
    address, total = 0, 0
    runs: list[list[int]] = []
    for buffer, size in card.blocks:
        flags = np().zeros(size // GRAIN, np().uint8)
        found = card.memory(flags.nbytes)
        card.kernel("search", len(flags), buffer, np().uint64(tag), found)
        card.cl.enqueue_copy(card.queue, flags, found)
        edges = np().flatnonzero(np().diff(flags, prepend=0, append=0)).tolist()
        for start, end in zip(edges[::2], edges[1::2]):
            total += (end - start) * GRAIN
            if len(runs) < RUNS:
                word = np().zeros(1, np().uint64)
                card.cl.enqueue_copy(card.queue, word, buffer, src_offset=start * GRAIN)
                said = int(word[0]) & ADDRESS
                runs.append([address + start * GRAIN, (end - start) * GRAIN, said])
        address += size
    return {"bytes": address, "found": total, "runs": runs}


def do_queues(count: int, size: int, rounds: int, tag: int, cross: bool) -> dict[str, Any]:
    """Several queues at once send, copy within the device, and fetch ``size`` bytes each.

    ``cross`` lets each queue copy its neighbour's buffer: a control.
    """
    size = size // WORD * WORD
    queues = [card.cl.CommandQueue(card.context) for _ in range(count)]
    sent, came = ([card.pinned(size) for _ in queues] for _ in range(2))
    source, target = ([card.memory(size) for _ in queues] for _ in range(2))
    wrong, spent = Wrong(), 0.0
    for step in range(rounds):
        first = step * count * size
        for number, words in enumerate(sent):
            words[:] = pattern(tag, first + number * size, size)
            came[number][:] = 0
        begin = time.monotonic()
        for number, queue in enumerate(queues):
            card.cl.enqueue_copy(queue, source[number], sent[number], is_blocking=False)
        if cross:
            for queue in queues:
                queue.finish()
        for number, queue in enumerate(queues):
            taken = source[(number + cross) % count]
            card.kernel("copy", size // WORD, taken, target[number], queue=queue)
            card.cl.enqueue_copy(queue, came[number], target[number], is_blocking=False)
            queue.flush()
        for queue in queues:
            queue.finish()
        spent += time.monotonic() - begin
        for number, words in enumerate(came):
            wrong.add(differences(tag, first + number * size, words))
    return dict(wrong.told(), bytes=rounds * count * size, seconds=spent)
