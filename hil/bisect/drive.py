"""Drives ``git bisect run``: begins, goes on after an interruption, ends with the result."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hil.bisect.record import Record, Settings, Step, Verdict
from hil.bisect.step import ENDING, Say, take
from hil.deadline import Deadline, poll
from hil.errors import InventoryError, LabError
from hil.reporting.run import write_whole
from hil.reporting.text import one_line

#: Seconds for git to answer a question or check a commit out: kernel trees are large.
GIT = 600
#: In the tree's git folder: names the folder of the bisection that is under way.
MARK = "hil-bisect"
#: Status of a step that makes ``git bisect run`` stop; it may go on later.
STOP = 255


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, as git names it."""

    name: str
    """Hexadecimal, whole."""
    subject: str
    author: str
    date: str
    """ISO 8601."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a bisection came to."""

    record: Record
    first: Commit | None
    """The first bad commit; ``None``: git cannot tell it from those in ``candidates``."""
    candidates: tuple[Commit, ...] = ()
    """Commits of which one is the first bad one, when none between them could be tested."""


def resolve(tree: Path, revision: str) -> str:
    """The commit that ``revision`` names.

    Raises:
        InventoryError: there is none, or the tree is none.
    """
    _mark(tree)
    done = _git(tree, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if done.returncode:
        raise InventoryError(f"{tree} has no commit {one_line(revision)!r}", hint="see git log")
    return done.stdout.strip()


def begin(tree: Path, reports: Path, settings: Settings) -> Record:
    """Begin a bisection; nothing is built yet.

    Raises:
        InventoryError: the tree is none, is not clean, or is being bisected already.
    """
    mark = _mark(tree)
    if mark.exists() or _git(tree, "bisect", "log").returncode == 0:
        hint = "hil bisect resume, or hil bisect stop" if mark.exists() else "git bisect reset"
        raise InventoryError(f"{tree} is being bisected already", hint=hint)
    changed = _git(tree, "status", "--porcelain", "--untracked-files=no").stdout
    if changed.strip():
        raise InventoryError(
            f"{tree} has changes that are in no commit: other commits cannot be checked out",
            seen=changed,
            hint="commit them, or put them away with git stash",
        )
    record = Record.create(reports, time.strftime("%Y%m%d-%H%M%S"), settings)
    write_whole(mark, str(record.folder))
    started = _git(tree, "bisect", "start", settings.bad, *settings.good)
    if started.returncode:
        mark.unlink()
        raise InventoryError(
            "git bisect did not start", seen=started.stderr + started.stdout, hint="see git log"
        )
    return record


def current(tree: Path) -> Record:
    """The bisection of ``tree`` that is under way.

    Raises:
        InventoryError: there is none.
    """
    try:
        return Record(Path(_mark(tree).read_text().strip()))
    except FileNotFoundError:
        raise InventoryError(
            f"hil is not bisecting {tree}", hint="begin with: hil bisect start"
        ) from None


def go_on(tree: Path, record: Record, say: Say) -> Result:
    """Test commits until the first bad one is known.

    The two ends are tested first: a test that fails at both, or at none, or that cannot be
    run would send git to a wrong commit.

    Raises:
        InventoryError: an end is not what it was said to be.
        LabError: an end could not be tested, or git failed.
        KeyboardInterrupt: all that was tested is noted; this may be called again.
    """
    settings = record.settings
    with _alone(record):
        for commit, wanted in (
            (settings.bad, Verdict.BAD),
            *((good, Verdict.GOOD) for good in settings.good),
        ):
            if record.known(commit) is None:
                say(f"testing the {wanted.name.lower()} end, {commit[:12]}, first")
                _must(tree, "checkout", "--quiet", "--detach", commit)
            _expect(take(record, commit, say), wanted, record)
    if (found := _result(tree, record)) is not None:
        return found
    _must(tree, "checkout", "--quiet", "--detach", _expected(tree))
    _run(tree, record)
    found = _result(tree, record)
    if found is None:
        log = (record.folder / "git.log").read_text("utf-8", "replace")
        raise LabError("git bisect run ended without a result", seen=log[-2000:])
    return found


def step(tree: Path, say: Say) -> int:
    """Test what is checked out; the status for ``git bisect run``."""
    record = current(tree)
    commit = resolve(tree, "HEAD")
    with _alone(record):
        return take(record, commit, say).verdict.value


def stop(tree: Path) -> Path:
    """End the bisection and check out what was checked out before; its folder stays."""
    record = current(tree)
    with _alone(record):
        _must(tree, "bisect", "reset")
        _mark(tree).unlink()
    return record.folder


def subjects(tree: Path, record: Record) -> dict[str, str]:
    """The first line of each tested commit's message, by name."""
    return {taken.commit: _commit(tree, taken.commit).subject for taken in record.steps}


def _expect(found: Step, wanted: Verdict, record: Record) -> None:
    if found.verdict is wanted:
        return
    name, place = found.commit[:12], record.folder / found.folder
    if found.verdict is Verdict.SKIP:
        raise LabError(
            f"the {wanted.name.lower()} end {name} cannot be tested: {found.reason}",
            hint=f"see {place}; mend it, then: hil bisect resume",
        )
    raise InventoryError(
        f"{name} was said to be {wanted.name.lower()}, and is {found.verdict.name.lower()}: "
        f"{found.reason}",
        hint=f"see {place}; hil bisect stop, and begin with other commits",
    )


def _run(tree: Path, record: Record) -> None:
    """``git bisect run``, with a step of ours for each commit."""
    own = [sys.executable, "-m", "hil.cli", "bisect", "step", "--tree", str(tree)]
    with (record.folder / "git.log").open("ab") as log:
        # What the steps say to a person goes to standard error, which is passed on.
        git = subprocess.Popen(
            ["git", "-C", str(tree), "bisect", "run", *own],
            stdin=subprocess.DEVNULL,
            stdout=log,
        )
        try:
            git.wait()
        except KeyboardInterrupt:
            # From a terminal all have heard it; else only we have.
            git.terminate()
            git.wait()
            _end_step(record)
            raise
    if git.returncode not in (0, 2) and _stopped(record):
        raise KeyboardInterrupt


def _end_step(record: Record) -> None:
    """Interrupt a step that outlived git, and wait for it."""
    lock = record.folder / "lock"
    deadline = Deadline(ENDING, "the end of the step under way")
    with contextlib.suppress(OSError, ValueError):
        if not _free(lock):
            # Held, so its holder lives, so the number is its own.
            os.kill(int(lock.read_text()), signal.SIGTERM)
    poll(lambda: _free(lock), deadline, interval=0.05)


def _stopped(record: Record) -> bool:
    """Whether the last step noted nothing: it was interrupted."""
    places = [path.name for path in record.folder.iterdir() if path.is_dir()]
    return bool(places) and max(places) not in {taken.folder for taken in record.steps}


@contextlib.contextmanager
def _alone(record: Record) -> Iterator[None]:
    """One step at a time; the lock goes with its process."""
    path = record.folder / "lock"
    if not record.folder.is_dir():
        # Somebody removed it: there is nothing that two could work on.
        yield
        return
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                f"another process is at work on {record.folder}", hint="wait for it, or end it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _free(path: Path) -> bool:
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _result(tree: Path, record: Record) -> Result | None:
    """What ``git bisect log`` says it came to, if it has come to an end."""
    log = _must(tree, "bisect", "log")
    if first := re.search(r"^# first bad commit: \[([0-9a-f]+)\]", log, re.MULTILINE):
        return Result(record, _commit(tree, first[1]))
    possible = re.findall(r"^# possible first bad commit: \[([0-9a-f]+)\]", log, re.MULTILINE)
    if not possible:
        return None
    if any(taken.verdict is Verdict.SKIP for taken in record.steps):
        return Result(record, None, tuple(_commit(tree, name) for name in possible))
    return None


def _commit(tree: Path, name: str) -> Commit:
    text = _must(tree, "show", "--no-patch", "--format=%H%x00%s%x00%an <%ae>%x00%aI", name)
    return Commit(*(one_line(part) for part in text.strip().split("\0")))


def _expected(tree: Path) -> str:
    """What git bisect wants to be tested next; an end may be checked out."""
    path = _path(tree, "BISECT_EXPECTED_REV")
    return path.read_text().strip() if path.exists() else "HEAD"


def _mark(tree: Path) -> Path:
    return _path(tree, MARK)


def _path(tree: Path, name: str) -> Path:
    """Of a file in the folder where git keeps the state of this working tree."""
    done = _git(tree, "rev-parse", "--git-path", name)
    if done.returncode:
        raise InventoryError(
            f"{tree} is not a git working tree", seen=done.stderr, hint="name one with --tree"
        )
    return tree / done.stdout.strip()


def _must(tree: Path, *words: str) -> str:
    done = _git(tree, *words)
    if done.returncode:
        raise LabError(
            f"git {words[0]} failed in {tree}", command=["git", *words], seen=done.stderr
        )
    return done.stdout


def _git(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    deadline = Deadline(GIT, f"git {words[0]} in {tree}")
    command: Sequence[str] = ["git", "-C", str(tree), *words]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=deadline.remaining,
            check=False,
            env={**os.environ, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"},
        )
    except subprocess.TimeoutExpired:
        raise deadline.exceeded() from None
    except FileNotFoundError:
        raise LabError("git is not installed", hint="apt-get install git") from None
