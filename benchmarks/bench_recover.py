"""Runs that are killed: does the next one find all as it was, and how soon.

    python benchmarks/bench_recover.py [KILLS]

Each time a run on this machine takes a lease and makes and undoes changes, as fast as it can,
until it is ended by SIGKILL: after a random number of changes and a random moment more.  Then
the next run takes the lease and puts back what was left.  The tests do the same at a few
points, also over SSH.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import verdict

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.lab import places  # noqa: E402 - the checkout is no package
from tests.lab.test_recover import (  # noqa: E402
    RUN_OF_ANOTHER,
    check_nothing_stays,
    kill,
    next_run,
)

KILLS = 100


def kill_one(folder: Path) -> float:
    """Seconds that the next run took to have the lease and all put back."""
    command = [sys.executable, "-c", RUN_OF_ANOTHER, str(folder), "0", "", ""]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout is not None
    for _ in range(random.randrange(16)):
        run.stdout.readline()
    time.sleep(random.random() * 0.08)
    kill(run)
    begin = time.monotonic()
    next_run(places.dialect(folder))
    seconds = time.monotonic() - begin
    check_nothing_stays(folder, places.dialect(folder))
    return seconds


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else KILLS
    seconds, losses = [], 0
    for _ in range(kills):
        with tempfile.TemporaryDirectory() as name:
            try:
                seconds.append(kill_one(Path(name)))
            except AssertionError:
                losses += 1
    print(f"{kills} runs killed at random points")
    verdict("left something behind", losses, "0", losses == 0)
    if seconds:
        median = statistics.median(seconds)
        verdict("seconds to lease and recover, median", median, "< 1", median < 1)
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
