"""JUnit XML: pytest writes it at the end of a run, and this what pytest cannot.

Secrets are taken out of it, and tests that did not end.  A run that was killed gets one from
its outcomes.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from hil.reporting.outcome import Outcome, Status
from hil.reporting.run import Run, write_whole
from hil.reporting.text import redact

#: What XML 1.0 cannot say (section 2.2, Char).
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def finish(path: Path) -> None:
    """Redact each text and each attribute of pytest's file, if it is there.

    A test that was interrupted, of which pytest has no more than the time, is taken out.
    """
    if not path.is_file():
        return
    tree = ET.parse(path)  # noqa: S314 - pytest wrote it just now
    for suite in tree.iter("testsuite"):
        for case in [case for case in suite.findall("testcase") if "name" not in case.attrib]:
            suite.remove(case)
    for element in tree.iter():
        element.text = element.text and redact(element.text)
        for name, value in element.attrib.items():
            element.set(name, redact(value))
    new = path.with_name(f".{path.name}.{os.getpid()}")
    tree.write(new, encoding="utf-8", xml_declaration=True)
    new.replace(path)


def write(run: Run) -> None:
    """Write ``junit.xml`` from the outcomes of a run whose pytest did not live to write one.

    A run that is not complete has a test of its own that failed, so that no server takes the
    part for the whole.
    """
    outcomes = run.outcomes()
    suite = ET.Element("testsuite", name="pytest")
    for outcome in outcomes:
        suite.append(_case(outcome))
    if not run.complete:
        planned = run.state.get("tests", "unknown")
        case = ET.SubElement(suite, "testcase", classname="hil", name="the run came to its end")
        words = f"{len(outcomes)} of {planned} tests ended: the run was cut short"
        ET.SubElement(case, "error", message=words)
    for name, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("tests", str(len(suite)))
    suite.set("time", f"{sum(outcome.seconds for outcome in outcomes):.3f}")
    suites = ET.Element("testsuites", name="pytest tests")
    suites.append(suite)
    text = ET.tostring(suites, encoding="unicode", xml_declaration=True)
    write_whole(run.junit, text)


_KINDS = {
    Status.FAILED: "failure",
    Status.BROKEN: "error",
    Status.SKIPPED: "skipped",
    Status.BLOCKED: "skipped",
}


def _case(outcome: Outcome) -> ET.Element:
    path, _, name = outcome.test.partition("::")
    group = ".".join([path.removesuffix(".py").replace("/", "."), *name.split("::")[:-1]])
    case = ET.Element(
        "testcase",
        classname=_NO_XML.sub("�", group),
        name=_NO_XML.sub("�", name.rpartition("::")[2] or path),
        time=f"{outcome.seconds:.3f}",
    )
    properties = ET.SubElement(case, "properties")
    for key, value in outcome.properties:
        ET.SubElement(properties, "property", name=key, value=_NO_XML.sub("�", value))
    if kind := _KINDS.get(outcome.status):
        ET.SubElement(case, kind, message=_NO_XML.sub("�", outcome.reason))
    return case
