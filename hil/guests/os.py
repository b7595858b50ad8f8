"""How one guest operating system differs from another, in one place.

A :class:`GuestOS` gives argument lists and parses what they print; it never talks to a
guest itself.  Suites and probes ask the :class:`~hil.guests.guest.Guest`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from hil.errors import LabError
from hil.pci.address import Address
from hil.platforms.contract import Bar


@dataclass(frozen=True, slots=True)
class SeenFunction:
    """A PCI function as a guest sees it."""

    address: Address
    vendor: int
    device: int
    driver: str | None


@dataclass(frozen=True, slots=True)
class SeenBar:
    """A base address register as a guest sees it; ``address`` is 0 if it has got none."""

    address: int
    size: int


class GuestOS(ABC):
    """One family of guests."""

    name: str
    rescue: bytes = b""
    """Regular expression of what the console shows where the system did not come up and somebody
    is to mend it there; empty if :meth:`is_up` alone can tell."""
    user = "root"

    @abstractmethod
    def power_off(self) -> list[str]: ...

    @abstractmethod
    def reboot(self) -> list[str]: ...

    @abstractmethod
    def crash(self) -> list[str]:
        """Make the kernel panic at once."""

    @abstractmethod
    def triple_fault(self) -> list[str]:
        """End the CPU by a triple fault."""

    @abstractmethod
    def let_in(self, mac: str, address: str, key: str, port: int) -> list[str]:
        """Let root log in by SSH, as typed at the console; prints a line ``ssh-ed25519 …``.

        For platforms that have no other way to tell a guest its address.  Nothing of what
        the image itself has set up is used or changed, and it may be run again.

        Args:
            mac: of the interface, as ``02:00:00:00:00:01``.
            address: its address, ``198.19.0.2/30``.
            key: the public key to accept, a line of a ``.pub`` file.
            port: where the server listens.
        """

    @abstractmethod
    def boot_id(self) -> list[str]:
        """Prints a text that differs after each boot."""

    @abstractmethod
    def list_functions(self) -> list[str]: ...

    @abstractmethod
    def parse_functions(self, text: str) -> tuple[SeenFunction, ...]: ...

    @abstractmethod
    def list_bars(self, address: Address) -> list[str]: ...

    @abstractmethod
    def parse_bars(self, text: str) -> dict[int, SeenBar]:
        """By index."""

    @abstractmethod
    def interfaces(self, address: Address) -> list[str]:
        """Prints the network interfaces of a function, one a line."""

    @abstractmethod
    def disks(self, address: Address) -> list[str]:
        """Prints the block devices of a function as paths, one a line."""

    @abstractmethod
    def work(self, address: Address) -> list[str]:
        """Prints a line, then keeps the function's driver busy until it is ended."""

    @abstractmethod
    def list_interrupts(self, address: Address) -> list[str]: ...

    @abstractmethod
    def parse_interrupts(self, text: str) -> dict[str, int]: ...

    @abstractmethod
    def link_up(self, interface: str) -> list[str]: ...

    @abstractmethod
    def hold_text(self) -> list[str]:
        """Keep what comes on standard input in memory, for :meth:`drop_text`."""

    @abstractmethod
    def drop_text(self) -> list[str]: ...

    @abstractmethod
    def hardware_address(self, interface: str) -> list[str]:
        """Prints the interface's MAC address."""

    @abstractmethod
    def received_frames(self, interface: str) -> list[str]:
        """Prints how many frames the interface has received."""

    @abstractmethod
    def sent_frames(self, interface: str) -> list[str]:
        """Prints how many frames the interface has sent."""

    @abstractmethod
    def announce(self, interface: str) -> list[str]:
        """Send a few frames to everybody by this interface, whatever the routes say."""

    @abstractmethod
    def flood(self, interface: str, mac: str, payload: bytes) -> list[str]:
        """Prints ``ready``, then sends frames to ``mac`` without end, whoever listens.

        It ends when its standard input does.  ``payload`` stands in each frame, as far as the
        system's tools let it.
        """

    @abstractmethod
    def lie(self, interface: str, address: str) -> list[str]:
        """Prints ``ready``, then answers echoes to ``address`` with one byte changed.

        Raises:
            LabError: the system has no tool that could.
        """

    @abstractmethod
    def register(
        self, address: Address, bar: Bar, offset: int, width: int, value: int | None = None
    ) -> list[str]:
        """Prints a register of a function as a decimal number, having written ``value``.

        The function has no driver that would mind; memory decoding is switched on for the
        moment.
        """

    @abstractmethod
    def disk_write(self, disk: str, block: int, number: int) -> list[str]:
        """Write standard input to ``disk`` from block ``number``, in requests of ``block`` bytes.

        No cache lies between.  ``block`` is a multiple of 512.
        """

    @abstractmethod
    def disk_read(self, disk: str, block: int, number: int, count: int) -> list[str]:
        """Prints ``count`` blocks of ``disk`` from block ``number``, read as they are written."""

    @abstractmethod
    def disk_digest(self, disk: str, block: int, number: int, count: int) -> list[str]:
        """Prints the SHA-256 of what :meth:`disk_read` would print, in hexadecimal, first."""

    @abstractmethod
    def configure_interface(self, interface: str, address: str) -> list[str]:
        """Bring ``interface`` up with ``address`` (``192.0.2.1/24``) beside those it has."""

    @abstractmethod
    def ping(self, destination: str, *, size: int, pattern: bytes = b"") -> list[str]:
        """One echo; ``size``: bytes of ICMP payload; ``pattern``: up to 16 bytes to fill it."""

    def read_rom(self, address: Address) -> list[str]:
        """Prints a function's option ROM in base 64; fails if it has none.

        Raises:
            LabError: the system shows no option ROM to programs.
        """
        raise LabError(f"{self.name} shows a program no option ROM ({address})")

    @abstractmethod
    def reset_function(self, address: Address) -> list[str]:
        """Let the guest's kernel reset the function, with its driver out of the way meanwhile."""

    # Shell text, for a console.

    @abstractmethod
    def is_up(self) -> str:
        """Fails in a rescue shell, which looks like a log-in but is none."""

    @abstractmethod
    def before_saving(self) -> str:
        """Loads what guests that continue this one will need, so that they need not."""

    @abstractmethod
    def after_continuing(self, name: str, now: float, key: str) -> str:
        """Makes a continued guest know its name, the time, who may log in, and its devices.

        ``now``: Unix time, seconds; ``key``: the public SSH key, as in a ``.pub`` file.
        """


def guest_os(name: str) -> GuestOS:
    """The differences of the guest system called ``name``: ``linux``, ``freebsd``."""
    from hil.guests.freebsd import FreebsdGuest
    from hil.guests.linux import LinuxGuest

    systems: dict[str, type[GuestOS]] = {"linux": LinuxGuest, "freebsd": FreebsdGuest}
    return systems[name]()
