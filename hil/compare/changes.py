"""What changed from one set of runs to another.  Pure: runs in, a comparison out."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hil.compare.load import RunData, Side
from hil.compare.speed import Change, Series, Verdict, judge
from hil.errors import Fault
from hil.reporting.outcome import Outcome, Status


class Kind(enum.StrEnum):
    """How a test's result changed; in the order in which changes are told."""

    NEWLY_FAILING = "newly-failing"
    """Fails by the product's fault, and did not before, whatever it did then."""
    FLAKY = "flaky"
    """Passed in all runs before, now in some."""
    CHANGED_FAULT = "changed-fault"
    """Did not pass before and does not now, but it is another's fault now."""
    NEWLY_BROKEN = "newly-broken"
    """Cannot judge any more: the guest, the lab, the inventory or the test itself."""
    MISSING = "missing"
    """Is not among the tests any more."""
    NOT_REACHED = "not-reached"
    """Was to run, but its run was cut short."""
    NEWLY_SKIPPED = "newly-skipped"
    """Ran before; now skipped or blocked."""
    SKIP_REASON = "skip-reason"
    """Skipped or blocked before and now, for another reason."""
    REPEATED = "repeated"
    """Passed before; passes now too, but not at the first attempt: its emulator had died."""
    NEWLY_PASSING = "newly-passing"
    NEWLY_RUNNING = "newly-running"
    """Skipped, blocked or not reached before; passes now."""
    NEW = "new"
    """Was not among the tests before; does not fail."""
    STILL_FAILING = "still-failing"
    """Did not pass before, does not now, by the same fault."""


class State(enum.StrEnum):
    """What a side makes of a test."""

    FAILING = "failing"
    BROKEN = "broken"
    PASSING = "passing"
    SKIPPED = "skipped"
    NOT_REACHED = "not reached"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Standing:
    """A test on one side, all its runs together."""

    state: State
    passed: int = 0
    ran: int = 0
    """How often it passed, of how often it was tried."""
    late: int = 0
    """How often it passed, but not at the first attempt."""
    reason: str = ""
    """Why it did not pass, or not at once, the latest time."""
    fault: str = ""
    evidence: str = ""
    """Name of the run that has that."""

    @property
    def words(self) -> str:
        """For a person: ``passed 2 of 3``, ``skipped: no such device``."""
        match self.state:
            case State.ABSENT | State.NOT_REACHED:
                return self.state.value
            case State.SKIPPED:
                return f"skipped: {self.reason}" if self.reason else "skipped"
            case State.PASSING:
                times = "" if self.ran == 1 else f" {self.ran} of {self.ran}"
                late = "" if self.ran == 1 else f"{self.late} of these "
                return f"passed{times}" + (f", {late}not at the first attempt" * bool(self.late))
        what = "failed" if self.state is State.FAILING else f"broken ({self.fault or 'test'})"
        return what if self.ran == 1 else f"{what}, passed {self.passed} of {self.ran}"


@dataclass(frozen=True, slots=True)
class TestChange:
    """A test whose result is worth telling."""

    __test__ = False

    kind: Kind
    test: str
    title: str
    area: str
    before: Standing
    after: Standing


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the runs were made with or on, and that differs."""

    what: str
    before: str
    """Values with commas between; empty: not noted."""
    after: str


@dataclass(frozen=True, slots=True)
class SpeedChange:
    """A test that became slower or faster beyond noise."""

    test: str
    title: str
    area: str
    change: Change


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from ``before`` to ``after``."""

    before: Side
    after: Side
    changes: tuple[TestChange, ...]
    differences: tuple[Difference, ...]
    slower: tuple[SpeedChange, ...]
    """The largest first."""
    faster: tuple[SpeedChange, ...]
    speed: Verdict
    unjudged: int
    """Tests whose speed could not be judged: they did not pass in every run."""
    same: int
    """Tests that passed before and pass now, or were skipped for the same reason."""
    notes: tuple[str, ...]
    """What a reader must know first."""

    def of(self, kind: Kind) -> tuple[TestChange, ...]:
        """The changes of one kind, by area and title."""
        return tuple(change for change in self.changes if change.kind is kind)


#: What makes ``hil compare`` end with status 1, besides kinds of changes.
SLOWER, FASTER, INCOMPLETE, CHANGED_LAB = "slower", "faster", "incomplete", "changed-lab"
POLICY = (*(kind.value for kind in Kind), SLOWER, FASTER, INCOMPLETE, CHANGED_LAB)


def violations(comparison: Comparison, policy: Iterable[str]) -> tuple[str, ...]:
    """The words of ``policy`` (of :data:`POLICY`) that apply, each with how often."""
    counts = {kind.value: len(comparison.of(kind)) for kind in Kind}
    counts[SLOWER], counts[FASTER] = len(comparison.slower), len(comparison.faster)
    counts[INCOMPLETE] = sum(not run.complete for run in comparison.after.runs)
    counts[CHANGED_LAB] = len(comparison.differences)
    return tuple(f"{word} ({counts[word]})" for word in dict.fromkeys(policy) if counts[word])


def compare(before: Side, after: Side) -> Comparison:
    """Compare two sides; see the classes here for what is looked at."""
    last: dict[str, Outcome] = {}
    for run in (*before.runs, *after.runs):
        last |= {test: outcomes[-1] for test, outcomes in run.outcomes.items()}
    for test in planned(before) | planned(after):
        last.setdefault(test, Outcome(test, Status.SKIPPED, 0, ""))
    changes, same = [], 0
    for test, outcome in last.items():
        old, new = standing(test, before), standing(test, after)
        kind = _kind(old, new)
        if kind is None:
            same += 1
            continue
        changes.append(TestChange(kind, test, outcome.title, outcome.area, old, new))
    kinds = list(Kind)
    changes.sort(key=lambda change: (kinds.index(change.kind), change.area, change.title))
    verdict, unjudged = _speed(before, after, last)
    found = [
        SpeedChange(test, last[test].title, last[test].area, change)
        for test, change in verdict.tests.items()
        if change.matters
    ]
    found.sort(key=lambda speed: -abs(speed.change.after - speed.change.before))
    return Comparison(
        before=before,
        after=after,
        changes=tuple(changes),
        differences=tuple(_differences(before, after)),
        slower=tuple(s for s in found if s.change.factor > 1),
        faster=tuple(s for s in found if s.change.factor < 1),
        speed=verdict,
        unjudged=unjudged,
        same=same,
        notes=tuple(_notes(before, after)),
    )


def planned(side: Side) -> frozenset[str]:
    """The tests that runs of a side were to run, as far as they noted that."""
    return frozenset().union(*(run.planned or () for run in side.runs))


def standing(test: str, side: Side) -> Standing:
    """What the runs of ``side`` make of ``test``: one failure is enough."""
    found = [(run, o) for run in side.runs for o in run.outcomes.get(test, ())]
    tried = [(run, o) for run, o in found if o.status not in (Status.SKIPPED, Status.BLOCKED)]
    passed = sum(o.status is Status.PASSED for _, o in tried)
    for status, state in ((Status.FAILED, State.FAILING), (Status.BROKEN, State.BROKEN)):
        if bad := [(run, o) for run, o in tried if o.status is status]:
            run, o = bad[-1]
            fault = o.fault or (Fault.PRODUCT.value if state is State.FAILING else "test")
            return Standing(state, passed, len(tried), 0, o.reason, fault, run.name)
    if tried:
        late = [(run, o) for run, o in tried if o.attempt > 1]
        run, o = (late or tried)[-1]
        return Standing(State.PASSING, passed, passed, len(late), o.earlier, evidence=run.name)
    if found:
        run, o = found[-1]
        reason = f"blocked: {o.reason}" if o.status is Status.BLOCKED else o.reason
        return Standing(State.SKIPPED, reason=reason, evidence=run.name)
    cut = [run for run in side.runs if not run.complete and _may_have_planned(run, test)]
    if cut:
        return Standing(State.NOT_REACHED, evidence=cut[-1].name)
    return Standing(State.ABSENT)


def _may_have_planned(run: RunData, test: str) -> bool:
    return run.planned is None or test in run.planned


def _kind(old: Standing, new: Standing) -> Kind | None:
    bad = (State.FAILING, State.BROKEN)
    match old.state, new.state:
        case State.FAILING, State.FAILING:
            return Kind.STILL_FAILING
        case State.PASSING, State.FAILING if new.passed:
            return Kind.FLAKY
        case _, State.FAILING:
            return Kind.NEWLY_FAILING
        case ((State.FAILING | State.BROKEN), State.BROKEN):
            return Kind.STILL_FAILING if old.fault == new.fault else Kind.CHANGED_FAULT
        case _, State.BROKEN:
            return Kind.NEWLY_BROKEN
        case State.ABSENT, (State.ABSENT | State.NOT_REACHED):
            return None
        case State.ABSENT, _:
            return Kind.NEW
        case _, State.ABSENT:
            return None if old.state is State.NOT_REACHED else Kind.MISSING
        case _, State.NOT_REACHED:
            return None if old.state is State.NOT_REACHED else Kind.NOT_REACHED
        case State.SKIPPED, State.SKIPPED:
            return None if old.reason == new.reason else Kind.SKIP_REASON
        case State.NOT_REACHED, State.SKIPPED:
            return None
        case _, State.SKIPPED:
            return Kind.NEWLY_SKIPPED
        case _, State.PASSING if old.state in bad:
            return Kind.NEWLY_PASSING
        case ((State.SKIPPED | State.NOT_REACHED), State.PASSING):
            return Kind.NEWLY_RUNNING
        case State.PASSING, State.PASSING if new.late and not old.late:
            return Kind.REPEATED
    return None


def _speed(before: Side, after: Side, tests: Iterable[str]) -> tuple[Verdict, int]:
    kinds = {run.kind for run in (*before.runs, *after.runs)}
    if len(kinds) > 1:
        why = f"labs of different kinds ({', '.join(sorted(kinds))}) say nothing of speed"
        return Verdict({}, None, why), 0
    series: dict[str, Series] = {}
    unjudged = 0
    for test in tests:
        old, new = _seconds(test, before), _seconds(test, after)
        if None not in old and None not in new:
            series[test] = ([s for s in old if s is not None], [s for s in new if s is not None])
        elif any(s is not None for s in (*old, *new)):
            unjudged += 1
    verdict = judge(series, (len(before.runs), len(after.runs)))
    return verdict, 0 if verdict.silence else unjudged


def _seconds(test: str, side: Side) -> list[float | None]:
    """By run: what the test took if it passed there at once; the median, if it ran several times.

    A second attempt finds nothing of what others have made ready.
    """
    found: list[float | None] = []
    for run in side.runs:
        outcomes = run.outcomes.get(test, ())
        passed = [o.seconds for o in outcomes if o.status is Status.PASSED and o.attempt == 1]
        whole = passed and len(passed) == len(outcomes)
        found.append(statistics.median(passed) if whole else None)
    return found


def _differences(before: Side, after: Side) -> Iterable[Difference]:
    for what in ("lab", "kind", "hil"):
        title = {"lab": "lab", "kind": "kind of lab", "hil": "hil"}[what]
        old, new = ({getattr(run, what) for run in side.runs} for side in (before, after))
        if old != new:
            yield Difference(title, _listed(old), _listed(new))
    olds, news = _environment(before), _environment(after)
    # What was not noted, because the lab did not come up, is no difference.
    if olds and news:
        for name in dict.fromkeys((*olds, *news)):
            if olds.get(name) != news.get(name):
                yield Difference(name, _listed(olds.get(name, ())), _listed(news.get(name, ())))


def _inventories(side: Side) -> set[str]:
    return {run.inventory for run in side.runs} - {""}


def _environment(side: Side) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for run in side.runs:
        for name, value in run.environment.items():
            found.setdefault(name, set()).add(value)
    return found


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(value for value in values if value))


def _notes(before: Side, after: Side) -> Iterable[str]:
    for name, side in (("before", before), ("after", after)):
        yield from (f"{name}: {note}" for note in side.notes)
    if both := sorted({r.directory for r in before.runs} & {r.directory for r in after.runs}):
        yield f"on both sides: {', '.join(path.name for path in both)}"
    kinds = [{run.kind for run in side.runs} - {""} for side in (before, after)]
    labs = [{run.lab for run in side.runs} - {""} for side in (before, after)]
    if kinds[0] and kinds[1] and kinds[0] != kinds[1]:
        yield (
            f"results of different worth: {_listed(kinds[0])} before, {_listed(kinds[1])} after; "
            "a difference may be the hardware's"
        )
    elif labs[0] and labs[1] and labs[0] != labs[1]:
        yield "different labs: what has the same name there may be other hardware"
    copies = [run.directory / "inventory.toml" for s in (before, after) for run in s.runs[-1:]]
    if _inventories(before) and _inventories(after) and _inventories(before) != _inventories(after):
        yield f"the inventories differ: diff {' '.join(map(str, copies))}"
    if not {t for r in before.runs for t in r.outcomes} & {
        t for r in after.runs for t in r.outcomes
    }:
        yield "no test is on both sides"
