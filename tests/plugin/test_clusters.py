"""Tests that take the cards of a cluster, and findings that are known of a card."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import LAB, RunHil

FARM = (
    LAB
    + """
[devices.gpu0]
kind = "gpu"
host = "beta"
functions = ["0000:06:00.0"]
known = ["GP8"]

[devices.gpu1]
kind = "gpu"
host = "beta"
functions = ["0000:07:00.0"]
areas = []

[clusters.desk]
devices = ["gpu0", "gpu1"]

[clusters.wide]
devices = ["gpu1", "nic0"]
"""
)


EACH = """
@pytest.mark.needs(device=["gpu", "nic"])
def test_each(request, topology): pass

@pytest.mark.needs(device="gpu", shape="together")
def test_together(topology): pass

@pytest.mark.needs(device="nvme", count=2)
def test_nobody(topology): pass

@pytest.mark.needs(device="gpu")
def test_alone(device): pass
"""

NOBODY = """
@pytest.mark.needs(device="nvme", count=2)
def test_nobody(topology): pass
"""


def test_a_test_for_each_topology(run_hil: RunHil) -> None:
    ran = run_hil(
        EACH,
        "--collect-only",
        lab=FARM,
    )
    ran.result.stdout.fnmatch_lines_random(
        [
            "*test_each[[]desk-together[]]*",
            "*test_each[[]desk-apart[]]*",
            "*test_each[[]wide-apart[]]*",
            "*test_together[[]desk-together[]]*",
            "*test_alone[[]gpu0[]]*",
        ]
    )
    ran.result.stdout.no_fnmatch_line("*test_together[[]desk-apart[]]*")
    ran.result.stdout.no_fnmatch_line("*test_alone[[]gpu1[]]*")


def test_a_lab_without_such_a_cluster(run_hil: RunHil) -> None:
    ran = run_hil(
        NOBODY,
        lab=FARM,
    )
    (only,) = ran.summary["tests"]
    assert only["status"] == "skipped"
    assert "has no cluster of nvme (its clusters: desk, wide)" in only["reason"]


KNOWN = """
@pytest.mark.catalogue("GP8")
@pytest.mark.needs(device="gpu")
def test_finding(device_name):
    {body}

@pytest.mark.catalogue("GP8")
@pytest.mark.needs(device="gpu")
def test_control_of_it(device_name):
    with pytest.raises(ProductError):
        raise ProductError("found")

@pytest.mark.catalogue("GP7")
@pytest.mark.needs(device="gpu")
def test_another(device_name): pass

@pytest.fixture
def device_name(device): return "gpu"
@pytest.fixture
def device(request): return request.param
"""


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ('raise ProductError("found")', "passed", "fails as expected: GP8 is known of gpu0"),
        ("pass", "failed", "GP8 is known of gpu0"),
        ('raise LabError("no power")', "broken", "no power"),
    ],
)
def test_a_finding_that_is_known(run_hil: RunHil, body: str, status: str, words: str) -> None:
    ran = run_hil(KNOWN.format(body=body), lab=FARM)
    found = {test["test"].rpartition("::")[2]: test for test in ran.summary["tests"]}
    assert found["test_finding[gpu0]"]["status"] == status
    assert words in found["test_finding[gpu0]"]["reason"]
    for name in ("test_control_of_it[gpu0]", "test_another[gpu0]"):
        assert (found[name]["status"], found[name]["reason"]) == ("passed", "")


def test_the_report_shows_a_finding_that_is_known(run_hil: RunHil) -> None:
    ran = run_hil(KNOWN.format(body='raise ProductError("a leak", seen="at 0x10")'), lab=FARM)
    result = ran.results()["GP8 finding [gpu0]"]
    assert result["status"] == "passed"
    assert {"name": "tag", "value": "fails as expected"} in result["labels"]
    attachment = next(a for a in result["attachments"] if "is known of gpu0" in a["name"])
    text = (ran.run / "allure-results" / attachment["source"]).read_text()
    assert "a leak" in text
    assert "at 0x10" in text
    control = ran.results()["GP8 control: of it [gpu0]"]
    assert {"name": "tag", "value": "fails as expected"} not in control["labels"]
