"""A report of many results with evidence: how long it takes, and how large it is.

The same tests with the same evidence, twice: with hil, and as one would do it with Allure alone,
each command's output and each console an attachment, the report one file.  Run it as
``python benchmarks/bench_report.py [tests]``, by default 10,000; it needs Allure 3.

Seconds are those of the clock, and of the processors: on a busy machine the first say little.

Target for 10,000: the report in under 60 s of processor time, and under 200 MB.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _report import verdict

from hil.deadline import Deadline
from hil.reporting.html import find_allure, generate
from hil.reporting.run import Run

LAB = """
[lab]
name = "rack"
kind = "physical"
[hosts.alpha]
platform = "linux-vfio"
address = "192.0.2.1"
[devices.nic0]
kind = "nic"
host = "alpha"
functions = ["0000:01:00.0"]
"""

#: What happens in each test: about what a run on the emulated lab leaves, 15 kB a test.
COMMON = """
import random, pytest
TESTS = {tests}

def line(rng, n):
    return f"[{{n / 7:12.6f}}] pci 0000:{{rng.randrange(256):02x}}:00.0: BAR {{n % 6}} [mem " \\
        f"{{rng.getrandbits(32):#010x}}-{{rng.getrandbits(32):#010x}} 64bit pref]"

def evidence(n):
    rng = random.Random(n)
    # One test in a hundred talks a lot.
    console = [line(rng, k) for k in range(2500 if n % 100 == 0 else 100)]
    commands = [(f"lspci -xxx -s {{k}}", "\\n".join(line(rng, i) for i in range(12)))
                for k in range(4)]
    table = "\\n".join(f"{{rng.getrandbits(40):#014x}} -> {{rng.getrandbits(40):#014x}}"
                      for _ in range(60))
    return console, commands, table
"""

HIL = """
from hil import events
from hil.errors import ProductError
@pytest.mark.danger(0)
@pytest.mark.parametrize("n", range(TESTS))
def test_it(n):
    console, commands, table = evidence(n)
    for phase in ("booting", "ready"):
        events.emit(events.PhaseReached("guest", phase))
    for number, (command, output) in enumerate(commands):
        with events.step(f"step {number}"):
            events.emit(events.CommandRun("alpha", command, 0, 0.1, output))
    for text in console:
        events.emit(events.ConsoleLine("guest", text))
    events.emit(events.Evidence("tables", table.encode()))
    if n % 50 == 0:
        raise ProductError(f"wrong bytes {n % 7}", seen=output)
"""

PLAIN = """
import allure
@pytest.mark.parametrize("n", range(TESTS))
def test_it(n):
    console, commands, table = evidence(n)
    for number, (command, output) in enumerate(commands):
        with allure.step(f"step {number}"):
            allure.attach(f"$ {command}\\n{output}", command, allure.attachment_type.TEXT)
    allure.attach("\\n".join(console), "console", allure.attachment_type.TEXT)
    allure.attach(table, "tables", allure.attachment_type.TEXT)
    assert n % 50, f"wrong bytes {n % 7}: {output}"
"""


@dataclass(frozen=True)
class Cost:
    """What something took; ``size`` in bytes."""

    clock: float
    processors: float
    size: int = 0


def cost(call: Callable[[], Path]) -> Cost:
    """What ``call`` took, and the size of the file or folder that it returns."""
    begin, used = time.perf_counter(), _processors()
    made = call()
    files = [made] if made.is_file() else [path for path in made.rglob("*") if path.is_file()]
    clock, processors = time.perf_counter() - begin, _processors() - used
    return Cost(clock, processors, sum(path.stat().st_size for path in files))


def _processors() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def run_tests(folder: Path, module: str, *arguments: str) -> None:
    (folder / "test_it.py").write_text(module)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HIL_ALLURE": "/missing",  # the report is made, and timed, apart from the tests
    }
    subprocess.run(
        [*command, "-p", "allure_pytest.plugin", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=False,
    )


def with_hil(folder: Path, tests: int) -> tuple[Cost, Cost]:
    """The tests, and the report."""
    (folder / "rack.toml").write_text(LAB)

    def run() -> Path:
        arguments = ("-p", "hil.fixtures.plugin", "--hil-lab=rack.toml", "--hil-report=reports")
        run_tests(folder, COMMON.format(tests=tests) + HIL, *arguments)
        return (folder / "reports" / "latest").resolve()

    ran = cost(run)
    made = Run.open(folder / "reports" / "latest")
    assert len(made.outcomes()) == tests
    return ran, cost(lambda: generate(made.directory, Deadline(3600, "the report")))


def with_allure(folder: Path, tests: int) -> tuple[Cost, Cost]:
    """The tests, and the report."""

    def run() -> Path:
        run_tests(folder, COMMON.format(tests=tests) + PLAIN, "--alluredir=results")
        return folder / "results"

    def report() -> Path:
        plugins = {"awesome": {"options": {"singleFile": True}}}
        (folder / "rc.json").write_text(json.dumps({"name": "plain", "plugins": plugins}))
        command = [str(find_allure()), "generate", "--cwd", str(folder), "--config", "rc.json"]
        subprocess.run(
            [*command, "--output", str(folder / "out"), str(folder / "results")],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        return folder / "out" / "index.html"

    return cost(run), cost(report)


def main(tests: int = 10_000) -> int:
    costs: dict[str, tuple[Cost, Cost]] = {}
    for name, measure in (("hil", with_hil), ("Allure alone", with_allure)):
        with tempfile.TemporaryDirectory(prefix="hil-bench-") as folder:
            costs[name] = measure(Path(folder), tests)
    print(f"{tests} tests with evidence")
    print(f"  {'':<14}{'':<8} {'clock':>9} {'processors':>11} {'size':>10}")
    for name, both in costs.items():
        for what, seen in zip(("tests", "report"), both, strict=True):
            size = f"{seen.size / 1e6:7.1f} MB"
            print(f"  {name:<14}{what:<8} {seen.clock:7.1f} s {seen.processors:9.1f} s {size:>10}")
    report, plain = costs["hil"][1], costs["Allure alone"][1]
    print()
    verdict("seconds of processors, report", report.processors, "< 60", report.processors < 60)
    verdict("MB, report", report.size / 1e6, "< 200", report.size < 200e6)
    for what, ours, theirs in (
        ("size", report.size, plain.size),
        ("processor time of the report", report.processors, plain.processors),
        (
            "processor time of the tests",
            costs["hil"][0].processors,
            costs["Allure alone"][0].processors,
        ),
    ):
        print(f"  {what + ', against Allure alone':<50} {ours / theirs:6.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*(int(argument) for argument in sys.argv[1:])))
