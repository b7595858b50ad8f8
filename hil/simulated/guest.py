"""A guest of the simulated bhyve: its life from the kernel's first line to its end; FreeBSD's.

bhyve's own process calls :meth:`Guest.run`, which boots, and returns when the guest has
ended.  Everything else happens beside it: the console's log-in and shell, commands by SSH,
frames and interrupts, each in the thread of whoever causes it.
"""

from __future__ import annotations

import contextlib
import enum
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from hil.simulated import guest_text as text
from hil.simulated.console import Tty
from hil.simulated.files import Device
from hil.simulated.guest_commands import guest_commands
from hil.simulated.guest_image import GuestImage
from hil.simulated.guest_kernel import FreebsdKernel, GuestKernel, Hardware
from hil.simulated.guest_network import GuestNetworks
from hil.simulated.guest_system import FreebsdSystem, GuestSystem
from hil.simulated.process import Command, Killed, OpenFile, Process
from hil.simulated.shell import PATH, Shell

if TYPE_CHECKING:
    from hil.simulated.server import SshServer


class Ending(enum.IntEnum):
    """How a guest ended; the value is bhyve's exit status."""

    REBOOT = 0
    POWEROFF = 1
    HALT = 2
    TRIPLE_FAULT = 3


class Guest(ABC):
    """A guest with its memory set up and its devices assigned.

    Args:
        hardware: what it runs on.
        image: what its disk holds.
        send: transmits on its first serial port; may wait for whoever reads there.
        networks: where its SSH server can be found from the host.
    """

    #: Its serial port, in /dev.
    serial: ClassVar[str]
    kernel_class: ClassVar[type[GuestKernel]]
    system_class: ClassVar[type[GuestSystem]]

    def __init__(
        self,
        hardware: Hardware,
        image: GuestImage,
        *,
        send: Callable[[bytes], None],
        networks: GuestNetworks,
    ) -> None:
        self.name = hardware.vm.name
        self.image = image
        self.ending: Ending | None = None
        self._vm = hardware.vm
        self._send = send
        self._networks = networks
        self._changed = threading.Condition()
        self._stopped = False
        self._started = time.monotonic()
        self.kernel = self.kernel_class(hardware, image, self._kernel_says)
        self.tty = Tty(transmit=self._transmit)
        self.system = self.system_class(image, self.kernel)
        self._furnish()
        for path in ("/dev/console", f"/dev/{self.serial}"):
            self.system.files.add(path, Device(lambda _process, _mode: self.tty))

    @abstractmethod
    def _furnish(self) -> None:
        """Give its userland the commands and files that ask the guest itself."""

    # ---- bhyve's side ---------------------------------------------------------------

    def run(self, process: Process) -> Ending:
        """Boot, and wait for the end, in bhyve's own process.

        A signal that ends that process ends the guest as it stands, without a word, and so does
        :meth:`stop`.
        """
        self._vm.start()
        try:
            self._boot()
            with self._changed:
                process.wait_on(self._changed, lambda: self.ending is not None or self._stopped)
        finally:
            self.stop()
        return self.ending if self.ending is not None else Ending.POWEROFF

    def stop(self) -> None:
        """Its processors run no further instruction; devices keep what they were told."""
        self._stopped = True
        with self._changed:
            self._changed.notify_all()
        self._networks.remove(self)
        self.kernel.stop()
        self.system.kill_all()
        if not self._vm.destroyed:
            self._vm.stop()

    def receive(self, data: bytes) -> None:
        """Bytes arrive at its first serial port."""
        if not self._stopped:
            self._received(data)

    def _received(self, data: bytes) -> None:
        self.tty.received(data)

    @abstractmethod
    def power_button(self) -> None:
        """ACPI's power button: what SIGTERM makes bhyve press."""

    def reset(self) -> None:
        """``bhyvectl --force-reset``."""
        self._end(Ending.REBOOT)

    def power_off(self) -> None:
        """``bhyvectl --force-poweroff``."""
        self._end(Ending.POWEROFF)

    @abstractmethod
    def nmi(self) -> None:
        """``bhyvectl --inject-nmi``."""

    def _end(self, ending: Ending) -> None:
        with self._changed:
            if self.ending is None:
                self.ending = ending
            self._changed.notify_all()

    # ---- the console ----------------------------------------------------------------

    def _transmit(self, data: bytes) -> None:
        if not self._stopped:
            self._send(data)

    def _kernel_says(self, line: str) -> None:
        """The kernel's own lines end in CR LF, whatever the terminal's modes are."""
        self._transmit(line.encode() + b"\r\n")

    def _print(self, words: str) -> None:
        """Output of a process, through the terminal."""
        self._transmit(words.replace("\n", "\r\n").encode())

    # ---- boot -----------------------------------------------------------------------

    @abstractmethod
    def _boot(self) -> None:
        """From the kernel's first line to the log-in prompt, which goes on beside."""

    def _begin_getty(self, arguments: Sequence[str], body: Command, path: str, tty: str) -> None:
        """Have somebody ask for log-ins at the serial port."""
        terminal = OpenFile(self.tty, f"/dev/{self.serial}")
        process = self.system.process(
            list(arguments),
            environment={"TERM": "xterm", "HOME": "/root", "USER": "root", "PATH": path},
            directory="/root",
            files=dict.fromkeys(range(3), terminal),
            tty=tty,
        )
        process.run_beside(process, body)

    def listen(self, port: int, server: SshServer) -> Process:
        """Its sshd(8) listens on ``port``, in a process that stays, which is returned."""
        self._networks.add(self, port, server)
        daemon = self.system.process(["sshd"], environment={}, directory="/", files={})
        daemon.listening.append(("*", port))
        return daemon

    # ---- the end --------------------------------------------------------------------

    def _beside(self, act: Callable[[], None]) -> None:
        """Shut down beside whoever asked for it."""

        def run() -> None:
            with contextlib.suppress(Killed):  # bhyve's process has ended meanwhile
                act()

        threading.Thread(target=run, name=f"shutdown-{self.name}", daemon=True).start()

    def _stand(self) -> None:
        """Its kernel runs nothing more: it has panicked, or stands at its debugger."""
        self._networks.remove(self)
        self.kernel.stop()
        self.system.kill_all()


class FreebsdGuest(Guest):
    """A guest that runs FreeBSD."""

    serial = "ttyu0"
    kernel_class = FreebsdKernel
    system_class = FreebsdSystem
    _halted = False
    _debugger = False

    def _furnish(self) -> None:
        self.system.commands |= guest_commands(self)

    # ---- bhyve's side ---------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        if self._halted:
            self._end(Ending.REBOOT)
        elif self._debugger:
            self._debug(data)
        else:
            super()._received(data)

    def power_button(self) -> None:
        if not (self._debugger or self._halted):
            self.go_down("poweroff")

    def nmi(self) -> None:
        """machdep.kdb_on_nmi is 1 by default."""
        if not self._debugger:
            self._enter_debugger(text.NMI)

    # ---- boot -----------------------------------------------------------------------

    def _boot(self) -> None:
        for line in self.kernel.boot_lines():
            if line.voice is text.Voice.KERNEL:
                self._kernel_says(line.text)
            else:
                self._print(line.text + "\n")
        self._begin_getty(["getty", "std.9600", "ttyu0"], self._getty, PATH, "u0")

    def _getty(self, process: Process) -> int:
        """getty(8), login(1) and root's shell, over and over."""
        while True:
            process.out(text.banner(self.image.hostname))
            user = ""
            while not user:
                process.out("login: ")
                user = process.read(1024).decode("utf-8", "replace").strip()
            if user != "root":
                process.out("Password:")
                process.read(1024)
                process.out("Login incorrect\n")
                continue
            process.out(text.logged_in(self.image.hostname, process.pid))
            with contextlib.suppress(EOFError):
                Shell(process).interactive(text.prompt(self.image.hostname))
            process.out("logout\n")

    # ---- the end --------------------------------------------------------------------

    def go_down(self, how: str, *, by_shutdown: bool = True, pid: int = 0) -> None:
        """Shut down in order, beside whoever asked: shutdown(8), reboot(8), halt(8).

        Args:
            how: ``poweroff``, ``reboot`` or ``halt``.
            by_shutdown: whether rc's scripts stop what they had started.
            pid: of the shutdown(8) that tells everybody; 0 if nobody is told.
        """
        self._beside(lambda: self._shut_down(how, by_shutdown, pid))

    def _shut_down(self, how: str, by_shutdown: bool, pid: int) -> None:
        if by_shutdown:
            if pid:
                what = "power-down" if how == "poweroff" else how
                self._print(text.shutdown_notice(self.image.hostname, pid, what))
            self._print(text.RC_SHUTDOWN)
        self._networks.remove(self)
        self.system.kill_all()
        for line in text.sync_lines(time.monotonic() - self._started):
            self.kernel.log(line)
        self.kernel.detach_all()
        if how == "halt":
            for line in text.HALTED:
                self.kernel.log(line)
            self._halted = True
            return
        if how == "poweroff":
            self.kernel.log(text.POWERING_OFF)
        self._end(Ending.POWEROFF if how == "poweroff" else Ending.REBOOT)

    def panic(self, reason: str, pid: int, where: Sequence[str]) -> None:
        """The kernel panics, and stands at its debugger."""
        self._enter_debugger(text.panic_lines(reason, pid, where))

    def _enter_debugger(self, lines: Sequence[str]) -> None:
        self._debugger = True
        for line in lines:
            self.kernel.log(line)
        self._transmit(text.DEBUGGER.encode())
        self._stand()

    def _debug(self, data: bytes) -> None:
        """ddb(4), as far as a person needs it to leave."""
        data = data.replace(b"\r", b"\n")
        self._transmit(data.replace(b"\n", b"\r\n"))
        for line in data.split(b"\n")[:-1]:
            command = line.strip()
            if command in (b"reset", b"reboot"):
                self._end(Ending.REBOOT)
                return
            if command:
                self._kernel_says('No such command; use "help" to list available commands')
            self._transmit(text.DEBUGGER.encode())


def guest_class(image: GuestImage) -> type[Guest]:
    """Whose guest a disk boots."""
    from hil.simulated.linux.guest import LinuxGuest

    return {"linux": LinuxGuest, "freebsd": FreebsdGuest}[image.os]
