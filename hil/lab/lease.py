"""Whose a card is: a lock on the lab host that lives as long as its holder's connection.

A run takes the leases of all it will use on a host at once, in a fixed order, by a process at
the far end of one channel: a chain of flock(1) or lockf(1), with a small shell at its end that
holds on until its standard input ends.  The kernel keeps the locks, so whatever ends the run
ends the leases, and nothing stale can block.  A file's text says who holds it; it is only for
people.

A dead network closes no channel.  So the holder also wants a word every few seconds, and lets go
when it has had none for a :data:`LAPSE`: a run that was suspended for longer has lost its
leases, and its journal changes nothing any more.

Names: a card's lease is :func:`hil.journal.card_of` its functions.  A run has a lease of its own
besides, which says of its journal that it lives.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import json
import os
import queue
import shlex
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from hil.deadline import Deadline
from hil.errors import HilError, LabError
from hil.journal import Dialect, card_lock, card_of, run_lock
from hil.pci.address import Address
from hil.platforms.contract import Function
from hil.transport.base import ByteStream, Transport

#: Seconds without a word after which a holder lets go; a run sends five in that time.
LAPSE = 60
#: Seconds between two words of a run that waits on whom it waits for.
PATIENCE = 15


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease."""

    user: str
    pid: int
    run: str
    """Name of the run, as its report has it."""
    since: str
    """Local time of the controller, ISO 8601 with the zone."""
    machine: str
    """Host name of the machine that runs hil."""

    @classmethod
    def this_process(cls, run: str) -> Holder:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        since = dt.datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(user, os.getpid(), run, since, socket.gethostname())

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """From a lock file's text; ``None`` if it is no record: it may be just being written."""
        try:
            fields = json.loads(text)
            return cls(
                user=_printable(fields["user"]),
                pid=int(fields["pid"]),
                run=_printable(fields["run"]),
                since=_printable(fields["since"]),
                machine=_printable(fields["machine"]),
            )
        except (ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        return (
            f"{self.user} on {self.machine}, run {self.run or '(no name)'}, "
            f"process {self.pid}, since {self.since}"
        )


def _printable(text: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(text)[:100])


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is held now."""

    name: str
    """A card, or ``run.ID``."""
    holder: Holder | None
    """``None`` if its record cannot be read."""


#: Called while a lease is waited for: its name, who holds it if known, seconds waited so far.
OnWait = Callable[[str, Holder | None, float], None]


def cards(functions: Iterable[Function], wanted: Iterable[Address]) -> tuple[str, ...]:
    """The cards that a run must lease to use the functions ``wanted``.

    A function takes with it all of its card, its PF and the PF's VFs, and all functions of its
    isolation group; these take theirs with them.
    """
    everything = [f for f in functions if f.config.header_type == 0]
    found: set[Address] = set(wanted)
    while True:
        chosen = [f for f in everything if f.address in found]
        slots = {card_of(f.address) for f in chosen}
        groups = {f.group for f in chosen} - {None}
        heads = {f.physical_function or f.address for f in chosen}
        more = {
            f.address
            for f in everything
            if card_of(f.address) in slots
            or f.group in groups
            or f.address in heads
            or f.physical_function in heads
        }
        if more <= found:
            return tuple(sorted({card_of(address) for address in found}))
        found |= more


# $1 this script, $2 seconds of a lapse, $3 the record, $4 the run's own lock file or nothing,
# $5 the lock file just taken or nothing; then the files to take.
_TAKE = r"""
script=$1 lapse=$2 record=$3 own=$4 taken=$5; shift 5
# Who is not heard any more ends by what it says below, and tidies up: not by a signal.
trap '' PIPE
[ -z "$taken" ] || printf '%s\n' "$record" > "$taken" || exit 1
if [ $# -eq 0 ]; then
    # What ends this may end it twice: by the end of its input, then by a signal to its group,
    # rm(1) included.
    trap 'trap "" HUP TERM; [ -z "$own" ] || rm -f "$own"' EXIT
    trap 'exit 0' HUP TERM
    echo held || exit 1
    while timeout "$lapse" sh -c 'read -r _'; do :; done
    exit 0
fi
file=$1; shift
patience=0
while :; do
    @LOCK@ "$patience" "$file" sh -c "$script" hil "$script" "$lapse" "$record" "$own" "$file" "$@"
    status=$?
    [ "$status" -eq 75 ] || exit "$status"
    printf 'waiting %s %s\n' "$file" "$(head -c 1000 "$file" | tr '\n' ' ')" || exit 1
    patience=@PATIENCE@
done
"""

_START = r"""
umask 077
mkdir -p "$1" || exit
shift
exec sh -c "$1" hil "$@"
"""

_LOOK = r"""
cd "$1" 2>/dev/null || exit 0
for file in *; do
    case $file in *.busy) continue ;; esac
    [ -f "$file" ] || continue
    @LOCK@ 0 "$file" true
    [ $? -ne 75 ] || printf 'held %s %s\n' "$file" "$(head -c 1000 "$file" | tr '\n' ' ')"
done
"""


def _for(dialect: Dialect, script: str) -> str:
    script = script.replace("@PATIENCE@", str(PATIENCE))
    return script.replace("@LOCK@", shlex.join(dialect.lock))


class Leases:
    """What one run holds on one host, from :meth:`take` to :meth:`close`."""

    def __init__(self, stream: ByteStream, host: str, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        """The cards."""
        self._host = host
        self._stream = stream
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name=f"leases of {host}").start()

    @classmethod
    def take(
        cls,
        transport: Transport,
        dialect: Dialect,
        names: Iterable[str],
        holder: Holder,
        deadline: Deadline,
        *,
        run: str = "",
        on_wait: OnWait = lambda _name, _holder, _seconds: None,
        lapse: float = LAPSE,
    ) -> Leases:
        """Take the leases of cards, all or none.

        Args:
            transport: a root shell on the host; its connection keeps the leases.
            dialect: the host's.
            names: the cards; taken in the order of their names, as by everybody.
            holder: who takes them, for those who wait.
            deadline: for the waiting.
            run: an id whose own lease is taken too (:func:`hil.journal.run_lock`).
            on_wait: told whom is waited for, at once and then every :data:`PATIENCE` seconds.
            lapse: seconds without a word after which the host lets go.

        Raises:
            LabError: somebody still has one at the deadline, or the host cannot lock.
        """
        wanted = sorted(set(names))
        own = run_lock(dialect, run) if run else ""
        files = [*([own] if own else []), *(card_lock(dialect, name) for name in wanted)]
        record = json.dumps(asdict(holder))
        command = ["sh", "-c", _START, "hil", dialect.leases, _for(dialect, _TAKE)]
        command += [str(lapse), record, own, "", *files]
        stream = transport.open_stream(command, deadline=deadline)
        leases = cls(stream, transport.name, wanted)
        try:
            leases._wait(deadline, on_wait)
        except BaseException:
            leases.close()
            raise
        leases._keep(lapse / 5)
        return leases

    @property
    def lost(self) -> bool:
        """Whether they are gone: the connection broke, or the host had no word for too long."""
        return self._ended.is_set()

    def check(self) -> None:
        """Raise LabError if the leases are gone."""
        if self.lost:
            raise LabError(
                f"this run has lost its leases on {self._host}: the connection broke, or hil "
                f"stood still for more than {LAPSE} s",
                host=self._host,
                hint="another run may use the devices by now; see: hil leases",
            )

    def close(self) -> None:
        """Let go.  Safe to call twice."""
        self._stream.close()

    def _listen(self) -> None:
        buffer = b""
        with contextlib.suppress(HilError, OSError):
            while data := self._stream.read():
                *lines, buffer = (buffer + data)[-65536:].split(b"\n")
                for line in lines:
                    self._lines.put(line.decode("utf-8", "replace"))
        self._ended.set()
        if buffer:
            self._lines.put(buffer.decode("utf-8", "replace"))
        self._lines.put(None)

    def _wait(self, deadline: Deadline, on_wait: OnWait) -> None:
        name, who = "", None
        noise: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=min(deadline.remaining, threading.TIMEOUT_MAX))
            except queue.Empty:
                held = f"held by {who}" if who else "held by a process that left no record"
                raise LabError(
                    f"{name or 'the devices'} of {self._host}: waited for the lease "
                    f"{deadline.elapsed:.0f} s, in vain",
                    host=self._host,
                    seen=held if name else "\n".join(noise) or "no answer",
                    hint="wait longer with --wait SECONDS, or ask the holder to end that run",
                ) from None
            if line is None:
                raise LabError(
                    f"no leases can be taken on {self._host}",
                    host=self._host,
                    seen="\n".join(noise[-20:]),
                    hint="the host needs flock(1) of util-linux, or FreeBSD's lockf(1)",
                )
            kind, _, rest = line.partition(" ")
            if kind == "held":
                return
            if kind == "waiting":
                file, _, record = rest.partition(" ")
                name, who = file.rpartition("/")[2], Holder.parse(record)
                on_wait(name, who, deadline.elapsed)
            else:
                noise.append(line[:300])

    def _keep(self, interval: float) -> None:
        def speak() -> None:
            with contextlib.suppress(HilError, OSError):
                while not self._ended.wait(interval):
                    self._stream.write(b"\n")

        threading.Thread(target=speak, daemon=True, name=f"word to {self._host}").start()


def look(transport: Transport, dialect: Dialect, deadline: Deadline) -> tuple[Lease, ...]:
    """The leases held on a host now, by name."""
    command = ["sh", "-c", _for(dialect, _LOOK), "hil", dialect.leases]
    text = transport.run(command, deadline=deadline).check().stdout
    return parse(text, transport.name)


def parse(text: str, host: str = "") -> tuple[Lease, ...]:
    """Leases from lines ``held NAME RECORD``.

    Raises:
        LabError: on another line, which it shows.
    """
    found = []
    for line in filter(None, text.split("\n")):
        kind, _, rest = line.partition(" ")
        name, _, record = rest.partition(" ")
        if kind != "held" or not name:
            raise LabError(
                f"cannot read a line of the leases on {host or 'the host'}",
                host=host,
                seen=line[:300],
            )
        found.append(Lease(_printable(name), Holder.parse(record)))
    return tuple(found)
