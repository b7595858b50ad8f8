"""What a run was to run is written down before it runs; results say platform and guest."""

from __future__ import annotations

import json

import pytest

from hil.reporting.plan import Plan
from hil.reporting.run import Run
from tests.plugin.conftest import RunHil, labs, run_hil

__all__ = ["labs", "run_hil"]

SUITE = """
pytestmark = pytest.mark.danger(0)
@pytest.fixture
def device(request): return request.param
@pytest.mark.needs(device="nic")
def test_a(device): pass
def test_b(): pass
@pytest.mark.needs(platform="freebsd-bhyve")
def test_elsewhere(): pass
"""
CYCLES = """
@pytest.mark.danger(0)
def test_a(cycles, request): (request.config.rootpath / "cycles").write_text(str(cycles))
"""
HERE = "suites/dma/test_it.py::"
ELSEWHERE = {"they are for freebsd-bhyve": 1}


def ids(plan: Plan | None) -> tuple[set[str], set[str], bool]:
    assert plan is not None
    tests, deselected = (
        {planned.test.removeprefix(HERE) for planned in planned}
        for planned in (plan.tests, plan.deselected)
    )
    return tests, deselected, plan.narrowed


def test_a_whole_suite(run_hil: RunHil) -> None:
    ran = run_hil(SUITE)
    plan = Run(ran.run).plan
    assert ids(plan) == ({"test_a[nic0]", "test_a[nic1]", "test_b"}, set(), False)
    assert plan is not None
    assert {(p.area, p.devices) for p in plan.tests} == {
        ("dma", ("nic0",)),
        ("dma", ("nic1",)),
        ("dma", ()),
    }
    state = json.loads((ran.run / "run.json").read_text())
    assert (state["cycles"], len(state["inventory"])) == (2, 64)
    outcome = Run(ran.run).outcomes()[0]
    assert (outcome.platforms, outcome.guest) == (("linux-vfio",), "linux")


def test_what_options_leave_out_is_known(run_hil: RunHil) -> None:
    ran = run_hil(SUITE, "-k", "nic0", "--hil-cycles=7")
    assert ids(Run(ran.run).plan) == ({"test_a[nic0]"}, {"test_a[nic1]", "test_b"}, False)
    assert Run(ran.run).state["cycles"] == 7


@pytest.mark.parametrize(("kind", "cycles"), [("physical", 2), ("emulated", 1)])
def test_how_often_is_repeated_depends_on_the_lab(run_hil: RunHil, kind: str, cycles: int) -> None:
    ran = run_hil(CYCLES, kind=kind)
    ran.result.assert_outcomes(passed=1)
    assert (ran.run.parents[1] / "cycles").read_text() == str(cycles)
    assert Run(ran.run).state["cycles"] == cycles


@pytest.mark.parametrize("argument", [HERE + "test_b", "suites/dma/test_it.py", "--ignore=x.py"])
def test_a_run_of_a_part_of_a_suite_says_so(run_hil: RunHil, argument: str) -> None:
    assert Run(run_hil(SUITE, argument).run).plan == Plan(
        tests=Run(run_hil(SUITE).run).plan.tests,  # type: ignore[union-attr]
        narrowed=True,
        not_for_lab=ELSEWHERE,
    )


def test_workers_write_the_same_plan_and_plain_names(run_hil: RunHil) -> None:
    pytest.importorskip("xdist")
    ran = run_hil(SUITE, "-n2", "--dist=loadgroup")
    run = Run(ran.run)
    assert ids(run.plan) == ({"test_a[nic0]", "test_a[nic1]", "test_b"}, set(), False)
    assert run.plan is not None
    assert {o.test for o in run.outcomes()} == {p.test for p in run.plan.tests}
    assert run.plan.not_for_lab == ELSEWHERE
    assert ran.text.count("not for this lab: 1 test: they are for freebsd-bhyve") == 1


SHARED = """
pytestmark = pytest.mark.danger(0)
@pytest.fixture
def device(request): return request.param
@pytest.fixture
def note(request, tmp_path_factory, worker_id):
    with open(request.config.rootpath / "workers", "a") as file:
        print(request.node.callspec.params["device"][0], worker_id, file=file)
@pytest.mark.needs(device="nic")
@pytest.mark.parametrize("time", range(8))
def test_a(device, note, time): pass
"""


def test_what_shares_a_device_stays_with_one_worker(run_hil: RunHil) -> None:
    pytest.importorskip("xdist")
    ran = run_hil(SHARED, "-n2", "--dist=loadgroup")
    ran.result.assert_outcomes(passed=16)
    lines = set((ran.run.parents[1] / "workers").read_text().splitlines())
    assert len(lines) == 2, lines
    assert {line.split()[0] for line in lines} == {"nic0", "nic1"}


def test_a_plan_that_is_none_is_not_read(run_hil: RunHil) -> None:
    run = Run(run_hil(SUITE).run)
    for text in ("", "[]", '{"tests": 3}', '{"tests": ["x"], "deselected": [], "narrowed": 0}'):
        (run.directory / "plan.json").write_text(text)
        assert run.plan is None
    rest = '{"tests": [], "deselected": [], "narrowed": false'
    for text in (', "not_for_lab": ["x"]}', ', "not_for_lab": {"x": "1"}}'):
        (run.directory / "plan.json").write_text(rest + text)
        assert run.plan is None
    (run.directory / "plan.json").write_text(rest + "}")
    assert run.plan == Plan(), "as it was written before there were such"
