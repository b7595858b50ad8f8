"""A console's log: one reader, from before boot to the end.

The reader's thread does nothing that waits for anybody: it keeps the bytes, notes
when they came, looks for a kernel's last words, and wakes who waits.  Everyone
else follows the log, each at a pace and a place of its own.
"""

from __future__ import annotations

import bisect
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from hil import events
from hil.console.patterns import KEYWORDS, Panic, classify
from hil.console.text import clean
from hil.deadline import Deadline
from hil.errors import HilError
from hil.transport.base import ByteStream

_CHUNK = 65536
#: Bytes of console that stay in memory.
MEMORY_LIMIT = 16 * 1024 * 1024
#: Most bytes that go to the spill file, so that a console gone mad cannot fill a disk.
_SPILL_LIMIT = 1 << 30
#: Longest line that is looked at for a panic, in bytes; printk's own limit is 1024.
_SCAN_LIMIT = 4096
#: Events come in batches this many seconds apart, of at most so many lines and bytes.
_BATCH_SECONDS = 0.05
_BATCH_LINES = 250
_BATCH_BYTES = 256 * 1024


class ConsoleLog:
    """Drains ``stream`` from the moment it is made.

    Args:
        name: whose console it is, for events and messages.
        stream: its bytes; nobody else may read them.
        path: file for the whole log, each line after ``[   12.345] ``, the seconds since
            the log began.  Without it only the last ``limit`` bytes are kept.
        limit: bytes kept in memory.

    Positions count the bytes the console ever gave, from 0.
    """

    def __init__(
        self,
        name: str,
        stream: ByteStream,
        *,
        path: str | Path | None = None,
        limit: int = MEMORY_LIMIT,
    ) -> None:
        self.name = name
        self.path = Path(path) if path is not None else None
        #: Set while what users print ends its lines without a carriage return: then only
        #: lines that end with one can be the kernel's.
        self.kernel_ends_with_cr = False
        self._stream = stream
        self._limit = limit
        self._news = threading.Condition()
        self._data = bytearray()
        self._base = 0
        self._begin = time.monotonic()
        self._begin_wall = time.time()
        # When the byte at a position came: two columns, for bisect.
        self._positions: list[int] = []
        self._times: list[float] = []
        self._ended = False
        self._over = threading.Event()
        self._failure = ""
        self._panic: Panic | None = None
        self.when_panicked: Callable[[], None] = lambda: None
        """Called at once by the reader when the kernel reports its end; must not block."""
        self._notices: deque[Panic] = deque(maxlen=100)
        self._line_start = 0
        self._spill: BinaryIO | None = None
        self._spilled = 0
        self._file: BinaryIO | None = None
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb", buffering=0)
        self._at_line_start = True
        self._emitter = threading.Thread(target=self._tell, name=f"console-{name}-events")
        self._reader = threading.Thread(target=self._pump, name=f"console-{name}")
        for thread in (self._reader, self._emitter):
            thread.daemon = True
            thread.start()

    # what there is

    @property
    def end(self) -> int:
        """Position after the last byte so far."""
        with self._news:
            return self._base + len(self._data)

    @property
    def ended(self) -> bool:
        """Whether the stream came to its end."""
        with self._news:
            return self._ended

    @property
    def failure(self) -> str:
        """Why the stream ended, where it said so."""
        return self._failure

    @property
    def panic(self) -> Panic | None:
        """The first fatal report of the kernel since the start or :meth:`forget_panic`."""
        return self._panic

    @property
    def notices(self) -> tuple[Panic, ...]:
        """The last reports of the kernel that are not fatal, oldest first."""
        return tuple(self._notices)

    def forget_panic(self) -> None:
        """The machine starts anew: what its kernel said before no longer counts."""
        self._panic = None

    def text(self) -> str:
        """All that memory holds, decoded leniently."""
        with self._news:
            data = bytes(self._data)
        return data.decode("utf-8", "replace")

    def tail(self, count: int) -> tuple[str, ...]:
        """The last ``count`` lines, an unfinished one included, without escapes."""
        with self._news:
            # Lines are bounded here, so that a never-ending one costs nothing.
            data = bytes(self._data[-(count + 1) * 500 :])
        lines = data.split(b"\n")
        if lines and not lines[-1].strip():
            lines.pop()
        return tuple(clean(line) for line in lines[-count:])

    def lines(self) -> tuple[tuple[float, str], ...]:
        """All lines in memory, each with the seconds since the log began."""
        with self._news:
            data, base = bytes(self._data), self._base
            positions, times = list(self._positions), list(self._times)
        result: list[tuple[float, str]] = []
        position = base
        for line in data.split(b"\n"):
            index = max(bisect.bisect_right(positions, position) - 1, 0)
            result.append((times[index] if times else 0.0, clean(line)))
            position += len(line) + 1
        if not data or data.endswith(b"\n"):
            result.pop()
        return tuple(result)

    def follow(self, position: int | None = None) -> Cursor:
        """A reader of its own, from ``position`` on; ``None``: from what comes next."""
        return Cursor(self, self.end if position is None else position)

    def settle(self, quiet: float, deadline: Deadline) -> None:
        """Wait until nothing came for ``quiet`` seconds, the stream ended, or the deadline."""
        with self._news:
            seen = -1
            while not self._ended and seen != (seen := self._base + len(self._data)):
                if deadline.expired:
                    return
                self._news.wait(min(quiet, deadline.remaining))

    def close(self) -> None:
        """Close the stream and finish the file.  Safe to call twice."""
        self._stream.close()
        if threading.current_thread() is not self._reader:
            self._reader.join(5.0)
        self._emitter.join(5.0)

    # the reader's side

    def _pump(self) -> None:
        try:
            while chunk := self._stream.read(_CHUNK):
                self._add(chunk)
        except (OSError, ValueError, EOFError, HilError) as error:
            self._failure = str(error) or type(error).__name__
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()
            self._over.set()
            if self._file is not None:
                self._file.close()

    def _add(self, chunk: bytes) -> None:
        now = time.monotonic() - self._begin
        panic = self._scan(chunk) if self._panic is None else None
        with self._news:
            position = self._base + len(self._data)
            if not self._times or now - self._times[-1] >= 0.001:
                self._positions.append(position)
                self._times.append(now)
            self._data += chunk
            if len(self._data) > self._limit + 16 * _CHUNK:
                self._trim()
            if panic is not None:
                self._panic = panic
            self._news.notify_all()
        if panic is not None:
            self.when_panicked()
        newline = chunk.rfind(b"\n")
        if newline >= 0:
            self._line_start = position + newline + 1
        if self._file is not None:
            self._write(chunk, now)

    def _scan(self, chunk: bytes) -> Panic | None:
        """The first fatal report in the lines that ``chunk`` completes."""
        # Only this thread changes the data, so it may be read without the lock.
        pending = self._base + len(self._data) - self._line_start
        if pending > _SCAN_LIMIT:
            region = chunk[chunk.find(b"\n") + 1 :] if b"\n" in chunk else b""
        elif pending:
            region = bytes(self._data[-pending:]) + chunk
        else:
            region = chunk
        if not any(word in region for word in KEYWORDS):
            return None
        *lines, last = region.split(b"\n")
        for line in lines:
            if self.kernel_ends_with_cr and not line.endswith(b"\r"):
                continue
            if not any(word in line for word in KEYWORDS):
                continue
            panic = classify(clean(line[:_SCAN_LIMIT]))
            if panic is None:
                continue
            if panic.fatal:
                return panic
            self._notices.append(panic)
        # The kernel debugger's prompt ends no line.
        if last.startswith(b"db>"):
            return classify(clean(last[:_SCAN_LIMIT]))
        return None

    def _trim(self) -> None:
        """Let go of the oldest bytes, to the spill file if there is one."""
        surplus = len(self._data) - self._limit
        if self.path is not None and self._spilled + surplus <= _SPILL_LIMIT:
            if self._spill is None and self._base == 0:
                self._spill = tempfile.TemporaryFile(dir=self.path.parent, buffering=0)  # noqa: SIM115
            if self._spill is not None and self._spilled == self._base:
                self._spill.write(self._data[:surplus])
                self._spilled += surplus
        del self._data[:surplus]
        self._base += surplus
        keep = max(bisect.bisect_right(self._positions, self._base) - 1, 0)
        del self._positions[:keep]
        del self._times[:keep]

    def _write(self, chunk: bytes, now: float) -> None:
        stamp = b"[%9.3f] " % now
        ends = chunk.endswith(b"\n")
        body = chunk[:-1] if ends else chunk
        text = body.replace(b"\n", b"\n" + stamp)
        if self._at_line_start:
            text = stamp + text
        if ends:
            text += b"\n"
        self._at_line_start = ends
        assert self._file is not None
        try:
            self._file.write(text)
        except OSError as error:
            # A full disk must not stop the console; memory still has its end.
            self._failure = f"{self.path} could not be written: {error.strerror}"
            self._file.close()
            self._file = None

    def _read(self, position: int, limit: int, timeout: float) -> tuple[int, bytes | None]:
        """Bytes at ``position`` or the next ones kept; ``None``: none came in time."""
        end_time = time.monotonic() + timeout
        with self._news:
            while position >= self._base + len(self._data):
                if self._ended:
                    return position, b""
                left = end_time - time.monotonic()
                if left <= 0:
                    return position, None
                self._news.wait(min(left, 3600.0))
            if position < self._base:
                if self._spill is not None and position < self._spilled:
                    size = min(limit, self._spilled - position)
                    return position, os.pread(self._spill.fileno(), size, position)
                position = self._base
            offset = position - self._base
            return position, bytes(memoryview(self._data)[offset : offset + limit])

    # events

    def _tell(self) -> None:
        """Emit whole lines in batches; under a flood, the first of each batch and a count."""
        cursor = self.follow(0)
        rest = b""
        while True:
            chunk = cursor.read(3600.0, limit=1)
            if chunk is None:
                continue
            if chunk:
                # Let a batch come together: each wake-up costs the reader time.
                self._over.wait(_BATCH_SECONDS)
            pending = chunk + b"".join(self._available(cursor))
            lines = (rest + pending).split(b"\n")
            rest = lines.pop()[-_SCAN_LIMIT:]
            if not chunk and rest:
                lines.append(rest)
            at = self._begin_wall + (self._times[-1] if self._times else 0.0)
            skipped = self.end - cursor.position if len(pending) >= _BATCH_BYTES else 0
            for line in lines[:_BATCH_LINES]:
                events.emit(events.ConsoleLine(self.name, clean(line), at=at))
            if len(lines) > _BATCH_LINES or skipped:
                left = len(lines) - min(len(lines), _BATCH_LINES)
                note = f"… {left} lines and {skipped} bytes not shown here; the log has them …"
                events.emit(events.ConsoleLine(self.name, note, at=at))
                cursor.position += skipped
                rest = b"" if skipped else rest
            if not chunk:
                return

    def _available(self, cursor: Cursor) -> Iterator[bytes]:
        size = 0
        while size < _BATCH_BYTES and (chunk := cursor.read(0)):
            size += len(chunk)
            yield chunk


class Cursor:
    """A place in a log, which moves on as it is read.

    ``lost`` counts bytes that memory had let go before this reader came to them.
    """

    def __init__(self, log: ConsoleLog, position: int) -> None:
        self._log = log
        self.position = position
        self.lost = 0

    def read(self, timeout: float, limit: int = _CHUNK) -> bytes | None:
        """What comes next: ``b""`` at the log's end, ``None`` if nothing came in time."""
        position, data = self._log._read(self.position, limit, timeout)  # noqa: SLF001
        self.lost += position - self.position
        self.position = position + len(data or b"")
        return data
