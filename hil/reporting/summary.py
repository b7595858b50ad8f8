"""What a run came to: on the terminal, and as ``summary.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hil.reporting.outcome import ORDINALS, Outcome, Status
from hil.reporting.run import Run, write_whole
from hil.reporting.text import clean, on_paper, redact, short

#: Tests named as the slowest, and names listed below one reason.
SLOWEST, NAMES = 5, 6

_TITLES = {
    Status.FAILED: ("failed", "bold red"),
    Status.BROKEN: ("broken", "bold magenta"),
    Status.BLOCKED: ("blocked", "yellow"),
    Status.SKIPPED: ("skipped", "yellow"),
}


@dataclass(frozen=True, slots=True)
class Totals:
    """The outcomes of a run, counted and grouped."""

    outcomes: tuple[Outcome, ...]
    counts: dict[Status, int]

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Totals:
        kept = tuple(outcomes)
        counts = {status: sum(o.status is status for o in kept) for status in Status}
        return cls(kept, counts)

    def reasons(self, status: Status) -> dict[str, list[Outcome]]:
        """Outcomes of ``status`` by reason, the most frequent first."""
        groups: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.status is status:
                groups.setdefault(outcome.reason or "no reason given", []).append(outcome)
        return dict(sorted(groups.items(), key=lambda group: -len(group[1])))

    @property
    def repeated(self) -> dict[str, list[Outcome]]:
        """The tests that were repeated, by what ended the attempt before the last."""
        groups: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.attempt > 1:
                groups.setdefault(outcome.earlier, []).append(outcome)
        return groups

    @property
    def slowest(self) -> tuple[Outcome, ...]:
        ran = [o for o in self.outcomes if o.status not in (Status.SKIPPED, Status.BLOCKED)]
        return tuple(sorted(ran, key=lambda o: -o.seconds)[:SLOWEST])


def not_run(run: Run) -> tuple[str, ...]:
    """The tests that were to run and did not come to an end, as the plan has them, in order."""
    plan = run.plan
    if plan is None or run.complete:
        return ()
    ended = {outcome.test for outcome in run.outcomes()}
    return tuple(planned.test for planned in plan.tests if planned.test not in ended)


def write_summary(run: Run) -> dict[str, Any]:
    """Write ``summary.json`` from what is there, also of a run that was killed; return it.

    Its keys: ``run``, ``lab``, ``provenance``, ``complete``, ``not_run`` (ids of tests that did
    not come to an end), ``quarantine`` (device → why), ``counts``, ``catalogue`` (id → worst
    status), ``devices``, ``tests`` (one object each, as in ``outcomes.jsonl``), ``repeated``
    (attempts at tests that were repeated, likewise).
    """
    state = run.state
    totals = Totals.of(run.outcomes())
    # From the worst to the best.
    order = [Status.FAILED, Status.BROKEN, Status.BLOCKED, Status.SKIPPED, Status.PASSED]
    catalogue: dict[str, Status] = {}
    for outcome in totals.outcomes:
        for test_id in outcome.catalogue:
            seen = catalogue.get(test_id, Status.PASSED)
            catalogue[test_id] = min(seen, outcome.status, key=order.index)
    summary = {
        "run": run.name,
        "lab": state.get("lab", ""),
        "provenance": state.get("kind", ""),
        "complete": run.complete,
        "planned": state.get("tests"),
        "started": state.get("started"),
        "ended": state.get("ended"),
        "not_run": list(not_run(run)),
        "quarantine": state.get("quarantine", {}),
        "counts": {status.value: count for status, count in totals.counts.items()},
        "catalogue": dict(sorted(catalogue.items())),
        "devices": sorted({name for o in totals.outcomes for name in o.devices}),
        "tests": [asdict(outcome) for outcome in totals.outcomes],
        "repeated": [asdict(outcome) for outcome in run.repeated()],
    }
    write_whole(run.summary, json.dumps(summary, indent=1, ensure_ascii=False))
    return summary


def render(
    totals: Totals,
    *,
    lab: str,
    kind: str,
    run: Run | None = None,
    notes: Sequence[str] = (),
    width: int = 80,
    colour: bool = False,
) -> str:
    """The summary as text for a terminal of ``width`` columns."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    console, target = on_paper(width, colour=colour)
    parts: list[Any] = []
    for status, (title, style) in _TITLES.items():
        if groups := totals.reasons(status):
            parts.append(Text(f"{title} ({totals.counts[status]})", style=style))
            parts.append(_listed(groups, lambda o: f"{o.area}: {o.title}"))
    if repeated := totals.repeated:
        count = sum(map(len, repeated.values()))
        parts.append(Text(f"repeated ({count}): a guest died under software emulation", "yellow"))
        parts.append(_listed(repeated, lambda o: f"{o.area}: {o.title}: {_in_the_end(o)}"))
    missing = not_run(run) if run is not None else ()
    if missing:
        parts.append(Text(f"did not run to the end ({len(missing)})", style="yellow"))
        shown = [f"   {short(test)}" for test in missing[:NAMES]]
        if len(missing) > NAMES:
            shown.append(f"   … and {len(missing) - NAMES} more")
        parts.append(Padding(Text("\n".join(shown), style="dim"), (0, 0, 1, 1)))
    slow = [f"{o.title} {o.seconds:.1f} s" for o in totals.slowest if o.seconds >= 1]
    if slow:
        parts.append(Text("slowest: " + ", ".join(slow), style="dim"))
    line = Text()
    for status, (title, style) in {Status.PASSED: ("passed", "bold green"), **_TITLES}.items():
        if totals.counts[status]:
            line.append(", " if line else "")
            line.append(f"{totals.counts[status]} {title}", style=style)
        if status is Status.PASSED and (late := sum(bool(o.only_at) for o in totals.outcomes)):
            line.append(f" ({late} not at the first attempt)", style="yellow")
    if run is not None and not run.complete:
        line.append("; " if line else "")
        line.append("incomplete: the run was cut short", style="yellow")
    if line:
        parts.append(line)
    plan = run.plan if run is not None else None
    for why, count in plan.not_for_lab.items() if plan is not None else ():
        tests = f"{count} test{'s' if count > 1 else ''}"
        parts.append(Text(f"not for this lab: {tests}: {why}", style="dim"))
    parts.append(Text(clean(f"lab:    {lab} ({kind}{_WORTH.get(kind, '')})")))
    console.print(Group(*parts))
    # Paths and commands are to be copied: never broken by us.
    if run is not None:
        page = run.html if run.html.exists() else run.directory
        console.print(Text(f"report: {page}"), soft_wrap=True)
    for note in notes:
        console.print(Text(redact(clean(note)), style="yellow"), soft_wrap=True)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


def _listed(groups: Mapping[str, Sequence[Outcome]], name: Callable[[Outcome], str]) -> Any:
    """Reasons, and below each the first of the tests that have it."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="bold")
    table.add_column(overflow="fold")
    for reason, outcomes in groups.items():
        line = Text(reason)
        if faults := {o.fault for o in outcomes if o.fault}:
            line.append(f"  [{', '.join(sorted(faults))}]", style="dim")
        names = [name(o) for o in outcomes[:NAMES]]
        if len(outcomes) > NAMES:
            names.append(f"… and {len(outcomes) - NAMES} more")
        line.append("\n" + "\n".join(names), style="dim")
        table.add_row(f"{len(outcomes)}×", line)
    return Padding(table, (0, 0, 1, 1))


def _in_the_end(outcome: Outcome) -> str:
    """How a test that was repeated ended: ``passed at the second attempt``."""
    if outcome.only_at:
        return f"passed {outcome.only_at}"
    return f"{outcome.status} at the {ORDINALS[outcome.attempt - 1]} attempt too"


_WORTH = {
    "emulated": ": the hardware was QEMU's",
    "simulated": ": the host was a model; nothing here was hardware",
}
