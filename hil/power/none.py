"""A host whose power nothing can switch: it says what a person must do."""

from __future__ import annotations

from hil.deadline import Deadline
from hil.errors import LabError
from hil.power.base import Power, PowerState


class NoPower(Power):
    """See :class:`hil.power.base.Power`."""

    def state(self, deadline: Deadline) -> PowerState:
        """Nobody knows."""
        deadline.check()
        return PowerState.UNKNOWN

    def on(self, deadline: Deadline) -> None:
        """Raise LabError: a person must do it."""
        deadline.check()
        raise self._needs_a_person("switch it on")

    def off(self, deadline: Deadline) -> None:
        """Raise LabError: a person must do it."""
        deadline.check()
        raise self._needs_a_person("switch it off at its power supply")

    def cycle(self, deadline: Deadline) -> None:
        """Raise LabError: a person must do it."""
        deadline.check()
        raise self._needs_a_person("press its reset button, or take its power away for ten seconds")

    def _needs_a_person(self, what: str) -> LabError:
        return LabError(
            f"nothing can switch the power of {self.host} from here",
            host=self.host,
            hint=f"go to {self.host} and {what}; or say in hosts.{self.host}.power what can",
        )
