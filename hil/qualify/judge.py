"""From a policy and runs to a verdict.

Pure: the same policy, runs and time give the same verdict, so that whoever checks a bundle
years later can judge anew.  Two rules decide what is doubtful:

- What is doubtful counts for nothing: passes of a run that was killed or is damaged, results of
  unknown tests, of other provenance, of other systems or cards (:mod:`hil.qualify.worth`).
- What is known to have failed is never outweighed: one failure among a hundred passes is one.

A suite has passed if every test that it has for a device, as a run planned it, has passed often
enough.  So a run of which options took tests out lacks those tests.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hil.compare.load import key
from hil.lab.document import nearest
from hil.qualify.evidence import RunRecord
from hil.qualify.policy import Policy, Requirement, System, Waiver
from hil.qualify.verdict import Cell, Finding, Judgement, Line, RunUse, Verdict, WaiverUse
from hil.qualify.worth import Result, count_of, doubts_of, weigh
from hil.reporting.outcome import Outcome, Status
from hil.reporting.plan import Planned


@dataclass(slots=True)
class _Books:
    """What is written down while judging."""

    counted: set[tuple[str, str]] = field(default_factory=set)
    """Runs and tests."""
    provenance: set[str] = field(default_factory=set)
    systems: dict[str, dict[tuple[str, str], set[str]]] = field(default_factory=dict)
    """Platform → system and hypervisor → runs."""
    waived: dict[str, set[str]] = field(default_factory=dict)
    """Waiver → tests that it accepted."""
    met: dict[str, set[str]] = field(default_factory=dict)
    """Waiver → tests that it is about, however they ended."""


def judge(policy: Policy, runs: Sequence[RunRecord], now: float) -> Verdict:
    """What ``runs`` come to under ``policy``, at the time ``now`` (seconds since the epoch)."""
    books = _Books()
    doubts = doubts_of(runs, now)
    lines = tuple(
        _line(policy, name, requirement, runs, doubts, now, books)
        for name, requirement in policy.requirements.items()
    )
    findings = tuple(_mixtures(policy, books))
    return Verdict(
        policy=policy.policy.name,
        judged=now,
        lines=lines,
        findings=findings,
        runs=tuple(
            RunUse(
                name=run.name,
                lab=run.data.lab,
                kind=run.data.kind,
                started=run.data.started,
                hil=run.data.hil,
                tests=len(run.data.outcomes),
                counted=sum(run.name == name for name, _ in books.counted),
                doubts=doubts[run.name],
            )
            for run in runs
        ),
        waivers=tuple(_waivers(policy, runs, now, books)),
        notes=tuple(_notes(policy, runs)),
        provenance=tuple(sorted(books.provenance)),
        systems=tuple(
            sorted(
                f"{platform}: {', '.join(filter(None, system))}"
                for platform, systems in books.systems.items()
                for system in systems
                if any(system)
            )
        ),
    )


# ---- requirements ------------------------------------------------------------------------


def _line(
    policy: Policy,
    name: str,
    requirement: Requirement,
    runs: Sequence[RunRecord],
    doubts: Mapping[str, tuple[str, ...]],
    now: float,
    books: _Books,
) -> Line:
    results = [
        weigh(policy, requirement, run, outcome, doubts[run.name], now)
        for run in runs
        for outcome in run.outcomes
    ]
    cells = []
    for platform in requirement.platforms or ("",):
        for guest in requirement.guests or ("",):
            for suite in requirement.suites:
                for device in (*requirement.devices, ""):
                    place = _Place(suite, device, guest, platform)
                    cell = _cell(policy, requirement, place, results, runs, now, books)
                    # Few suites have tests without a device: where there are none, none lack.
                    if cell.tests or device or not requirement.devices:
                        cells.append(cell)
    return Line(name, requirement.title or name, _demands(policy, requirement), tuple(cells))


def _demands(policy: Policy, requirement: Requirement) -> str:
    words = [" or ".join(policy.provenance(requirement))]
    words.append(f"at most {count_of(policy.max_age_days(requirement), 'day')} old")
    if requirement.passes > 1:
        words.append(f"each test passed {requirement.passes} times")
    if requirement.cycles > 1:
        words.append(f"tests of repetition repeated {requirement.cycles} times")
    if requirement.allow_skips:
        words.append("skipped tests passed over")
    return ", ".join(words)


@dataclass(frozen=True, slots=True)
class _Place:
    """Suite, device, guest and platform of a cell; empty: none, or whichever."""

    suite: str
    device: str
    guest: str
    platform: str

    def has(self, area: str, devices: Sequence[str]) -> bool:
        """Whether a test of ``area`` with ``devices`` belongs here."""
        return area == self.suite and (self.device in devices if self.device else not devices)

    def fits(self, guest: str, platforms: Iterable[str]) -> bool:
        """Whether a result with this guest on these platforms belongs here."""
        return self.guest in ("", guest) and (not self.platform or self.platform in platforms)


# ---- cells -------------------------------------------------------------------------------


def _cell(
    policy: Policy,
    requirement: Requirement,
    place: _Place,
    results: Sequence[Result],
    runs: Sequence[RunRecord],
    now: float,
    books: _Books,
) -> Cell:
    here = [
        result
        for result in results
        if place.has(result.outcome.area, result.outcome.devices)
        and place.fits(result.outcome.guest, result.outcome.platforms)
    ]
    mine = [result for result in here if not result.against]
    # A run whose every result is about something else plans nothing for this requirement.
    foreign = {r.run.name for r in results} - {r.run.name for r in results if not r.against}
    planned, whole = _planned(place, [run for run in runs if run.name not in foreign])
    tests: dict[str, list[Result]] = {test: [] for test in planned}
    for result in mine:
        tests.setdefault(result.test, []).append(result)
    _keep(books, mine)
    tally: Counter[str] = Counter()
    findings: list[Finding] = []
    for test, found in tests.items():
        if found:
            ending, more = _test(policy, requirement, place.device, test, found, now, books)
        else:
            ending, more = "lacking", [planned[test]]
        tally[ending] += 1
        findings += more
    if mine and not whole:
        text = (
            "no run of the whole suite: those here were asked for single tests or files, or "
            "do not say what they left out"
        )
        findings.append(Finding(Judgement.NOT_ENOUGH, text, run=mine[0].run.name))
    if not tests:
        findings.append(Finding(Judgement.NOT_ENOUGH, _nothing(place, here, results, runs)))
    elif not tally["passed"] and not findings:
        findings.append(Finding(Judgement.NOT_ENOUGH, "every test was skipped"))
    findings += _inventories(policy, place, mine)
    return Cell(
        suite=place.suite,
        device=place.device,
        guest=place.guest,
        platform=place.platform,
        passed=tally["passed"],
        failed=tally["failed"],
        accepted=tally["accepted"],
        lacking=tally["lacking"],
        skipped=tally["skipped"],
        findings=tuple(sorted(findings, key=_severity)),
    )


def _severity(finding: Finding) -> tuple[int, str]:
    order = (Judgement.NOT_QUALIFIED, Judgement.NOT_ENOUGH, Judgement.QUALIFIED)
    return order.index(finding.judgement), finding.test


def _planned(place: _Place, runs: Sequence[RunRecord]) -> tuple[dict[str, Finding], bool]:
    """The tests that belong here as ``runs`` planned them, and whether one had the whole suite.

    Each with what is to be said if it never ended.
    """
    tests: dict[str, Finding] = {}
    whole = False
    for run in runs:
        plan = run.plan
        if plan is None or not place.fits(run.guest, run.platforms([place.device])):
            continue
        for planned, why in (
            *((p, "not run: this run did not get so far") for p in plan.tests),
            *((p, "not run: options took it out of this run") for p in plan.deselected),
        ):
            if place.has(planned.area, planned.devices):
                lack = Finding(Judgement.NOT_ENOUGH, why, planned.test, run.name)
                tests.setdefault(planned.test, lack)
                whole = whole or not plan.narrowed
    return tests, whole


def _keep(books: _Books, results: Iterable[Result]) -> None:
    for result in results:
        if result.doubt and result.outcome.status is Status.PASSED:
            continue
        books.counted.add((result.run.name, result.test))
        books.provenance.add(result.outcome.provenance)
        for platform in result.outcome.platforms:
            for host in result.outcome.hosts:
                systems = books.systems.setdefault(platform, {})
                systems.setdefault(result.run.system(host), set()).add(result.run.name)


def _test(
    policy: Policy,
    requirement: Requirement,
    device: str,
    test: str,
    results: Sequence[Result],
    now: float,
    books: _Books,
) -> tuple[str, list[Finding]]:
    """How a test ended, all its results together, and what is to be said about it."""
    passes = [r for r in results if r.outcome.status is Status.PASSED]
    counted = [r for r in passes if not r.doubt]
    failures = [r for r in results if _failed(r.outcome)]
    others = [r for r in results if r not in passes and r not in failures]
    waiver = _waiver(policy, device, test, now)
    if waiver is not None:
        books.met.setdefault(waiver[0], set()).add(test)
    short = len(counted) < requirement.passes
    amiss = failures or (others if short else [])
    if amiss and waiver is not None:
        name, given, expired = waiver
        books.waived.setdefault(name, set()).add(test)
        reason = _ending(amiss[0])
        if not expired:
            text = f"accepted until {given.expires}: {reason}"
            return "accepted", [
                Finding(Judgement.QUALIFIED, text, test, amiss[0].run.name, waiver=name)
            ]
        if failures:
            text = f"{reason}; the waiver {name} expired on {given.expires}"
            return "failed", [Finding(Judgement.NOT_QUALIFIED, text, test, amiss[0].run.name)]
    if failures:
        text = _ending(failures[0])
        if len(results) > 1:
            text += f" ({len(failures)} of {len(results)} times)"
        return "failed", [Finding(Judgement.NOT_QUALIFIED, text, test, failures[0].run.name)]
    if not short:
        return "passed", []
    skips = [r for r in others if r.outcome.status is Status.SKIPPED]
    if requirement.allow_skips and skips and skips == list(results):
        return "skipped", []
    return "lacking", [_lack(requirement, test, counted, passes, others)]


def _failed(outcome: Outcome) -> bool:
    # A guest that panics or hangs over a passed device is not to be explained away by us.
    return outcome.status is Status.FAILED or (
        outcome.status is Status.BROKEN and outcome.fault == "guest"
    )


def _ending(result: Result) -> str:
    outcome = result.outcome
    fault = f" ({outcome.fault})" if outcome.status is Status.BROKEN and outcome.fault else ""
    return f"{outcome.status}{fault}: {outcome.reason or 'no reason given'}"


def _lack(
    requirement: Requirement,
    test: str,
    counted: Sequence[Result],
    passes: Sequence[Result],
    others: Sequence[Result],
) -> Finding:
    doubtful = [r for r in passes if r.doubt]
    words = []
    run = ""
    if counted:
        words.append(f"passed {len(counted)} of {requirement.passes} times")
        run = counted[0].run.name
    if others:
        words.append(_ending(others[0]))
        run = run or others[0].run.name
    if doubtful:
        times = "" if len(doubtful) == 1 else f" {len(doubtful)} times"
        words.append(f"passed{times}, which does not count: {doubtful[0].doubt}")
        run = run or doubtful[0].run.name
    return Finding(Judgement.NOT_ENOUGH, "; ".join(words), test, run)


def _nothing(
    place: _Place, here: Sequence[Result], results: Sequence[Result], runs: Sequence[RunRecord]
) -> str:
    """Why a cell is empty."""
    if here:
        reasons = Counter(result.against for result in here)
        words = "; ".join(f"{count}× {reason}" for reason, count in reasons.most_common(3))
        return f"no result counts: {words}"
    areas = sorted({r.outcome.area for r in results} | {p.area for p in _all_planned(runs)})
    if place.suite not in areas:
        return f"no run has the suite {place.suite!r}{nearest(place.suite, areas)}"
    devices = sorted({d for r in results for d in r.outcome.devices})
    if place.device and place.device not in devices:
        return f"no run has the device {place.device!r}{nearest(place.device, devices)}"
    guests = sorted({r.outcome.guest for r in results} - {""})
    if place.guest and place.guest not in guests:
        return (
            f"no run has the guest {place.guest!r}; there is: {', '.join(guests) or 'none noted'}"
        )
    platforms = sorted({p for r in results for p in r.outcome.platforms})
    if place.platform and place.platform not in platforms:
        found = ", ".join(platforms) or "none noted"
        return f"no run has the platform {place.platform}; there is: {found}"
    if place.device:
        return (
            f"the suite has no test for {place.device}, as the inventory describes it: leave the "
            "pair out of the requirement, or correct the inventory"
        )
    return "the suite has no test without a device"


def _all_planned(runs: Sequence[RunRecord]) -> Iterable[Planned]:
    for run in runs:
        if run.plan is not None:
            yield from run.plan.tests
            yield from run.plan.deselected


def _inventories(policy: Policy, place: _Place, results: Sequence[Result]) -> list[Finding]:
    """A complaint if a device's name stands for cards of several inventories."""
    if not place.device or place.device in policy.devices:
        return []
    found: dict[tuple[str, str], str] = {}
    for result in results:
        found.setdefault((result.run.data.lab, result.run.data.inventory), result.run.name)
    if len(found) < 2:
        return []
    labs = "; ".join(
        f"{lab or '?'} {inventory[:8] or '(not noted)'} in {run}"
        for (lab, inventory), run in found.items()
    )
    text = (
        f"results of {place.device} are from {len(found)} inventories ({labs}), and the policy "
        f"does not say which card it is: add [devices.{place.device}]"
    )
    return [Finding(Judgement.NOT_ENOUGH, text)]


# ---- waivers, systems, notes ---------------------------------------------------------------


def _waiver(policy: Policy, device: str, test: str, now: float) -> tuple[str, Waiver, bool] | None:
    """The waiver for a test, by name, and whether it has expired; one that has not is preferred."""
    found = [
        (name, waiver, _expired(waiver, now))
        for name, waiver in policy.waivers.items()
        if _covers(waiver, device, test)
    ]
    return min(found, key=lambda waiver: waiver[2], default=None)


def _covers(waiver: Waiver, device: str, test: str) -> bool:
    wanted = key(waiver.test)
    return waiver.device in (None, device) and wanted in (test, test.partition("[")[0])


def _expired(waiver: Waiver, now: float) -> bool:
    today = dt.datetime.fromtimestamp(now, dt.UTC).date()
    return today > waiver.expires


def _waivers(
    policy: Policy, runs: Sequence[RunRecord], now: float, books: _Books
) -> Iterable[WaiverUse]:
    tests = sorted({key(o.test) for run in runs for o in run.outcomes})
    plain = sorted({test.partition("[")[0] for test in tests})
    for name, waiver in policy.waivers.items():
        expired = _expired(waiver, now)
        note = ""
        if name not in books.met:
            note = "matches nothing that was judged"
            if key(waiver.test) not in (*tests, *plain):
                names = [test.rpartition("::")[2] for test in plain]
                word = waiver.test.rpartition("::")[2].partition("[")[0]
                note = f"matches nothing: these runs have no such test{nearest(word, names)}"
        elif name not in books.waived:
            note = "no longer needed: what it is about passed"
        elif expired:
            note = f"expired on {waiver.expires}"
        yield WaiverUse(
            name=name,
            test=waiver.test,
            device=waiver.device or "",
            reason=waiver.reason,
            link=waiver.link,
            expires=waiver.expires,
            expired=expired,
            accepted=tuple(sorted(books.waived.get(name, ()))),
            note=note,
        )


def _mixtures(policy: Policy, books: _Books) -> Iterable[Finding]:
    """A complaint for each platform of which several systems were tested."""
    for platform, systems in books.systems.items():
        if len(systems) < 2:
            continue
        pinned = policy.system(platform) or System()
        found = "; ".join(
            f"{', '.join(filter(None, system)) or 'not noted'} in {', '.join(sorted(runs))}"
            for system, runs in systems.items()
        )
        text = (
            f"results on {platform} are of {len(systems)} systems ({found}): one release is to "
            f"be qualified; say which in [platforms.{platform}]"
        )
        if pinned.system and pinned.hypervisor:
            text += ", more exactly"
        yield Finding(Judgement.NOT_ENOUGH, text)


def _notes(policy: Policy, runs: Sequence[RunRecord]) -> Iterable[str]:
    if not runs:
        yield "no run was given"
    asked = {suite for r in policy.requirements.values() for suite in r.suites}
    foreign = Counter(o.area for run in runs for o in run.outcomes if o.area not in asked)
    if foreign:
        areas = ", ".join(f"{area or '?'} ({count})" for area, count in sorted(foreign.items()))
        yield f"results of suites that no requirement names: {areas}"
    inventories: dict[str, set[str]] = {}
    for run in runs:
        if run.data.inventory:
            inventories.setdefault(run.data.lab, set()).add(run.data.inventory)
    for lab, found in inventories.items():
        if len(found) > 1:
            yield f"the inventory of the lab {lab} changed between runs"
    versions = sorted({run.data.hil for run in runs if run.data.hil})
    if len(versions) > 1:
        yield f"the runs are of several versions of hil: {', '.join(versions)}"
