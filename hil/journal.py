"""What to undo on a host, written there before it is done.

Each change to a host has its *undo* on the host's disk, synced, before the change is made: so
whatever ends the run, whoever comes next can put the host back.  An undo is data, a kind and
its arguments; the script of a kind is fixed text of the platform's adapter, and nothing that is
read from disk is run before it has been checked against what the kind accepts.

A run has a folder of its own, an entry is a file in it::

    /var/lib/hil/journal/20261121T150201-3fa9c1/00001
        {"kind": "linux-driver", "arguments": ["0000:03:00.0", "igb"], "guard": "0000:03:00", …}
        made

The first line is there before the change; ``made`` is added when it succeeded; the file is
removed when it is undone.  A file whose first line is cut off tells of a crash before the
change was begun.  Writing the entry, syncing it and making the change are one command: a journal
costs no round trip.

An undo must be right whatever happened between the entry and the change, and whoever ran it
before: its script looks at the state first and does nothing where there is nothing to do.

Base tools only: sh, mkdir, printf, rm, sed, head, and what a :class:`Dialect` names.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import itertools
import json
import os
import re
import secrets
import shlex
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hil.deadline import Deadline
from hil.errors import HilError, LabError
from hil.pci.address import Address
from hil.transport.base import Result, Transport

T = TypeVar("T")

#: The guard of what is a run's own: its guests, their disks and networks, its canaries.
RUN = "run"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the journal and leases need of a host's base system."""

    leases: str
    """Directory of lock files; need not outlive a reboot, for locks do not."""
    journal: str
    """Directory of the runs' folders; must outlive a reboot."""
    lock: tuple[str, ...]
    """Runs a command under a lock: followed by seconds to wait, the file, the command.  The
    file stays; the status is 75 if the lock was not to be had."""
    sync: tuple[str, ...]
    """Puts files and directories on disk: followed by their names."""


#: flock(1) of util-linux, sync(1) of coreutils 8.24 and later.
LINUX = Dialect(
    leases="/run/lock/hil",
    journal="/var/lib/hil/journal",
    lock=("flock", "-E", "75", "-w"),
    sync=("sync",),
)
#: lockf(1): with -k the file stays, and 75 is its EX_TEMPFAIL; fsync(1).
FREEBSD = Dialect(
    leases="/var/run/hil-leases",
    journal="/var/db/hil/journal",
    lock=("lockf", "-k", "-s", "-t"),
    sync=("fsync",),
)


@dataclass(frozen=True, slots=True)
class Undo:
    """How to take one change back."""

    kind: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """How changes of one kind are undone; part of a platform's adapter."""

    name: str
    script: str
    """For sh, the arguments being ``$1`` …: status 0 if all is as before the change, also if it
    was never made; otherwise words on stderr.  Reads no standard input."""
    accepts: tuple[str, ...]
    """A regular expression for each argument, to match the whole of it."""
    by_hand: str
    """What a person types instead, as root on the host; ``{0}`` … are the arguments, quoted."""
    made: str
    """The change in words, as a sentence without an end: ``{0} is bound to vfio-pci``."""

    def fits(self, undo: Undo) -> bool:
        """Whether ``undo`` has arguments that this kind accepts."""
        return len(undo.arguments) == len(self.accepts) and all(
            re.fullmatch(pattern, argument)
            for pattern, argument in zip(self.accepts, undo.arguments, strict=True)
        )

    def command(self, undo: Undo) -> str:
        """What a person types to undo it."""
        return self.by_hand.format(*map(shlex.quote, undo.arguments))

    def words(self, undo: Undo) -> str:
        """What the change is."""
        return self.made.format(*undo.arguments)


@dataclass(frozen=True, slots=True)
class Entry:
    """One change in a journal."""

    run: str
    """The run's id, and the name of its folder."""
    name: str
    """The file's name; later ones sort later."""
    undo: Undo
    guard: str
    """:data:`RUN`, or the card (:func:`card_of`) whose next user may replay it."""
    by: str
    """Who made it, for people."""
    made: bool = False
    """Whether the change is known to have succeeded; otherwise it may have been made in part."""

    def to_line(self) -> str:
        """As a file's first line: one JSON object."""
        fields = {
            "kind": self.undo.kind,
            "arguments": list(self.undo.arguments),
            "guard": self.guard,
            "by": self.by,
        }
        return json.dumps(fields)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file in a journal that is no entry."""

    run: str
    name: str
    text: str
    """What stands in it, bounded."""
    torn: bool
    """Cut off while it was written: no change followed it."""


def card_of(address: Address) -> str:
    """The card a function is on: ``0000:03:00``.  Ask with the PF's address for a VF."""
    return address.bdf.rpartition(".")[0]


def new_run() -> str:
    """An id for a run, unlike all others; sorts by time."""
    now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S")
    return f"{now}-{secrets.token_hex(3)}"


def run_lock(dialect: Dialect, run: str) -> str:
    """The lock file that the run holds while it lives, and that is empty or gone otherwise.

    Beside it, the same with ``.busy`` is locked while one of the run's changes is being made:
    a command outlives the connection that it came by.
    """
    return f"{dialect.leases}/run.{run}"


def card_lock(dialect: Dialect, card: str) -> str:
    """The lock file of a card's lease."""
    return f"{dialect.leases}/{card}"


_REFUSED = 113  # a status that nothing else uses

# $1 the run's folder, $2 the file that shows that the run still has its leases, or nothing,
# $3 names of entries that are undone, $4 and $5 name and text of the new one; then the command.
_CHANGE = r"""
folder=$1 lease=$2 old=$3 name=$4 text=$5; shift 5
refuse() { echo "hil: the journal: $1" >&2; exit 113; }
if [ -n "$lease" ] && [ ! -s "$lease" ]; then
    rm -f "$lease.busy"
    refuse 'the leases of this run have lapsed'
fi
for entry in $old; do rm -f "$folder/$entry"; done
[ -d "$folder" ] || { mkdir -p -m 700 "$folder" && @SYNC@ "${folder%/*}"; } || refuse 'no folder'
printf '%s\n' "$text" > "$folder/$name" && @SYNC@ "$folder/$name" "$folder" || refuse 'not on disk'
"$@"
status=$?
[ "$status" -ne 0 ] || echo made >> "$folder/$name"
exit "$status"
"""

# $1 the file that shows that the run still has its leases; then the command.
_ALONE = r"""
if [ ! -s "$1" ]; then
    rm -f "$1.busy"
    echo 'hil: the journal: the leases of this run have lapsed' >&2
    exit 113
fi
shift
exec "$@"
"""

# $1 the entry's file, $2 its kind's script, then the arguments.  Without the file, somebody
# else has undone it, or it was never begun.
_UNDO = r"""
[ -e "$1" ] || exit 0
entry=$1 script=$2; shift 2
sh -c "$script" hil "$@" </dev/null || exit
rm -f "$entry"
rmdir "${entry%/*}" 2>/dev/null
exit 0
"""

# Runs a command if the lock $2, in the directory $1, is free.
_IF_FREE = r"""
mkdir -p "$1" || exit
lock=$2; shift 2
@LOCK@ 1 "$lock" "$@"
status=$?
# The lock of a dead run has come to be by being locked.
case ${lock##*/} in run.*) [ -s "$lock" ] || rm -f "$lock" ;; esac
exit "$status"
"""

# Removes the entries $2 from the folder $1, and the folder if it is empty then; $3 is the run's
# lock file, or nothing.
_FLUSH = r"""
for entry in $2; do rm -f "$1/$entry"; done
[ -z "$3" ] || rm -f "$3.busy"
rmdir "$1" 2>/dev/null
"""

# $1 the directory of journals, $2 that of the locks.  What a dead run's last command still does
# is waited for.
_READ = r"""
leases=$2
alive() {
    [ -s "$leases/run.$1" ] || return
    @LOCK@ 0 "$leases/run.$1" true
    [ $? -eq 75 ]
}
for busy in "$leases"/run.*.busy; do
    [ -e "$busy" ] || continue
    run=${busy##*/run.}
    run=${run%.busy}
    alive "$run" || @LOCK@ 60 "$busy" rm -f "$busy" || echo "alive $run"
done
cd "$1" 2>/dev/null || exit 0
for folder in *; do
    [ -d "$folder" ] || continue
    if alive "$folder"; then echo "alive $folder"; fi
    for file in "$folder"/*; do
        [ -f "$file" ] || continue
        echo "entry $file"
        head -c 4096 "$file" 2>/dev/null | sed 's/^/| /'
        echo
    done
done
"""
_LOCKED_OUT = 75


def _for(dialect: Dialect, script: str) -> str:
    return script.replace("@LOCK@", shlex.join(dialect.lock)).replace(
        "@SYNC@", shlex.join(dialect.sync)
    )


@dataclass(frozen=True, slots=True)
class Contents:
    """What the journals of a host hold."""

    entries: tuple[Entry, ...] = ()
    """In the order in which they are to be undone: what is a run's own first, then what a card's
    lease guards; the latest first."""
    unreadable: tuple[Unreadable, ...] = ()
    alive: frozenset[str] = frozenset()
    """Ids of runs that hold their leases now, or whose last command is still at work: theirs is
    no leftover."""


def read(transport: Transport, dialect: Dialect, deadline: Deadline) -> Contents:
    """All journals of a host.  Changes nothing."""
    command = ["sh", "-c", _for(dialect, _READ), "hil", dialect.journal, dialect.leases]
    return parse(transport.run(command, deadline=deadline).check().stdout, transport.name)


def parse(text: str, host: str = "") -> Contents:
    """The journals from what the script printed.

    Lines are ``alive RUN``, ``entry RUN/NAME``, then the file's lines each after ``| ``.

    Raises:
        LabError: on a line that is none of the script's, which it shows.
    """
    files: dict[tuple[str, str], list[str]] = {}
    alive = set()
    lines: list[str] = []
    # Not splitlines(): a file cut off in a crash may hold what that takes for a line's end.
    for line in text.split("\n"):
        kind, _, rest = line.partition(" ")
        if kind == "|":
            lines.append(rest)
        elif kind == "alive":
            alive.add(rest)
        elif kind == "entry":
            run, _, name = rest.partition("/")
            lines = files.setdefault((run, name), [])
        elif line:
            raise LabError(
                f"cannot read a line of the journal on {host or 'the host'}",
                host=host,
                seen=line[:300],
                hint="look at the files by hand, and report this line",
            )
    found = [_entry(run, name, lines) for (run, name), lines in sorted(files.items(), reverse=True)]
    entries = [item for item in found if isinstance(item, Entry)]
    return Contents(
        tuple(sorted(entries, key=lambda entry: entry.guard != RUN)),
        tuple(item for item in found if isinstance(item, Unreadable)),
        frozenset(alive),
    )


def _entry(run: str, name: str, lines: Sequence[str]) -> Entry | Unreadable:
    first = lines[0] if lines else ""
    try:
        fields = json.loads(first)
        arguments = tuple(fields["arguments"])
        if not all(isinstance(word, str) for word in (fields["kind"], fields["guard"], *arguments)):
            raise TypeError
        undo = Undo(fields["kind"], arguments)
        return Entry(run, name, undo, fields["guard"], str(fields["by"])[:200], "made" in lines[1:])
    except (ValueError, TypeError, KeyError):
        torn = len(lines) <= 1 and not first.endswith("}")
        return Unreadable(run, name, "\n".join(lines)[:500], torn)


def undo(
    entry: Entry,
    kinds: Mapping[str, Kind],
    transport: Transport,
    dialect: Dialect,
    deadline: Deadline,
    *,
    lock: str = "",
) -> bool:
    """Take one change back and remove its entry; nothing happens if somebody did it already.

    Args:
        entry: as :func:`read` or :meth:`Journal.change` gave it.
        kinds: those of the host's platform, by name.
        transport: a root shell on the host.
        dialect: the host's.
        deadline: for all of it.
        lock: the file to be locked meanwhile; empty if the caller holds what guards the entry.

    Returns:
        Whether all is as before; False if ``lock`` is held by somebody.

    Raises:
        LabError: it could not be undone, with the command that does it by hand.
    """
    command = _undoing(entry, kinds, dialect, transport.name)
    if lock:
        script = _for(dialect, _IF_FREE)
        command = ["sh", "-c", script, "hil", dialect.leases, lock, *command]
    result = transport.run(command, deadline=deadline)
    if lock and result.status == _LOCKED_OUT:
        return False
    _judge(entry, kinds, result, transport.name)
    return True


def _undoing(entry: Entry, kinds: Mapping[str, Kind], dialect: Dialect, host: str) -> list[str]:
    """The command that takes a change back."""
    kind = kinds.get(entry.undo.kind)
    path = f"{dialect.journal}/{entry.run}/{entry.name}"
    if kind is None or not kind.fits(entry.undo) or not _is_entry(entry):
        raise LabError(
            f"{host} has a journal entry that cannot be undone: it is not of a known form",
            host=host,
            seen=f"{path}: {entry.to_line()}",
            hint="use the version of hil that wrote it; or put it back by hand and remove the file",
        )
    return ["sh", "-c", _UNDO, "hil", path, kind.script, *entry.undo.arguments]


def _judge(entry: Entry, kinds: Mapping[str, Kind], result: Result, host: str) -> None:
    """Raise LabError if the command did not take the change back."""
    if result.status != 0:
        seen = result.stderr.strip() or result.stdout.strip() or f"status {result.status}"
        raise _not_undone(entry, kinds, seen, host)


def _not_undone(entry: Entry, kinds: Mapping[str, Kind], seen: str, host: str) -> LabError:
    kind = kinds[entry.undo.kind]
    return LabError(
        f"{kind.words(entry.undo)}: this could not be undone",
        host=host,
        seen=seen,
        hint=f"as root on {host}: {kind.command(entry.undo)}",
    )


def _refused(result: Result) -> bool:
    return result.status == _REFUSED and "hil: the journal: " in result.stderr


def _is_entry(entry: Entry) -> bool:
    return bool(re.fullmatch(r"[\w-]+", entry.run) and re.fullmatch(r"[0-9]+", entry.name))


class Journal:
    """The journal of one run on one host.  Safe to use from several threads.

    Args:
        transport: a root shell on the host.
        dialect: the host's.
        kinds: what can be recorded there.
    """

    def __init__(
        self,
        transport: Transport,
        dialect: Dialect,
        kinds: Iterable[Kind],
    ) -> None:
        self.run = new_run()
        """The run's id."""
        self.lease = ""
        """The file that shows that the run still has its leases (:func:`run_lock`): where it
        is empty or gone on the host, nothing is changed any more.  Empty: a host that is
        this run's alone."""
        self._transport = transport
        self._dialect = dialect
        self._kinds = {kind.name: kind for kind in kinds}
        self._folder = f"{dialect.journal}/{self.run}"
        self._by = _who()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._used = False
        self._outstanding: dict[str, Entry] = {}
        self._undone: list[str] = []

    @property
    def folder(self) -> str:
        """Where it is on the host."""
        return self._folder

    @property
    def outstanding(self) -> tuple[Entry, ...]:
        """What is recorded and neither undone nor forgotten, the latest last."""
        with self._lock:
            return tuple(self._outstanding.values())

    def words(self) -> tuple[str, ...]:
        """What is :attr:`outstanding`, for people, in the order in which it will be undone."""
        left = reversed(self.outstanding)
        return tuple(self._kinds[entry.undo.kind].words(entry.undo) for entry in left)

    def change(
        self,
        undo: Undo,
        command: Sequence[str],
        *,
        deadline: Deadline,
        guard: str = RUN,
        stdin: bytes = b"",
    ) -> tuple[Entry, Result]:
        """Record how to undo ``command``, then run it: one round trip.

        Returns:
            The entry, which stays until it is undone or forgotten whatever the status was; and
            how the command ended, as if it had been run alone.

        Raises:
            LabError: the entry could not be written or the leases are lost: nothing was
                changed.  Or the connection broke: it may have been.
        """
        script = _for(self._dialect, _CHANGE)

        def act(record: Mapping[str, str]) -> Result:
            words = ["sh", "-c", script, "hil", *record.values(), *command]
            return self._run_locked(words, deadline, stdin)

        entry, result = self.change_by(undo, act, guard=guard)
        if _refused(result):
            with self._lock:
                self._outstanding.pop(entry.name)
            raise self._refusal(result)
        return entry, result

    def run_alone(
        self, command: Sequence[str], *, deadline: Deadline, stdin: bytes = b""
    ) -> Result:
        """Run a command that undoes a change by other means than :meth:`undo`.

        A command outlives a run that is killed; who recovers waits for the end of this one.

        Raises:
            LabError: the leases are lost: it was not run.
        """
        if self.lease:
            command = ["sh", "-c", _ALONE, "hil", self.lease, *command]
        result = self._run_locked(command, deadline, stdin)
        if self.lease and _refused(result):
            raise self._refusal(result)
        return result

    def _run_locked(self, command: Sequence[str], deadline: Deadline, stdin: bytes) -> Result:
        if self.lease:
            seconds = str(int(min(deadline.remaining, 3600)) + 1)
            command = [*self._dialect.lock, seconds, f"{self.lease}.busy", *command]
        return self._transport.run(command, deadline=deadline, stdin=stdin)

    def change_by(
        self, undo: Undo, act: Callable[[Mapping[str, str]], T], *, guard: str = RUN
    ) -> tuple[Entry, T]:
        """As :meth:`change`, where ``act`` itself writes the record before it acts.

        It gets the words ``folder``, ``lease``, ``old`` (names separated by spaces), ``name``
        and ``text``, in this order, and does with them what the journal's script does.
        """
        kind = self._kinds.get(undo.kind)
        if kind is None or not kind.fits(undo):
            raise LabError(f"no change of the kind {undo.kind!r} with {undo.arguments} is known")
        with self._lock:
            self._used = True
            name = f"{next(self._numbers):05d}"
            entry = self._outstanding[name] = Entry(self.run, name, undo, guard, self._by)
            old = list(self._undone)
        record = {
            "folder": self._folder,
            "lease": self.lease,
            "old": " ".join(old),
            "name": name,
            "text": entry.to_line(),
        }
        answer = act(record)
        with self._lock:
            self._undone = [one for one in self._undone if one not in old]
        return entry, answer

    def _refusal(self, result: Result) -> LabError:
        """The error for a host on which nothing could be recorded, so nothing was changed."""
        return LabError(
            f"nothing is changed on {self._transport.name}: its journal took no entry",
            host=self._transport.name,
            seen=result.stderr,
            hint=f"is {self._folder} on a disk with room, and is the connection the run's own?",
        )

    def record(self, undo: Undo, *, deadline: Deadline, guard: str = RUN) -> Entry:
        """Record how to undo a change that is made by other means; a round trip."""
        entry, result = self.change(undo, ["true"], deadline=deadline, guard=guard)
        result.check()
        return entry

    def forget(self, *entries: Entry) -> None:
        """These have been undone by other means.  Costs nothing: the next change tells the host."""
        with self._lock:
            for entry in entries:
                if self._outstanding.pop(entry.name, None) is not None:
                    self._undone.append(entry.name)

    def undo(self, entry: Entry, deadline: Deadline) -> None:
        """Take the change back; nothing happens if that is done already.

        Raises:
            LabError: it could not be undone, with the command that does it by hand; it stays
                in the journal.
        """
        if entry in self.outstanding:
            host = self._transport.name
            command = _undoing(entry, self._kinds, self._dialect, host)
            try:
                result = self.run_alone(command, deadline=deadline)
            except LabError as error:
                raise _not_undone(entry, self._kinds, error.message, host) from error
            _judge(entry, self._kinds, result, host)
            with self._lock:
                self._outstanding.pop(entry.name, None)

    def close(self, deadline: Deadline) -> None:
        """Undo all that is left, the latest first, each tried whatever the others did.

        Raises:
            ExceptionGroup: of a LabError for each that could not be undone.
        """
        failures: list[HilError] = []
        for entry in reversed(self.outstanding):
            try:
                self.undo(entry, deadline)
            except HilError as error:
                failures.append(error)
        with self._lock:
            undone, self._undone = self._undone, []
        if self._used:
            command = ["sh", "-c", _FLUSH, "hil", self._folder, " ".join(undone), self.lease]
            # Entries that stay are of what is undone: to undo it again does nothing.
            with contextlib.suppress(HilError):
                self._transport.run(command, deadline=deadline)
        if failures:
            raise ExceptionGroup(
                f"{len(failures)} change(s) to {self._transport.name} could not be undone; "
                f"they stand in {self._folder}",
                failures,
            )


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    now = dt.datetime.now().astimezone().isoformat(timespec="seconds")
    return f"{user} on {socket.gethostname()}, process {os.getpid()}, {now}"
