"""Makes folders of runs, as a run of ``hil run`` leaves them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from hil.qualify.evidence import RunRecord, read
from hil.qualify.judge import judge
from hil.qualify.policy import Policy, parse
from hil.qualify.verdict import Verdict
from hil.reporting.outcome import Outcome, Status
from hil.reporting.plan import Plan, Planned
from hil.reporting.run import Run

#: When tests judge: 2026-11-21 12:00 UTC.
NOW = 1795262400.0
DAY = 86400

POLICY = """
[policy]
name = "passthrough 1.0"
max_age_days = 14

[requirements.nics]
suites = ["reset"]
devices = ["nic0"]
"""

ENVIRONMENT = {
    "alpha: system": "FreeBSD 15.0-RELEASE, kernel n280995",
    "alpha: hypervisor": "bhyve of FreeBSD 15.0-RELEASE",
    "device nic0": "8086:10c9 rev 01, subsystem 1af4:1100, serial 525400ffff686902, at 01:00.0",
}


def policy(text: str = POLICY) -> Policy:
    return parse(text, Path("policy.toml"))


def id_of(name: str, device: str = "nic0", area: str = "reset") -> str:
    bracket = f"[{device}]" if device else ""
    return f"suites/{area}/test_{area}.py::test_{name}{bracket}"


def outcome(
    name: str, status: Status = Status.PASSED, *, device: str = "nic0", **more: object
) -> Outcome:
    values: dict[str, object] = {
        "area": "reset",
        "provenance": "physical",
        "devices": (device,) if device else (),
        "hosts": ("alpha",),
        "platforms": ("freebsd-bhyve",),
        "guest": "linux",
        **more,
    }
    test = id_of(name, device, str(values["area"]))
    return Outcome(test=test, status=status, seconds=1.0, **values)  # type: ignore[arg-type]


def folder_of(
    base: Path,
    outcomes: Iterable[Outcome],
    *,
    name: str = "",
    left_out: Iterable[Outcome] = (),
    missing: Iterable[Outcome] = (),
    narrowed: bool = False,
    state: Mapping[str, object] | None = None,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> Path:
    """A run's folder.

    Args:
        base: reports go there.
        outcomes: how its tests ended.
        name: of the folder.
        left_out: tests that options took out.
        missing: tests that were to run, and did not.
        narrowed: whether single tests were asked for.
        state: more for ``run.json``; ``None`` values take a key away.
        environment: what its lab was.
    """
    outcomes = list(outcomes)
    directory = base / (name or f"run{len(list(base.glob('run*')))}")
    directory.mkdir(parents=True)
    (directory / "allure-results").mkdir()
    planned = [Planned(o.test, o.area, o.devices) for o in (*outcomes, *missing)]
    # A test that was repeated was planned once.
    unique = tuple({p.test: p for p in planned}.values())
    run = Run(directory)
    run.write_plan(
        Plan(unique, tuple(Planned(o.test, o.area, o.devices) for o in left_out), narrowed)
    )
    values: dict[str, object] = {
        "state": "finished",
        "lab": "rack",
        "kind": outcomes[0].provenance if outcomes else "physical",
        "inventory": "a" * 64,
        "cycles": 2,
        "tests": len(unique),
        "started": NOW - DAY,
        "ended": NOW - DAY / 2,
        **(state or {}),
    }
    run.write_state({key: value for key, value in values.items() if value is not None})
    (directory / "outcomes.jsonl").touch()
    for found in outcomes:
        run.add(found)
    (directory / "environment.json").write_text(json.dumps(environment))
    return directory


def run_of(base: Path, *outcomes: Outcome, **more: object) -> RunRecord:
    return read(folder_of(base, outcomes, **more))  # type: ignore[arg-type]


def verdict_of(*runs: RunRecord, text: str = POLICY, now: float = NOW) -> Verdict:
    return judge(policy(text), runs, now)
