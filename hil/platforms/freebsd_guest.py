"""A guest under bhyve on a FreeBSD host.

All that a guest needs on the host is made, held and taken back by one *keeper*, a shell at the
far end of one SSH channel.  When that channel closes, for whatever reason, the keeper kills
bhyve, destroys the virtual machine and removes what it made, last first.  As vmrun.sh does
(share/examples/bhyve/vmrun.sh), it loads and starts the guest again when bhyve ends with
status 0, which is how a guest restarts.

bhyve assigns the devices when it starts and would run the guest at once; it is started with a
debug port and told to wait (``-G w…``), so that a prepared guest has its devices and has run
nothing.  A debugger that connects and leaves lets it run (usr.sbin/bhyve/gdb.c).
"""

from __future__ import annotations

import contextlib
import itertools
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hil import events
from hil.console.log import ConsoleLog
from hil.console.text import clean
from hil.deadline import Deadline, poll
from hil.errors import (
    REFUSALS,
    DeadlineExceeded,
    Fault,
    GuestError,
    HilError,
    InventoryError,
    LabError,
)
from hil.guests.images import GuestImage, Loader
from hil.guests.os import GuestOS, guest_os
from hil.iommu.memory import PhysicalMemory
from hil.iommu.tables import Mapping as MemoryRange
from hil.iommu.tables import Tables, Translation
from hil.journal import Entry, Journal, Undo
from hil.pci.address import Address
from hil.platforms.contract import GuestSpec, MachineState, Template
from hil.platforms.freebsd_errors import Ending, ending
from hil.platforms.freebsd_undo import GUEST
from hil.transport import keys
from hil.transport.base import ByteStream, Transport
from hil.transport.quoting import quote

#: Slots of PCI bus 0, of 32: what every guest has, and where passed functions begin.
_HOST_BRIDGE, _NETWORK, _DISK, _RANDOM, FIRST_SLOT, _LPC = 0, 3, 4, 5, 8, 31
#: VM_MAX_NAMELEN of releases before 13 (sys/amd64/include/vmm.h), with its NUL.
_NAME_LIMIT = 31
#: Names of our virtual machines begin so: what a dead run left is told by it.
PREFIX = "hil-"
#: Port of the SSH server that we start in a guest, beside any that its image has.
SSH_PORT = 2222
_PAGE = 4096
SEARCH_LIMIT = 1000
#: Most ranges of memory in one command, and in what grep sees as one; the bytes of that, which
#: it keeps where they have no newline.
PIECES, STRETCH_PIECES, STRETCH = 2000, 100, 16 << 20
#: Bytes at the end of a guest's memory that its kernel does not use.
KEPT_FOR_DMA = 16 << 20

#: A processor that begins at address 0 with nothing there (usr.sbin/bhyve/amd64/vmexit.c).
_NOTHING_LOADED = re.compile(r"^vm exit\[0\]\s+reason\s+\S+\s+rip\s+0x0{16}\b", re.MULTILINE)
_GRUB_ERROR = re.compile(r"^error: (.*?)\.?$", re.MULTILINE)
_GRUB_HINT = (
    "kernel and initrd of the image are files on the host that everybody may read, and so are "
    "their folders: grub-bhyve gives up root before it opens them"
)

_numbers = itertools.count(secrets.randbelow(16000))

# Standard input is the lifeline: a line, or its end however it comes, ends the guest.
# ``made`` counts what was made, so that no more than that is taken back.  Of two streams sshd may
# send the later words first: a program's error after its status.
_HEAD = r"""
exec 2>&1
trap '' HUP PIPE
say() { printf '\nhil: %s\n' "$*"; }
stop= child= made=0
trap 'stop=1; [ -z "$child" ] || kill -9 "$child"' TERM
exec 3<&0 </dev/null
run() {
    "$@" 3<&- 4<&- &
    child=$!
    say "pid $child"
    [ -z "$stop" ] || kill -9 "$child"
    wait "$child"
    status=$?
    [ -z "$stop" ] || wait "$child"
    child=
}
"""

# Opening a tty waits for a carrier, which the pair's other end gives while it is open.  clocal:
# no hang-up between the loader's end and bhyve's start.
_HOLD_CONSOLE = r"""
sleep 60 <>"$console"A 3<&- &
opener=$!
exec 4<>"$console"B
stty raw -echo clocal <&4
kill "$opener"
"""

# Each further argument is a stretch of the guest's memory: ranges of the host's, with commas
# between them, each a block's bytes, first block and blocks.
_SEARCH = r"""
text=$1; shift
IFS=,
for stretch in "$@"; do
    echo stretch
    for range in $stretch; do
        unit=${range%%:*} rest=${range#*:}
        dd if=/dev/mem bs="$unit" skip="${rest%:*}" count="${rest#*:}" status=none || exit
    done | LC_ALL=C grep -a -b -o -F -e "$text"
done
true
"""

_CONSOLE = 'cat <"$1" & reader=$!; cat >"$1"; kill "$reader"'


@dataclass(frozen=True, slots=True)
class Step:
    """Something made for a guest, and what takes it back; empty: nothing to take back."""

    do: tuple[str, ...]
    undo: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why bhyve or a loader would not start a guest."""

    message: str
    fault: Fault
    hint: str = ""
    causes: str = ""
    """What was considered, a line each."""


#: Given which program, its status and its words, the meaning.
Explain = Callable[[str, int, str], Refusal]


@dataclass(frozen=True, slots=True)
class Passed:
    """A function to be passed."""

    address: Address
    form: str
    """As bhyve's ``passthru`` takes it: ``ppt0`` or ``0/5/0``."""
    keys: bool = False
    """Tell it by configuration variables (bhyve_config(5)), which take a name of ppt's only."""
    rom: str = ""
    """A file on the host with its option ROM; empty: the guest sees none."""

    def arguments(self, slot: int) -> list[str]:
        """The words of bhyve's command line that put it into a slot of the guest."""
        if not self.keys:
            rom = f",rom={self.rom}" if self.rom else ""
            return ["-s", f"{slot},passthru,{self.form}{rom}"]
        device = f"pci.0.{slot}.0"
        words = ["-o", f"{device}.device=passthru", "-o", f"{device}.pptdev={self.form}"]
        return [*words, "-o", f"{device}.rom={self.rom}"] if self.rom else words


@dataclass
class _Heard:
    """A stream whose reader does something between two reads: then what came is in its log."""

    stream: ByteStream
    between: Callable[[], None]

    def read(self, limit: int = 65536) -> bytes:
        self.between()
        return self.stream.read(limit)

    def write(self, data: bytes) -> None:
        self.stream.write(data)

    def close(self) -> None:
        self.stream.close()


@dataclass
class BhyveMachine:
    """See :class:`hil.platforms.contract.Machine`.

    Args:
        host: the host's name.
        transport: a root shell on it.
        spec: what to make.
        image: what it boots from.
        passed: the functions of ``spec``, as bhyve takes them.
        directory: where a guest's files go on the host.
        explain: decodes a refusal.
        tables: the IOMMU's tables now, and the host's memory: what reads the guest's memory.
        journal: where it is recorded what the keeper makes, should the keeper be killed.
    """

    host: str
    transport: Transport
    spec: GuestSpec
    image: GuestImage
    passed: Sequence[Passed]
    directory: str
    explain: Explain
    tables: Callable[[Deadline], tuple[Tables, PhysicalMemory]]
    journal: Journal
    debug_address: str = "127.0.0.1:"
    """Where the debug port listens; releases before 13.2 take no address."""
    number: int = field(default_factory=lambda: next(_numbers) % 16000)
    _keeper: ByteStream | None = field(default=None, init=False)
    _output: ConsoleLog | None = field(default=None, init=False)
    _console: ByteStream | None = field(default=None, init=False)
    _started: bool = field(default=False, init=False)
    _destroyed: bool = field(default=False, init=False)
    _host_key: str = field(default="", init=False)
    _made: Entry | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", self.spec.name):
            raise LabError(f"{self.spec.name!r} is no name for a guest")
        if len(self.passed) > _LPC - FIRST_SLOT:
            raise InventoryError(
                f"at most {_LPC - FIRST_SLOT} functions can be passed to one guest"
            )

    @property
    def vm(self) -> str:
        """The virtual machine's name: ours by its prefix, and no other run's by its number."""
        suffix = f"-{self.number:04x}"
        return PREFIX + self.spec.name[: _NAME_LIMIT - len(PREFIX) - len(suffix)] + suffix

    @property
    def guest_addresses(self) -> Mapping[Address, Address]:
        """Where in the guest each passed function stands, by its address on the host."""
        return {
            passed.address: Address(0, 0, FIRST_SLOT + index, 0)
            for index, passed in enumerate(self.passed)
        }

    # ---- what is made ----------------------------------------------------------------

    @property
    def files(self) -> str:
        """Directory of the guest's own files."""
        return f"{self.directory.rstrip('/')}/{self.vm}"

    @property
    def disk(self) -> str:
        """The guest's own copy of its image."""
        return f"/dev/zvol/{self._clone}" if self.image.snapshot else f"{self.files}/disk"

    @property
    def _clone(self) -> str:
        dataset = self.image.snapshot.partition("@")[0]
        return f"{dataset}-{self.vm}" if dataset else ""

    @property
    def _unit(self) -> int:
        """Of the tap and the bridge; at most 32767 (sys/net/if_clone.c)."""
        return 1000 + self.number

    @property
    def _tap(self) -> str:
        return f"tap{self._unit}"

    @property
    def _bridge(self) -> str:
        return f"bridge{self._unit}"

    @property
    def console_device(self) -> str:
        """The guest's end of a null-modem pair that bears its name, and so is nobody else's."""
        return f"/dev/nmdm{self.vm}A"

    @property
    def mac(self) -> str:
        """Of the management NIC; a locally administered one."""
        return f"02:68:69:6c:{self.number >> 8:02x}:{self.number & 0xFF:02x}"

    def address(self, last: int) -> str:
        """On the guest's own network of four addresses: 1 is the host, 2 the guest."""
        return f"198.19.{self.number >> 6}.{(self.number & 0x3F) << 2 | last}"

    @property
    def debug_port(self) -> int:
        """On the host's loopback."""
        return 20000 + self.number

    def steps(self) -> tuple[Step, ...]:
        """What the keeper makes, in this order."""
        image = self.image
        remove = ("sh", "-c", 'rm -rf "$1" || exit; rmdir "${1%/*}" 2>/dev/null; true', "hil")
        # GRUB gives up root before it reads its configuration.
        mode = "711" if image.loader is Loader.GRUB else "700"
        steps = [Step(("mkdir", "-p", "-m", mode, self.files), (*remove, self.files))]
        if image.snapshot:
            steps.append(
                Step(("zfs", "clone", image.snapshot, self._clone), ("zfs", "destroy", self._clone))
            )
        else:
            steps.append(Step(("cp", image.root, self.disk)))
        if image.loader is Loader.GRUB:
            steps.append(self._written("device.map", [f"(hd0) {self.disk}"]))
            if image.kernel:
                steps.append(self._written("grub.cfg", self._grub_lines()))
        # The address is the bridge's: a tap loses its own whenever bhyve closes it.
        steps += [
            Step(("ifconfig", self._tap, "create"), ("ifconfig", self._tap, "destroy")),
            Step(("ifconfig", self._tap, "description", self.vm)),
            Step(("ifconfig", self._bridge, "create"), ("ifconfig", self._bridge, "destroy")),
            Step(("ifconfig", self._bridge, "description", self.vm)),
            Step(("ifconfig", self._bridge, "addm", self._tap, "up")),
            Step(("ifconfig", self._bridge, "inet", f"{self.address(1)}/30")),
        ]
        return tuple(steps)

    def _written(self, name: str, lines: Iterable[str]) -> Step:
        path = f"{self.files}/{name}"
        script = 'path=$1; shift; printf "%s\\n" "$@" >"$path"'
        return Step(("sh", "-c", script, "hil", path, *lines))

    def _grub_lines(self) -> list[str]:
        """What GRUB runs; ``(host)`` is the host's file system.

        A command that fails does not end it: it would wait for keys that nobody presses.
        """
        image = self.image
        words = " ".join(["console=ttyS0", *image.arguments, *self.spec.arguments])
        lines = [f"linux (host){image.kernel} {words}"]
        if image.initrd:
            lines.append(f"initrd (host){image.initrd}")
        return [*lines, "boot", "exit"]

    @property
    def _memory(self) -> str:
        return f"{self.spec.memory >> 20}M"

    def loader_command(self) -> list[str]:
        """What loads the guest; empty where bhyve does that itself."""
        # A passed device writes to the guest's memory whenever it likes: it must stay where it is.
        wired = ["-S"] if self.passed else []
        if self.image.loader is Loader.UEFI:
            return []
        if self.image.loader is Loader.BHYVELOAD:
            command = ["bhyveload", *wired, "-m", self._memory, "-c", self.console_device]
            # What the kernel leaves alone is for DMA by programs in the guest; the second name
            # tells them where it is (hil.probes.remote.in_guest).
            start = self._end_of_memory - KEPT_FOR_DMA
            kept = (f"hw.physmem={start}", f"hil.dma={start:#x}:{KEPT_FOR_DMA:#x}")
            for word in (*kept, *self.image.arguments, *self.spec.arguments):
                command += ["-e", word]
            return [*command, "-d", self.disk, self.vm]
        # Without -c what it says of an error is told with bhyve's words; ncurses needs a TERM.
        command = ["env", "TERM=vt100", "grub-bhyve", *wired, "-m", f"{self.files}/device.map"]
        command += ["-M", str(self.spec.memory >> 20)]
        command += ["-r", "host", "-d", self.files] if self.image.kernel else []
        command += ["-r", self.image.grub_root] if not self.image.kernel else []
        return [*command, self.vm]

    def command(self, *, waiting: bool = False) -> list[str]:
        """The command line; ``waiting``: hold the guest before its first instruction."""
        spec = self.spec
        command = ["bhyve"]
        if self.passed:
            command.append("-S")
        command += ["-A", "-H", "-P", "-c", str(spec.cpus), "-m", self._memory]
        if self.image.os == "linux":
            command.append("-w")
        command += ["-s", f"{_HOST_BRIDGE},hostbridge", "-s", f"{_LPC},lpc"]
        command += ["-l", f"com1,{self.console_device}"]
        if self.image.loader is Loader.UEFI:
            command += ["-l", f"bootrom,{self.image.bootrom}"]
        command += ["-s", f"{_NETWORK},virtio-net,{self._tap},mac={self.mac}"]
        command += ["-s", f"{_DISK},virtio-blk,{self.disk}", "-s", f"{_RANDOM},virtio-rnd"]
        for index, passed in enumerate(self.passed):
            command += passed.arguments(FIRST_SLOT + index)
        if waiting:
            command += ["-G", f"w{self.debug_address}{self.debug_port}"]
        return [*command, self.vm]

    def keeper_script(self) -> str:
        """The shell program that makes, runs and takes back; see the module."""
        steps = self.steps()
        destroy = quote(["bhyvectl", f"--vm={self.vm}", "--destroy"])
        exists = quote(["test", "-e", f"/dev/vmm/{self.vm}"])
        lines = [_HEAD, f"console={quote([self.console_device[:-1]])}"]
        for number, step in enumerate(steps):
            lines.append(f"[ $made -eq {number} ] && {quote(step.do)} && made={number + 1}")
        lines += [
            f"if [ $made -eq {len(steps)} ]; then",
            _HOLD_CONSOLE,
            "say ready",
            'read -r word <&3; [ "$word" = go ] || stop=1',
            '( read -r _ <&3; kill -TERM "$$" ) 4<&- &',
            "watcher=$!",
            f"start() {{ run {quote(self.command(waiting=True))}; }}",
            'while [ -z "$stop" ]; do',
            f"    if {exists}; then {destroy}; fi",
            f"    {quote(['ifconfig', self._tap, 'up'])}",
        ]
        if self.loader_command():
            lines += [
                f"    run {quote(self.loader_command())}",
                '    [ -z "$stop" ] || break',
                '    [ "$status" -eq 0 ] || { say "loader $status"; break; }',
            ]
        lines += [
            "    start",
            '    [ -z "$stop" ] || break',
            '    say "status $status"',
            '    [ "$status" -eq 0 ] || break',
            f"    start() {{ run {quote(self.command())}; }}",
            "done",
            '[ -n "$stop" ] || wait "$watcher"',
            "exec 4<&-",
            f"if {exists}; then {destroy} || {_not_undone(destroy)}; fi",
            "else say failed; fi",
        ]
        for number, step in reversed(list(enumerate(steps))):
            if step.undo:
                undo = quote(step.undo)
                lines.append(f"[ $made -le {number} ] || {undo} || {_not_undone(undo)}")
        return "\n".join([*lines, "say gone", "exit 0", ""])

    # ---- life ------------------------------------------------------------------------

    def create(self, deadline: Deadline) -> None:
        """Make all it needs, load it and have bhyve assign its devices; leave nothing if refused.

        Raises:
            RefusalError: bhyve or its loader refused, with what that means.
            LabError: what a guest needs could not be made.
        """
        arguments = (self.vm, self.files, str(self._unit), self._clone or "none")
        self._made = self.journal.record(Undo(GUEST.name, arguments), deadline=deadline)
        try:
            self._keeper = self.transport.open_stream(
                ["sh", "-c", self.keeper_script()], deadline=deadline
            )
            heard = _Heard(self._keeper, self._end_console)
            self._output = ConsoleLog(f"{self.spec.name} bhyve", heard)
            self._wait_until(lambda: self._said("ready"), "what it needs", deadline)
            # Read from before the loader starts: a pair keeps less than 2 KiB.
            self._console = self.transport.open_stream(
                ["sh", "-c", _CONSOLE, "hil", f"{self.console_device[:-1]}B"], deadline=deadline
            )
            self._keeper.write(b"go\n")
            self._wait_until(lambda: self._waits(deadline), "bhyve", deadline)
        except BaseException:
            with contextlib.suppress(HilError):
                self.destroy(Deadline(30, f"the clean-up of guest {self.spec.name}"))
            raise
        events.emit(events.PhaseReached(self.spec.name, "created"))

    def _wait_until(self, come: Callable[[], bool], what: str, deadline: Deadline) -> None:
        poll(
            lambda: come() or self._over or self._ended() is not None or self._at_prompt,
            deadline.within(120, f"{what} of guest {self.spec.name}"),
            last_seen=self.failure,
        )
        if not come():
            raise self._refused()

    @property
    def _at_prompt(self) -> bool:
        """Whether GRUB waits for commands: nobody types any."""
        return self.image.loader is Loader.GRUB and "grub> " in self._words()

    def _end_console(self) -> None:
        """Where bhyve has failed, nothing more comes: whoever reads the console learns it now."""
        if self._console is not None and self._failed:
            self._console.close()

    def why_ended(self) -> HilError | None:
        """Why bhyve, or its loader at a restart, failed; see :class:`TellsItsEnd`."""
        return self._refused() if self._failed else None

    @property
    def _failed(self) -> bool:
        return self._how() in (Ending.FAILED, Ending.CRASHED)

    def _how(self) -> Ending | None:
        """How it ended for good; ``None`` while it runs or restarts."""
        ended = self._ended()
        if ended is None:
            return None
        program, status = ended
        return ending(status, self.failure()) if program == "bhyve" else Ending.FAILED

    def _waits(self, deadline: Deadline) -> bool:
        """Whether bhyve waits at its debug port: it opens that after assigning the devices."""
        command = ["sockstat", "-4", "-l", "-p", str(self.debug_port)]
        listening = self.transport.run(command, deadline=deadline).stdout
        return f":{self.debug_port} " in listening

    def _refused(self) -> HilError:
        seen = self.failure()
        ended = self._ended()
        if ended is None and self._at_prompt:
            where = self.image.grub_root or "its configuration"
            return InventoryError(
                f"GRUB found nothing to boot for guest {self.spec.name} on {where}, and waits at "
                "its prompt",
                host=self.host,
                seen=seen,
                command=self.loader_command(),
                hint="is grub_root the partition that has /boot/grub/grub.cfg? Or name kernel "
                "and initrd of the image",
            )
        program, status = ended or ("its preparation", 0)
        refusal = self.explain(program, status, seen)
        if ended is None:
            return LabError(
                f"what guest {self.spec.name} needs could not be made: {refusal.message}",
                host=self.host,
                seen=seen,
                hint=refusal.hint,
            )
        wrong = _GRUB_ERROR.search(seen) if _NOTHING_LOADED.search(seen) else None
        if self.image.loader is Loader.GRUB and wrong:
            # GRUB ends with status 0 all the same.
            return InventoryError(
                f"GRUB loaded nothing for guest {self.spec.name}: {wrong[1]}",
                host=self.host,
                seen=seen,
                command=self.loader_command(),
                hint=_GRUB_HINT,
            )
        command = self.command(waiting=True) if program == "bhyve" else self.loader_command()
        return REFUSALS[refusal.fault](
            f"{program} refused to start guest {self.spec.name} (status {status}): "
            f"{refusal.message}",
            host=self.host,
            seen="\n".join(part for part in (refusal.causes, seen) if part),
            command=command,
            hint=refusal.hint,
        )

    def start(self, deadline: Deadline) -> None:
        """Run the guest's first instruction: a debugger comes and goes."""
        command = ["nc", "-z", "127.0.0.1", str(self.debug_port)]
        result = self.transport.run(command, deadline=deadline)
        if result.status != 0:
            # bhyve does a few things more before it lets the first CPU run.
            with contextlib.suppress(DeadlineExceeded):
                poll(lambda: self._ended() is not None, deadline.within(5, "the end of bhyve"))
            if self._ended() is not None:
                raise self._refused()
        result.check()
        self._started = True
        events.emit(events.PhaseReached(self.spec.name, "started"))

    def save(self, _path: str, _deadline: Deadline) -> Template:
        """Not possible: releases are built without bhyve's snapshots."""
        raise LabError(f"guest {self.spec.name} cannot be saved: bhyve has no snapshots here")

    def state(self, deadline: Deadline) -> MachineState:  # noqa: ARG002
        """As the hypervisor sees it."""
        if self._destroyed:
            return MachineState.DESTROYED
        how = self._how()
        if how is None:
            if self._over:
                return MachineState.CRASHED
            return MachineState.RUNNING if self._started else MachineState.PREPARED
        stopped = (Ending.POWEROFF, Ending.HALT)
        return MachineState.STOPPED if how in stopped else MachineState.CRASHED

    def restarts(self) -> int:
        """How often the guest restarted by itself or by :meth:`reset`."""
        return len(re.findall(r"^hil: status 0\r?$", self._words(), re.MULTILINE))

    def reset(self, deadline: Deadline) -> None:
        """Press the reset button; the keeper then loads and starts it again."""
        self._control("--force-reset", deadline)

    def nmi(self, deadline: Deadline) -> None:
        """Send a non-maskable interrupt."""
        self._control("--inject-nmi", deadline)

    def _control(self, option: str, deadline: Deadline) -> None:
        self.transport.run(["bhyvectl", f"--vm={self.vm}", option], deadline=deadline).check()

    def kill(self, deadline: Deadline) -> None:
        """SIGKILL to bhyve; the virtual machine and its devices stay until :meth:`destroy`."""
        pids = re.findall(r"^hil: pid (\d+)\r?$", self._words(), re.MULTILINE)
        if pids and self._ended() is None:
            self.transport.run(["kill", "-9", pids[-1]], deadline=deadline)
        poll(
            lambda: self._ended() is not None or self._over,
            deadline.within(30, f"the end of bhyve of guest {self.spec.name}"),
            interval=0.02,
            last_seen=self.failure,
        )

    def destroy(self, deadline: Deadline) -> None:
        """End the guest and free all it held.

        Raises:
            LabError: something of it could not be taken back, which it names.
        """
        if self._destroyed:
            return
        self._destroyed = True
        try:
            if self._keeper is not None and self._output is not None:
                with contextlib.suppress(LabError):
                    self._keeper.write(b"end\n")
                poll(
                    lambda: self._over,
                    deadline.within(60, f"the end of guest {self.spec.name}"),
                    interval=0.02,
                    last_seen=self.failure,
                )
        finally:
            for stream in (self._console, self._keeper):
                if stream is not None:
                    stream.close()
            if self._output is not None:
                self._output.close()
            events.emit(events.PhaseReached(self.spec.name, "destroyed"))
        left = re.findall(r"^hil: not undone: (.*?)\r?$", self._words(), re.MULTILINE)
        if left:
            raise LabError(
                f"something of guest {self.spec.name} could not be taken back",
                host=self.host,
                seen=self.failure(),
                hint="finish it by hand: " + "; ".join(left),
            )
        if self._made is not None and self._said("gone"):
            self.journal.forget(self._made)

    def failure(self) -> str:
        """What bhyve and its loader wrote, without the keeper's own lines."""
        lines = [line for line in self._words().splitlines() if not line.startswith("hil: ")]
        if self.image.loader is Loader.GRUB:  # which draws on a screen
            lines = [clean(line.encode()) for line in lines]
        return "\n".join(line for line in lines if line.strip())[-4000:]

    def evidence(self, deadline: Deadline) -> Mapping[str, str]:
        """What tells a slow guest from a stuck one: its exits, its disk's traffic, the host's log.

        gstat(8) tells of ZVOLs one by one, of files only the disk that they are on.
        """
        disk = self.disk.removeprefix("/dev/") if self.image.snapshot else ""
        wanted = {
            "exits (bhyvectl --get-stats)": ["bhyvectl", f"--vm={self.vm}", "--get-stats"],
            "disk traffic (gstat)": ["gstat", "-b", *(["-f", f"^{disk}$"] if disk else [])],
            "the host's kernel log": ["dmesg"],
        }
        found = {}
        for title, command in wanted.items():
            result = self.transport.run(command, deadline=deadline)
            if result.status == 0:
                found[title] = result.stdout[-64 * 1024 :]
        return found

    # ---- ways in ---------------------------------------------------------------------

    def console(self, deadline: Deadline) -> ByteStream:  # noqa: ARG002
        """The first serial port, read since before the loader started."""
        if self._console is None:
            raise LabError(f"guest {self.spec.name} has not been created: it has no console")
        return self._console

    def let_in(self, at_console: Callable[[Sequence[str]], str]) -> None:
        """Have an SSH server run in the guest, by what root types at its console."""
        system: GuestOS = guest_os(self.image.os)
        command = system.let_in(
            self.mac, f"{self.address(2)}/30", keys.of_this_run().public, SSH_PORT
        )
        said = at_console(command)
        match = re.search(r"^(ssh-ed25519 \S+)", said, re.MULTILINE)
        if not match:
            raise GuestError(
                f"guest {self.spec.name} started no SSH server",
                seen=said,
                hint="its image needs ssh-keygen and sshd, as FreeBSD's base system has",
            )
        self._host_key = match[1]

    def ssh(self, deadline: Deadline) -> Transport:
        """Root in the guest, by way of the host; after :meth:`let_in`."""
        from hil.transport.ssh import SshTransport

        if not self._host_key:
            raise LabError(f"guest {self.spec.name} has not been logged in to: it has no SSH yet")
        jump = self.transport if isinstance(self.transport, SshTransport) else None
        return SshTransport.connect(
            self.spec.name,
            self.address(2),
            port=SSH_PORT,
            key=keys.of_this_run().load(),
            host_key=self._host_key,
            jump=jump,
            deadline=deadline,
        )

    def read_physical(self, address: int, length: int, deadline: Deadline) -> bytes:
        """Guest physical memory, where the IOMMU's tables of a passed function lead.

        bhyve maps a guest's whole memory for its devices at the guest's own addresses.

        Raises:
            LabError: no function is passed, or the tables do not map it.
        """
        tables, memory = self._view(deadline)
        requester_id = self.passed[0].address.requester_id
        parts, end = [], address + length
        while address < end:
            size = min(end, (address // _PAGE + 1) * _PAGE) - address
            where = tables.translate(requester_id, address, False)
            if not isinstance(where, Translation):
                raise LabError(
                    f"guest address {address:#x} of {self.spec.name} is not in the IOMMU's tables",
                    host=self.host,
                    seen=where.text,
                )
            parts.append(memory.read(where.physical, size))
            address += size
        return b"".join(parts)

    def search_physical(self, texts: Sequence[str], deadline: Deadline) -> list[tuple[int, ...]]:
        """For each text, guest physical addresses where it stands, at most SEARCH_LIMIT of them.

        The host searches.  What lies across the end of a stretch of 16 MiB is missed.
        """
        tables, _ = self._view(deadline)
        mappings = tables.mappings(self.passed[0].address.requester_id)
        stretches = list(_stretches(mappings, self._end_of_memory))
        return [self._search(stretches, text, deadline) for text in texts]

    def _search(
        self, stretches: Sequence[tuple[int, Sequence[str]]], text: str, deadline: Deadline
    ) -> tuple[int, ...]:
        found: list[int] = []
        step = PIECES // STRETCH_PIECES
        for some in (stretches[at : at + step] for at in range(0, len(stretches), step)):
            words = [",".join(ranges) for _, ranges in some]
            command = ["sh", "-c", _SEARCH, "hil", text, *words]
            said = self.transport.run(command, deadline=deadline).check().stdout
            parts = re.split(r"^stretch\n", said, flags=re.MULTILINE)[1:]
            for (start, _), part in zip(some, parts, strict=False):
                found += [start + int(at) for at in re.findall(r"^(\d+):", part, re.MULTILINE)]
        return tuple(found[:SEARCH_LIMIT])

    @property
    def _end_of_memory(self) -> int:
        """Memory above 3 GiB stands at 4 GiB and up (lib/libvmmapi, VM_LOWMEM_LIMIT)."""
        low = 3 << 30
        memory = self.spec.memory
        return memory if memory <= low else (4 << 30) + memory - low

    def _view(self, deadline: Deadline) -> tuple[Tables, PhysicalMemory]:
        if not self.passed:
            raise LabError(
                f"the memory of guest {self.spec.name} cannot be read: no function is passed to it",
                host=self.host,
                hint="bhyve shows a guest's memory only through the IOMMU's tables of its devices",
            )
        return self.tables(deadline)

    # ---- within ----------------------------------------------------------------------

    def _words(self) -> str:
        return self._output.text() if self._output is not None else ""

    def _said(self, word: str) -> bool:
        return re.search(rf"^hil: {word}\r?$", self._words(), re.MULTILINE) is not None

    @property
    def _over(self) -> bool:
        """Whether the keeper has taken all back, or is gone."""
        return self._said("gone") or (self._output is not None and self._output.ended)

    def _ended(self) -> tuple[str, int] | None:
        """Which program ended for good, and how; ``None`` while it runs or restarts."""
        found = re.findall(r"^hil: (loader|status) (\d+)\r?$", self._words(), re.MULTILINE)
        for kind, status in found:
            if kind == "loader":
                return self._loader_name, int(status)
            if status != "0":
                return "bhyve", int(status)
        return None

    @property
    def _loader_name(self) -> str:
        return "grub-bhyve" if self.image.loader is Loader.GRUB else "bhyveload"


def _not_undone(command: str) -> str:
    return quote(["say", f"not undone: {command}"])


def _stretches(mappings: Iterable[MemoryRange], end: int) -> Iterator[tuple[int, list[str]]]:
    """Guest memory below ``end`` in stretches: where each starts, and the host's ranges in it."""
    start = after = 0
    ranges: list[str] = []
    for mapping in mappings:
        at, stop = mapping.iova, min(mapping.iova + mapping.length, end)
        while at < stop:
            if ranges and (at != after or at - start >= STRETCH or len(ranges) >= STRETCH_PIECES):
                yield start, ranges
                ranges = []
            start = start if ranges else at
            length = min(stop, start + STRETCH) - at
            physical = mapping.physical + at - mapping.iova
            unit = _unit(physical, length)
            ranges.append(f"{unit}:{physical // unit}:{length // unit}")
            at = after = at + length
    if ranges:
        yield start, ranges


def _unit(address: int, length: int) -> int:
    """The largest block, of at most 1 MiB, that both are multiples of."""
    both = address | length
    return min(both & -both, 1 << 20)
