"""Where in a run's report the evidence of a test is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hil.compare.load import key
from hil.qualify.verdict import Verdict
from hil.reporting.outcome import Outcome
from hil.reporting.run import Run


def fragments(run: Run, outcomes: tuple[Outcome, ...]) -> dict[str, str]:
    """By a test's name in every run, its place in the run's ``report.html``: ``#…``.

    Allure 3 shows a result at the MD5 (hexadecimal) of its uuid (``@allurereport/core``,
    ``store/convert.ts``).  Empty for results that are not there or cannot be read.  Of a test
    that was repeated it is the last attempt, as in Allure's list of tests.
    """
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for path in run.results.glob("*-result.json"):
        try:
            result = json.loads(path.read_text("utf-8"))
            place = hashlib.md5(result["uuid"].encode(), usedforsecurity=False).hexdigest()
            name = result["fullName"], result["name"]
            attempt = result.get("start", 0), f"#{place}"
            found[name] = max(found.get(name, attempt), attempt)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    places = ((o, found.get((_full_name(o.test), o.title))) for o in outcomes)
    return {key(outcome.test): place[1] for outcome, place in places if place}


def _full_name(test: str) -> str:
    """What allure-pytest calls a test: ``suites.reset.test_reset#test_x``, with classes."""
    path, *classes, name = test.partition("[")[0].split("::")
    module = path.removesuffix(".py").replace("/", ".")
    return f"{'.'.join([module, *classes])}#{name}"


@dataclass(frozen=True, slots=True)
class Report:
    """A run's report, as something to link to."""

    page: str
    """The page; for a run without one its folder."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Its :func:`fragments`."""


def links(verdict: Verdict, reports: Mapping[str, Report]) -> dict[str, str]:
    """Links to the evidence of each finding, by ``run test``; ``reports`` are by run."""
    found = {}
    for line in verdict.lines:
        for cell in line.cells:
            for finding in cell.findings:
                if (report := reports.get(finding.run)) is not None:
                    link = report.page + report.places.get(finding.test, "")
                    found[link_key(finding.run, finding.test)] = link
    return found


def link_key(run: str, test: str) -> str:
    return f"{run} {test}"


def reports_of(runs: Mapping[str, Path], base: str = "") -> dict[str, Report]:
    """The reports of ``runs``, which are folders by name.

    Args:
        runs: where the runs are.
        base: link to ``base/NAME`` in place of their folders.
    """
    found = {}
    for name, directory in runs.items():
        run = Run(directory)
        folder = f"{base}/{name}" if base else _short(directory)
        if run.html.is_file():
            found[name] = Report(f"{folder}/report.html", fragments(run, run.outcomes()))
        else:
            found[name] = Report(f"{folder}/")
    return found


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
