"""Where in a run's report the evidence of a test is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hil.compare.load import key
from hil.qualify.verdict import Verdict
from hil.reporting.outcome import Outcome
from hil.reporting.run import Run


def fragments(run: Run, outcomes: tuple[Outcome, ...]) -> dict[str, str]:
    """By a test's name in every run, its place in the run's ``report.html``: ``#…``.

    Allure 3 shows a result at the MD5 (hexadecimal) of its uuid (``@allurereport/core``,
    ``store/convert.ts``).  Empty for results that are not there or cannot be read.
    """
    found: dict[tuple[str, str], str] = {}
    for path in run.results.glob("*-result.json"):
        try:
            result = json.loads(path.read_text("utf-8"))
            place = hashlib.md5(result["uuid"].encode(), usedforsecurity=False).hexdigest()
            found[result["fullName"], result["name"]] = f"#{place}"
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    places = ((o, found.get((_full_name(o.test), o.title))) for o in outcomes)
    return {key(outcome.test): place for outcome, place in places if place}


def _full_name(test: str) -> str:
    """What allure-pytest calls a test: ``suites.reset.test_reset#test_x``, with classes."""
    path, *classes, name = test.partition("[")[0].split("::")
    module = path.removesuffix(".py").replace("/", ".")
    return f"{'.'.join([module, *classes])}#{name}"


def links(verdict: Verdict, folders: dict[str, tuple[str, dict[str, str]]]) -> dict[str, str]:
    """Links to the evidence of each finding, by ``run test``.

    Args:
        verdict: it has the findings.
        folders: by run, the folder to link to and its :func:`fragments`.
    """
    found = {}
    for line in verdict.lines:
        for cell in line.cells:
            for finding in cell.findings:
                if finding.run in folders:
                    folder, places = folders[finding.run]
                    page = f"{folder}/report.html{places.get(finding.test, '')}"
                    found[link_key(finding.run, finding.test)] = page
    return found


def link_key(run: str, test: str) -> str:
    return f"{run} {test}"


def folders_of(runs: dict[str, Path], base: str = "") -> dict[str, tuple[str, dict[str, str]]]:
    """For :func:`links`: by run, its folder (below ``base``, if given) and its fragments."""
    found = {}
    for name, directory in runs.items():
        run = Run(directory)
        folder = f"{base}/{name}" if base else str(directory)
        found[name] = (folder, fragments(run, run.outcomes()) if run.html.is_file() else {})
    return found
