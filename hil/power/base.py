"""What can switch a host off and on when it no longer answers."""

from __future__ import annotations

import enum
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from hil.deadline import Deadline, poll
from hil.errors import HilError, LabError

T = TypeVar("T")

#: Seconds without power in a cycle: power supplies keep a host alive for some of them.
REST = 5.0


class PowerState(enum.Enum):
    """Whether a host has power."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"
    """What switches it cannot tell."""


class Power(ABC):
    """The power of one host.

    Nothing here asks the host's system first: what it had not written is lost.
    """

    def __init__(self, host: str) -> None:
        self.host = host

    @abstractmethod
    def state(self, deadline: Deadline) -> PowerState:
        """Whether the host has power now."""

    @abstractmethod
    def on(self, deadline: Deadline) -> None:
        """Give it power; nothing happens if it has it.  The host then boots for a while."""

    @abstractmethod
    def off(self, deadline: Deadline) -> None:
        """Take its power away; returns when it is gone."""

    def cycle(self, deadline: Deadline) -> None:
        """Off, and on again after :data:`REST` seconds."""
        self.off(deadline)
        rest = Deadline(REST, "power supplies to run empty")
        poll(lambda: rest.expired, deadline)
        self.on(deadline)

    def _reach(self, wanted: PowerState, deadline: Deadline) -> None:
        """Wait until the host has come to a state, where that can be told."""
        seen = PowerState.UNKNOWN

        def reached() -> bool:
            nonlocal seen
            seen = self.state(deadline)
            return seen in (wanted, PowerState.UNKNOWN)

        poll(
            reached,
            deadline.within(60, f"the power of {self.host} to be {wanted.value}"),
            interval=0.2,
            last_seen=lambda: f"it is {seen.value}",
        )


def refusal(host: str, seen: str) -> LabError:
    """The error for what switches a host's power and did not do so."""
    return LabError(
        f"what switches the power of {host} refused",
        host=host,
        seen=seen,
        hint=f"are address, user and password right? see hosts.{host}.power",
    )


def within(deadline: Deadline, host: str, call: Callable[[], T]) -> T:
    """What ``call`` returns, if it does so in time: for libraries that know no deadline.

    Raises:
        DeadlineExceeded: it may still be at work, and its effect may come later.
        LabError: it raised something that is no error of hil's, which is shown.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name=f"power of {host}").start()
    done, _ = wait([future], timeout=min(deadline.remaining, threading.TIMEOUT_MAX))
    if not done:
        raise deadline.exceeded(f"nothing heard from what switches {host}", host=host)
    try:
        return future.result()
    except HilError:
        raise
    except Exception as error:
        raise refusal(host, f"{type(error).__name__}: {error}") from error
