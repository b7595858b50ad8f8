"""A comparison as text for a terminal, as Markdown for a review, and as JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from hil.compare.changes import Comparison, Kind, SpeedChange, TestChange, violations
from hil.compare.load import Side
from hil.reporting.text import on_paper, one_line

#: Tests that are listed under one heading; JSON has all.
LISTED = 40

_TITLES: dict[Kind, tuple[str, str]] = {
    Kind.NEWLY_FAILING: ("newly failing", "bold red"),
    Kind.FLAKY: ("newly flaky", "bold red"),
    Kind.CHANGED_FAULT: ("another's fault now", "bold magenta"),
    Kind.NEWLY_BROKEN: ("newly broken: could not judge", "bold magenta"),
    Kind.MISSING: ("missing", "bold yellow"),
    Kind.NOT_REACHED: ("not reached: the run was cut short", "yellow"),
    Kind.NEWLY_SKIPPED: ("no longer run", "yellow"),
    Kind.SKIP_REASON: ("skipped for another reason", "yellow"),
    Kind.REPEATED: ("passing, but not at the first attempt", "yellow"),
    Kind.NEWLY_PASSING: ("newly passing", "bold green"),
    Kind.NEWLY_RUNNING: ("run now, and pass", "green"),
    Kind.NEW: ("new", "green"),
    Kind.STILL_FAILING: ("still not passing", "red"),
}
_SLOWER, _FASTER = ("slower", "bold yellow"), ("faster", "green")
#: Kinds of which every test has the same to tell, so that its name says all.
_BRIEF = (Kind.MISSING, Kind.NOT_REACHED)


def headline(comparison: Comparison) -> str:
    """One line: how many of each."""
    parts = [
        f"{len(found)} {_TITLES[kind][0].partition(':')[0]}"
        for kind in Kind
        if (found := comparison.of(kind))
    ]
    for (title, _), sped in ((_SLOWER, comparison.slower), (_FASTER, comparison.faster)):
        if sped:
            parts.append(f"{len(sped)} {title}")
    if comparison.differences:
        parts.append(f"{len(comparison.differences)} differences of the set-up")
    return ", ".join([*parts, f"{comparison.same} the same"])


def _described(side: Side) -> list[str]:
    """What a side is: lab and kind, then its runs."""
    lines = []
    for run in side.runs:
        lab = f"the lab {run.lab or 'of unknown name'}"
        if run.kind != run.lab:
            lab += f" ({run.kind or 'of unknown kind'})"
        state = "" if run.complete else ", cut short"
        lines.append(f"{run.name}: {run.when}, {lab}, hil {run.hil or 'unknown'}{state}")
    return lines


def _said(change: TestChange) -> str:
    words = f"{change.before.words} → {change.after.words}"
    after, before = change.after.reason, change.before.reason
    if change.kind in (Kind.SKIP_REASON, Kind.NEWLY_SKIPPED, Kind.NEWLY_RUNNING):
        return words
    if after and change.after.words != f"skipped: {after}":
        return f"{words}: {after}"
    return f"{words} (was: {before})" if change.kind is Kind.NEWLY_PASSING and before else words


def _sped(speed: SpeedChange) -> str:
    change = speed.change
    seconds = f"{change.before:.2f} s → {change.after:.2f} s"
    return f"{seconds} (×{change.factor:.2f}, p = {change.p:.3f})"


def _of_speed(comparison: Comparison) -> str:
    verdict = comparison.speed
    if verdict.silence:
        return f"speed was not judged: {verdict.silence}"
    told = f"speed: {len(verdict.tests)} tests compared"
    if (all_ := verdict.together) is not None:
        beyond = "beyond noise" if all_.p <= 0.05 else "within noise"
        told += (
            f", together {all_.before:.1f} s → {all_.after:.1f} s "
            f"(×{all_.factor:.2f}, {beyond}, p = {all_.p:.3f})"
        )
    if comparison.unjudged:
        told += f"; {comparison.unjudged} more did not pass in every run"
    return told


# ---- terminal ---------------------------------------------------------------------------


def terminal(
    comparison: Comparison, policy: Sequence[str], width: int = 80, *, colour: bool = False
) -> str:
    """For a terminal of ``width`` columns; ``policy`` as :func:`violations` takes it."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console, target = on_paper(width, colour=colour)
    parts: list[Any] = []

    def listed(title: str, style: str, rows: Sequence[tuple[str, str]]) -> None:
        if not rows:
            return
        parts.append(Text(f"{title} ({len(rows)})" if style else title, style=style or "bold"))
        table = Table.grid(padding=(0, 0))
        table.add_column(overflow="fold")
        for name, words in rows[:LISTED]:
            table.add_row(Text(name))
            if words:
                table.add_row(Padding(Text(words, style="dim"), (0, 0, 0, 2)))
        if len(rows) > LISTED:
            table.add_row(Text(f"… and {len(rows) - LISTED} more; --json has all", style="dim"))
        parts.append(Padding(table, (0, 0, 1, 2)))

    listed("before", "", [(line, "") for line in _described(comparison.before)])
    listed("after", "", [(line, "") for line in _described(comparison.after)])
    listed("mind", "bold yellow", [(note, "") for note in comparison.notes])
    listed(
        "differences of the set-up",
        "bold",
        [(d.what, f"{d.before or '–'}\n→ {d.after or '–'}") for d in comparison.differences],
    )
    for kind, (title, style) in _TITLES.items():
        rows = [
            (f"{c.area}: {c.title}" if c.area else c.title, "" if kind in _BRIEF else _said(c))
            for c in comparison.of(kind)
        ]
        listed(title, style, rows)
    for (title, style), found in ((_SLOWER, comparison.slower), (_FASTER, comparison.faster)):
        listed(title, style, [(f"{s.area}: {s.title}", _sped(s)) for s in found])
    parts.append(Text(_of_speed(comparison)))
    parts.append(Text(headline(comparison), style="bold"))
    if broken := violations(comparison, policy):
        parts.append(Text(f"fails by --fail-on: {', '.join(broken)}", style="bold red"))
    console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


# ---- Markdown ---------------------------------------------------------------------------


def markdown(comparison: Comparison, policy: Sequence[str]) -> str:
    """For a review: GitHub's and GitLab's kind of Markdown, nothing in it obeyed."""
    lines = [f"**{_escaped(headline(comparison))}**", ""]
    if broken := violations(comparison, policy):
        lines += [f"Fails by `--fail-on`: {_escaped(', '.join(broken))}.", ""]
    for name, side in (("before", comparison.before), ("after", comparison.after)):
        lines += [f"- {name}: {_escaped(line)}" for line in _described(side)]
    lines += [f"- ⚠ {_escaped(note)}" for note in comparison.notes]
    lines += [f"- {_escaped(_of_speed(comparison))}", ""]

    def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if not rows:
            return
        lines.extend([f"#### {title[0].upper()}{title[1:]} ({len(rows)})", ""])
        lines.append(f"| {' | '.join(head)} |")
        lines.append(f"|{' --- |' * len(head)}")
        lines.extend(f"| {' | '.join(map(_escaped, row))} |" for row in rows[:LISTED])
        if len(rows) > LISTED:
            lines.append(f"| … and {len(rows) - LISTED} more |{' |' * (len(head) - 1)}")
        lines.append("")

    for kind, (title, _) in _TITLES.items():
        rows = [
            (c.area, c.title, c.before.words, c.after.words, _why(c)) for c in comparison.of(kind)
        ]
        table(title, ("area", "test", "before", "after", "reason"), rows)
    for (title, _), found in ((_SLOWER, comparison.slower), (_FASTER, comparison.faster)):
        table(title, ("area", "test", "seconds"), [(s.area, s.title, _sped(s)) for s in found])
    table(
        "differences of the set-up",
        ("what", "before", "after"),
        [(d.what, d.before or "–", d.after or "–") for d in comparison.differences],
    )
    return "\n".join(lines).rstrip() + "\n"


def _why(change: TestChange) -> str:
    if change.after.state.value == "skipped":
        return ""  # its words have it
    return change.after.reason or (
        change.before.reason if change.kind is Kind.NEWLY_PASSING else ""
    )


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&@])")
_escape: Callable[[str], str] = lambda text: _SPECIAL.sub(r"\\\1", text)  # noqa: E731


def _escaped(text: str) -> str:
    return _escape(one_line(text, 500))


# ---- JSON -------------------------------------------------------------------------------


def as_json(comparison: Comparison, policy: Sequence[str]) -> dict[str, Any]:
    """For programs.

    Keys: ``format`` (1), ``before`` and ``after`` (a list of runs each: ``name``, ``directory``,
    ``lab``, ``kind``, ``hil``, ``started``, ``complete``), ``notes``, ``changes`` (``kind``,
    ``test``, ``title``, ``area``, ``before``, ``after``: ``state``, ``passed``, ``ran``,
    ``late``, ``reason``, ``fault``, ``evidence``), ``differences`` (``what``, ``before``,
    ``after``), ``speed`` (``judged``, ``silence``, ``together``, ``slower``, ``faster``: ``test``,
    ``before``, ``after`` in seconds, ``p``), ``same``, ``violations``.
    """

    def side(of: Side) -> list[dict[str, Any]]:
        return [
            {
                "name": run.name,
                "directory": str(run.directory),
                "lab": run.lab,
                "kind": run.kind,
                "hil": run.hil,
                "started": run.started,
                "complete": run.complete,
            }
            for run in of.runs
        ]

    verdict = comparison.speed
    return {
        "format": 1,
        "before": side(comparison.before),
        "after": side(comparison.after),
        "notes": list(comparison.notes),
        "changes": [asdict(change) for change in comparison.changes],
        "differences": [asdict(difference) for difference in comparison.differences],
        "speed": {
            "judged": len(verdict.tests),
            "silence": verdict.silence,
            "together": asdict(verdict.together) if verdict.together else None,
            "slower": [{"test": s.test, **asdict(s.change)} for s in comparison.slower],
            "faster": [{"test": s.test, **asdict(s.change)} for s in comparison.faster],
        },
        "same": comparison.same,
        "violations": list(violations(comparison, policy)),
    }
