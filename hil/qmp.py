"""QEMU's monitor (QMP) with deadlines and hil's errors, over the qemu.qmp library.

Source: QEMU's docs/interop/qmp-spec.rst and qemu-qmp-ref.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from hil.deadline import Deadline
from hil.errors import LabError


class Monitor:
    """One connection to a QEMU's monitor.  Safe to use from several threads, one at a time.

    Args:
        address: the path of a unix socket, or a connected socket.
        name: whose monitor it is, for messages.
    """

    def __init__(self, address: str | socket.socket, name: str, deadline: Deadline) -> None:
        from qemu.qmp import QMPError
        from qemu.qmp.legacy import QEMUMonitorProtocol

        self._name = name
        self._lock = threading.Lock()
        self._protocol = QEMUMonitorProtocol(address)
        self._protocol.settimeout(max(deadline.remaining, 0.01))
        try:
            self._protocol.connect()
        except (QMPError, OSError, TimeoutError) as error:
            self.close()
            raise LabError(
                f"no answer from the QEMU monitor of {name}", seen=repr(error)
            ) from error

    def execute(self, command: str, deadline: Deadline, **arguments: object) -> Any:
        """Run a QMP ``command`` and return what it returns.

        Raises:
            LabError: QEMU refused (its words are in ``seen``), or its end of the line is gone.
        """
        from qemu.qmp import QMPError
        from qemu.qmp.legacy import QMPBadPortError

        message = {
            "execute": command,
            "arguments": {k.replace("_", "-"): v for k, v in arguments.items()},
        }
        with self._lock:
            self._protocol.settimeout(max(deadline.remaining, 0.01))
            try:
                answer = self._protocol.cmd_obj(message)
            except (TimeoutError, QMPError, QMPBadPortError, OSError) as error:
                deadline.check(f"QMP command {command} to {self._name}: {error!r}")
                raise LabError(
                    f"the QEMU monitor of {self._name} is gone", seen=f"{command}: {error!r}"
                ) from error
        if "error" in answer:
            raise LabError(
                f"QEMU refused {command} for {self._name}",
                seen=str(answer["error"].get("desc", answer["error"])),
            )
        return answer["return"]

    def human(self, line: str, deadline: Deadline) -> str:
        """Run a human monitor command and return what it prints."""
        return str(self.execute("human-monitor-command", deadline, command_line=line))

    def events(self) -> list[str]:
        """Names of the events that came since the last call."""
        with self._lock:
            names = [str(event["event"]) for event in self._protocol.get_events()]
            self._protocol.clear_events()
        return names

    def close(self) -> None:
        """End the connection.  Safe to call twice."""
        with contextlib.suppress(Exception):
            self._protocol.close()
