"""An edu device in a dictionary, below the real driver of the probe; it can be told to err."""

from __future__ import annotations

from typing import Any

from hil.pci.address import Address
from hil.probes.agent import GuestAgent, GuestMemory
from hil.probes.edu import BUFFER, BUFFER_SIZE, IDENTIFICATION, EduEngine

BASE = 0x0C40_0000
"""Guest physical address of the one huge page."""


class EduAgent(GuestAgent):
    """Answers as the in-guest driver would with an edu device that errs as ``fault`` says."""

    def __init__(self, fault: str = "", identification: int = IDENTIFICATION) -> None:
        self.fault = fault
        self.identification = identification
        self.page = bytearray(GuestMemory.PAGE)
        self.buffer = bytearray(b"\xee" * BUFFER_SIZE)
        self.calls: list[str] = []
        self.registers: dict[int, int] = {}

    def ask(self, what: str, *, seconds: float = 20, **arguments: Any) -> Any:
        self.calls.append(what)
        if what == "read":
            if arguments["offset"] == 0:
                return self.identification
            return self.registers.get(arguments["offset"], 0)
        if what == "write":
            value = arguments["value"]
            self.registers[arguments["offset"]] = (
                value ^ 0xFFFF_FFFF if arguments["offset"] == 4 else value
            )
        if what == "transfer":
            self.registers |= {offset: value for offset, _, value in arguments["writes"]}
            source, destination, count, command = (value for _, _, value in arguments["writes"])
            if command & 2:
                self._out(source - BUFFER, destination - BASE, count)
            else:
                self._in(source - BASE, destination - BUFFER, count)
        return True

    def _in(self, source: int, destination: int, count: int) -> None:
        if self.fault == "new data once":
            self.fault = "old data"
            self.buffer[:] = (self.page[source:] + self.page)[:BUFFER_SIZE]
        elif self.fault != "old data":
            data = self.page[source : source + count]
            if self.fault == "a bit":
                data[-1] ^= 1
            self.buffer[destination : destination + count] = data
        assert len(self.buffer) == BUFFER_SIZE

    def _out(self, source: int, destination: int, count: int) -> None:
        if self.fault == "nothing":
            return
        shift = {"eight on": 8, "eight back": -8, "a page on": 4096}.get(self.fault, 0)
        length = count + {"one more": 1, "one less": -1}.get(self.fault, 0)
        data = (self.buffer * 2)[source : source + length]
        start = destination + shift
        self.page[start : start + length] = data

    def open(self, address: Address) -> None:
        self.calls.append("open")

    def fill(self, memory: GuestMemory, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= memory.size
        self.page[offset : offset + len(data)] = data

    def dump(self, memory: GuestMemory, offset: int, length: int) -> bytes:
        return bytes(self.page[offset : offset + length])

    def close(self) -> None:
        self.calls.append("end")


MEMORY = GuestMemory(0, GuestMemory.PAGE, (BASE,))
WHERE = Address.parse("0000:00:10.0")


def engine(fault: str = "") -> EduEngine:
    return EduEngine(EduAgent(fault), WHERE)
