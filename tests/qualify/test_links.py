"""A verdict's links lead to the test in the report that Allure makes.

Needs Allure 3; the browser's part needs Chromium (Debian: the package ``chromium``).
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hil.qualify.evidence import gather
from hil.qualify.judge import judge
from hil.qualify.links import links, reports_of
from hil.qualify.verdict import Judgement
from hil.reporting import html
from tests.plugin.conftest import RunHil, labs, run_hil
from tests.qualify.runs import policy
from tests.reporting import browser
from tests.reporting.allure_tool import ALLURE, needs_allure

__all__ = ["labs", "run_hil"]

SUITE = """
pytestmark = pytest.mark.danger(0)
@pytest.fixture
def device(request): return request.param
@pytest.mark.needs(device="nic")
def test_it_works(device): pass
class TestGroup:
    @pytest.mark.needs(device="nic")
    def test_it_fails(self, device): raise ProductError("bytes are wrong")
"""

POLICY = """
[policy]
name = "rack"
max_age_days = 1
[requirements.nics]
suites = ["dma"]
devices = ["nic0"]
"""


@needs_allure
def test_a_run_is_judged_and_its_failure_is_one_click_away(
    run_hil: RunHil, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = run_hil(SUITE)
    monkeypatch.setenv("HIL_ALLURE", ALLURE)
    html.generate(ran.run)
    records, _ = gather([ran.run])
    verdict = judge(policy(POLICY), records, time.time())
    assert verdict.judgement is Judgement.NOT_QUALIFIED
    (cell,) = verdict.lines[0].cells
    assert (cell.passed, cell.failed) == (1, 1)
    (link,) = links(verdict, reports_of({ran.run.name: ran.run}, "runs")).values()
    page, _, place = link.partition("#")
    assert page == f"runs/{ran.run.name}/report.html"
    assert len(place) == 32
    if not browser.CHROMIUM:
        pytest.skip("chromium is not installed")
    address = f"{(ran.run / 'report.html').as_uri()}#{place}"
    with browser.page(tmp_path / "profile", address) as shown:
        # Only the page of the test itself says in which class it is.
        shown.wait_for("TestGroup#test_it_fails", "bytes are wrong")
