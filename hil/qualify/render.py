"""A verdict on the terminal, as JSON, as an HTML page and as PDF."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hil
from hil.errors import LabError
from hil.qualify.links import link_key
from hil.qualify.verdict import Cell, Finding, Judgement, Line, Verdict
from hil.reporting.text import on_paper, one_line, short

#: Tests that the terminal shows of which the same is to be said; the page has all.
SHOWN = 5
#: Suites beside one another that a page of paper has room for.
WIDE = 7
#: Characters of one text that people are shown; JSON has all.
TEXT = 1000

_STYLES = {
    Judgement.QUALIFIED: ("✓", "bold green"),
    Judgement.NOT_QUALIFIED: ("✗", "bold red"),
    Judgement.NOT_ENOUGH: ("?", "bold yellow"),
}
#: What a verdict is worth that stands on such results.
_WORTH = {
    "emulated": "It stands on emulated hardware: it says nothing about real cards.",
    "simulated": "It stands on simulated hosts: nothing of it was a real system or card.",
}

INSTALL = (
    "pip install 'hil[pdf]', and Pango from the system: "
    "apt-get install libpangoft2-1.0-0 fonts-dejavu-core"
)


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON: the fields of :class:`~hil.qualify.verdict.Verdict`, and judgements."""
    data = asdict(verdict)
    data["judgement"] = verdict.judgement
    for line, row in zip(verdict.lines, data["lines"], strict=True):
        row["judgement"] = line.judgement
        for cell, column in zip(line.cells, row["cells"], strict=True):
            column["judgement"] = cell.judgement
    plain: dict[str, Any] = json.loads(json.dumps(data, default=str))
    return plain


def place(cell: Cell) -> str:
    """Suite, device, guest and platform of a cell, in words."""
    words = [cell.suite, cell.device or "no device", cell.guest, cell.platform]
    return " × ".join(filter(None, words))


def worth(verdict: Verdict) -> str:
    """What a reader must know who takes the results for those of hardware; empty: nothing."""
    return " ".join(_WORTH[kind] for kind in verdict.provenance if kind in _WORTH)


def tally(parts: Sequence[Cell]) -> str:
    """``84 passed, 1 accepted``."""
    names = ("passed", "failed", "accepted", "lacking", "skipped")
    sums = {name: sum(getattr(cell, name) for cell in parts) for name in names}
    return ", ".join(f"{count} {name}" for name, count in sums.items() if count) or "no tests"


def sections(line: Line) -> list[tuple[str, tuple[Finding, ...]]]:
    """What is to be said about a requirement's cells, each below a title.

    Cells without tests of which the same is to be said stand below one title.
    """
    found: list[tuple[str, tuple[Finding, ...]]] = []
    empty: dict[tuple[Finding, ...], list[str]] = {}
    for cell in line.cells:
        if cell.findings and cell.tests:
            found.append((f"{place(cell)}: {tally([cell])}", cell.findings))
        elif cell.findings:
            empty.setdefault(cell.findings, []).append(place(cell))
    return found + [(f"no tests: {'; '.join(places)}", said) for said, places in empty.items()]


def when(seconds: float | None) -> str:
    """A time in UTC, to the minute."""
    if seconds is None:
        return "at an unknown time"
    try:
        return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "at no time"


# ---- terminal ----------------------------------------------------------------------------


def terminal(
    verdict: Verdict, links: Mapping[str, str], *, width: int = 80, colour: bool = False
) -> str:
    """The verdict line by line, for a terminal of ``width`` columns."""
    from rich.padding import Padding
    from rich.text import Text

    console, target = on_paper(width, colour=colour)

    def put(text: Text, indent: int) -> None:
        console.print(Padding(text, (0, 0, 0, indent)))

    def tell(found: Sequence[Finding], indent: int) -> None:
        """Findings of which the same is to be said."""
        first, links_told = found[0], set[str]()
        mark, style = _STYLES[first.judgement]
        text = Text(f"{mark if not first.waiver else '≈'} ", style=style)
        text.append(short(first.text, TEXT), style="not bold default")
        if len(found) > 1:
            text.append(f" ({len(found)} tests)", style="not bold default")
        put(text, indent)
        for finding in found[:SHOWN]:
            link = links.get(link_key(finding.run, finding.test), "")
            for name in (short(finding.test), "" if link in links_told else link):
                # To be copied: never broken by us.
                if name:
                    console.print(Text(f"{' ' * (indent + 2)}{name}", style="dim"), soft_wrap=True)
            links_told.add(link)
        if len(found) > SHOWN:
            put(Text(f"… and {len(found) - SHOWN} more", style="dim"), indent + 2)

    for line in verdict.lines:
        mark, style = _STYLES[line.judgement]
        text = Text(f"{mark} {line.title}: {line.judgement}", style=style)
        text.append(f"; {tally(line.cells)}", style="not bold default")
        put(text, 0)
        put(Text(f"asked: {line.demands}", style="dim"), 2)
        for title, found in sections(line):
            put(Text(title), 2)
            alike: dict[tuple[object, ...], list[Finding]] = {}
            for finding in found:
                key = (finding.judgement, finding.text, finding.waiver)
                alike.setdefault(key, []).append(finding)
            for group in alike.values():
                tell(group, 4)
    for finding in verdict.findings:
        tell([finding], 0)
    for run in verdict.runs:
        put(Text(f"run {run.name}: {run.counted} of {run.tests} tests counted", style="dim"), 0)
        for doubt in run.doubts:
            put(Text(doubt, style="yellow"), 2)
    for waiver in verdict.waivers:
        if waiver.note:
            put(Text(f"waiver {waiver.name}: {waiver.note}", style="yellow"), 0)
    for note in verdict.notes:
        put(Text(note, style="yellow"), 0)
    mark, style = _STYLES[verdict.judgement]
    console.print()
    put(Text(f"{mark} {verdict.policy}: {verdict.judgement.upper()}", style=style), 0)
    if words := worth(verdict):
        put(Text(words, style="yellow"), 0)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


# ---- HTML --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a requirement's matrix: one device with one guest on one platform."""

    device: str
    guest: str
    platform: str
    cells: tuple[Cell | None, ...]
    """A suite each."""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A requirement's cells as tables of at most :data:`WIDE` suites each."""

    common: str
    """The only guest and platform, where there is one of each; they need no columns then."""
    guests: bool
    platforms: bool
    tables: tuple[tuple[tuple[str, ...], tuple[_Row, ...]], ...]
    """Suites, and the rows of that table."""


def _matrix(line: Line) -> _Matrix:
    suites = tuple(dict.fromkeys(cell.suite for cell in line.cells))
    guests = dict.fromkeys(cell.guest for cell in line.cells)
    platforms = dict.fromkeys(cell.platform for cell in line.cells)
    places: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for cell in line.cells:
        places.setdefault((cell.platform, cell.guest, cell.device), {})[cell.suite] = cell
    alone = [*guests] * (len(guests) == 1) + [*platforms] * (len(platforms) == 1)
    return _Matrix(
        common=", ".join(filter(None, alone)),
        guests=len(guests) > 1,
        platforms=len(platforms) > 1,
        tables=tuple(
            (
                part,
                tuple(
                    _Row(device, guest, platform, tuple(cells.get(suite) for suite in part))
                    for (platform, guest, device), cells in places.items()
                ),
            )
            for part in (suites[i : i + WIDE] for i in range(0, len(suites), WIDE))
        ),
    )


def _mark(cell: Cell) -> str:
    """``✓``, ``✗`` or ``?``; ``≈`` for what passes by a waiver."""
    if cell.judgement is Judgement.QUALIFIED and cell.accepted:
        return "≈"
    return _STYLES[cell.judgement][0]


def _kind(cell: Cell) -> str:
    """A class of the page's style."""
    if cell.judgement is Judgement.QUALIFIED:
        return "accepted" if cell.accepted else "good"
    return "bad" if cell.judgement is Judgement.NOT_QUALIFIED else "lacking"


def _shown(value: object) -> object:
    """What the page shows of a value: texts that nobody could read, or lay out, are cut."""
    from markupsafe import Markup

    whole = not isinstance(value, str) or isinstance(value, Markup)
    return value if whole else short(str(value), TEXT)


def page(verdict: Verdict, links: Mapping[str, str]) -> str:
    """The verdict as one HTML page that needs no other file; its evidence is linked to."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Names and reasons come from files that anybody may have written.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {"when": when, "mark": _mark, "kind": _kind, "place": place, "plain": one_line}
    )
    classes = {
        Judgement.QUALIFIED: "good",
        Judgement.NOT_QUALIFIED: "bad",
        Judgement.NOT_ENOUGH: "lacking",
    }
    return environment.get_template("verdict.html.j2").render(
        v=verdict,
        worth=worth(verdict),
        tally=tally,
        matrix=_matrix,
        sections=sections,
        links=links,
        link_key=link_key,
        classes=classes,
        marks={judgement: mark for judgement, (mark, _) in _STYLES.items()},
        version=hil.__version__,
    )


def pdf(verdict: Verdict) -> bytes:
    """The page as PDF, A4; without links, which would lead nowhere.

    Raises:
        LabError: WeasyPrint or Pango is not installed.
    """
    import logging

    try:
        # Its log is for authors of pages; ours is tested.
        logging.getLogger("weasyprint").setLevel(logging.CRITICAL)
        logging.getLogger("fontTools").setLevel(logging.CRITICAL)
        # Where it lacks a library it says so on standard output, which is not its own.
        with contextlib.redirect_stdout(io.StringIO()):
            from weasyprint import HTML
    except (ImportError, OSError) as error:
        raise LabError(
            "no PDF was made: WeasyPrint, which makes it, cannot be loaded",
            seen=one_line(str(error), 300),
            hint=INSTALL,
        ) from None
    made: bytes = HTML(string=page(verdict, {})).write_pdf()
    return made
