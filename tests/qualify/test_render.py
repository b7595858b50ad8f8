"""The verdict as people see it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hil.errors import LabError
from hil.qualify import render
from hil.qualify.evidence import read
from hil.qualify.links import link_key, links, reports_of
from hil.qualify.verdict import Verdict
from hil.reporting.outcome import Status
from tests.qualify.runs import POLICY, folder_of, id_of, outcome, run_of, verdict_of

NASTY = "<script>alert(1)</script> [red]x[/] \"'&"


def failing(tmp_path: Path) -> Verdict:
    run = run_of(tmp_path, outcome("a", Status.FAILED, reason=NASTY), outcome("b"))
    return verdict_of(run)


class Page(HTMLParser):
    """Text and links of a page; an element that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.scripts = "", 0
        self.links: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        values = dict(attrs)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        if tag == "td" and (values.get("class") or "").startswith("c "):
            self.cells.append((values["class"] or "")[2:])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_terminal_shows_verdict_line_test_and_link(tmp_path: Path) -> None:
    verdict = failing(tmp_path)
    found = {link_key("run0", id_of("a")): "runs/run0/report.html#1"}
    text = render.terminal(verdict, found, width=60)
    lines = [line.strip() for line in text.splitlines()]
    assert "✗ nics: not qualified; 1 passed, 1 failed" in lines
    assert id_of("a") in lines
    assert "runs/run0/report.html#1" in lines
    assert "[red]x[/]" in text
    assert "\x1b" not in text
    assert lines[-1] == "✗ passthrough 1.0: NOT QUALIFIED"


def test_the_terminal_says_what_the_results_are_worth(tmp_path: Path) -> None:
    text = POLICY.replace("max_age", 'provenance = ["simulated"]\nmax_age')
    verdict = verdict_of(run_of(tmp_path, outcome("a", provenance="simulated")), text=text)
    assert "nothing of it was a real system or card" in render.terminal(verdict, {}, width=100)
    assert "nothing of it was a real system or card" in render.page(verdict, {})


def test_the_page_needs_no_other_file_and_obeys_no_text(tmp_path: Path) -> None:
    verdict = failing(tmp_path)
    page = Page(render.page(verdict, {link_key("run0", id_of("a")): "runs/run0/report.html#1"}))
    assert page.scripts == 0
    assert NASTY in page.text
    assert [link for link in page.links if not link.startswith("#")] == ["runs/run0/report.html#1"]
    assert "not qualified" in page.text


def test_the_matrix_has_a_cell_a_suite_device_and_guest(tmp_path: Path) -> None:
    text = POLICY.replace('["reset"]', '["reset", "dma"]').replace('["nic0"]', '["nic0", "gpu0"]')
    text += 'guests = ["linux", "bsd"]\n'
    run = run_of(
        tmp_path,
        outcome("a"),
        outcome("a", Status.FAILED, device="gpu0"),
        outcome("a", Status.SKIPPED, area="dma"),
        outcome("a", device="gpu0", area="dma"),
        outcome("c", device="", area="dma"),
    )
    page = Page(render.page(verdict_of(run, text=text), {}))
    # Rows: nic0, gpu0 and no device, each with reset and dma, for each guest.
    linux = ["good", "lacking", "bad", "good", "soft", "good"]
    assert page.cells == [*linux, "lacking", "lacking", "lacking", "lacking"]


def test_links_lead_to_the_test_within_a_report(tmp_path: Path) -> None:
    directory = folder_of(tmp_path, [outcome("a", Status.FAILED), outcome("b", Status.FAILED)])
    (directory / "report.html").touch()
    result = {"uuid": "1-2", "fullName": "suites.reset.test_reset#test_a", "name": "a [nic0]"}
    (directory / "allure-results" / "1-result.json").write_text(json.dumps(result))
    (directory / "allure-results" / "2-result.json").write_text('{"uuid": 3, "cut')
    verdict = verdict_of(read(directory))
    place = hashlib.md5(b"1-2").hexdigest()
    assert links(verdict, reports_of({"run0": directory}, "runs")) == {
        link_key("run0", id_of("a")): f"runs/run0/report.html#{place}",
        link_key("run0", id_of("b")): "runs/run0/report.html",
    }
    (directory / "report.html").unlink()
    assert set(links(verdict, reports_of({"run0": directory}, "runs")).values()) == {"runs/run0/"}


def test_a_name_of_a_megabyte_is_cut_for_people_and_whole_in_json(tmp_path: Path) -> None:
    name = "x" * (1 << 20)
    run = run_of(tmp_path, outcome(name, Status.FAILED, reason="y" * 5000), outcome("b"))
    verdict = verdict_of(run)
    shown = render.page(verdict, {})
    assert len(shown) < 100_000
    assert len(render.terminal(verdict, {})) < 10_000
    for text in (Page(shown).text, render.terminal(verdict, {})):
        assert " ".join(text.split()).count(" characters left out … ") == 2
        assert "suites/reset/test_reset.py::test_xxx" in text
    (finding,) = render.as_json(verdict)["lines"][0]["cells"][0]["findings"]
    assert name in finding["test"]


def test_the_link_of_a_repeated_test_is_that_of_its_last_attempt(tmp_path: Path) -> None:
    directory = folder_of(tmp_path, [outcome("a", Status.FAILED)])
    (directory / "report.html").touch()
    for start in (5, 9, 7):
        result = {"uuid": f"u{start}", "fullName": "suites.reset.test_reset#test_a"}
        text = json.dumps({**result, "name": "a [nic0]", "start": start})
        (directory / "allure-results" / f"{start}-result.json").write_text(text)
    found = links(verdict_of(read(directory)), reports_of({"run0": directory}, "runs"))
    place = hashlib.md5(b"u9").hexdigest()
    assert found == {link_key("run0", id_of("a")): f"runs/run0/report.html#{place}"}


def test_json_has_every_judgement(tmp_path: Path) -> None:
    data = render.as_json(failing(tmp_path))
    assert data["judgement"] == data["lines"][0]["judgement"] == "not qualified"
    assert data["lines"][0]["cells"][0]["judgement"] == "not qualified"
    assert data["lines"][0]["cells"][0]["findings"][0]["test"] == id_of("a")


def test_the_pdf_shows_the_verdict(tmp_path: Path) -> None:
    try:
        made = render.pdf(failing(tmp_path))
    except LabError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    assert made.startswith(b"%PDF-")
    pdftotext = shutil.which("pdftotext")
    if pdftotext is None:
        pytest.skip("pdftotext (poppler-utils) is not installed")
    (tmp_path / "v.pdf").write_bytes(made)
    text = subprocess.run(
        [pdftotext, str(tmp_path / "v.pdf"), "-"], capture_output=True, text=True, check=True
    ).stdout
    for words in ("passthrough 1.0", "not qualified", "✗", "<script>alert(1)</script>"):
        assert words in text.lower()
    # No path of the machine that made it.
    assert str(tmp_path).encode() not in made


def test_without_weasyprint_the_words_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    with pytest.raises(LabError, match="no PDF was made") as caught:
        render.pdf(failing(tmp_path))
    assert "pip install 'hil[pdf]'" in caught.value.hint
