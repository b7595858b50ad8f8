"""An NVMe controller with one namespace: queues, PRPs and blocks (NVMe base specification 2.0).

Commands are worked off as their doorbell rings.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hil.pci.address import Address
from hil.simulated.memory import MIB, PAGE
from hil.simulated.pci import DmaAborted, PciFunction

#: Registers (3.1.3), and the first doorbell.
CAP, VERSION, INTMS, INTMC, CC, CSTS, AQA, ASQ, ACQ = (
    0x00,
    0x08,
    0x0C,
    0x10,
    0x14,
    0x1C,
    0x24,
    0x28,
    0x30,
)
DOORBELLS = 0x1000
ENABLE, READY, FATAL, SHUTDOWN, SHUTDOWN_DONE = 1, 1, 2, 0xC000, 0x8
BLOCK = 512
#: Most PRP lists of one command; a list that leads to itself ends there.
_MOST_LISTS = 64
#: Opcodes: admin, then NVM.
DELETE_SQ, CREATE_SQ, DELETE_CQ, CREATE_CQ, IDENTIFY, SET_FEATURES, GET_FEATURES, EVENT_REQUEST = (
    0x00,
    0x01,
    0x04,
    0x05,
    0x06,
    0x09,
    0x0A,
    0x0C,
)
FLUSH, WRITE, READ = 0x00, 0x01, 0x02
#: Status codes, of the generic type.
SUCCESS, INVALID_OPCODE, INVALID_FIELD, TRANSFER_ERROR, OUT_OF_RANGE = 0x00, 0x01, 0x02, 0x04, 0x80


@dataclass(slots=True)
class _Submission:
    base: int
    size: int
    completion: int
    head: int = 0


@dataclass(slots=True)
class _Completion:
    base: int
    size: int
    vector: int
    interrupts: bool
    tail: int = 0
    phase: int = 1


class Nvme(PciFunction):
    """The controller.

    Args:
        address: where it is.
        size: bytes of its namespace.
        serial: at most 20 characters.
    """

    MODEL = "QEMU NVMe Ctrl"

    def __init__(self, address: Address, size: int = 64 * MIB, serial: str = "hil") -> None:
        super().__init__("nvme", address)
        self.blocks = size // BLOCK
        self.serial = serial
        self._disk: dict[int, bytes] = {}
        self._registers: dict[int, int] = {}
        self._submissions: dict[int, _Submission] = {}
        self._completions: dict[int, _Completion] = {}
        self.reset_state()

    def keep_contents(self, before: Nvme) -> None:
        """Have the blocks of a controller of before: the same disk after a power cycle."""
        self._disk = before._disk

    def reset_state(self) -> None:
        """Registers and queues; what is written to the disk stays."""
        # 2048 entries a queue at most, contiguous queues, 7.5 s to get ready, NVM commands
        self._registers = {CAP: 2047 | 1 << 16 | 15 << 24, CAP + 4: 1 << 5, VERSION: 0x10400}
        self._submissions.clear()
        self._completions.clear()

    # -- registers ------------------------------------------------------------------------

    def bar_load(self, bar: int, offset: int, width: int) -> int:
        """A register; doorbells read as 0."""
        if width == 8:
            return self.bar_load(bar, offset, 4) | self.bar_load(bar, offset + 4, 4) << 32
        at = INTMS if offset & ~3 == INTMC else offset & ~3
        value = self._registers.get(at, 0) if at < DOORBELLS else 0
        return value >> 8 * (offset & 3) & (1 << 8 * width) - 1

    def bar_store(self, bar: int, offset: int, width: int, value: int) -> None:
        """A register write, with its effect."""
        if width == 8:
            self.bar_store(bar, offset, 4, value & 0xFFFFFFFF)
            self.bar_store(bar, offset + 4, 4, value >> 32)
            return
        if offset >= DOORBELLS:
            number, completion = divmod((offset - DOORBELLS) // 4, 2)
            if not completion:
                self._work(number, value & 0xFFFF)
        elif offset == INTMS:
            self._registers[INTMS] = self._registers.get(INTMS, 0) | value
        elif offset == INTMC:
            self._registers[INTMS] = self._registers.get(INTMS, 0) & ~value
        elif offset == CC:
            self._configure(value)
        elif offset in (AQA, ASQ, ASQ + 4, ACQ, ACQ + 4):
            self._registers[offset] = value

    def _configure(self, value: int) -> None:
        enabled = self._registers.get(CC, 0) & ENABLE
        self._registers[CC] = value
        status = 0
        if value & ENABLE:
            if not enabled:
                self._start()
            status = READY
        elif enabled:
            kept = {at: self._registers.get(at, 0) for at in (AQA, ASQ, ASQ + 4, ACQ, ACQ + 4, CC)}
            self.reset_state()
            self._registers |= kept
        if value & SHUTDOWN:
            status |= SHUTDOWN_DONE
        self._registers[CSTS] = status

    def _start(self) -> None:
        get = self._registers.get
        sizes = get(AQA, 0)
        submission = get(ASQ, 0) | get(ASQ + 4, 0) << 32
        completion = get(ACQ, 0) | get(ACQ + 4, 0) << 32
        self._submissions[0] = _Submission(submission, (sizes & 0xFFF) + 1, 0)
        self._completions[0] = _Completion(completion, (sizes >> 16 & 0xFFF) + 1, 0, True)

    # -- queues ---------------------------------------------------------------------------

    def _work(self, number: int, tail: int) -> None:
        queue = self._submissions.get(number)
        if queue is None or self._registers.get(CSTS, 0) & FATAL:
            return
        tail %= queue.size
        vectors = []
        try:
            while queue.head != tail:
                command = self.dma_read(queue.base + 64 * queue.head, 64)
                queue.head = (queue.head + 1) % queue.size
                status, result = self._execute(number, command)
                if status is not None:
                    vectors.append(self._complete(number, queue, command, status, result))
        except DmaAborted:
            # its own queues are out of reach: nothing can be told but this
            self._registers[CSTS] = self._registers.get(CSTS, 0) | FATAL
        for vector in vectors:
            if vector is not None:
                self.send_message(vector)

    def _complete(
        self, number: int, queue: _Submission, command: bytes, status: int, result: int
    ) -> int | None:
        completion = self._completions.get(queue.completion)
        if completion is None:
            raise DmaAborted("the completion queue is gone")
        (identity,) = struct.unpack_from("<H", command, 2)
        entry = struct.pack(
            "<IIHHHH", result, 0, queue.head, number, identity, status << 1 | completion.phase
        )
        self.dma_write(completion.base + 16 * completion.tail, entry)
        completion.tail += 1
        if completion.tail == completion.size:
            completion.tail = 0
            completion.phase ^= 1
        return completion.vector if completion.interrupts else None

    def _execute(self, number: int, command: bytes) -> tuple[int | None, int]:
        """Status (``None``: it completes some day) and result of a command."""
        try:
            return self._admin(command) if number == 0 else self._nvm(command)
        except DmaAborted:
            return TRANSFER_ERROR, 0

    def _admin(self, command: bytes) -> tuple[int | None, int]:
        opcode = command[0]
        (prp,) = struct.unpack_from("<Q", command, 24)
        low, high = struct.unpack_from("<II", command, 40)
        identity, size = low & 0xFFFF, (low >> 16) + 1
        if opcode == IDENTIFY:
            data = self._identify(low & 0xFF)
            if data is None:
                return INVALID_FIELD, 0
            self._scatter(command, data)
        elif opcode == CREATE_CQ:
            self._completions[identity] = _Completion(prp, size, high >> 16, bool(high & 2))
        elif opcode == CREATE_SQ:
            if high >> 16 not in self._completions:
                return INVALID_FIELD, 0
            self._submissions[identity] = _Submission(prp, size, high >> 16)
        elif opcode == DELETE_SQ:
            self._submissions.pop(identity, None)
        elif opcode == DELETE_CQ:
            self._completions.pop(identity, None)
        elif opcode in (SET_FEATURES, GET_FEATURES):
            # number of queues: as many as asked for, at most 64 of each
            return SUCCESS, 0x003F003F if low & 0xFF == 7 else 0
        elif opcode == EVENT_REQUEST:
            return None, 0
        else:
            return INVALID_OPCODE, 0
        return SUCCESS, 0

    def _identify(self, what: int) -> bytes | None:
        data = bytearray(PAGE)
        if what == 1:
            struct.pack_into("<HH", data, 0, self.vendor, 0x1AF4)
            data[4:24] = self.serial.ljust(20).encode("ascii")[:20]
            data[24:64] = self.MODEL.ljust(40).encode("ascii")
            data[64:72] = b"10.0.2".ljust(8)
            data[77] = 7  # at most 128 pages a command
            data[512], data[513] = 0x66, 0x44  # entry sizes: 64 and 16 bytes
            struct.pack_into("<I", data, 516, 1)
        elif what == 0:
            struct.pack_into("<QQQ", data, 0, self.blocks, self.blocks, self.blocks)
            data[128 + 2] = 9  # 512-byte blocks
        elif what == 2:
            struct.pack_into("<I", data, 0, 1)
        else:
            return None
        return bytes(data)

    def _nvm(self, command: bytes) -> tuple[int | None, int]:
        opcode = command[0]
        if opcode == FLUSH:
            return SUCCESS, 0
        if opcode not in (READ, WRITE):
            return INVALID_OPCODE, 0
        start, count = struct.unpack_from("<QH", command, 40)
        count += 1
        if start + count > self.blocks:
            return OUT_OF_RANGE, 0
        if opcode == READ:
            data = b"".join(self._disk.get(n, bytes(BLOCK)) for n in range(start, start + count))
            self._scatter(command, data)
        else:
            data = self._gather(command, count * BLOCK)
            for number in range(count):
                self._disk[start + number] = data[number * BLOCK : (number + 1) * BLOCK]
        return SUCCESS, 0

    # -- data -----------------------------------------------------------------------------

    def _pieces(self, command: bytes, length: int) -> list[tuple[int, int]]:
        """Addresses and lengths that the PRP entries name (4.1.1)."""
        first, second = struct.unpack_from("<QQ", command, 24)
        size = min(length, PAGE - first % PAGE)
        pieces = [(first, size)]
        length -= size
        if length <= PAGE:
            return [*pieces, (second, length)] if length else pieces
        second &= ~7
        for _ in range(_MOST_LISTS):
            if not length:
                return pieces
            count = min(PAGE - second % PAGE, 8 * -(-length // PAGE)) // 8
            entries = list(struct.unpack(f"<{count}Q", self.dma_read(second, 8 * count)))
            more = count * PAGE < length
            if more:  # the last entry of a full page leads to the next list
                second = entries.pop() & ~7
            for entry in entries:
                size = min(length, PAGE)
                pieces.append((entry, size))
                length -= size
        raise DmaAborted("PRP lists that lead nowhere")

    def _scatter(self, command: bytes, data: bytes) -> None:
        position = 0
        for address, size in self._pieces(command, len(data)):
            self.dma_write(address, data[position : position + size])
            position += size

    def _gather(self, command: bytes, length: int) -> bytes:
        pieces = self._pieces(command, length)
        return b"".join(self.dma_read(address, size) for address, size in pieces)
