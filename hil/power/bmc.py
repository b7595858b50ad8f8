"""The host's own management controller: by IPMI 2.0 (pyghmi) or by Redfish (sushy).

Both libraries are of the extra ``power`` and are imported when first used.  Sources: IPMI 2.0,
28.2 and 28.3 (chassis status and control); Redfish, ComputerSystem.Reset (DSP0268).
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from hil.deadline import Deadline
from hil.errors import LabError
from hil.power.base import Power, PowerState, refusal, within
from hil.transport.local import LocalTransport

IPMI_PORT = 623

# One JSON object on standard input; prints the state when asked for it.
_ASK = """
import json, sys
from pyghmi.ipmi.command import Command
question = json.load(sys.stdin)
what = question.pop("what")
controller = Command(keepalive=False, **question)
if what == "state":
    print(controller.get_power()["powerstate"])
else:
    controller.set_power(what)
"""


class IpmiPower(Power):
    """A BMC by IPMI over LAN (RMCP+, UDP).

    Args:
        host: the host's name in the inventory.
        address: the BMC's.
        user: who to log in as.
        password: its password.
        port: UDP port.
    """

    def __init__(
        self, host: str, address: str, user: str, password: str, port: int = IPMI_PORT
    ) -> None:
        super().__init__(host)
        self._address, self._user, self._password, self._port = address, user, password, port

    def state(self, deadline: Deadline) -> PowerState:
        """By Get Chassis Status."""
        return _state(self._ask("state", deadline))

    def on(self, deadline: Deadline) -> None:
        """By Chassis Control: power up."""
        self._ask("on", deadline)
        self._reach(PowerState.ON, deadline)

    def off(self, deadline: Deadline) -> None:
        """By Chassis Control: power down at once, without the system's consent."""
        self._ask("off", deadline)
        self._reach(PowerState.OFF, deadline)

    def _ask(self, what: str, deadline: Deadline) -> str:
        # In a process of its own: pyghmi keeps sessions between calls, and knows no deadline.
        library("pyghmi")
        question = {
            "bmc": self._address,
            "userid": self._user,
            "password": self._password,
            "port": self._port,
            "what": what,
        }
        result = LocalTransport(self.host).run(
            [sys.executable, "-c", _ASK],
            stdin=json.dumps(question).encode(),
            deadline=deadline,
        )
        if result.status != 0:
            raise refusal(self.host, result.stderr.strip().rpartition("\n")[2])
        return result.stdout.strip()


class RedfishPower(Power):
    """A BMC by Redfish.

    Args:
        host: the host's name in the inventory.
        url: of the service, such as ``https://bmc.example.org``.
        user: who to log in as.
        password: its password.
        system: path of the system, ``/redfish/v1/Systems/1``; empty: the only one.
        verify: whether its certificate must be right, or a file of authorities to trust.
    """

    def __init__(
        self,
        host: str,
        url: str,
        user: str,
        password: str,
        system: str = "",
        verify: bool | str = True,
    ) -> None:
        super().__init__(host)
        self._url, self._user, self._password = url, user, password
        self._path, self._verify = system, verify

    def state(self, deadline: Deadline) -> PowerState:
        """By the system's PowerState."""
        answer = within(deadline, self.host, lambda: self._system(deadline).power_state)
        return _state(answer.value if answer is not None else None)

    def on(self, deadline: Deadline) -> None:
        """By ComputerSystem.Reset: On."""
        self._set("ON", PowerState.ON, deadline)

    def off(self, deadline: Deadline) -> None:
        """By ComputerSystem.Reset: ForceOff."""
        self._set("FORCE_OFF", PowerState.OFF, deadline)

    def _set(self, kind: str, wanted: PowerState, deadline: Deadline) -> None:
        # Some controllers refuse what is so already.
        if self.state(deadline) is not wanted:
            reset = library("sushy").ResetType[kind]
            within(deadline, self.host, lambda: self._system(deadline).reset_system(reset))
        self._reach(wanted, deadline)

    def _system(self, deadline: Deadline) -> Any:
        seconds = max(1.0, min(deadline.remaining, 60.0))
        service = library("sushy").Sushy(
            self._url,
            username=self._user,
            password=self._password,
            verify=self._verify,
            server_side_retries=0,
            read_timeout=seconds,
            connect_timeout=seconds,
        )
        return service.get_system(self._path or None)


#: What controllers say.  On the way to a state it is not there yet (DSP0268, PowerState).
_STATES = {
    "on": PowerState.ON,
    "poweringoff": PowerState.ON,
    "off": PowerState.OFF,
    "poweringon": PowerState.OFF,
}


def _state(word: object) -> PowerState:
    return _STATES.get(str(word).lower(), PowerState.UNKNOWN)


def library(name: str) -> Any:
    """The module of an optional library.

    Raises:
        LabError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LabError(
            f"{name.partition('.')[0]} is not installed: it speaks to what switches the power",
            seen=str(error),
            hint="pip install 'hil[power]'",
        ) from None
