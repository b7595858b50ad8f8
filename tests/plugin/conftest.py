"""Runs pytest with the plugin against an inventory, with no host behind it."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# Loaded here once: pytester unloads what a run within the process loads.
import hil.lab.load
import hil.oracles.clean
import hil.reporting.allure
import hil.reporting.html
import hil.reporting.progress
import hil.reporting.summary  # noqa: F401
from hil.errors import HilError

importlib.import_module("hil.fixtures.pool")

LAB = """
[lab]
name = "rack"
kind = "physical"

[hosts.alpha]
platform = "linux-vfio"
address = "192.0.2.1"
danger = 1

[hosts.beta]
platform = "linux-vfio"
address = "192.0.2.2"
danger = 3

[devices.nic0]
kind = "nic"
host = "alpha"
functions = ["0000:01:00.0"]
capabilities = ["msix", "flr", "sriov"]
vfs = 4
peer = { interface = "eth9" }

[devices.nic1]
kind = "nic"
host = "alpha"
functions = ["0000:02:00.0"]
capabilities = ["msi", "pm"]

[devices.nvme0]
kind = "nvme"
host = "alpha"
functions = ["0000:03:00.0"]
capabilities = ["msix"]

[devices.edu0]
kind = "edu"
host = "beta"
functions = ["0000:01:00.0"]
capabilities = ["msi"]
"""


@dataclass
class FakeLabs:
    """Stands in for what brings labs up, and notes what was asked of it."""

    asked: list[str] = field(default_factory=list)
    fails_with: HilError | None = None
    dead: set[str] = field(default_factory=set)
    panics: dict[str, str] = field(default_factory=dict)
    deaths: list[str] = field(default_factory=list)
    """How guests died."""
    software: bool = False
    """Whether an emulated lab has no KVM."""
    settled: int = 0
    closed: int = 0


class FakeTransport:
    def __init__(self, labs: FakeLabs, host: str) -> None:
        self.labs, self.host = labs, host

    def run(self, command: list[str], *, deadline: Any) -> Any:
        from hil.errors import LabError
        from hil.transport.base import Result

        if self.host in self.labs.dead:
            raise LabError(f"{self.host} does not answer", host=self.host)
        return Result(tuple(command), 0, b"", b"", 0.0)


class FakePlatform:
    features: frozenset[object] = frozenset()

    def __init__(self, labs: FakeLabs, host: str) -> None:
        self.host = host
        self.transport = FakeTransport(labs, host)


class FakeHost:
    def __init__(self, labs: FakeLabs, name: str) -> None:
        self.name = name
        self.platform = FakePlatform(labs, name)
        self.bound: Any = None
        self.panic = lambda: labs.panics.get(name, "")

    def limit(self, seconds: float, what: str) -> Any:
        from hil.deadline import Deadline

        return Deadline(seconds, what).bounded(self.bound)


class FakeBench:
    def __init__(self, labs: FakeLabs, names: list[str]) -> None:
        self.labs = labs
        self.hosts = {name: FakeHost(labs, name) for name in names}
        self.guests: FakeBench = self
        self.devices: dict[str, object] = {}

    def bind(self, bound: Any) -> None:
        for host in self.hosts.values():
            host.bound = bound

    def settle(self) -> None:
        self.labs.settled += 1

    def deaths(self) -> tuple[str, ...]:
        return tuple(self.labs.deaths)

    def forget_deaths(self) -> None:
        self.labs.deaths.clear()

    def close(self) -> None:
        self.labs.closed += 1


@dataclass
class Ran:
    """A run of pytest that ended."""

    result: pytest.RunResult
    directory: Path

    @property
    def text(self) -> str:
        return self.result.stdout.str() + self.result.stderr.str()

    @property
    def run(self) -> Path:
        return (self.directory / "reports" / "latest").resolve()

    @property
    def summary(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        return data

    @property
    def statuses(self) -> dict[str, str]:
        """Test name → status."""
        return {t["test"].rpartition("::")[2]: t["status"] for t in self.summary["tests"]}

    def reason(self, name: str) -> str:
        for test in self.summary["tests"]:
            if test["test"].rpartition("::")[2] == name:
                return str(test["reason"])
        raise AssertionError(f"no test {name} in {self.statuses}")

    @property
    def order(self) -> list[str]:
        return list(self.statuses)

    def results(self) -> dict[str, dict[str, Any]]:
        """Allure's results, by the name of the test."""
        found = [
            json.loads(p.read_text()) for p in (self.run / "allure-results").glob("*-result.json")
        ]
        return {result["name"]: result for result in found}


RunHil = Callable[..., Ran]


def bring_up(pool: Any, variant: str) -> None:
    """In place of :meth:`hil.fixtures.pool.LabPool._bring_up`."""
    fake = NOW[-1]
    fake.asked.append(variant)
    if fake.fails_with is not None:
        raise fake.fails_with
    pool._bench = FakeBench(fake, list(pool._session.lab.hosts))
    pool._variant = variant
    pool.software = fake.software and pool._session.lab.kind.value == "emulated"


#: What stands in for labs now; for tests that pytest runs in this process.
NOW = [FakeLabs()]


@pytest.fixture
def labs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLabs]:
    NOW.append(FakeLabs())
    monkeypatch.setattr("hil.fixtures.pool.LabPool._bring_up", bring_up)
    yield NOW[-1]
    NOW.pop()


@pytest.fixture
def run_hil(
    pytester: pytest.Pytester, labs: FakeLabs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> RunHil:
    """Run pytest on the text of a test module, with a report but without HTML."""
    monkeypatch.setenv("HIL_ALLURE", str(tmp_path / "missing"))

    def run(module: str, *arguments: str, lab: str = LAB, kind: str = "physical") -> Ran:
        if kind != "physical":
            # Each run makes it, then.
            lab = re.sub(
                "^address = .*\n", "", lab.replace('"physical"', f'"{kind}"'), flags=re.MULTILINE
            )
        pytester.path.joinpath("rack.toml").write_text(lab)
        folder = pytester.path / "suites" / "dma"
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath("test_it.py").write_text(
            "import pytest\nfrom hil.errors import *\n" + module
        )
        result = pytester.runpytest_inprocess(
            # Not needed; one cannot be loaded twice in a process, the other is slow.
            "-p",
            "no:labgrid",
            "-p",
            "no:hypothesispytest",
            "--hil-lab=rack.toml",
            "--hil-report=reports",
            "--strict-markers",
            *arguments,
            "suites",
            no_reraise_ctrlc=True,
        )
        return Ran(result, pytester.path)

    return run
