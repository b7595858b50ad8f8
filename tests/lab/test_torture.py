"""The short form of benchmarks/torture.py: a few kills of runs, and of their host."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hil.lab import keeper
from tests.fakes import soon
from tests.lab.places import benchmark

torture = benchmark("torture")


@pytest.fixture
def rack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    try:
        yield torture.Rack("short", "freebsd-15-intel", tmp_path)
    finally:
        keeper.stop("short", soon(60))


@pytest.mark.parametrize("what", ["run", "panic"])
def test_nothing_is_left_or_lost_when_a_run_or_its_host_is_killed(rack: Any, what: str) -> None:
    words = torture.SELECTIONS[0]
    tried = torture.Torture(rack, random.Random(5), None)
    tried.lengths[" ".join(words)] = 4.0
    kill = tried.kill_run(words) if what == "run" else tried.kill_host(words, what)
    assert kill.wrong == "", kill
    assert tried.green(words) == ""


def test_what_is_left_would_be_seen(rack: Any) -> None:
    command = ["touch", "/tmp/of-a-run"]
    rack.platform.transport.run(command, deadline=soon(60)).check()
    assert "+ file /tmp/of-a-run" in rack.wrong(within=0.1)
