"""A guest and its life: prepared, booting, ready, stopped, crashed, destroyed."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence

from hil import events
from hil.console.console import Console
from hil.deadline import Deadline, poll
from hil.errors import DeadlineExceeded, GuestError, HilError, LabError
from hil.guests.os import GuestOS, SeenBar, SeenFunction
from hil.pci.address import Address
from hil.platforms.contract import (
    CountsRestarts,
    GivesEvidence,
    LetInByConsole,
    Machine,
    MachineState,
    TellsItsEnd,
    Template,
)
from hil.transport import keys
from hil.transport.base import Result, Transport


class GuestState(enum.Enum):
    """Where a guest is in its life, as hil last saw it."""

    PREPARED = "prepared"
    BOOTING = "booting"
    READY = "ready"
    """Logged in on its console; SSH answers."""
    STOPPED = "stopped"
    CRASHED = "crashed"
    DESTROYED = "destroyed"


class Asked(enum.Enum):
    """What somebody asked for that ends a guest or restarts it."""

    NOTHING = "nothing"
    RESTART = "restart"
    PANIC = "panic"
    END = "end"


_NEXT: dict[GuestState, frozenset[GuestState]] = {
    GuestState.PREPARED: frozenset({GuestState.BOOTING, GuestState.CRASHED}),
    GuestState.BOOTING: frozenset({GuestState.READY, GuestState.STOPPED, GuestState.CRASHED}),
    GuestState.READY: frozenset({GuestState.BOOTING, GuestState.STOPPED, GuestState.CRASHED}),
    GuestState.STOPPED: frozenset(),
    GuestState.CRASHED: frozenset({GuestState.BOOTING}),
    GuestState.DESTROYED: frozenset(),
}

#: Seconds that ordinary operations may take, times the lab's pace.
BOOT, COMMAND, CONTROL, AWAKE = 60.0, 30.0, 20.0, 10.0
#: To take a guest back: whatever makes it slow, nothing may be left.
END = 120.0


class Guest:
    """A guest that a platform made.

    Args:
        machine: the platform's side of it.
        os: the guest system's differences.
        pace: how much slower than hardware this lab is; multiplies every limit.
        bound: the deadline of the test that runs, if one does: no limit goes beyond it.
    """

    def __init__(
        self,
        machine: Machine,
        os: GuestOS,
        *,
        pace: float = 1.0,
        bound: Callable[[], Deadline | None] = lambda: None,
        on_destroy: Callable[[Guest], None] = lambda _: None,
    ) -> None:
        self.machine = machine
        self.os = os
        self.pace = pace
        self._bound = bound
        self.state = GuestState.PREPARED
        self.booted = False
        """Whether it ever was ready."""
        self._asked = Asked.NOTHING
        self._restarts = 0
        """Until it was ready the last time."""
        self._death = ""
        """How it had died when it was destroyed."""
        self._console: Console | None = None
        self._ssh: Transport | None = None
        self._on_destroy = on_destroy

    @property
    def name(self) -> str:
        return self.machine.spec.name

    @property
    def console(self) -> Console:
        if self._console is None:
            raise LabError(f"guest {self.name} has not been booted: it has no console yet")
        return self._console

    def limit(self, seconds: float, what: str) -> Deadline:
        """A deadline of this lab's pace."""
        deadline = Deadline(seconds * self.pace, f"{what} of guest {self.name}")
        return deadline.bounded(self._bound())

    # ---- life ----------------------------------------------------------------------

    def boot(self) -> Guest:
        """From its first instruction, or where its template was saved, to a shell.

        Raises:
            GuestError: it panicked or never asked for a log-in, with its last lines.
        """
        deadline = self.limit(BOOT, "the boot")
        template = self.machine.spec.template
        title = f"continue a saved guest as {self.name}" if template else f"boot guest {self.name}"
        with events.step(title):
            # The console is read from before the first instruction: nothing is lost.
            self._console = Console(self.name, self.machine.console(deadline))
            self._enter(GuestState.BOOTING)
            self.machine.start(deadline)
            self._come_up(deadline, template)
        return self

    def save(self, path: str) -> Template:
        """Save it as it is, ready, for guests that continue it; it runs no more.

        ``path``: a file or disk on the host.
        """
        deadline = self.limit(BOOT, "the saving")
        with events.step(f"save guest {self.name}"):
            self.console.run(self.os.before_saving(), deadline).check()
            # Having served one, its SSH server has in memory what serves the next.
            self.run(["true"]).check()
            self._close_ssh()
            # Each byte typed costs an exit to the hypervisor: those who continue it log in no more.
            shell = self.console.shell
            if not shell:
                self.console.release(deadline)
            self._asked = Asked.END
            return dataclasses.replace(self.machine.save(path, deadline), shell=shell)

    def _come_up(self, deadline: Deadline, template: Template | None = None) -> None:
        """Wait for a shell on the console; ``template``: what the guest continues."""
        try:
            if template is not None and template.shell:
                self.console.go_on(template.shell)
            else:
                self.console.login(self.os.user, None, deadline=deadline, rescue=self.os.rescue)
            if template is not None:
                key = keys.of_this_run().public
                text = self.os.after_continuing(self.name, time.time(), key)
                # It takes a second.  A guest that restarted has no such shell any more.
                limit = deadline.within(AWAKE * self.pace, f"the saved shell of {self.name}")
                self.console.run(text, limit).check()
                up = True
            else:
                up = self.console.run(self.os.is_up(), deadline).status == 0
        except DeadlineExceeded as error:
            self._enter(GuestState.CRASHED)
            self._blame_hypervisor(error)
            self._tell_more()
            raise GuestError(
                f"guest {self.name} never came to its log-in prompt",
                seen=error.message,
                console=self.console.log.tail(30),
                hint="read its console in the report",
            ) from error
        except HilError as error:
            self._enter(GuestState.CRASHED)
            self._blame_hypervisor(error)
            raise GuestError(
                f"guest {self.name} failed while it booted: {error.message}",
                seen=self.machine.failure() or error.seen,
                console=self.console.log.tail(30),
            ) from error
        if not up:
            self._enter(GuestState.CRASHED)
            raise GuestError(
                f"guest {self.name} came up to a rescue shell only",
                console=self.console.log.tail(30),
                hint="its console tells what it could not find",
            )
        self._enter(GuestState.READY)
        self.booted = True
        self._asked, self._restarts = Asked.NOTHING, self._count_restarts()

    def _blame_hypervisor(self, error: HilError) -> None:
        """Raise why the hypervisor ended, if it did by itself: then it is no fault of the guest."""
        if isinstance(self.machine, TellsItsEnd) and (reason := self.machine.why_ended()):
            raise reason from error

    def _tell_more(self) -> None:
        """For the report, what the hypervisor knows of a guest that is slow or stuck."""
        if isinstance(self.machine, GivesEvidence):
            with contextlib.suppress(HilError):
                found = self.machine.evidence(self.limit(CONTROL, "the evidence"))
                for title, text in found.items():
                    events.emit(events.Evidence(f"{self.name}: {title}", text.encode()))

    def wait_for_reboot(self, deadline: Deadline | None = None) -> None:
        """Wait until a guest that restarts by itself is ready again."""
        deadline = deadline or self.limit(BOOT, "the reboot")
        self._close_ssh()
        self._enter(GuestState.BOOTING)
        self._come_up(deadline)

    def died(self) -> str:
        """How it ended or restarted though nobody asked for that; empty if it did not."""
        if self.state is GuestState.DESTROYED:
            return self._death
        return self.signs_of_death() or self._end_of_hypervisor()

    def signs_of_death(self) -> str:
        """The same, as far as its console and its hypervisor have told already."""
        if self._console is None or self._asked in (Asked.PANIC, Asked.END):
            return ""
        if (panic := self.console.log.panic) is not None:
            return f"the kernel of guest {self.name} reported a {panic.kind}: {panic.line}"
        if self._count_restarts() > self._restarts + (self._asked is Asked.RESTART):
            return f"guest {self.name} restarted by itself"
        return ""

    def _end_of_hypervisor(self) -> str:
        if self._console is None or self._asked in (Asked.PANIC, Asked.END):
            return ""
        with contextlib.suppress(HilError):
            limit = Deadline(5 * self.pace, f"the state of guest {self.name}")
            state = self.machine.state(limit)
            if state in (MachineState.STOPPED, MachineState.CRASHED):
                return f"guest {self.name} {state.value} by itself, says its hypervisor"
        return ""

    def _count_restarts(self) -> int:
        return self.machine.restarts() if isinstance(self.machine, CountsRestarts) else 0

    def reboot(self) -> None:
        """Restart by the guest's own command, and wait until it is ready."""
        with events.step(f"reboot guest {self.name}"):
            before = self.boot_id()
            self._asked = Asked.RESTART
            self.console.send_line(" ".join(self.os.reboot()))
            self.wait_for_reboot()
            if self.boot_id() == before:
                raise GuestError(
                    f"guest {self.name} did not reboot", console=self.console.log.tail(20)
                )

    def triple_fault(self) -> None:
        """End the guest's CPU by a triple fault."""
        command = self.os.triple_fault()
        self._asked = Asked.RESTART
        with events.step(f"triple-fault guest {self.name}"):
            self.console.send_line(shlex.join(command))

    def crash(self) -> None:
        """Make the guest's kernel panic; always ends in the GuestError that tells of it."""
        self._asked = Asked.PANIC
        with events.step(f"crash guest {self.name}"):
            self.console.send_line(shlex.join(self.os.crash()))
            try:
                self.console.expect([r"(?!)"], self.limit(COMMAND, "the panic"))
            finally:
                self._enter(GuestState.CRASHED)

    def power_off(self) -> None:
        """Shut down by the guest's own command, and wait for the hypervisor to end."""
        deadline = self.limit(BOOT, "the power-off")
        self._asked = Asked.END
        with events.step(f"power off guest {self.name}"):
            self.console.send_line(" ".join(self.os.power_off()))
            poll(
                lambda: self.machine.state(deadline) is MachineState.STOPPED,
                deadline,
                last_seen=lambda: "\n".join(self.console.log.tail(5)),
            )
            self._enter(GuestState.STOPPED)

    def kill(self) -> None:
        """Kill the hypervisor's process; the guest still has to be destroyed."""
        self._asked = Asked.END
        with events.step(f"kill guest {self.name}"):
            self.machine.kill(self.limit(CONTROL, "the kill"))
            self._enter(GuestState.CRASHED)

    def destroy(self) -> None:
        """End it whatever its state.  Safe to call twice."""
        if self.state is GuestState.DESTROYED:
            return
        with events.step(f"destroy guest {self.name}"):
            self._death = self.signs_of_death()
            if not self._death and self.state in (GuestState.BOOTING, GuestState.CRASHED):
                self._death = self._end_of_hypervisor()
            self._close_ssh()
            try:
                # It must go, also when the test has no time left.
                limit = Deadline(END * self.pace, f"the end of guest {self.name}")
                self.machine.destroy(limit)
            finally:
                if self._console is not None:
                    self._console.close()
                self.state = GuestState.DESTROYED
                self._on_destroy(self)

    def _enter(self, state: GuestState) -> None:
        if state is self.state:
            return
        if state not in _NEXT[self.state]:
            raise LabError(f"guest {self.name} is {self.state.value} and cannot be {state.value}")
        self.state = state
        events.emit(events.PhaseReached(self.name, state.value))

    def _close_ssh(self) -> None:
        if self._ssh is not None:
            self._ssh.close()
            self._ssh = None

    # ---- work ----------------------------------------------------------------------

    @property
    def ssh(self) -> Transport:
        """The guest by SSH, connected when first used."""
        if self._ssh is None:
            deadline = self.limit(BOOT, "the SSH server")
            try:
                if isinstance(self.machine, LetInByConsole):
                    self.machine.let_in(lambda command: self._typed(command, deadline))
                self._ssh = self.machine.ssh(deadline)
            except DeadlineExceeded as error:
                raise GuestError(
                    f"guest {self.name} does not answer SSH",
                    seen=error.seen,
                    console=self._tail(),
                ) from error
        return self._ssh

    def _typed(self, command: Sequence[str], deadline: Deadline) -> str:
        """What a command prints that is typed at the console."""
        return self.console.run(command, deadline).check().output

    def run(
        self, command: Sequence[str], *, seconds: float = COMMAND, stdin: bytes = b""
    ) -> Result:
        """Run a command in the guest, as root, by SSH."""
        deadline = self.limit(seconds, shlex.join(command)[:60])
        try:
            return self.ssh.run(command, deadline=deadline, stdin=stdin)
        except DeadlineExceeded:
            raise
        except LabError as error:
            # The way to it leads through its own host, so this is no fault of a network.
            self._close_ssh()
            raise GuestError(
                f"guest {self.name} is gone from SSH: it crashed or restarted by itself",
                seen=error.seen or error.message,
                command=command,
                console=self._tail(),
                hint="its console tells what happened",
            ) from error

    def boot_id(self) -> str:
        """A text that differs after each boot."""
        return self.run(self.os.boot_id()).check().stdout.strip()

    def functions(self) -> tuple[SeenFunction, ...]:
        """The guest's view of its PCI functions."""
        return self.os.parse_functions(self.run(self.os.list_functions()).check().stdout)

    @contextlib.contextmanager
    def working(self, host_address: Address) -> Iterator[None]:
        """The guest works a passed function without end; it may die in the block."""
        command = self.os.work(self.address_of(host_address))
        stream = self.ssh.open_stream(command, deadline=self.limit(COMMAND, "the work"))
        try:
            stream.read()  # the first line says that it has begun
            yield
        finally:
            stream.close()

    @contextlib.contextmanager
    def token(self) -> Iterator[str]:
        """A random text that stands in this guest's memory, and nowhere else, in the block."""
        text = f"hil-{secrets.token_hex(16)}"
        self.run(self.os.hold_text(), stdin=text.encode()).check()
        try:
            yield text
        finally:
            self.run(self.os.drop_text())

    def address_of(self, host_address: Address) -> Address:
        """Where in the guest the function stands that the host calls ``host_address``."""
        return self.machine.guest_addresses[host_address]

    def seen(self, host_address: Address) -> SeenFunction:
        """The passed function as the guest sees it; GuestError if it does not."""
        wanted = self.address_of(host_address)
        for function in self.functions():
            if function.address == wanted:
                return function
        raise GuestError(
            f"guest {self.name} sees no function at {wanted}, where {host_address} was passed",
            console=self._tail(),
        )

    def bars(self, host_address: Address) -> dict[int, SeenBar]:
        """The passed function's BARs as the guest sees them, by index."""
        command = self.os.list_bars(self.address_of(host_address))
        return self.os.parse_bars(self.run(command).check().stdout)

    def reset_function(self, host_address: Address) -> None:
        """Let the guest's kernel reset a passed function."""
        self.run(self.os.reset_function(self.address_of(host_address))).check()

    def interface_of(self, host_address: Address) -> str:
        """The network interface that the guest's driver made of a passed function."""
        return self._made_of(host_address, self.os.interfaces, "network interface")

    def link_up(self, interface: str) -> None:
        """Bring an interface up, without an address."""
        self.run(self.os.link_up(interface)).check()

    def mac_of(self, interface: str) -> str:
        """The hardware address of an interface, as ``02:00:00:00:00:01``."""
        return self.run(self.os.hardware_address(interface)).check().stdout.strip()

    def received(self, interface: str) -> int:
        """Frames that an interface has received."""
        return int(self.run(self.os.received_frames(interface)).check().stdout)

    def interrupts(self, address: Address) -> dict[str, int]:
        """Counts of the interrupts of a function, by its address in the guest."""
        return self.os.parse_interrupts(self.run(self.os.list_interrupts(address)).check().stdout)

    def disk_of(self, host_address: Address) -> str:
        """The block device that the guest's driver made of a passed function."""
        return self._made_of(host_address, self.os.disks, "disk")

    def _made_of(
        self, host_address: Address, command: Callable[[Address], list[str]], what: str
    ) -> str:
        address = self.address_of(host_address)
        deadline = self.limit(COMMAND, f"the {what} of {address}")

        def look() -> str | None:
            names = self.run(command(address)).check().stdout.split()
            return names[0] if names else None

        try:
            return poll(look, deadline, interval=0.1)
        except DeadlineExceeded as error:
            raise GuestError(
                f"guest {self.name} made no {what} of {address} (on the host {host_address})",
                console=self._tail(),
                hint="has its kernel a driver for it? see the console",
            ) from error

    def _tail(self) -> tuple[str, ...]:
        return self._console.log.tail(20) if self._console is not None else ()
