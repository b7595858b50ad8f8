"""The result of a bisection, as Markdown that reads well on a terminal too."""

from __future__ import annotations

from collections import Counter

from hil.bisect.drive import Commit, Result
from hil.bisect.record import Record, Step, Verdict


def markdown(result: Result, subjects: dict[str, str]) -> str:
    """The result, its evidence, and every step.

    Args:
        result: of the bisection.
        subjects: the first line of each commit's message, by name.
    """
    record, lines = result.record, []
    if result.first is not None:
        lines += [f"First bad commit: {_named(result.first)}", ""]
        lines += [f"- author: {result.first.author}", f"- date: {result.first.date}"]
    else:
        lines += ["The first bad commit is one of these; those between could not be tested:", ""]
        lines += [f"- {_named(commit)}" for commit in result.candidates]
    lines += _evidence(result)
    steps = record.steps
    counts = Counter(step.verdict for step in steps)
    told = [f"{counts[v]} {_WORDS[v]}" for v in Verdict if counts[v]]
    minutes = sum(step.seconds for step in steps) / 60
    lines += ["", f"{len(steps)} steps in {minutes:.0f} minutes: {', '.join(told)}", ""]
    for step in steps:
        subject = subjects.get(step.commit, "")
        lines.append(f"- {_WORDS[step.verdict]}: `{step.commit[:12]}` {subject}")
        lines.append(f"  ({step.seconds:.0f} s; {step.folder}) {step.reason}")
    lines += ["", f"All of it is in {record.folder}"]
    return "\n".join(lines) + "\n"


_WORDS = {Verdict.GOOD: "good", Verdict.BAD: "bad", Verdict.SKIP: "not tested"}


def _named(commit: Commit) -> str:
    return f"`{commit.name[:12]}` {commit.subject}"


def _evidence(result: Result) -> list[str]:
    record = result.record
    if result.first is None:
        return []
    bad = record.known(result.first.name)
    goods = [step for step in record.steps if step.verdict is Verdict.GOOD and step.runs]
    lines = []
    if bad is not None:
        lines.append(f"- fails there: {bad.reason}")
        lines += [f"- report: {page}" for page in _runs(record, bad)[-1:]]
    if bad is not None and bad.runs and goods:
        before, after = _runs(record, goods[-1])[-1], _runs(record, bad)[-1]
        lines.append(f"- compare: hil compare {before} {after}")
    return lines


def _runs(record: Record, step: Step) -> list[str]:
    return [str(record.folder / step.folder / run) for run in step.runs]
