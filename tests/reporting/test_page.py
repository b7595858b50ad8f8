"""Allure's results are whole, and the HTML page shows them in a browser.

The browser's test needs Chromium (Debian: the package ``chromium``) and Allure 3.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest

from hil.errors import LabError
from hil.reporting import html
from hil.reporting import page as packing
from tests.plugin.conftest import FakeLabs, RunHil, labs, run_hil
from tests.reporting import browser
from tests.reporting.allure_tool import ALLURE, needs_allure

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
    if not browser.CHROMIUM:
        pytest.skip("chromium is not installed")
    with browser.page(ran.directory / "profile", page.as_uri()) as shown:
        shown.wait_for("DM1 wrong", "DM1 gone", "rack", "physical", "nic0")
        shown.click("nic1")  # what passed is folded up
        shown.click("DM1 bytes arrive [nic1]")
        shown.wait_for("boot guest g1", "PR 222937")
        shown.click("log: commands and consoles")
        shown.wait_for("$ lspci", "| debian login:")


REPEATED = """
import tests.plugin.conftest as fake
pytestmark = [pytest.mark.danger(0), pytest.mark.catalogue("DM1")]
TRIED = []
def test_it_lives(lab):
    TRIED.append(1)
    if len(TRIED) == 1:
        fake.NOW[-1].deaths.append("guest g1 restarted by itself")
        raise GuestError("guest g1 is gone from SSH")
def test_wrong(): raise ProductError("bytes are wrong")  # what passed alone is folded up
"""


@needs_allure
def test_the_page_shows_the_attempt_that_was_repeated(
    run_hil: RunHil, labs: FakeLabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    labs.software = True
    ran = run_hil(REPEATED, kind="emulated")
    monkeypatch.setenv("HIL_ALLURE", ALLURE)
    page = html.generate(ran.run)
    (kept,) = (ran.run.parent / "history").rglob("*.json")
    results = json.loads(kept.read_text())["testResults"].values()
    found = {result["name"]: result["status"] for result in results}
    assert found["DM1 it lives"] == "passed", "its last attempt"
    if not browser.CHROMIUM:
        pytest.skip("chromium is not installed")
    with browser.page(ran.directory / "profile", page.as_uri()) as shown:
        shown.wait_for("Retried tests", "Flaky tests", "rack")
        shown.click("DM1 it lives")
        shown.wait_for("Passed", "Flaky", "Retries")
        shown.click("Retries")
        shown.wait_for("Retry 1 of 1", "guest g1 is gone from SSH")


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


# ---- packing ---------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from hil.reporting import html
def killed(folder, out):
    out.write("half a page")
    out.flush()
    os.kill(os.getpid(), signal.SIGKILL)
html.pack = killed
html.generate(Path(sys.argv[1]))
"""


def test_what_a_killed_report_leaves_is_removed_by_the_next(
    run_hil: RunHil, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = run_hil(SUITE, "--hil-no-html")
    assert "HIL_ALLURE" not in ran.text, "nobody asked for a page"
    before = {path.name for path in ran.run.iterdir()}
    allure = tmp_path / "allure"
    allure.write_text(
        "#!/bin/sh\n"
        'until [ "$1" = --output ]; do shift; done\n'
        'mkdir "$2" && touch "$2/index.html"\n'
    )
    allure.chmod(0o755)
    monkeypatch.setenv("HIL_ALLURE", str(allure))
    done = subprocess.run([sys.executable, "-c", KILLED, str(ran.run)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = {path.name for path in ran.run.iterdir()} - before
    assert left != "report.html", "half a page is no report"
    monkeypatch.setattr(html, "pack", lambda _folder, out: out.write("a page"))
    with pytest.raises(LabError, match="wrote no history"):
        html.generate(ran.run)
    assert (ran.run / "report.html").read_text() == "a page"
    assert {path.name for path in ran.run.iterdir()} - before == {"report.html"}


INDEX = """<html><head><link rel="preload" href="a.woff" as="font">
<link rel="stylesheet" href="m.css">
</head><body><script   src="app-1.js"></script>
<script async src="https://statistics.example.org/gtag/js?id=G-1"></script>
<script async>
  window.allureReportDataReady = true;
</script></body></html>"""


def folder(path: Path, files: Mapping[str, bytes], index: str = INDEX) -> Path:
    (path / "data" / "attachments").mkdir(parents=True)
    (path / "index.html").write_text(index)
    (path / "summary.json").write_text("{}")
    (path / "m.css").write_text("p { color: red }")
    (path / "app-1.js").write_text("go()")
    for name, data in files.items():
        (path / "data" / "attachments" / name).write_bytes(data)
    return path


def unpacked(page: str) -> dict[str, bytes]:
    """What is in a page, by name."""
    stored = re.findall(r'<script type="application/octet-stream" id="hil-(\w+)">([^<]*)<', page)
    blocks = {name: zlib.decompress(base64.b64decode(text)) for name, text in stored}
    index = json.loads(blocks.pop("index"))
    assert len(index["programs"]) == 1
    files = {}
    for number, names in enumerate(index["blocks"]):
        data = blocks.pop(str(number))
        for name, size in names:
            files[name], data = data[:size], data[size:]
        assert not data
    assert not blocks
    return files


def test_all_files_are_in_the_page_and_nothing_refers_to_another(tmp_path: Path) -> None:
    contents = {f"a{n}.txt": bytes([n]) * n * 4000 for n in range(40)}
    contents["big.bin"] = bytes(range(256)) * 4 * 1024
    target = StringIO()
    packing.pack(folder(tmp_path, contents), target)
    page = target.getvalue()
    files = unpacked(page)
    assert files.pop("app-1.js") == b"go()"
    assert "p { color: red }" in page
    assert files == {f"data/attachments/{name}": data for name, data in contents.items()}
    assert "example.org" not in page
    assert ".woff" not in page
    assert len(page) < 60_000, "it is compressed"


def test_what_is_alike_is_compressed_together(tmp_path: Path) -> None:
    record = json.dumps({f"a key of some length {n}": n for n in range(60)}).encode()
    target = StringIO()
    packing.pack(folder(tmp_path, {f"{n}.json": record for n in range(500)}), target)
    assert len(target.getvalue()) < 500 * len(record) / 20


@pytest.mark.parametrize(
    "index",
    [
        INDEX.replace("Ready = true", "Ready = 1"),
        INDEX.replace("</body>", "<script>window.allureReportDataReady = true;</script></body>"),
        INDEX.replace('src="app-1.js"', ""),
    ],
)
def test_a_page_of_another_make_is_refused(tmp_path: Path, index: str) -> None:
    with pytest.raises(LabError, match="otherwise than hil knows"):
        packing.pack(folder(tmp_path, {}, index), StringIO())
