"""A Linux guest's life on its console; see :mod:`hil.simulated.guest`."""

from __future__ import annotations

import contextlib

from hil.simulated.guest import Ending, Guest
from hil.simulated.guest_image import GuestImage
from hil.simulated.guest_kernel import GuestKernel
from hil.simulated.guest_system import GuestSystem
from hil.simulated.guest_text import Voice
from hil.simulated.linux import sysfs, text
from hil.simulated.linux.commands import linux_commands
from hil.simulated.linux.kernel import LinuxKernel
from hil.simulated.process import Process
from hil.simulated.shell import Shell

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONSOLE = "console=ttyS0"


class LinuxSystem(GuestSystem):
    """The processes of one boot of a Linux guest, over its kernel."""

    disk_mode = 0o660

    def __init__(self, image: GuestImage, kernel: GuestKernel) -> None:
        super().__init__(image, kernel, build=image.kernel)
        for name in ("/run", "/dev/shm"):
            self.files.make_directory(name)


class LinuxGuest(Guest):
    """A guest that runs Linux."""

    serial = "ttyS0"
    kernel_class = LinuxKernel
    system_class = LinuxSystem
    kernel: LinuxKernel
    reboot_type = "acpi"
    """``/sys/kernel/reboot/type``."""
    _dead = False
    """Whether its processors do nothing any more: panicked, or halted."""

    def _furnish(self) -> None:
        own = self.system.files.root.own
        own["sys"], own["proc"] = sysfs.sys(self), sysfs.proc(self)
        self.system.commands |= linux_commands(self)

    # ---- bhyve's side ----------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        if not self._dead:
            super()._received(data)

    def power_button(self) -> None:
        if not self._dead:
            self.kernel.log("systemd-logind[412]: Power key pressed short.")
            self.go_down("poweroff")

    def nmi(self) -> None:
        if not self._dead:
            for line in text.NMI:
                self.kernel.log(line)

    # ---- the console -----------------------------------------------------------------

    @property
    def _has_console(self) -> bool:
        return _CONSOLE in self.kernel.arguments

    def _kernel_says(self, line: str) -> None:
        if self._has_console:
            super()._kernel_says(line)

    def _print(self, words: str) -> None:
        if self._has_console:
            super()._print(words)

    # ---- boot ------------------------------------------------------------------------

    def _boot(self) -> None:
        if self.image.firmware:
            words = text.FIRMWARE.format(release=self.image.release)
            self._transmit(words.replace("\n", "\r\n").encode())
        for line in self.kernel.boot_lines():
            if line.voice is Voice.KERNEL:
                self._kernel_says(line.text)
            else:
                self._print(line.text + "\n")
        if not text.root_found(self.image):
            self._die()
        elif self._has_console:
            self._begin_getty(["agetty", "--keep-baud", "ttyS0"], self._getty, _PATH, "S0")

    def _getty(self, process: Process) -> int:
        """agetty(8), login(1) and root's shell, over and over.  Root has no password."""
        while True:
            process.out(text.issue(self.image.hostname))
            user = ""
            while not user:
                process.out(f"{self.image.hostname} login: ")
                user = process.read(1024).decode("utf-8", "replace").strip()
            if user != "root":
                process.out("Password: ")
                process.read(1024)
                process.out("\n\nLogin incorrect\n")
                continue
            process.out(text.logged_in(self.image))
            with contextlib.suppress(EOFError):
                Shell(process).interactive(text.prompt(self.image.hostname))
            process.out("logout\n")

    # ---- the end ---------------------------------------------------------------------

    def go_down(self, how: str, *, force: bool = False) -> None:
        """Shut down beside whoever asked.

        Args:
            how: ``poweroff``, ``reboot`` or ``halt``.
            force: at once, without a word of systemd's.
        """
        self._beside(lambda: self._shut_down(how, force))

    def _shut_down(self, how: str, force: bool) -> None:
        if not force:
            self._print(text.shutdown(how))
        self._networks.remove(self)
        self.system.kill_all()
        self.kernel.detach_all()
        self.kernel.log(text.LAST[how])
        if how == "poweroff":
            self._end(Ending.POWEROFF)
        elif how == "halt":
            self._end(Ending.HALT)
        elif self.reboot_type == "triple":
            self._triple_fault()
        else:
            self._end(Ending.REBOOT)

    def _triple_fault(self) -> None:
        # On AMD it did not end bhyve 13.2: the recorded guest stood for ever.
        if self._vm.machine.spec.vendor == "amd":
            self._die()
        else:
            self._end(Ending.TRIPLE_FAULT)

    def sysrq(self, key: str) -> None:
        """A write to ``/proc/sysrq-trigger``: ``c`` crashes, ``b`` and ``o`` end it at once."""
        if key[:1] == "c":
            self.kernel.log("sysrq: Trigger a crash")
            self.panic("sysrq triggered crash")
        elif key[:1] in ("b", "o"):
            self.kernel.log("sysrq: Resetting" if key[0] == "b" else "sysrq: Power Off")
            self._end(Ending.REBOOT if key[0] == "b" else Ending.POWEROFF)

    def panic(self, reason: str) -> None:
        """The kernel panics, and does nothing more; it restarts only if told ``panic=``."""
        for line in text.panic_lines(reason, "sh", 512, self.image):
            self.kernel.log(line)
        self._die()

    def _die(self) -> None:
        self._dead = True
        self._stand()
