"""Puts back what a dead run left on a host, by the journal that it kept there.

Who may: what is a run's own (its guests, their networks, its canaries) is put back by whoever
finds that the run no longer holds its lease; what a card's lease guards (its driver, its VFs) by
the card's next holder, or by ``hil recover`` while nobody holds it.  Each undo runs under the
lock that guards it, so two that recover at the same time do not meet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hil import events, journal
from hil.deadline import Deadline
from hil.errors import HilError, LabError
from hil.journal import RUN, Contents, Dialect, Entry, Kind, card_lock, run_lock
from hil.platforms.contract import Platform
from hil.transport.base import Transport


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of the entries of dead runs."""

    undone: tuple[Entry, ...] = ()
    kept: tuple[Entry, ...] = ()
    """Left alone: what guards them is in use, or not this caller's."""
    busy: tuple[Entry, ...] = ()
    """Of runs that live, or whose last command is still at work."""
    failed: tuple[tuple[Entry, LabError], ...] = ()
    unreadable: tuple[str, ...] = ()
    """Files in a journal that are no entries, with what stands in them; they stay."""


def leftovers(contents: Contents) -> tuple[Entry, ...]:
    """The entries of runs that are dead, in the order in which they are to be undone."""
    return tuple(entry for entry in contents.entries if entry.run not in contents.alive)


def recover(
    platform: Platform, deadline: Deadline, *, cards: Collection[str] | None = None
) -> Recovered:
    """Undo what dead runs left on a host; each step is tried whatever the others did.

    Args:
        platform: the host's.
        deadline: for all of it.
        cards: the cards that the caller holds the leases of; ``None``: each card that nobody
            holds.

    Raises:
        LabError: the journals cannot be read.
    """
    transport, dialect = platform.transport, platform.dialect
    kinds = {kind.name: kind for kind in platform.undo_kinds}
    contents = journal.read(transport, dialect, deadline)
    undone: list[Entry] = []
    kept: list[Entry] = []
    failed: list[tuple[Entry, LabError]] = []
    for entry in leftovers(contents):
        if entry.guard == RUN:
            lock = run_lock(dialect, entry.run)
        elif cards is None:
            lock = card_lock(dialect, entry.guard)
        elif entry.guard in cards:
            lock = ""
        else:
            kept.append(entry)
            continue
        try:
            with events.step(f"undo on {platform.host}: {words(entry, kinds)}"):
                done = journal.undo(entry, kinds, transport, dialect, deadline, lock=lock)
            (undone if done else kept).append(entry)
        except LabError as error:
            failed.append((entry, error))
    return Recovered(
        tuple(undone),
        tuple(kept),
        tuple(entry for entry in contents.entries if entry.run in contents.alive),
        tuple(failed),
        _unreadable(contents, transport, dialect, deadline),
    )


def words(entry: Entry, kinds: Mapping[str, Kind]) -> str:
    """What the change was, for people."""
    kind = kinds.get(entry.undo.kind)
    if kind is None or not kind.fits(entry.undo):
        return f"{entry.undo.kind} {' '.join(entry.undo.arguments)}"[:200]
    return kind.words(entry.undo)


def _unreadable(
    contents: Contents, transport: Transport, dialect: Dialect, deadline: Deadline
) -> tuple[str, ...]:
    """What cannot be read; what was cut off before its change was begun is removed."""
    stays = []
    for file in contents.unreadable:
        if file.run in contents.alive:
            continue
        path = f"{dialect.journal}/{file.run}/{file.name}"
        if file.torn:
            transport.run(["rm", "-f", path], deadline=deadline)
            transport.run(["rmdir", f"{dialect.journal}/{file.run}"], deadline=deadline)
        else:
            stays.append(f"{path}: {file.text}")
    return tuple(stays)


def put_back(platform: Platform, deadline: Deadline, cards: Collection[str]) -> Recovered:
    """As :func:`recover`, at the start of a run; tells the report.

    Raises:
        LabError: a card that this run holds could not be put back.
    """
    recovered = recover(platform, deadline, cards=cards)
    kinds = {kind.name: kind for kind in platform.undo_kinds}
    lines = [f"undone: {words(e, kinds)} (by {e.by})" for e in recovered.undone]
    lines += [f"NOT undone: {error.explain()}" for _, error in recovered.failed]
    lines += [f"cannot be read: {text}" for text in recovered.unreadable]
    if lines:
        name = f"what dead runs had left on {platform.host}"
        events.emit(events.Evidence(name, "\n".join(lines).encode()))
    busy = [entry for entry in recovered.busy if entry.guard in cards]
    if busy:
        # Its cards are free, so it is dead; what it last began is still at work.
        raise LabError(
            f"{platform.host} is still at work on what a dead run last began",
            host=platform.host,
            seen="\n".join(words(entry, kinds) for entry in busy),
            hint="see what hangs there, and try again",
        )
    mine: list[HilError] = [error for entry, error in recovered.failed if entry.guard in cards]
    if mine:
        raise LabError(
            f"{platform.host} is not as it was before a run that died: {len(mine)} of its "
            "changes to devices of this lab could not be undone",
            host=platform.host,
            seen="\n".join(error.explain() for error in mine),
            hint="finish by hand, then: hil recover",
        )
    return recovered
