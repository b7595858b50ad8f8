"""One commit of a bisection: build, install, reboot, test; and the verdict."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hil.bisect.record import Record, Settings, Step, Verdict
from hil.deadline import Deadline, poll
from hil.errors import DeadlineExceeded, HilError, LabError
from hil.lab.live import connect
from hil.lab.load import load
from hil.lab.models import Lab
from hil.lab.power import power_of
from hil.reporting.outcome import Status
from hil.reporting.run import Run
from hil.reporting.text import one_line

#: Seconds to switch a host off and on, and for it to write what it had not written before.
POWER, SYNC = 180, 60
#: Seconds for a run to take back what it did to a lab, when it is interrupted.
ENDING = 300
#: Seconds for what a command has started to end after it, before it is told to.
LEFTOVERS = 5

_ERROR = re.compile(r"\berror: ")

Say = Callable[[str], None]


class Untestable(Exception):  # noqa: N818 - reads as what happened
    """This commit cannot be tested, and why."""


class Disturbed(Untestable):
    """The test could not judge; another time it may."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step works."""

    settings: Settings
    commit: str
    folder: Path


def take(record: Record, commit: str, say: Say) -> Step:
    """Test ``commit``, which is checked out, and note what became of it.

    Raises:
        KeyboardInterrupt: nothing is noted.
        InventoryError: the lab's inventory is wrong: no commit can be tested.
    """
    if (known := record.known(commit)) is not None:
        say(f"{commit[:12]}: {known.verdict.name.lower()}, as tested before")
        return known
    lab = load(record.settings.lab)
    place = Place(record.settings, commit, record.place(commit))
    begin = time.monotonic()
    try:
        try:
            verdict, reason = _test(place, lab, say)
        except Disturbed as error:
            # git cannot tell the first bad commit where its neighbours were not tested.  Also
            # built anew: a host may boot once only what was installed.
            say(f"{commit[:12]}: once more: {one_line(str(error))}")
            verdict, reason = _test(place, lab, say)
    except Untestable as error:
        verdict, reason = Verdict.SKIP, str(error)
    step = Step(
        commit=commit,
        verdict=verdict,
        reason=one_line(reason, 300),
        seconds=round(time.monotonic() - begin, 1),
        folder=place.folder.name,
        runs=tuple(run.name for run in _runs(place.folder)),
    )
    record.add(step)
    words = {Verdict.GOOD: "good", Verdict.BAD: "BAD", Verdict.SKIP: "cannot be tested"}
    say(f"{commit[:12]}: {words[verdict]} after {step.seconds:.0f} s: {step.reason}")
    return step


def _test(place: Place, lab: Lab, say: Say) -> tuple[Verdict, str]:
    settings = place.settings
    variables = environment(place, lab)
    say(f"{place.commit[:12]}: building; its words go to {place.folder / 'build.log'}")
    _shell(settings.build, "build", place, variables, settings.build_limit)
    if settings.host:
        say(f"{place.commit[:12]}: rebooting {settings.host}")
        _reboot(lab, settings.host, settings.boot_limit)
    if settings.check:
        _shell(settings.check, "check", place, variables, settings.boot_limit)
    for turn in range(1, settings.times + 1):
        count = f", {turn} of {settings.times}" if settings.times > 1 else ""
        say(f"{place.commit[:12]}: testing{count}; its words go to {place.folder / 'run.log'}")
        if reason := _run(place):
            return Verdict.BAD, reason
    return Verdict.GOOD, "passed" if settings.times == 1 else f"passed {settings.times} times"


def environment(place: Place, lab: Lab) -> dict[str, str]:
    """What a build command may want to know, besides its own environment."""
    found = {"HIL_COMMIT": place.commit, "HIL_TREE": place.settings.tree}
    name = place.settings.host or (next(iter(lab.hosts)) if len(lab.hosts) == 1 else "")
    if name:
        host = lab.hosts[name]
        found |= {"HIL_HOST": name, "HIL_ADDRESS": host.address, "HIL_PORT": str(host.port)}
        found |= {"HIL_USER": host.user, "HIL_KEY": str(lab.file(host.key_file))}
    return found


def _shell(
    text: str, name: str, place: Place, variables: Mapping[str, str], seconds: float
) -> None:
    """Run a shell command of the user's in the tree.

    Raises:
        Untestable: it failed.
    """
    log = place.folder / f"{name}.log"
    deadline = Deadline(seconds, f"the {name} command")
    command = ["/bin/sh", "-c", text]
    start = _size(log)
    status = _call(command, log, deadline, cwd=place.settings.tree, variables=variables)
    if status:
        raise Untestable(f"the {name} command ended with status {status}{_why(log, start)}")


def _why(log: Path, start: int) -> str:
    """The line of a log that says best why a command failed, to go after other words.

    That is the first with ``error: ``, as compilers write it: make's own words come long after.
    Else the last; nothing if there is none.

    Args:
        log: of the command.
        start: where its words begin, bytes: others may have been there before.
    """
    lines = log.read_bytes()[start:].decode("utf-8", "replace").strip().splitlines() or [""]
    line = next((line for line in lines if _ERROR.search(line)), lines[-1]).strip()
    return f": {line}" if line else ""


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _reboot(lab: Lab, host: str, seconds: float) -> None:
    """Switch a host off and on, and wait until it answers.

    Raises:
        Untestable: it does not come back; it was switched off and on once more then, so that a
            host that boots what it is to try only once has what it had before.
    """
    switch = power_of(lab, host)
    try:
        # Power is cut: what was just installed must be on the disk.  A hung host has no more.
        with contextlib.suppress(HilError):
            transport = connect(lab, host, Deadline(SYNC, f"a connection to {host}"))
            with contextlib.closing(transport):
                transport.run(["sync"], deadline=Deadline(SYNC, f"{host} to write to its disks"))
        switch.cycle(Deadline(POWER, f"the power of {host}"))
        try:
            wait_for(lab, host, Deadline(seconds, f"{host} to boot"))
        except DeadlineExceeded as silence:
            switch.cycle(Deadline(POWER, f"the power of {host}"))
            with contextlib.suppress(DeadlineExceeded):
                wait_for(lab, host, Deadline(seconds, f"{host} to boot"))
            raise Untestable(f"{host} did not come back: {silence.message}") from None
    except LabError as error:
        raise Untestable(error.message) from None


def wait_for(lab: Lab, host: str, deadline: Deadline) -> None:
    """Wait until ``host`` lets us in.

    Raises:
        DeadlineExceeded: it does not, with what it said last.
    """
    last = ""

    def answers() -> bool:
        nonlocal last
        try:
            connect(lab, host, deadline.within(20, f"a connection to {host}")).close()
        except LabError as error:
            last = error.message
            return False
        return True

    poll(answers, deadline, interval=0.5, last_seen=lambda: last)


def _run(place: Place) -> str:
    """Run the test once; why the commit is bad, or nothing.

    Raises:
        Untestable: the test was skipped.
        Disturbed: it could not judge.
    """
    settings = place.settings
    command = [sys.executable, "-m", "hil.cli", "run", *settings.tests]
    command += ["--lab", settings.lab, "--report-dir", str(place.folder), "--labs", "1"]
    command += ["--", *settings.pytest]
    before = set(_runs(place.folder))
    log = place.folder / "run.log"
    start = _size(log)
    status = _call(command, log, Deadline(settings.run_limit, "the test"))
    made = [run for run in _runs(place.folder) if run not in before]
    if len(made) != 1:
        raise Disturbed(f"hil run ended with status {status} before any test{_why(log, start)}")
    return judge(Run(made[0]), settings.bad_faults)


def judge(run: Run, bad_faults: Sequence[str]) -> str:
    """Why a run makes its commit bad; empty if it is good.

    Raises:
        Untestable: no test passed.
        Disturbed: one could not judge, or the run was cut short.
    """
    outcomes = run.outcomes()
    wrong = [o for o in outcomes if o.status in (Status.FAILED, Status.BROKEN)]
    for outcome in wrong:
        if outcome.fault in bad_faults:
            return f"{outcome.title}: {outcome.reason}"
    for outcome in wrong:
        raise Disturbed(f"{outcome.title}: {outcome.reason} (fault: {outcome.fault})")
    if not any(o.status is Status.PASSED for o in outcomes):
        reasons = {o.reason for o in outcomes if o.reason}
        raise Untestable("no test ran" + (f": {'; '.join(sorted(reasons))}" if reasons else ""))
    if not run.complete:
        raise Disturbed("the run was cut short")
    return ""


def _runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/run.json") if path.parent.name != "latest")


def _call(
    command: Sequence[str],
    log: Path,
    deadline: Deadline,
    *,
    cwd: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Run a command, its output to the end of ``log``; its status.

    It has a process group of its own, so that an interruption reaches it once, from here.

    Raises:
        Untestable: it took too long; it was interrupted then, as by Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in a shell's background job; the command would inherit that, and not hear its end.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("ab") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(variables or {})},
            start_new_session=True,
        )
    try:
        return child.wait(deadline.remaining)
    except subprocess.TimeoutExpired:
        _end(child)
        raise Untestable(f"{deadline.what} took more than {deadline.elapsed:.0f} s") from None
    except BaseException:
        _end(child)
        raise


def _end(child: subprocess.Popen[bytes]) -> None:
    """Interrupt a command and all that it started; end it harder if that is not enough."""
    # Once: it is taking back what it did, and so are we.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _signal(child, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(ENDING)
        # What a shell runs in the background does not hear SIGINT.
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            deadline = Deadline(LEFTOVERS, "the end of what a command had started")
            with contextlib.suppress(DeadlineExceeded):
                poll(lambda n=number: not _signal(child, n), deadline)  # type: ignore[misc]
                return
    finally:
        signal.signal(signal.SIGINT, before)


def _signal(child: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to a command and all of its group; whether anybody was there."""
    child.poll()
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return False
    return True
