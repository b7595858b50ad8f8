"""Makes folders of runs for tests of comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hil.reporting.outcome import Outcome, Status
from hil.reporting.run import Run

#: One letter a status; in small letters: by the lab's fault, not the product's.
LETTERS = {
    "P": Status.PASSED,
    "F": Status.FAILED,
    "b": Status.BROKEN,
    "S": Status.SKIPPED,
    "X": Status.BLOCKED,
}


def outcome(name: str, letter: str, seconds: float = 1.0, reason: str = "") -> Outcome:
    status = LETTERS[letter]
    fault = {Status.FAILED: "product", Status.BROKEN: "lab"}.get(status, "")
    return Outcome(
        f"suites/dma/test_x.py::{name}", status, seconds, "emulated", reason, fault, "dma"
    )


def make(
    base: Path,
    name: str,
    tests: Mapping[str, str | tuple[str, float] | tuple[str, float, str]],
    *,
    finished: bool = True,
    planned: int | None = None,
    environment: Mapping[str, str] | None = None,
    **state: object,
) -> Run:
    directory = base / name
    (directory / "allure-results").mkdir(parents=True)
    run = Run(directory)
    values = {"lab": "rack", "kind": "emulated", "started": 1e9, "tests": len(tests)}
    if planned is not None:
        values["tests"] = planned
    run.write_state({**values, "state": "finished" if finished else "running", **state})
    for test, what in tests.items():
        run.add(outcome(test, what) if isinstance(what, str) else outcome(test, *what))
    if environment is not None:
        (directory / "environment.json").write_text(json.dumps(environment))
    return run
