"""Leases under contention: is one ever granted twice, is one ever lost, how many a second.

    python benchmarks/bench_lease.py [TIMES] [PROCESSES]

Processes take and let go of one lease, over and over, 10,000 times each and 2 of them by
default, with the scripts that hil runs on a lab host, here on this machine.  While it
holds the lease, each adds one to a number in a file, in a way that would lose count if another
did so too, and sees whether somebody else is inside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from _report import verdict

from hil.deadline import Deadline
from hil.journal import LINUX
from hil.lab.lease import Holder, Leases
from hil.transport.local import LocalTransport

TIMES, PROCESSES = 10_000, 2
LIMIT = 4 * 3600.0


class Section:
    """Where only one may be at a time; what goes wrong is seen by its counts."""

    def __init__(self, folder: Path) -> None:
        self._inside = folder / "inside"
        self._count = folder / "count"
        self._meetings = folder / "meetings"
        self._seen = 0

    def __enter__(self) -> None:
        try:
            os.close(os.open(self._inside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            with self._meetings.open("a") as file:
                file.write("x")
        self._seen = self.count

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._count.write_text(str(self._seen + 1))
        self._inside.unlink(missing_ok=True)

    @property
    def count(self) -> int:
        """How often somebody was inside, if nobody ever met another."""
        return int(self._count.read_text()) if self._count.exists() else 0

    @property
    def meetings(self) -> int:
        """How often one came in while another was inside."""
        return self._meetings.stat().st_size if self._meetings.exists() else 0


def work(folder: Path, times: int) -> None:
    dialect = replace(LINUX, leases=str(folder / "leases"))
    host, me = LocalTransport("here"), Holder.this_process("benchmark")
    for _ in range(times):
        leases = Leases.take(host, dialect, ["card"], me, Deadline(LIMIT, "the lease"))
        with Section(folder):
            pass
        leases.close()


def contend(folder: Path, processes: int, times: int) -> Section:
    """``processes`` that take one lease ``times`` times each; the section that they shared."""
    command = [sys.executable, __file__, "--work", str(folder), str(times)]
    running = [subprocess.Popen(command) for _ in range(processes)]
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise RuntimeError(f"statuses {statuses}")
    return Section(folder)


def main() -> int:
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), int(sys.argv[3]))
        return 0
    numbers = [int(word) for word in sys.argv[1:]]
    times, processes = [*numbers, *(TIMES, PROCESSES)[len(numbers) :]]
    wanted = times * processes
    with tempfile.TemporaryDirectory() as name:
        begin = time.monotonic()
        section = contend(Path(name), processes, times)
        seconds = time.monotonic() - begin
        count, meetings = section.count, section.meetings
    print(f"{wanted} acquisitions by {processes} processes: {wanted / seconds:.0f} a second")
    verdict("counted", count, f"{wanted}", count == wanted)
    verdict("granted to two at a time", meetings, "0", meetings == 0)
    return 0 if count == wanted and not meetings else 1


if __name__ == "__main__":
    sys.exit(main())
