"""Allure results: allure-pytest gathers them, and this says what hil knows besides.

A hook of :mod:`allure_commons` sees each result just before :mod:`hil.reporting.allure_files`
writes it, and adds provenance, labels, the steps, the evidence and whose fault a failure was.
The format of results is that of
https://allurereport.org/docs/how-it-works-test-result-file/.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import allure_commons
from allure_commons.model2 import (
    Attachment,
    Label,
    Link,
    Parameter,
    StatusDetails,
    TestResult,
    TestStepResult,
)

from hil.errors import Fault
from hil.reporting.allure_files import AllureFiles
from hil.reporting.collector import LOG_LIMIT, Record, Step
from hil.reporting.outcome import Outcome, Status
from hil.reporting.run import Run, write_whole
from hil.reporting.text import clean, cut_middle, redact
from hil.reporting.timeline import timeline

EPIC = "PCI passthrough"

#: Labels of allure-pytest that ours replace.
_REPLACED = ("parentSuite", "suite", "subSuite", "package", "severity", "epic", "feature", "story")

_AREAS = {"dma": "DMA", "gpu": "GPU", "iommu": "IOMMU", "sriov": "SR-IOV"}
#: Areas in which a failure can mean that isolation or data is lost.
_CRITICAL = frozenset({"dma", "iommu", "reset"})

_STATUS = {Status.BLOCKED: "skipped"}

_SUFFIXES = {
    "text/plain": "txt",
    "text/csv": "csv",
    "text/html": "html",
    "application/json": "json",
    "image/png": "png",
    "image/svg+xml": "svg",
}

#: Name of each category, by whose fault it was; see :class:`hil.errors.Fault`.
CATEGORIES: Mapping[str, str] = {
    Fault.PRODUCT.value: "Product: a check failed",
    Fault.GUEST.value: "Guest: panic, hang, or never came up",
    Fault.LAB.value: "Lab: host, network, emulation or a tool",
    Fault.INVENTORY.value: "Inventory or options",
    "test": "Test or framework: unexpected error",
}
_BLOCKED = "Blocked: the host or the lab was dead already"
_SKIPPED = "Skipped: the lab lacks what the test needs, or does not allow it"


def categories() -> list[dict[str, Any]]:
    """Allure 3's categories: by the label ``fault``, then blocked and skipped tests."""
    rules: list[dict[str, Any]] = [
        {"name": name, "matchers": {"labels": {"fault": f"^{fault}$"}}, "expand": True}
        for fault, name in CATEGORIES.items()
    ]
    rules.append({"name": _BLOCKED, "matchers": {"labels": {"tag": "^blocked$"}}})
    rules.append({"name": _SKIPPED, "matchers": {"statuses": ["skipped"]}})
    return rules


def severity(area: str, danger: int) -> str:
    """Allure's severity of a test: by what its failure can mean, and by its danger."""
    if area in _CRITICAL:
        return "blocker" if danger >= 2 else "critical"
    return "normal" if danger else "minor"


class AllureBridge:
    """Completes each result of allure-pytest.

    Args:
        results: Allure's folder of results.
        failed: told why a file of it could not be written.
    """

    def __init__(self, results: Path, failed: Callable[[OSError], None]) -> None:
        self._files = AllureFiles(results, failed)
        self._record: Record | None = None
        self._outcome: Outcome | None = None
        self._text = ""

    @contextlib.contextmanager
    def registered(self) -> Iterator[None]:
        """While the block runs, Allure's results pass through here."""
        with self._files.registered():
            allure_commons.plugin_manager.register(self)
            try:
                yield
            finally:
                allure_commons.plugin_manager.unregister(self)

    def begin(self, record: Record | None) -> None:
        """A test begins whose evidence gathers in ``record``; ``None``: a test not ours."""
        self._record, self._outcome, self._text = record, None, ""

    def ended(self, outcome: Outcome, text: str) -> None:
        """The test ended so; ``text`` is its whole error, if that was one of hil's."""
        self._outcome, self._text = outcome, text

    @allure_commons.hookimpl(tryfirst=True)
    def report_result(self, result: TestResult) -> None:
        """Called by Allure for each result, before it is written."""
        record, outcome = self._record, self._outcome
        if record is None or outcome is None:
            return
        self._record = self._outcome = None
        result.name = outcome.title
        result.status = _STATUS.get(outcome.status, outcome.status.value)
        if outcome.status in (Status.SKIPPED, Status.BLOCKED):
            result.statusDetails = StatusDetails(message=outcome.reason)
        elif self._text:
            result.statusDetails = StatusDetails(message=outcome.words, trace=self._text)
        elif details := result.statusDetails:
            details.message = clean(details.message or "")
            details.trace = clean(details.trace or "")
        result.labels = [
            *(
                label
                for label in result.labels
                if label.name not in _REPLACED and (label.name, label.value) != ("tag", "needs")
            ),
            *(Label(name, value) for name, value in labels(outcome)),
        ]
        result.links.extend(Link("issue", url, name) for name, url in bug_links(outcome.bugs))
        # pytest's own parameters are tuples of names; ours read better.
        result.parameters = [
            p for p in result.parameters if p.name not in ("device", "devices", "host", "topology")
        ]
        for name, value in (
            ("device", ", ".join(outcome.devices)),
            ("host", ", ".join(outcome.hosts)),
            ("provenance", outcome.provenance),
        ):
            if value:
                result.parameters.append(Parameter(name=name, value=value))
        result.steps.extend(_step(step) for step in record.steps)
        if record.steps_left_out:
            words = f"… {record.steps_left_out} more steps left out …"
            result.steps.append(TestStepResult(name=words, status="skipped"))
        if outcome.status is Status.PASSED and outcome.reason and result.statusDetails:
            # Allure shows no details of what passed: this failed as it was expected to.
            found = result.statusDetails.trace or result.statusDetails.message or ""
            self._attach(result, outcome.reason, found.encode(), "text/plain")
        if outcome.only_at:
            # The attempts before have the same historyId: Allure shows them as retries.
            result.statusDetails = StatusDetails(message=outcome.words, flaky=True)
        self._attach_evidence(result, record)

    def _attach_evidence(self, result: TestResult, record: Record) -> None:
        if log := record.log():
            self._attach(result, "log: commands and consoles, by time", log.encode(), "text/plain")
        if picture := timeline(record.phases, record.start, time.time()):
            self._attach(result, "time line", picture.encode(), "image/svg+xml")
        for evidence in record.evidence:
            self._attach(result, evidence.name, evidence.data, evidence.kind)
        if left_out := record.evidence_left_out:
            words = f"{len(left_out)} more pieces of evidence were left out:"
            text = cut_middle("\n".join([words, *left_out]), LOG_LIMIT)
            self._attach(result, "left out", text.encode(), "text/plain")

    def _attach(self, result: TestResult, name: str, data: bytes, kind: str) -> None:
        file = f"{uuid4()}-attachment.{_SUFFIXES.get(kind, 'bin')}"
        self._files.write(file, data)
        result.attachments.append(Attachment(name=name, source=file, type=kind))


def labels(outcome: Outcome) -> list[tuple[str, str]]:
    """Allure's labels of an outcome, as (name, value)."""
    feature = _AREAS.get(outcome.area, outcome.area.replace("_", " ").capitalize())
    found = [
        ("epic", EPIC),
        ("feature", feature),
        ("parentSuite", f"{outcome.provenance} lab"),
        ("suite", feature),
        ("subSuite", ", ".join(outcome.devices) or "host"),
        ("severity", severity(outcome.area, outcome.danger)),
        ("provenance", outcome.provenance),
        ("tag", outcome.provenance),
        ("tag", f"danger {outcome.danger}"),
        *(("story", test_id) for test_id in outcome.catalogue),
        *(("tag", test_id) for test_id in outcome.catalogue),
        *(("tag", f"bug {bug}" if bug.isdigit() else bug) for bug in outcome.bugs),
        *(("device", name) for name in outcome.devices),
    ]
    if outcome.fault:
        found.append(("fault", outcome.fault))
    if outcome.status is Status.BLOCKED:
        found.append(("tag", "blocked"))
    if outcome.status is Status.PASSED and outcome.reason:
        found.append(("tag", "fails as expected"))
    if outcome.only_at:
        found.append(("tag", f"passed {outcome.only_at}"))
    return found


def bug_links(bugs: tuple[str, ...]) -> list[tuple[str, str]]:
    """Links of FreeBSD bug reports and reviews (``PR 222937``, ``D30827``), as (name, address)."""
    links = []
    for bug in bugs:
        if number := re.fullmatch(r"PR ?(\d+)", bug):
            url = f"https://bugs.freebsd.org/bugzilla/show_bug.cgi?id={number[1]}"
            links.append((bug, url))
        elif re.fullmatch(r"D\d+", bug):
            links.append((bug, f"https://reviews.freebsd.org/{bug}"))
    return links


def _step(step: Step) -> TestStepResult:
    start = int(step.at * 1000)
    error = step.error or ("did not end" if step.seconds is None else "")
    return TestStepResult(
        name=step.title,
        status="broken" if error else "passed",
        statusDetails=StatusDetails(message=error) if error else None,
        start=start,
        stop=start + int((step.seconds or 0) * 1000),
        steps=[_step(inner) for inner in step.steps],
    )


class Environment:
    """``environment.properties`` and ``executor.json``: what the results were made with."""

    FILE: ClassVar[str] = "environment.json"

    @staticmethod
    def write(run: Run, values: Mapping[str, str]) -> None:
        """Add ``values`` (name → text) to the run's environment."""
        values = {name: redact(clean(value)) for name, value in values.items()}
        merged = {**Environment.read(run), **values}
        write_whole(run.directory / Environment.FILE, json.dumps(merged, indent=1))
        lines = [f"{_escaped(name)}={_escaped(value)}" for name, value in merged.items()]
        write_whole(run.results / "environment.properties", "\n".join(lines) + "\n")
        executor = {"name": "hil", "type": "hil", "buildName": run.name, "reportName": run.name}
        write_whole(run.results / "executor.json", json.dumps(executor))

    @staticmethod
    def read(run: Run) -> dict[str, str]:
        """What was written; empty if nothing was, or not legibly."""
        try:
            values = json.loads((run.directory / Environment.FILE).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(values, dict):
            return {}
        return {clean(str(name)): clean(str(value)) for name, value in values.items()}


def _escaped(text: str) -> str:
    """For a Java properties file, in which ``=``, ``:`` and a space end a name."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    return re.sub(r"([=: ])", r"\\\1", text)
