"""What a single result is worth to a requirement.

What is doubtful counts for nothing, and what is known to have failed is never outweighed; so
there are two answers: why a result is about something else altogether, and why a pass in it is
not to be relied on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hil.compare.load import key
from hil.qualify.evidence import RunRecord
from hil.qualify.policy import Card, Policy, Requirement, System
from hil.reporting.outcome import Outcome

#: Seconds that a run may have started in the future: clocks differ.
CLOCKS = 600
DAY = 86400


@dataclass(frozen=True, slots=True)
class Result:
    """A result, and what it is worth."""

    run: RunRecord
    outcome: Outcome
    test: str
    against: str
    """Why it counts neither for nor against; empty: it does."""
    doubt: str
    """Why it does not count if it passed; empty: it does."""


def doubts_of(runs: Sequence[RunRecord], now: float) -> dict[str, tuple[str, ...]]:
    """By run, why what passed in it does not count."""
    found: dict[str, tuple[str, ...]] = {}
    seen: dict[str, str] = {}
    for run in runs:
        words = [f"damaged: {text}" for text in run.data.damage]
        if not run.finished:
            planned = "an unknown number of" if run.data.expected is None else run.data.expected
            words.append(f"killed, or not yet ended: {len(run.outcomes)} of {planned} tests ended")
        if run.data.started is None:
            words.append("does not say when it started")
        elif run.data.started > now + CLOCKS:
            words.append("started in the future: is a clock wrong?")
        kinds = {outcome.provenance for outcome in run.outcomes}
        if others := sorted(kinds - {run.data.kind}):
            words.append(f"says that it is {run.data.kind or '?'}, but has results of: {others}")
        if run.outcomes and run.digest in seen:
            words.append(f"a copy of {seen[run.digest]}: the same results to the byte")
        seen.setdefault(run.digest, run.name)
        found[run.name] = tuple(words)
    return found


def weigh(
    policy: Policy,
    requirement: Requirement,
    run: RunRecord,
    outcome: Outcome,
    doubts: Sequence[str],
    now: float,
) -> Result:
    """What a result is worth to a requirement."""
    against = _foreign(policy, requirement, run, outcome, now)
    doubt = doubts[0] if doubts else ""
    if not doubt and (run.cycles or 1) < requirement.cycles:
        doubt = f"repeated {run.cycles or 'an unknown number of'} times, not {requirement.cycles}"
    test = key(outcome.test)
    if not doubt and outcome.only_at:
        doubt = f"{outcome.only_at} only: {outcome.earlier}"
    if not doubt and run.planned is not None and test not in run.planned:
        doubt = "unknown test: its run did not plan it"
    return Result(run, outcome, test, against, doubt)


def _foreign(
    policy: Policy, requirement: Requirement, run: RunRecord, outcome: Outcome, now: float
) -> str:
    """Why a result is about something else than the requirement; empty: it is not."""
    provenance = policy.provenance(requirement)
    if outcome.provenance not in provenance:
        return f"{outcome.provenance or 'of unknown provenance'}, not {' or '.join(provenance)}"
    days = policy.max_age_days(requirement)
    if run.data.started is not None and run.data.started < now - days * DAY:
        old = int((now - run.data.started) / DAY)
        return f"{count_of(old, 'day')} old, more than {days}"
    for platform in outcome.platforms:
        if (wanted := policy.system(platform)) is not None:
            for host in outcome.hosts:
                if words := _other_system(wanted, run.system(host)):
                    return words
    for device in outcome.devices:
        if (card := policy.devices.get(device)) is not None and (
            words := _other_card(card, run, device)
        ):
            return words
    return ""


def _other_system(wanted: System, found: tuple[str, str]) -> str:
    for part, text in zip((wanted.system, wanted.hypervisor), found, strict=True):
        if part not in text:
            return f"of another system: {text or 'none was noted'}; wanted: {part}"
    return ""


def _other_card(card: Card, run: RunRecord, device: str) -> str:
    found = run.identity(device)
    if found is None:
        return f"of an unknown card: no identity of {device} was noted"
    for what in ("id", "subsystem", "serial"):
        wanted, seen = getattr(card, what), getattr(found, what)
        if wanted is not None and wanted != seen:
            words = "" if what == "id" else f"{what} "
            return f"of another card: {device} was {words}{seen or 'none'}, not {words}{wanted}"
    return ""


def count_of(number: int, word: str) -> str:
    """``1 day``, ``2 days``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
