"""Have a guest draw on a display that was passed to it, by its own driver.

A Python program in the guest (:mod:`hil.probes.remote.on_display`) sets a mode and draws through
``/dev/dri`` with a dumb buffer; where the driver makes only a frame buffer, through ``/dev/fbN``,
and says why.
"""

from __future__ import annotations

import base64
from types import TracebackType
from typing import Any, Self

from hil import events
from hil.bench import BenchDevice
from hil.errors import GuestError, LabError
from hil.guests.guest import Guest
from hil.transport.agent import Agent, AgentEndedError, AgentError, program

#: The smallest mode that is taken, pixels; a display with no such mode is asked for its largest.
WIDTH, HEIGHT = 640, 480


class Display:
    """The display of a passed device, driven from its guest; to be used in a ``with`` block.

    At the end of the block the guest takes its picture back.

    Attributes:
        mode: width and height in pixels.
        by: ``drm``, or ``fb`` with the reason in ``why``.

    Raises:
        GuestError: the guest has no Python 3, no driver for the device, or no display is
            connected to it.
    """

    def __init__(self, guest: Guest, device: BenchDevice) -> None:
        self._guest = guest
        deadline = guest.limit(30, "the program that draws")
        try:
            self._agent = Agent(guest.ssh, program("hil.probes.remote", "on_display"), deadline)
        except AgentEndedError as error:
            raise self._error(error, "has the guest's image Python 3?") from error
        try:
            found = self._ask("open", address=str(guest.address_of(device.address)))
            self.by, self.why = str(found["by"]), str(found["why"])
            self.mode = choose([(int(w), int(h)) for w, h in found["modes"]])
        except BaseException:
            self._agent.close()
            raise
        if self.why:
            events.emit(events.Evidence(f"{device.name}: no DRM", self.why.encode()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._agent.close()

    def show(self, width: int, height: int, packed: bytes) -> None:
        """Set the mode of this size and draw.

        Args:
            width: of a mode that the display has, pixels.
            height: likewise.
            packed: by zlib, rows of 4 bytes a pixel: blue, green, red, unused.
        """
        data = base64.b64encode(packed).decode("ascii")
        self._ask("show", width=width, height=height, data=data)

    def keep_drawing(self) -> None:
        """Draw the picture and its negative by turns, without end; returns once it goes on."""
        self._ask("keep_drawing")

    def _ask(self, what: str, **arguments: object) -> Any:
        deadline = self._guest.limit(30, f"{what} by the program that draws")
        try:
            return self._agent.ask(what, deadline, **arguments)
        except (AgentError, AgentEndedError) as error:
            hint = "has its kernel a driver for the device? its console tells"
            raise self._error(error, hint) from error

    def _error(self, error: LabError, hint: str) -> GuestError:
        return GuestError(
            f"guest {self._guest.name} cannot draw: {error.message}",
            seen=error.seen,
            hint=hint,
            console=self._guest.console.log.tail(10),
        )


def choose(modes: list[tuple[int, int]]) -> tuple[int, int]:
    """Of a display's modes the smallest that is :data:`WIDTH` × :data:`HEIGHT` or more.

    Raises:
        GuestError: there are none at all.
    """
    if not modes:
        raise GuestError("the display has no mode", hint="is anything connected to it?")
    wanted = [mode for mode in modes if mode[0] >= WIDTH and mode[1] >= HEIGHT]
    return min(wanted, key=_pixels) if wanted else max(modes, key=_pixels)


def _pixels(mode: tuple[int, int]) -> int:
    return mode[0] * mode[1]
