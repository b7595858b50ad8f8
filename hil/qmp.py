"""QEMU's monitor (QMP) with deadlines and hil's errors, over the qemu.qmp library.

Source: QEMU's docs/interop/qmp-spec.rst and qemu-qmp-ref.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from hil.deadline import Deadline
from hil.errors import LabError

T = TypeVar("T")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all monitors of the process, in a thread of its own."""
    # The library logs at length what is raised here as an error.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="qmp", daemon=True).start()
    return loop


class Monitor:
    """One connection to a QEMU's monitor.  Safe to use from several threads.

    Args:
        address: the path of a unix socket, or a connected socket.
        name: whose monitor it is, for messages.
        deadline: for QEMU's greeting.
    """

    def __init__(self, address: str | socket.socket, name: str, deadline: Deadline) -> None:
        from qemu.qmp import QMPClient

        self._name = name
        self._client = QMPClient(name)
        try:
            self._wait(self._client.connect(address), deadline, "its greeting")
        except LabError:
            self.close()
            raise

    def execute(self, command: str, deadline: Deadline, **arguments: object) -> Any:
        """Run a QMP ``command`` and return what it returns.

        Raises:
            LabError: QEMU refused (its words are in ``seen``), or its end of the line is gone.
        """
        from qemu.qmp import ExecuteError

        words = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            return self._wait(self._client.execute(command, words), deadline, command)
        except ExecuteError as error:
            raise LabError(f"QEMU refused {command} for {self._name}", seen=str(error)) from error

    def human(self, line: str, deadline: Deadline) -> str:
        """Run a human monitor command and return what it prints."""
        return str(self.execute("human-monitor-command", deadline, command_line=line))

    def events(self) -> list[str]:
        """Names of the events that came since the last call."""

        async def drain() -> list[str]:
            return [str(event["event"]) for event in self._client.events.clear()]

        return asyncio.run_coroutine_threadsafe(drain(), _loop()).result()

    def close(self) -> None:
        """End the connection.  Safe to call twice."""
        # The library asserts that nobody gave up on a connection half made.
        with contextlib.suppress(LabError, AssertionError):
            self._wait(self._client.disconnect(), Deadline(5, "the monitor's end"), "the end")

    def _wait(self, action: Coroutine[Any, Any, T], deadline: Deadline, what: str) -> T:
        from qemu.qmp import ExecuteError, QMPError

        job = asyncio.run_coroutine_threadsafe(action, _loop())
        try:
            return job.result(max(deadline.remaining, 0.01))
        except ExecuteError:
            raise
        except TimeoutError:
            job.cancel()
            raise deadline.exceeded(
                f"no answer to {what} from the monitor of {self._name}"
            ) from None
        except (QMPError, OSError, EOFError) as error:
            raise LabError(
                f"the QEMU monitor of {self._name} is gone", seen=f"{what}: {error!r}"
            ) from error
