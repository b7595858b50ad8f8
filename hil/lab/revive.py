"""What became of a host that no longer answers, and how it is brought back.

A host that died under a test is the product's failure; a connection that broke while its host
went on is the lab's.  So it is asked which boot it is in, once it answers again.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from hil import events
from hil.deadline import Deadline, poll
from hil.errors import HilError, LabError
from hil.lab.watch import Watch, same_boot
from hil.power.base import Power

#: Seconds in which a host whose power nothing can switch may come back by itself, as kernels
#: that panic often do; and for one that was switched on to boot.
BY_ITSELF, BOOT = 120.0, 900.0
#: Seconds to switch a host off and on.
SWITCH = 180.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a host."""

    words: str
    """What happened to it, after its name: ``died: …``."""
    died: bool
    """Whether it is the host that failed, not the way to it."""
    is_back: bool
    """Whether it answers again already."""


def autopsy(watch: Watch) -> Verdict:
    """Tell what became of a host whose connection is of no use any more.

    Takes as long as the watch gives a host to answer.
    """
    death = watch.death
    if death:
        return Verdict(f"died: {death}", died=True, is_back=False)
    try:
        boot = _boot(watch, Deadline(watch.limit, f"{watch.host} to answer"))
    except HilError as error:
        # The console may have told meanwhile.
        death = str(watch.death) or f"it no longer answers ({error.message})"
        return Verdict(f"died: {death}", died=True, is_back=False)
    if same_boot(boot, watch.boot):
        return Verdict("was cut off for a while: it is up all along", died=False, is_back=True)
    return Verdict("restarted by itself", died=True, is_back=True)


def bring_back(watch: Watch, power: Power, pace: float = 1.0) -> None:
    """Switch a dead host off and on, and wait until it answers.

    Where nothing can switch it, it may come back by itself.

    Raises:
        LabError: it does not come back; says what a person must do.
    """
    with events.step(f"bring back {watch.host}"):
        try:
            power.cycle(Deadline(SWITCH * pace, f"the power of {watch.host}"))
        except HilError as error:
            limit = Deadline(BY_ITSELF * pace, f"{watch.host} to come back by itself")
            if not _comes_back(watch, limit):
                raise LabError(
                    f"{watch.host} is dead and cannot be brought back: {error.message}",
                    host=watch.host,
                    seen=error.seen,
                    hint=error.hint,
                ) from error
            return
        if not _comes_back(watch, Deadline(BOOT * pace, f"{watch.host} to boot")):
            raise LabError(
                f"{watch.host} did not come back after its power was switched off and on",
                host=watch.host,
                hint=f"is it the right switch? see hosts.{watch.host}.power and its console",
            )


def _comes_back(watch: Watch, deadline: Deadline) -> bool:
    """Whether it answers in time, and in another boot than the one it had."""

    def is_back() -> bool:
        limit = deadline.within(max(watch.limit, 5.0), f"{watch.host} to answer")
        with contextlib.suppress(HilError):
            return not same_boot(_boot(watch, limit), watch.boot)
        return False

    try:
        return poll(is_back, deadline, interval=0.2)
    except HilError:
        return False


def _boot(watch: Watch, deadline: Deadline) -> str:
    transport = watch.reach(deadline)
    try:
        return watch.boot_of(transport)
    finally:
        transport.close()
