"""What earlier runs came to, for Allure's trends, flakiness and retries.

Allure 3 reads and writes one file, a JSON object a run and line (*history points*), and
rewrites it in place: two runs at once, or one killed then, would damage it, and a damaged line
ends every later report.  So each run has a file of its own here, written whole under another
name and renamed; Allure gets them put together in a temporary file, and what it adds to that
becomes this run's.

::

    reports/history/LAB-KIND/RUN.json

They stay when a run's folder is removed, for :data:`KEPT` runs.  A run's report knows only of
runs before it, so making it anew changes nothing in it.  The format is that of
``HistoryDataPoint`` in Allure's ``@allurereport/core-api``.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hil.errors import LabError
from hil.reporting.run import Run, write_whole
from hil.reporting.text import one_line

#: Runs that are kept, and that a report shows at most.
KEPT, SHOWN = 100, 20
#: Bytes of history that a report is made with, at most: runs of ten thousand tests are large.
SIZE_LIMIT = 32 << 20

#: What Allure's pages show of an earlier result; its labels and traces are in its own report.
_RESULT = ("id", "name", "fullName", "environment", "status", "start", "stop", "duration")


def folder(run: Run) -> Path:
    """Where runs of the same lab and kind, below the same report directory, keep theirs."""
    state = run.state
    lab = f"{state.get('lab', 'unknown')}-{state.get('kind', 'unknown')}"
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", lab)[:80]
    return run.directory.parent / "history" / safe


def gather(run: Run, path: Path) -> int:
    """Write what runs before ``run`` came to as Allure reads it; return how many there are."""
    points = list(_before(run))
    path.write_text("".join(f"{point}\n" for point in reversed(points)), "utf-8")
    return len(points)


def _before(run: Run) -> Iterator[str]:
    """One line a run, the newest first; what is not readable is passed over."""
    size = 0
    # A run's name begins with its time.
    found = sorted(folder(run).glob("*.json"), key=lambda path: path.stem, reverse=True)
    for path in [path for path in found if path.stem < run.name][:SHOWN]:
        try:
            line = json.dumps(_checked(json.loads(path.read_bytes())))
        except (OSError, ValueError, RecursionError):
            continue
        size += len(line)
        if size > SIZE_LIMIT:
            return
        yield line


def keep(run: Run, path: Path) -> None:
    """Keep what Allure has added to the file of :func:`gather` as what ``run`` came to.

    Raises:
        LabError: it cannot be written, or Allure wrote something else.
    """
    lines = path.read_bytes().splitlines()
    try:
        point = _checked(json.loads(lines[-1]))
    except (IndexError, ValueError):
        raise LabError("Allure wrote no history: trends will not show this run") from None
    # Allure dates it when the report is made, which may be long after the run.
    point["timestamp"] = int((run.started or 0) * 1000)
    point["name"] = run.name
    place = folder(run)
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / f"{run.name}.json", json.dumps(point, ensure_ascii=False))
    except OSError as error:
        raise LabError(
            f"the history in {place} cannot be written: {error.strerror or error}",
            hint="trends will not show this run",
        ) from None
    for old in sorted(place.glob("*.json"), key=lambda found: found.stem)[:-KEPT]:
        # Another run may be at it too.
        with contextlib.suppress(OSError):
            old.unlink()


def _checked(point: object) -> dict[str, Any]:
    """A history point, slim; raises ValueError if it is none."""
    results = point.get("testResults") if isinstance(point, dict) else None
    if not isinstance(point, dict) or not isinstance(results, dict):
        raise ValueError("not a history point")  # noqa: TRY004 - as JSON's own errors
    return {
        "uuid": str(point.get("uuid", "")),
        "name": str(point.get("name", "")),
        "timestamp": point.get("timestamp", 0),
        "knownTestCaseIds": point.get("knownTestCaseIds", []),
        "testResults": {
            name: _slim(name, result)
            for name, result in results.items()
            if isinstance(result, dict)
        },
        "metrics": {},
        "url": "",
    }


def _slim(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    slim = {key: result[key] for key in _RESULT if key in result}
    if message := result.get("message"):
        slim["message"] = one_line(str(message))
    return {**slim, "historyId": name, "url": "", "reportLinks": []}
