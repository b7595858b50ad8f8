"""Allure 3's HTML report of a run, in one file.

Allure makes a folder, and :mod:`hil.reporting.page` packs it.  The generator is the npm
package ``allure``, looked for as ``$HIL_ALLURE``, in the cache where ``./dev`` puts it, in
``node_modules`` of the working directory, and on the path.  It needs no network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hil import transient
from hil.deadline import Deadline
from hil.errors import InventoryError, LabError
from hil.reporting import history
from hil.reporting.allure import categories
from hil.reporting.page import pack
from hil.reporting.run import Run
from hil.reporting.summary import NAMES, not_run

#: The version that hil is tested with.
VERSION = "3.18.0"

#: Seconds for a report, and for each result in it: machines may be slow, and busy.
BASE, EACH = 120, 0.05

INSTALL = (
    f'npm install --prefix "${{HIL_CACHE:-$HOME/.cache/hil}}/allure-{VERSION}" allure@{VERSION}'
)


def find_allure() -> Path:
    """The generator's executable.

    Raises:
        InventoryError: ``HIL_ALLURE`` names something else.
        LabError: it is nowhere.
    """
    if given := os.environ.get("HIL_ALLURE"):
        if os.access(given, os.X_OK) and Path(given).is_file():
            return Path(given).absolute()
        raise InventoryError(f"HIL_ALLURE={given} is not an executable file", hint=INSTALL)
    for folder in (cache(), Path()):
        candidate = folder / "node_modules" / ".bin" / "allure"
        if os.access(candidate, os.X_OK):
            return candidate.absolute()
    # The path may lead to Allure 2, another program; ours is the one beside its package.
    found = shutil.which("allure")
    if found and (Path(found).resolve().parent / "package.json").is_file():
        return Path(found)
    raise LabError(
        "the HTML report was not made: Allure 3 (the npm package 'allure') is not installed",
        hint=f"{INSTALL}, then: hil report RUN",
    )


def cache() -> Path:
    """Where ``./dev`` installs the generator."""
    if given := os.environ.get("HIL_CACHE"):
        base = Path(given)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hil"
    return base / f"allure-{VERSION}"


def generate(directory: Path, deadline: Deadline | None = None) -> Path:
    """Make ``report.html`` of the run in ``directory``, also of one that was killed.

    Returns:
        The page.

    Raises:
        InventoryError: the folder is not that of a run.
        LabError: Allure is missing or failed, the results are still there; or the page was made,
            but what the run came to could not be kept for later runs' trends.
    """
    run = Run.open(directory)
    if deadline is None:
        results = sum(1 for _ in run.results.glob("*-result.json"))
        deadline = Deadline(BASE + EACH * results, "the HTML report")
    allure = find_allure()
    with transient.folder() as work:
        history.gather(run, work / "history.jsonl")
        settings = {**configuration(run), "historyPath": str(work / "history.jsonl")}
        (work / "allurerc.json").write_text(json.dumps(settings))
        command = [str(allure), "generate", "--cwd", str(run.directory)]
        command += ["--config", str(work / "allurerc.json"), "--output", str(work / "out")]
        command.append(str(run.results))
        try:
            done = subprocess.run(
                transient.tied(command),
                capture_output=True,
                timeout=deadline.remaining,
                check=False,
                cwd=work,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "NO_COLOR": "1", "CI": ""},
            )
        except subprocess.TimeoutExpired:
            raise deadline.exceeded(hint="hil report RUN tries again") from None
        except OSError as error:
            raise LabError(
                f"Allure could not be started: {error.strerror}", command=command, hint=INSTALL
            ) from None
        pages = sorted((work / "out").rglob("index.html"), key=lambda page: len(page.parts))
        if done.returncode != 0 or not pages:
            raise LabError(
                f"Allure made no report (status {done.returncode})",
                seen=(done.stderr + done.stdout).decode("utf-8", "replace"),
                command=command,
                hint="the results are still there; is its version "
                f"{VERSION}, and Node.js 20 or newer?",
            )
        # Beside the page, which is there whole or not at all, however this ends.
        with transient.folder(run.directory, ".html-") as aside:
            partial = aside / run.html.name
            with partial.open("w", encoding="utf-8") as page:
                pack(pages[0].parent, page)
            partial.replace(run.html)
        history.keep(run, work / "history.jsonl")
    return run.html


def configuration(run: Run) -> dict[str, Any]:
    """Allure 3's configuration (``allurerc.json``) for a run."""
    state = run.state
    kind = str(state.get("kind", ""))
    lab = str(state.get("lab", run.name))
    name = f"hil: {lab} lab" if kind in ("", lab) else f"hil: lab {lab} ({kind})"
    if not run.complete:
        name += ", INCOMPLETE"
    return {
        "name": name,
        "categories": categories(),
        "variables": variables(run),
        # What every test here has alike; grouping and categories still see them.
        "hideLabels": ["thread", "framework", "language", "host", "parentSuite", "suite"],
        "plugins": {
            "awesome": {
                "options": {
                    "reportName": name,
                    "singleFile": False,
                    "reportLanguage": "en",
                    "groupBy": ["feature", "subSuite"],
                }
            }
        },
    }


def variables(run: Run) -> dict[str, str]:
    """What the report's first page tells of the run, beside its environment."""
    state = run.state
    values = {"provenance": str(state.get("kind", "unknown")), "run": run.name}
    if not run.complete:
        planned, done = state.get("tests", "unknown"), len(run.outcomes())
        values["incomplete"] = f"{done} of {planned} tests ended: the run was cut short"
        if missing := not_run(run):
            more = f" and {len(missing) - NAMES} more" if len(missing) > NAMES else ""
            values["did not run to the end"] = ", ".join(missing[:NAMES]) + more
    values["hil"] = str(state.get("hil", ""))
    return values
