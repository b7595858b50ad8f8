"""An outlet of a power distribution unit, by one of labgrid's drivers.

labgrid has a module for each model of unit (``labgrid.driver.power``), with two functions:
``power_set(host, port, index, value)`` and ``power_get(host, port, index)``.  They stand alone:
none of labgrid's own configuration is needed.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from hil.deadline import Deadline
from hil.errors import InventoryError, LabError
from hil.power.base import Power, PowerState, within
from hil.power.bmc import library

_MODULES = "labgrid.driver.power"


class OutletPower(Power):
    """See :class:`hil.power.base.Power`.

    Args:
        host: the host's name in the inventory.
        model: the unit's, as labgrid's NetworkPowerPort calls it.
        address: host name of the unit, or for some models a URL.
        index: which outlet.
        port: TCP port, for models that have one; by default theirs.
    """

    def __init__(
        self, host: str, model: str, address: str, index: str, port: int | None = None
    ) -> None:
        super().__init__(host)
        self._model, self._address, self._index, self._port = model, address, index, port

    def state(self, deadline: Deadline) -> PowerState:
        """What the unit says of the outlet; some cannot tell."""
        driver = self._driver()
        if not hasattr(driver, "power_get"):
            return PowerState.UNKNOWN
        where = self._where(driver)
        answer = within(deadline, self.host, lambda: driver.power_get(*where))
        return PowerState.ON if answer else PowerState.OFF

    def on(self, deadline: Deadline) -> None:
        """Switch the outlet on."""
        self._set(True, deadline)

    def off(self, deadline: Deadline) -> None:
        """Switch the outlet off."""
        self._set(False, deadline)

    def _set(self, value: bool, deadline: Deadline) -> None:
        driver = self._driver()
        where = self._where(driver)
        within(deadline, self.host, lambda: driver.power_set(*where, value))
        self._reach(PowerState.ON if value else PowerState.OFF, deadline)

    def _where(self, driver: Any) -> tuple[str, int | None, str]:
        # Without a port of its own, a model takes a URL and wants none.
        default = getattr(driver, "PORT", None)
        return self._address, (self._port or default) if default else None, self._index

    def _driver(self) -> Any:
        try:
            models = [module.name for module in pkgutil.iter_modules(library(_MODULES).__path__)]
        except LabError as error:
            error.hint = "pip install 'hil[labgrid]'"
            raise
        if self._model not in models:
            raise InventoryError(
                f"labgrid has no driver for power units of the model {self._model!r}",
                hint=f"hosts.{self.host}.power.model is one of: {', '.join(models)}",
            )
        return library(f"{_MODULES}.{self._model}")
