"""How long `import hil` takes, beside python itself and what hil is built on.

python benchmarks/bench_import.py
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
import subprocess
import sys

from _report import alternate, show, verdict


def main() -> None:
    modules = ["hil", "hil.transport.local", "hil.transport.ssh", "hil.console.console"]
    modules += [name for name in ("paramiko", "labgrid") if importlib.util.find_spec(name)]
    calls = {"python alone": "pass"} | {f"import {name}": f"import {name}" for name in modules}
    seconds = alternate(
        {
            name: functools.partial(subprocess.run, [sys.executable, "-c", code], check=True)
            for name, code in calls.items()
        },
        rounds=9,
    )
    show("Whole process", seconds)
    alone = seconds["python alone"]
    cost = statistics.median(a - b for a, b in zip(seconds["import hil"], alone, strict=True))
    verdict("import hil over python alone, seconds", cost, "< 0.1", cost < 0.1)


if __name__ == "__main__":
    main()
