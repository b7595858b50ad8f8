"""The power of an emulated lab's host: QEMU's, out of band."""

from __future__ import annotations

from typing import Protocol

from hil.deadline import Deadline
from hil.power.base import Power, PowerState


class Machine(Protocol):
    """What :class:`hil.emulated.machine.EmulatedLab` has of it."""

    def has_power(self, deadline: Deadline) -> bool: ...
    def power_off(self, deadline: Deadline) -> None: ...
    def power_cycle(self, deadline: Deadline) -> None: ...


class EmulatedPower(Power):
    """See :class:`hil.power.base.Power`; :meth:`on` returns when the host has booted."""

    def __init__(self, host: str, machine: Machine) -> None:
        super().__init__(host)
        self._machine = machine

    def state(self, deadline: Deadline) -> PowerState:
        """Whether its processors run."""
        return PowerState.ON if self._machine.has_power(deadline) else PowerState.OFF

    def on(self, deadline: Deadline) -> None:
        """Boot it, if it is off."""
        if not self._machine.has_power(deadline):
            self._machine.power_cycle(deadline)

    def off(self, deadline: Deadline) -> None:
        """Reset it and let its processors stand still."""
        self._machine.power_off(deadline)

    def cycle(self, deadline: Deadline) -> None:
        """At once: it has no power supply to run empty."""
        self._machine.power_cycle(deadline)
