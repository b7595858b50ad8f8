"""What bhyve and FreeBSD's other tools mean by their errors, and which cause it was.

Their words are terse and shared by several causes, some of which have nothing to do with
what they say.  :func:`decode` finds the first line that is known, of any release, and tells
with the help of the host's facts what it means here; the text itself is always kept.

The lines themselves are in :mod:`hil.platforms.freebsd_rules`.
"""

from __future__ import annotations

import enum
import re
import signal
from dataclasses import replace

from hil.errors import Fault
from hil.platforms.freebsd_rules import RULES
from hil.platforms.freebsd_state import Diagnosis, HostState

__all__ = ["Diagnosis", "Ending", "decode", "decode_bhyve", "ending"]


class Ending(enum.StrEnum):
    """How bhyve ended, by its status and its words together."""

    REBOOT = "the guest rebooted"
    POWEROFF = "the guest powered off"
    HALT = "all of the guest's CPUs halted with interrupts off"
    TRIPLE_FAULT = "the guest ended in a triple fault"
    SUSPENDED = "the guest suspended itself"
    DESTROYED = "the guest was destroyed while it ran"
    KILLED = "bhyve was killed"
    CRASHED = "bhyve crashed"
    FAILED = "bhyve failed"


#: What a start prints when it fails says more than its status, which may be 1: "powered off".
_BY_STATUS = {
    0: Ending.REBOOT,
    1: Ending.POWEROFF,
    2: Ending.HALT,
    3: Ending.TRIPLE_FAULT,
    5: Ending.SUSPENDED,
}
_CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


def ending(status: int, stderr: str) -> Ending:
    """How bhyve ended.

    Status 1 is both "powered off" and every ``err(1, …)``, and until 11 all errors; so what
    it printed decides.  4 is an error, but without a word it is a guest that was destroyed
    (VM_SUSPEND_DESTROY in usr.sbin/bhyve/*/vmexit.c, newer than 14).  Signals come as
    128 + number.
    """
    if re.search(r"^vm_run error -1, errno 6\b", stderr, re.MULTILINE):
        return Ending.DESTROYED
    if status == 4 and not stderr.strip():
        return Ending.DESTROYED
    if status > 128:
        return Ending.CRASHED if status - 128 in _CRASHES else Ending.KILLED
    found = _BY_STATUS.get(status, Ending.FAILED)
    if status == 1 and _failure_in(stderr):
        return Ending.FAILED
    return found


def _failure_in(stderr: str) -> bool:
    if any(rule.search(stderr) for rule in RULES):
        return True
    return re.search(r"^bhyve: ", stderr, re.MULTILINE) is not None


def decode_bhyve(status: int, stderr: str, state: HostState | None = None) -> Diagnosis:
    """What an end of bhyve means: its status together with its words.

    Args:
        status: exit status, or 128 + signal.
        stderr: all it printed there.
        state: the host's facts, taken after the end; they tell causes apart.
    """
    how = ending(status, stderr)
    if how is Ending.DESTROYED:
        return Diagnosis(
            "the virtual machine was destroyed while it ran (bhyvectl --destroy)", text=stderr
        )
    if how is Ending.CRASHED:
        return _crash(status, stderr)
    if how is Ending.KILLED:
        name = _signal(status)
        return Diagnosis(
            f"bhyve was killed by {name}: its devices stay assigned, and may still do DMA, until "
            "the virtual machine is destroyed",
            f"bhyvectl --vm={(state.vm if state else '') or 'NAME'} --destroy",
            text=stderr,
        )
    if how is not Ending.FAILED:
        fault = Fault.GUEST if how in (Ending.TRIPLE_FAULT, Ending.HALT) else Fault.LAB
        return Diagnosis(str(how), fault=fault, text=stderr)
    found = decode(stderr, state)
    if not found.known:
        return replace(found, meaning=f"bhyve ended with status {status}: {found.meaning}")
    return found


def _signal(status: int) -> str:
    try:
        return signal.Signals(status - 128).name
    except ValueError:
        return f"signal {status - 128}"


def _crash(status: int, stderr: str) -> Diagnosis:
    what = re.search(
        r"Assertion failed:.*|Failed to emulate instruction.*|Unhandled .*|vm exit\[\d+\]", stderr
    )
    name = _signal(status)
    told = what[0].strip()[:300] if what else "it said nothing of why"
    return Diagnosis(
        f"bhyve crashed ({name}): {told}",
        "[report it to the FreeBSD project with this text and the core dump bhyve.core]",
        fault=Fault.PRODUCT,
        text=stderr,
    )


def decode(text: str, state: HostState | None = None) -> Diagnosis:
    """What an error of bhyve, bhyveload, bhyvectl, devctl, kldload … means here.

    The most telling line decides, wherever it stands; what is not recognised is kept and
    shown, with :attr:`Diagnosis.known` false, and is held against the product: a person must
    look at it.
    """
    state = state or HostState()
    for rule in RULES:
        match = rule.search(text)
        if match:
            return rule.diagnose(match, state)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return Diagnosis(
        f"not known to hil: {first[:200]!r}" if first else "nothing was printed",
        "[read the text; report it to hil with the host's release]" if first else "",
        fault=Fault.PRODUCT,
        text=text,
        known=False,
    )
