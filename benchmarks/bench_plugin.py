"""What the plugin costs a run that has nothing to do with hil: 1,000 empty tests.

The whole process is timed, by turns without and with the plugin; both figures are
medians of ratios and differences within a turn.  Run it as
``python benchmarks/bench_plugin.py [turns]``.

Target: at most 0.2 ms a test over plain pytest.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = 1000
VARIANTS: dict[str, list[str]] = {
    "plain pytest": [],
    "with hil's plugin": ["-p", "hil.fixtures.plugin"],
    "with allure-pytest, writing results": ["-p", "allure_pytest.plugin", "--alluredir=results"],
}


def timed(folder: Path, arguments: list[str]) -> float:
    """Seconds of one run."""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    begin = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=300
    )
    return time.perf_counter() - begin


def main(turns: int = 7) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = "".join(f"def test_{number}(): pass\n" for number in range(TESTS))
        (folder / "test_empty.py").write_text(text)
        (folder / "pytest.ini").write_text("[pytest]\n")
        for arguments in VARIANTS.values():  # fill the caches of byte code
            timed(folder, arguments)
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(turns):
            for variant, arguments in VARIANTS.items():
                seconds[variant].append(timed(folder, arguments))
    plain = seconds["plain pytest"]
    for variant, measured in seconds.items():
        pairs = list(zip(measured, plain, strict=True))
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        extra = statistics.median((ours - theirs) * 1000 / TESTS for ours, theirs in pairs)
        median = statistics.median(measured)
        print(f"{variant:<36} {median:6.3f} s  x{ratio:.3f}  {extra:+.3f} ms a test")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*(int(argument) for argument in sys.argv[1:])))
