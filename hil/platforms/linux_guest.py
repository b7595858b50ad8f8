"""A guest under QEMU/KVM on a Linux host.

The guest's QEMU runs below a shell at the far end of one SSH channel.  When that channel
closes, for whatever reason, the shell kills QEMU and removes its directory: a guest cannot
outlive the run that made it.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Sequence

from hil import events
from hil.console.log import ConsoleLog
from hil.deadline import Deadline, poll
from hil.errors import DeadlineExceeded, LabError, ProductRefusalError
from hil.guests.images import GuestImage
from hil.journal import Entry, Journal, Undo
from hil.pci.address import Address
from hil.platforms import linux_undo
from hil.platforms.contract import GuestSpec, MachineState, Template, TemplateLostError
from hil.qmp import Monitor
from hil.transport import keys
from hil.transport.base import ByteStream, Transport
from hil.transport.sockets import socket_pair_for

#: Bus 0, device 16 and up, is where passed functions go: above all that q35 puts there.
FIRST_SLOT = 0x10
SEARCH_LIMIT = 1000
_STATUS = re.compile(r"^hil: status (\d+)\r?$", re.MULTILINE)

# stdin is the lifeline: its end, however it comes, ends QEMU.
_KEEPER = r"""
trap '' HUP PIPE TERM
umask 077
directory=$1; shift
exec 3<&0
"$@" </dev/null 3<&- &
qemu=$!
echo "hil: pid $qemu"
( while read -r _ <&3; do :; done; kill -9 "$qemu" ) 2>/dev/null >&2 &
keeper=$!
wait "$qemu"
status=$?
rm -rf "$directory"
rmdir "${directory%/*}" 2>/dev/null
echo "hil: status $status"
kill -9 "$keeper" 2>/dev/null
exit 0
"""

# QEMU makes its sockets a moment after its start; its keeper removes the directory at its end.
# What relays is whichever the host has.
_RELAY = r"""
until [ -S "$1" ]; do [ -d "${1%/*}" ] || exit 1; sleep 0.1; done
if command -v socat >/dev/null; then exec socat - "UNIX-CONNECT:$1"; fi
if command -v python3 >/dev/null; then exec python3 -c '
import os, socket, sys, threading
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
def up():
    while data := os.read(0, 65536): s.sendall(data)
    s.shutdown(socket.SHUT_RDWR)
threading.Thread(target=up, daemon=True).start()
while data := s.recv(65536): os.write(1, data)
' "$1"; fi
echo "hil: neither socat nor python3 on this host" >&2
exit 127
"""

_SEARCH = """
    file=$1 limit=$2; shift 2
    for text; do
        echo text
        LC_ALL=C grep -abo -F -e "$text" "$file" | cut -d : -f 1 | head -n "$limit"
    done
    rm -f "$file"
"""


class QemuMachine:
    """See :class:`hil.platforms.contract.Machine`."""

    def __init__(
        self,
        host: str,
        transport: Transport,
        spec: GuestSpec,
        image: GuestImage,
        directory: str,
        journal: Journal,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", spec.name):
            raise LabError(f"{spec.name!r} is no name for a guest")
        self.spec = spec
        self.host = host
        self._transport = transport
        self._image = image
        self._directory = f"{directory.rstrip('/')}/{spec.name}"
        self._journal = journal
        self._entry: Entry | None = None
        self._keeper: ByteStream | None = None
        self._output: ConsoleLog | None = None
        self._monitor: Monitor | None = None
        self._host_key = spec.template.host_key if spec.template else keys.generate()
        self._destroyed = False
        self._restarts = 0

    @property
    def guest_addresses(self) -> dict[Address, Address]:
        """Where in the guest each passed function stands, by its address on the host."""
        return {
            address: Address(0, 0, FIRST_SLOT + index, 0)
            for index, address in enumerate(self.spec.devices)
        }

    # ---- life --------------------------------------------------------------------

    def create(self, deadline: Deadline) -> None:
        """Start QEMU with its processors stopped; on failure leave nothing.

        Raises:
            ProductRefusalError: QEMU ended by itself, with what it wrote.
        """
        script = 'umask 077; mkdir -p "$1" && cat > "$1/host_key"'
        self._entry, result = self._journal.change(
            Undo(linux_undo.GUEST.name, (self._directory,)),
            ["sh", "-c", script, "hil", self._directory],
            deadline=deadline,
            stdin=self._host_key.private.encode("ascii"),
        )
        result.check()
        command = ["sh", "-c", _KEEPER, "hil", self._directory, *self.command()]
        self._keeper = self._transport.open_stream(command, deadline=deadline)
        self._output = ConsoleLog(f"{self.spec.name} qemu", self._keeper)
        try:
            self._monitor = self._open_monitor(deadline)
        except BaseException:
            self.destroy(Deadline(30, f"the clean-up of guest {self.spec.name}"))
            raise
        events.emit(events.PhaseReached(self.spec.name, "created"))

    def _open_monitor(self, deadline: Deadline) -> Monitor:
        limit = deadline.within(60, f"QEMU of guest {self.spec.name}")
        try:
            stream = self._relay("monitor", limit)
            return Monitor(socket_pair_for(stream), self.spec.name, limit)
        except LabError:
            # It makes its sockets first and looks at its devices then.
            with contextlib.suppress(LabError):
                self._wait_for_end(Deadline(5, f"the end of QEMU of guest {self.spec.name}"))
            if self._ended() is None:
                raise
        raise ProductRefusalError(
            f"QEMU refused to start guest {self.spec.name} (status {self._ended()})",
            host=self.host,
            seen=self.failure(),
            command=self.command(),
        )

    def command(self) -> list[str]:
        """QEMU's command line."""
        spec, image = self.spec, self._image
        # Relaxed, for probes that reach registers of functions whose driver runs.
        words = [
            "console=ttyS0",
            "root=/dev/vda",
            "iomem=relaxed",
            *image.arguments,
            *spec.arguments,
        ]
        command = ["qemu-system-x86_64", "-name", f"guest={spec.name}"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-S"]
        # Without what no guest uses, which takes time to start and to restore.
        machine = "q35,accel=kvm,graphics=off,smm=off,sata=off,smbus=off"
        command += ["-machine", machine, "-cpu", "host"]
        command += ["-smp", str(spec.cpus), "-m", f"{spec.memory >> 20}M"]
        for name, purpose in (("console", "-serial"), ("monitor", "-qmp")):
            path = f"{self._directory}/{name}"
            command += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
            if purpose == "-serial":
                command += ["-serial", f"chardev:{name}"]
            else:
                command += ["-mon", f"chardev={name},mode=control"]
        command += ["-netdev", "user,id=management,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"]
        command += ["-device", "virtio-net-pci,netdev=management,romfile=,addr=0x3"]
        command += ["-drive", f"if=none,id=root,file={image.root},format=raw,readonly=on"]
        command += ["-device", "virtio-blk-pci,drive=root,addr=0x4"]
        command += ["-device", "virtio-rng-pci,addr=0x5"]
        given = {
            "hostname": f"string={spec.name}",
            "authorized_keys": f"string={keys.of_this_run().public}",
            "ssh_host_key": f"file={self._directory}/host_key",
        }
        for name, value in given.items():
            command += ["-fw_cfg", f"name=opt/org.hil/{name},{value}"]
        command += ["-kernel", image.kernel, "-initrd", image.initrd, "-append", " ".join(words)]
        for index, address in enumerate(spec.devices):
            slot = FIRST_SLOT + index
            rom = "rombar=0"
            if address in spec.roms:
                rom = "rombar=1,romfile=" + spec.roms[address].replace(",", ",,")
            command += ["-device", f"vfio-pci,host={address},addr={slot:#x},{rom}"]
        if spec.template is not None:
            command += ["-incoming", "defer"]
        return command

    def start(self, deadline: Deadline) -> None:
        """Run the guest's first instruction, or continue its template."""
        if self.spec.template is not None:
            uri = f"file:{self.spec.template.path}"
            self._maps_memory(deadline)
            self._qmp().execute("migrate-incoming", deadline, uri=uri)
            self._wait_for_migration(
                TemplateLostError("the saved guest cannot be continued"), deadline
            )
        self._qmp().execute("cont", deadline)
        events.emit(events.PhaseReached(self.spec.name, "started"))

    def state(self, deadline: Deadline) -> MachineState:
        """As the hypervisor sees it."""
        if self._destroyed:
            return MachineState.DESTROYED
        ended = self._ended()
        if ended is not None:
            return MachineState.STOPPED if ended == 0 else MachineState.CRASHED
        try:
            status = self._qmp().execute("query-status", deadline)["status"]
        except LabError:
            # QEMU takes its monitor with it when it ends; its exit status follows.
            self._wait_for_end(deadline.within(5, "the exit status of QEMU"))
            return self.state(deadline)
        if status in ("prelaunch", "inmigrate"):
            return MachineState.PREPARED
        if status in ("guest-panicked", "internal-error"):
            return MachineState.CRASHED
        return MachineState.STOPPED if status == "shutdown" else MachineState.RUNNING

    def save(self, path: str, deadline: Deadline) -> Template:
        """Stop it and keep its state in ``path``, a file or disk on the host."""
        self._qmp().execute("stop", deadline)
        failure = LabError("the guest cannot be saved")
        if self._maps_memory(deadline):
            # By way of a file, since QEMU shortens it first: a disk cannot be shortened.
            file = f"{self._directory}/state"
            self._qmp().execute("migrate", deadline, uri=f"file:{file}")
            self._wait_for_migration(failure, deadline)
            command = ["dd", f"if={file}", f"of={path}", "bs=64K", "conv=sparse,notrunc"]
            self._transport.run(command, deadline=deadline).check()
        else:
            uri = f"exec:cat > {shlex.quote(path)}"
            self._qmp().execute("migrate", deadline, uri=uri)
            self._wait_for_migration(failure, deadline)
        spec = self.spec
        return Template(spec.image, spec.memory, spec.cpus, path, self._host_key)

    def _maps_memory(self, deadline: Deadline) -> bool:
        """Have the state hold each page at a place of its own, which is read in half the time.

        Returns:
            Whether QEMU can: from 9.0.
        """
        wanted = [{"capability": "mapped-ram", "state": True}]
        try:
            self._qmp().execute("migrate-set-capabilities", deadline, capabilities=wanted)
        except LabError:  # a monitor that is gone says so again at once
            return False
        return True

    def _wait_for_migration(self, failure: LabError, deadline: Deadline) -> None:
        def ended() -> bool:
            info = self._qmp().execute("query-migrate", deadline)
            if info.get("status") in ("failed", "cancelled"):
                failure.seen = str(info.get("error-desc", ""))
                raise failure
            return bool(info.get("status") == "completed")

        failure.host = self.host
        try:
            poll(ended, deadline, interval=0.1, last_seen=self.failure)
        except DeadlineExceeded:
            raise
        except LabError as error:
            if error is failure:
                raise
            # QEMU ends by itself at a state that it cannot read.
            failure.seen = self.failure() or error.message
            raise failure from error

    def reset(self, deadline: Deadline) -> None:
        """Press the reset button."""
        self._qmp().execute("system_reset", deadline)

    def nmi(self, deadline: Deadline) -> None:
        """Send a non-maskable interrupt to every CPU."""
        self._qmp().execute("inject-nmi", deadline)

    def restarts(self) -> int:
        """How often the guest has restarted: QEMU's event RESET (qapi/run-state.json)."""
        if self._monitor is not None:
            self._restarts += self._monitor.events().count("RESET")
        return self._restarts

    def kill(self, deadline: Deadline) -> None:
        """SIGKILL to QEMU; the kernel takes back what it held."""
        match = re.search(r"^hil: pid (\d+)\r?$", self._words(), re.MULTILINE)
        if match:
            self._transport.run(["kill", "-9", match[1]], deadline=deadline)
        self._wait_for_end(deadline)

    def destroy(self, deadline: Deadline) -> None:
        """End the guest and free all it held."""
        if self._destroyed:
            return
        if self._keeper is not None and self._ended() is None:
            with contextlib.suppress(LabError):
                self.kill(deadline)
        # Told by the keeper after it has removed the folder; else the journal's end looks.
        if self._entry is not None and _STATUS.search(self._words()):
            self._journal.forget(self._entry)
        if self._monitor is not None:
            self._monitor.close()
        if self._keeper is not None:
            self._keeper.close()
        if self._output is not None:
            self._output.close()
        self._destroyed = True
        events.emit(events.PhaseReached(self.spec.name, "destroyed"))

    def failure(self) -> str:
        """What QEMU wrote, without the keeper's own lines."""
        lines = [line for line in self._words().splitlines() if not line.startswith("hil: ")]
        return "\n".join(lines)[-4000:]

    # ---- ways in -------------------------------------------------------------------

    def console(self, deadline: Deadline) -> ByteStream:
        """The first serial port, by a relay on the host."""
        return self._relay("console", deadline)

    def ssh(self, deadline: Deadline) -> Transport:
        """Root in the guest, by way of the host's loopback."""
        from hil.transport.ssh import SshTransport

        jump = self._transport if isinstance(self._transport, SshTransport) else None
        return SshTransport.connect(
            self.spec.name,
            "127.0.0.1",
            port=self._management_port(deadline),
            key=keys.of_this_run().load(),
            host_key=self._host_key.public,
            jump=jump,
            key_exchange=keys.KEY_EXCHANGE,
            deadline=deadline,
        )

    def _management_port(self, deadline: Deadline) -> int:
        """The port on the host's loopback that leads to the guest's SSH server."""
        text = self._qmp().human("info usernet", deadline)
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", text)
        if not match:
            raise LabError(
                f"QEMU tells no forwarded port for guest {self.spec.name}",
                host=self.host,
                seen=text,
            )
        return int(match[1])

    def read_physical(self, address: int, length: int, deadline: Deadline) -> bytes:
        """Guest physical memory, as QEMU sees it (QMP pmemsave)."""
        path = f"{self._directory}/memory"
        self._qmp().execute("pmemsave", deadline, val=address, size=length, filename=path)
        try:
            return self._transport.get(path, deadline=deadline)
        finally:
            self._transport.run(["rm", "-f", path], deadline=deadline)

    def search_physical(self, texts: Sequence[str], deadline: Deadline) -> list[tuple[int, ...]]:
        """For each text, guest physical addresses where it stands, at most SEARCH_LIMIT of them."""
        path = f"{self._directory}/memory"
        self._qmp().execute("pmemsave", deadline, val=0, size=self.spec.memory, filename=path)
        command = ["sh", "-c", _SEARCH, "hil", path, str(SEARCH_LIMIT), *texts]
        said = self._transport.run(command, deadline=deadline).check().stdout
        return [
            tuple(map(int, part.split()))
            for part in re.split(r"^text\n", said, flags=re.MULTILINE)[1:]
        ]

    # ---- within ----------------------------------------------------------------------

    def _words(self) -> str:
        return self._output.text() if self._output is not None else ""

    def _ended(self) -> int | None:
        match = _STATUS.search(self._words())
        if match:
            return int(match[1])
        if self._output is not None and self._output.ended:
            return 255
        return None

    def _wait_for_end(self, deadline: Deadline) -> None:
        poll(
            lambda: self._ended() is not None,
            deadline.within(30, f"the end of QEMU of guest {self.spec.name}"),
            interval=0.02,
            last_seen=self.failure,
        )

    def _relay(self, name: str, deadline: Deadline) -> ByteStream:
        command = ["sh", "-c", _RELAY, "hil", f"{self._directory}/{name}"]
        return self._transport.open_stream(command, deadline=deadline)

    def _qmp(self) -> Monitor:
        if self._monitor is None or self._ended() is not None:
            raise LabError(
                f"guest {self.spec.name} is not running",
                host=self.host,
                seen=self.failure(),
            )
        return self._monitor
