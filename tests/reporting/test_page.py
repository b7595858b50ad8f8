"""Allure's results are whole, and the HTML page shows them in a browser.

The browser's test needs Chromium (Debian: the package ``chromium``) and Allure 3.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from hil.errors import HilError
from hil.reporting import html
from tests.plugin.conftest import RunHil, labs, run_hil

__all__ = ["labs", "run_hil"]

SUITE = """
from hil import events
pytestmark = [pytest.mark.danger(1), pytest.mark.catalogue("DM1", bugs=[1, "PR 222937"])]
@pytest.fixture
def device(request): return request.param
@pytest.mark.needs(device="nic")
def test_bytes_arrive(device):
    '''Every byte arrives.'''
    with events.step("boot guest g1"):
        events.emit(events.PhaseReached("g1", "booting"))
        with events.step("log in"):
            events.emit(events.ConsoleLine("g1", "debian login:"))
        events.emit(events.PhaseReached("g1", "ready"))
    events.emit(events.CommandRun("g1", "lspci", 0, 0.1, "00:10.0 8086:10c9", ""))
    events.emit(events.Evidence("screen", b"\\x89PNG", "image/png"))
def test_wrong(): raise ProductError("bytes are wrong <b>&", seen="00 01")
def test_gone(): raise LabError("the host is gone")
"""


def _find() -> str:
    try:
        return str(html.find_allure())
    except HilError:
        return ""


# Looked for before pytester gives each test a home of its own.
ALLURE = _find()
needs_allure = pytest.mark.skipif(not ALLURE, reason=f"Allure 3 is missing: {html.INSTALL}")


def test_results_are_whole(run_hil: RunHil) -> None:
    ran = run_hil(SUITE)
    results = ran.results()
    folder = ran.run / "allure-results"
    assert set(results) == {
        "DM1 bytes arrive [nic0]",
        "DM1 bytes arrive [nic1]",
        "DM1 wrong",
        "DM1 gone",
    }
    good = results["DM1 bytes arrive [nic0]"]
    assert good["status"] == "passed"
    assert good["description"] == "Every byte arrives."
    assert [step["name"] for step in good["steps"]] == ["boot guest g1"]
    assert [step["name"] for step in good["steps"][0]["steps"]] == ["log in"]
    parameters = {p["name"]: p["value"] for p in good["parameters"]}
    assert parameters == {"device": "nic0", "host": "alpha", "provenance": "physical"}
    kinds = {a["name"]: a["type"] for a in good["attachments"]}
    assert kinds == {
        "log: commands and consoles, by time": "text/plain",
        "time line": "image/svg+xml",
        "screen": "image/png",
    }
    assert {link["name"] for link in good["links"]} == {"PR 222937"}
    assert results["DM1 wrong"]["status"] == "failed"
    assert results["DM1 wrong"]["statusDetails"]["message"] == "bytes are wrong <b>&"
    assert "seen:    00 01" in results["DM1 wrong"]["statusDetails"]["trace"]
    assert results["DM1 gone"]["status"] == "broken"
    ids = {result["historyId"] for result in results.values()}
    assert len(ids) == 4, "each device has a history of its own"
    for result in results.values():
        names = [label["name"] for label in result["labels"]]
        for name in ("epic", "feature", "suite", "severity", "provenance"):
            assert names.count(name) == 1, name
        for attachment in result.get("attachments", []):
            assert (folder / attachment["source"]).is_file()


@needs_allure
def test_the_page_is_one_file_that_needs_no_other(
    run_hil: RunHil, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run_hil(SUITE)
    monkeypatch.setenv("HIL_ALLURE", ALLURE)
    page = html.generate(ran.run)
    text = page.read_text()
    assert page == ran.run / "report.html"
    assert not re.search(r"""<(?:script|link|img)[^>]+(?:src|href)=["'](?!data:)[^"']""", text)
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    dom = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={ran.directory / 'profile'}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    for words in ("DM1 wrong", "DM1 gone", "rack", "physical", "nic0"):
        assert words in dom, words


@needs_allure
def test_a_report_is_made_of_a_run_that_was_killed(
    run_hil: RunHil, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run_hil(SUITE)
    monkeypatch.setenv("HIL_ALLURE", ALLURE)
    state = json.loads((ran.run / "run.json").read_text())
    (ran.run / "run.json").write_text(json.dumps({**state, "state": "running", "tests": 9}))
    next((ran.run / "allure-results").glob("*-result.json")).write_text('{"name": "cut sh')
    assert "INCOMPLETE" in html.generate(ran.run).read_text()
