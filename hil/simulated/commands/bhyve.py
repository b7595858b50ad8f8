"""bhyve(8), bhyveload(8) and bhyvectl(8).

The order of their steps is that of usr.sbin/bhyve/bhyverun.c, usr.sbin/bhyveload/bhyveload.c
and usr.sbin/bhyvectl/bhyvectl.c: it decides which of several mistakes is told.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, cast

from hil.simulated.commands.bhyve_config import Config, Slot, parse
from hil.simulated.commands.options import flags, getopt, refuse, size_of
from hil.simulated.console import Modes, OpenTty, Tty, terminal
from hil.simulated.errno import Errno, SimError
from hil.simulated.guest_image import GuestImage
from hil.simulated.host_system import HostSystem
from hil.simulated.process import (
    SIGKILL,
    SIGNALS,
    SIGTERM,
    Command,
    Exit,
    OpenFile,
    Process,
    Stream,
)

if TYPE_CHECKING:
    from hil.simulated import net
    from hil.simulated.guest import Guest
    from hil.simulated.guest_network import Tap
    from hil.simulated.passthru import Passthru, PassthruError
    from hil.simulated.vmm import Vm


def _host(process: Process) -> HostSystem:
    assert isinstance(process.system, HostSystem)
    return process.system


def _load_vmm(host: HostSystem) -> None:
    with contextlib.suppress(SimError):
        host.host.kernel.load_module("vmm")


class _Failure(Exception):  # noqa: N818 - what bhyve fails with
    """A device that cannot be made: its words, and the error number that is left behind."""

    def __init__(self, message: str, number: Errno = Errno.ENOENT) -> None:
        super().__init__(message)
        self.number = number


# bhyve


def bhyve(process: Process) -> int:
    host = _host(process)
    config = parse(process)
    _load_vmm(host)
    vm = _open(process, host, config)
    process.title = f"bhyve: {config.name} (bhyve)"
    if config.cpus > host.host.spec.cpus:
        process.complain("vm_set_topology")
        return 71
    try:
        vm.setup_memory(config.memory, wired=config.wired)
    except SimError as error:
        process.err(f"Unable to setup memory ({int(error.number)})\n")
        return 4
    machine = _Machine(process, host, config, vm)
    try:
        machine.make()
    except _Failure as failure:
        process.err(f"{failure}\n" if str(failure) else "")
        word = "D" if process.system.release >= (14, 0) else "d"
        process.err(f"{word}evice emulation initialization error: {failure.number.text}\n")
        machine.close()
        return 4
    return machine.run()


def _open(process: Process, host: HostSystem, config: Config) -> Vm:
    vmm = host.host.vmm
    reinit = False
    try:
        vmm.create(config.name)
        if not config.bootrom:
            process.err("virtual machine cannot be booted\n")
            raise Exit(4)
    except SimError as error:
        if error.number is not Errno.EEXIST:
            process.err(f"vm_create: {error.text}\n")
            raise Exit(4) from None
        reinit = bool(config.bootrom)
    try:
        vm: Vm = vmm.open(config.name)
        if reinit:
            vm.reinit()
    except SimError as error:
        process.err(f"{'vm_reinit' if reinit else 'vm_open'}: {error.text}\n")
        raise Exit(4) from None
    return vm


class _Machine:
    """A bhyve process's devices, and the guest on them."""

    def __init__(self, process: Process, host: HostSystem, config: Config, vm: Vm) -> None:
        self._process = process
        self._host = host
        self._config = config
        self._vm = vm
        self._passed: dict[tuple[int, int], Passthru] = {}
        self._taps: list[Tap] = []
        self._console: OpenFile | None = None
        self._own: Tty | None = None
        """The terminal that bhyve itself was started at, if com1 is there."""
        self._modes = Modes()
        self._destroyed = threading.Event()

    def make(self) -> None:
        """init_pci(): each device in the order of its place."""
        for place, device in sorted(self._config.devices.items()):
            model = device["device"]
            if model == "passthru":
                self._pass(place, device)
            elif model in ("virtio-blk", "ahci", "ahci-hd", "ahci-cd", "nvme"):
                self._disk(device)
            elif model in ("virtio-net", "e1000"):
                self._network(device)
            elif model == "lpc":
                self._lpc()
        self._place()

    def _disk(self, device: Mapping[str, str]) -> None:
        path = device.get("path", "")
        if self._host.image_at(self._process.path(path)) is None:
            text = Errno.ENOENT.text
            raise _Failure(
                f"bhyve: Could not open backing file: {path}: {text}\n"
                f"Could not open backing file: {text}"
            )

    def _network(self, device: Mapping[str, str]) -> None:
        from hil.simulated.guest_network import Tap

        backend = device.get("backend", "")
        interface = self._host.host.kernel.interfaces().get(backend)
        if interface is None or "tap" not in interface.groups:
            raise _Failure(f"open of tap device /dev/{backend} failed")
        mac = device.get("mac", "00:a0:98:00:00:01")
        self._taps.append(Tap(mac, cast("net.Tap", interface)))

    def _lpc(self) -> None:
        config = self._config
        if config.bootrom and not self._host.files.exists(config.bootrom):
            raise _Failure(f'Error opening bootrom "{config.bootrom}": {Errno.ENOENT.text}')
        if not config.console:
            return
        if config.console == "stdio":
            self._own = terminal(self._process.file(0).stream)
            if self._own is not None:
                self._modes = self._own.modes
                _make_raw(self._own)
            return
        try:
            file = self._host.files.open(self._process, config.console, "rwn")
        except SimError:
            file = None
        if file is None or not isinstance(file.stream, OpenTty):
            raise _Failure(f"Unable to initialize backend '{config.console}' for LPC device com1")
        self._console = file.reference()
        _make_raw(file.stream.tty)

    def _pass(self, place: Slot, device: Mapping[str, str]) -> None:
        from hil.simulated.passthru import Passthru, PassthruError, Refusal

        if not self._vm.wired:
            raise _Failure("bhyve: passthru requires guest memory to be wired")
        bus, slot, function = self._address(device)
        passed = Passthru(self._vm, (bus, slot, function))
        try:
            passed.setup()
        except PassthruError as error:
            number = error.number
            if error.refusal is Refusal.NOT_PPT and self._process.system.release < (16, 0):
                # What bhyve tells is the error of the unassignment that it tries afterwards.
                try:
                    self._vm.unassign(bus, slot, function)
                except SimError as second:
                    number = second.number
            text = _passthru_text(error, number, (bus, slot, function), self._process)
            raise _Failure(text, number) from None
        self._passed[place.slot, place.function] = passed

    def _address(self, device: Mapping[str, str]) -> tuple[int, int, int]:
        name = device.get("pptdev")
        if name is not None:
            try:
                found = self._host.host.kernel.find(name)
            except SimError:
                raise _Failure(f"Passthru device {name} not found") from None
            at = found.function.address
            if at.domain:
                raise _Failure(f"Passthru device {name} on unsupported domain")
            return at.bus, at.device, at.function
        for key in ("bus", "slot", "func"):
            if key not in device:
                raise _Failure(f"passthru: missing required {key} setting")
        return int(device["bus"]), int(device["slot"]), int(device["func"])

    # The guest's life

    def _place(self) -> None:
        """Give the passed functions their part of the guest's address space."""
        from hil.simulated.passthru import GuestWindows

        windows = GuestWindows(self._config.memory, self._host.host.faults)
        requests = [each for passed in self._passed.values() for each in passed.requests()]
        placed = windows.place(requests)
        for passed in self._passed.values():
            passed.place(placed)

    def run(self) -> int:
        config = self._config
        self._vm.on_destroy.append(self._destroyed.set)
        try:
            if config.debugger:
                self._await_debugger()
            return self._guest_life()
        finally:
            self.close()

    def _await_debugger(self) -> None:
        """-G: hold the guest until a debugger has come and gone."""
        process = self._process
        address, _, port = self._config.debugger.rpartition(":")
        came = threading.Condition()
        arrived: list[int] = []

        def connected(number: int) -> None:
            with came:
                arrived.append(number)
                came.notify_all()

        process.connected = connected
        process.listening = [(address, int(port))]
        if self._config.wait_for_debugger:
            with came:
                process.wait_on(came, lambda: arrived or self._destroyed.is_set())

    def _guest_life(self) -> int:
        from hil.simulated.guest import guest_class
        from hil.simulated.guest_kernel import Hardware

        process, config, host = self._process, self._config, self._host
        image = self._image()
        if image is None and not config.bootrom:
            return self._invalid_state()
        if image is None:
            # Nothing to boot: the processor runs, and nothing comes of it.
            idle = threading.Condition()
            self._vm.start()
            with idle:
                self._vm.on_destroy.append(lambda: _notify(idle))
                process.wait_on(idle, self._destroyed.is_set)
            return self._gone()
        sender = self._thread({})
        guest = guest_class(image)(
            Hardware(
                vm=self._vm,
                cpus=config.cpus,
                passthru=self._passed,
                slots={
                    (place.slot, place.function): device["device"]
                    for place, device in config.devices.items()
                    if device["device"] != "passthru"
                },
                taps=self._taps,
            ),
            image,
            send=functools.partial(self._send, sender),
            networks=host.networks,
        )
        process.handlers[SIGTERM] = lambda _: guest.power_button()
        host.guests[config.name] = guest
        # The caller of this holds the model's lock, which the guest's end may wait for.
        self._vm.on_destroy.append(lambda: threading.Thread(target=guest.stop, daemon=True).start())
        reader = self._start_reader(guest)
        self._vm.start()
        try:
            ending = guest.run(process)
        finally:
            host.guests.pop(config.name, None)
            reader()
            sender.signal(SIGKILL)
        if self._destroyed.is_set():
            return self._gone()
        return int(ending)

    def _gone(self) -> int:
        self._process.err("vm_run error -1, errno 6\n")
        return 1

    def _image(self) -> GuestImage | None:
        heads = (self._host.image_at(self._process.path(path)) for path in self._config.disks)
        disks = (GuestImage.parse(head or b"") for head in heads)
        disk = next((image for image in disks if image is not None), None)
        if self._config.bootrom:
            return disk and disk.booted_by_firmware()
        loaded = self._host.loaded.get(self._config.name)
        if loaded is None or loaded.os != "linux" or disk is None or disk.os != "linux":
            return loaded
        # The kernel is the loader's, everything else the disk's.
        return replace(
            disk, release=loaded.release, kernel=loaded.kernel, arguments=loaded.arguments
        )

    def _invalid_state(self) -> int:
        """Nothing was loaded: a processor that begins at address 0 cannot (vmexit.c)."""
        if self._host.host.spec.vendor == "intel":
            rest = "status\t\t0\n\texit_reason\t33\n\tqualification\t0x0000000000000000\n"
            rest += "\tinst_type\t\t0\n\tinst_error\t\t0"
        else:
            rest = "exitcode\t0xffffffffffffffff\n\texitinfo1\t0\n\texitinfo2\t0"
        reason = "VMX" if self._host.host.spec.vendor == "intel" else "SVM"
        self._process.err(
            f"vm exit[0]\n\treason\t\t{reason}\n\trip\t\t0x0000000000000000\n"
            f"\tinst_length\t0\n\t{rest}\n"
        )
        return 128 + SIGNALS["ABRT"]

    def _send(self, sender: Process, data: bytes) -> None:
        stream = self._output
        if stream is not None:
            with contextlib.suppress(SimError):
                stream.write(sender, data)

    @property
    def _output(self) -> Stream | None:
        if self._console is not None:
            return self._console.stream
        return self._process.file(1).stream if self._config.console == "stdio" else None

    def _start_reader(self, guest: Guest) -> Callable[[], None]:
        """Carry what is typed at com1 to the guest; the returned call ends that."""
        console = self._console
        if console is None and self._config.console != "stdio":
            return lambda: None
        source = console or self._process.file(0)
        helper = self._thread({0: source})

        def carry(process: Process) -> int:
            while data := process.read(256):
                guest.receive(data)
            return 0

        self._process.run_beside(helper, carry)
        return lambda: helper.signal(SIGKILL)

    def _thread(self, files: Mapping[int, OpenFile]) -> Process:
        """One more thread of this process: what is sent to the process is not for it to take."""
        thread = self._host.process(
            ["bhyve"], parent=self._process, environment={}, files=dict(files)
        )
        self._host.processes.pop(thread.pid, None)
        return thread

    def close(self) -> None:
        """The process's end: devices stay assigned, and memory stays, until the VM is destroyed."""
        self._process.listening = []
        if not self._vm.destroyed:
            self._vm.stop()
        if self._console is not None:
            self._console.release()
            self._console = None
        if self._own is not None:
            with self._own.changed:
                self._own.modes = self._modes


def _notify(condition: threading.Condition) -> None:
    with condition:
        condition.notify_all()


def _make_raw(tty: Tty) -> None:
    with tty.changed:
        tty.modes = replace(tty.modes.raw(), clocal=True)


def _passthru_text(
    error: PassthruError, number: Errno, place: tuple[int, int, int], process: Process
) -> str:
    """What bhyve says of a function that cannot be passed, by release."""
    from hil.simulated.passthru import Refusal

    where = "/".join(map(str, place))
    if error.refusal is Refusal.NO_MSI:
        return f"bhyve: failed to initialize MSI for PCI {where}"
    if error.refusal is Refusal.UNALIGNED_BAR:
        return f"passthru device {where} BAR {error.bar}: base or size not page aligned"
    if error.refusal is Refusal.MSIX_MAP:
        return f"Failed to map MSI-X table BAR on {where}: {number.text}"
    if process.system.release < (16, 0):
        return f"bhyve: PCI device at {where} is not using the ppt(4) driver"
    if number is Errno.ENOENT:
        return f"bhyve: PCI device at {where} is not using the ppt driver"
    return f"bhyve: vm_assign_pptdev: {number.text}"


# bhyveload


_BHYVELOAD = """\
usage: bhyveload [-S][-c <console-device>] [-d <disk-path>] [-e <name=value>]
                 [-h <host-path>] [-m memsize[K|k|M|m|G|g|T|t]] <vmname>
"""


def bhyveload(process: Process) -> int:
    usage = _BHYVELOAD
    found, words = getopt(process, "CSc:d:e:h:l:m:", usage, 1)
    option = flags(found)
    host = _host(process)
    head = b""
    for letter, path in found:
        if letter == "d":
            contents = host.image_at(process.path(path))
            if contents is None:
                process.complain(f"Could not open '{path}'")
                return 64
            head = head or contents
    if len(words) != 1:
        refuse(process, usage)
    try:
        memory = size_of(option.get("m", "256M"))
    except ValueError:
        process.complain(f"Invalid memsize '{option['m']}'")
        return 64
    size = memory << 20 if memory < 1 << 20 else memory
    step, text = load_vm(host, words[0], size, "S" in option)
    if step:
        process.err(f"{step}: {text}\n")
        return 1
    image = GuestImage.parse(head)
    if image is not None and image.os != "freebsd":
        image = None  # what it looks for is not there
    with loader_console(process, host, option.get("c", "stdio")) as (write, _):
        _show_loader(write, image)
    if image is not None:
        told = (word.partition("=") for letter, word in found if letter == "e")
        environment = {name: value for name, _, value in told}
        host.loaded[words[0]] = image.with_environment(environment)
    return 0


def load_vm(host: HostSystem, name: str, memory: int, wired: bool) -> tuple[str, str]:
    """A virtual machine with its memory, for a loader.

    Args:
        host: where.
        name: of the virtual machine; one that exists is begun anew.
        memory: bytes.
        wired: whether its memory cannot be paged out.

    Returns:
        The call of libvmmapi that failed, and what perror(3) says of it; empty if all went well.
    """
    _load_vmm(host)
    vmm = host.host.vmm
    step = "vm_create"
    try:
        try:
            vm = vmm.create(name)
        except SimError as error:
            if error.number is not Errno.EEXIST:
                raise
            step = "vm_reinit"
            vm = vmm.open(name)
            vm.reinit()
        step = "vm_setup_memory"
        vm.setup_memory(memory, wired=wired)
    except SimError as error:
        return step, error.text
    host.loaded.pop(name, None)
    return "", ""


def _show_loader(write: Callable[[bytes], None], image: GuestImage | None) -> None:
    from hil.simulated.guest_text import loader_output

    if image is None:
        write(b"Consoles: userboot  \r\n\r\nFreeBSD/amd64 User boot lua, Revision 1.2\r\n")
        write(b"ERROR: cannot open /boot/lua/loader.lua: no such file or directory.\r\n")
        return
    write(loader_output())


@contextlib.contextmanager
def loader_console(
    process: Process, host: HostSystem, path: str
) -> Iterator[tuple[Callable[[bytes], None], OpenFile]]:
    """Where a loader prints, and reads what is typed: a terminal, or its own standard files."""
    if path == "stdio":
        yield process.out, process.file(0)
        return
    try:
        file = host.files.open(process, process.path(path), "rwn").reference()
    except SimError:
        process.complain(f"Could not open '{path}'")
        raise Exit(64) from None
    try:
        if isinstance(file.stream, OpenTty):
            _make_raw(file.stream.tty)
        yield lambda data: file.stream.write(process, data), file
    finally:
        file.release()


# bhyvectl


def bhyvectl(process: Process) -> int:
    options: dict[str, str] = {}
    for word in process.arguments[1:]:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            return _bhyvectl_usage(process)
        options[name] = value
    if not options.get("vm"):
        return _bhyvectl_usage(process)
    host = _host(process)
    name = options.pop("vm")
    vmm = host.host.vmm
    try:
        if "create" in options:
            vmm.create(name)
        vm = vmm.open(name)
    except SimError as error:
        process.err(f"vm_open: {name} could not be opened: {error.text}\n")
        return 1
    status = 0
    for option, value in options.items():
        action = _BHYVECTL.get(option)
        if action is None:
            continue
        try:
            action(process, host, vm, value)
        except SimError as error:
            process.err(f"bhyvectl: {error.text}\n")
            status = 1
    return status


def _bhyvectl_usage(process: Process) -> int:
    process.err((resources.files(__package__) / "bhyvectl.txt").read_text("utf-8"))
    return 1


def _destroy(process: Process, host: HostSystem, vm: Vm, value: str) -> None:
    host.loaded.pop(vm.name, None)
    vm.destroy()


def _stats(process: Process, host: HostSystem, vm: Vm, value: str) -> None:
    text = (resources.files(__package__) / "vcpu_stats.txt").read_text("utf-8")
    size = vm.memory_size
    process.out(
        text.replace("{resident}", str(size + 0x10D000)).replace("{wired}", str(size + 4096))
    )


def _active(process: Process, host: HostSystem, vm: Vm, value: str) -> None:
    process.out("active cpus:\t 0\n" if vm.running else "active cpus:\t (none)\n")


def _get_all(process: Process, host: HostSystem, vm: Vm, value: str) -> None:
    size = vm.memory_size
    # bhyvectl prints the end of the protection's string, too.
    wired = "\0wired/iommu" if vm.devices else "\0wired" if vm.wired else ""
    process.out("ID  Length      Name\n")
    process.out(f"0   {size >> 20}MB       sysmem\n1   16384KB     bootrom\n")
    process.out("Address     Length      Segment     Offset      Prot  Flags\n")
    process.out(f"0           {size >> 20}MB       sysmem      0           RWX   {wired}\n")
    process.out("FF000000    4096B       bootrom     0           R--   \0wired\n")
    process.out((resources.files(__package__) / "vcpu_registers.txt").read_text("utf-8"))
    _active(process, host, vm, value)
    process.out("suspended cpus:\t (none)\npending:\tn/a\ncurrent:\tn/a\n")
    _stats(process, host, vm, value)
    cpus = host.host.spec.cpus
    process.out(f"cpu_topology:\tsockets=1, cores=1, threads=1, maxcpus={cpus}\n")


def _for_guest(verb: str) -> Callable[[Process, HostSystem, Vm, str], None]:
    def action(process: Process, host: HostSystem, vm: Vm, value: str) -> None:
        guest = host.guests.get(vm.name)
        if guest is not None:
            getattr(guest, verb)()

    return action


def _unassign(process: Process, host: HostSystem, vm: Vm, value: str) -> None:
    bus, slot, function = (int(word) for word in value.split("/"))
    vm.unassign(bus, slot, function)


def _low_memory(process: Process, host: HostSystem, vm: Vm, value: str) -> None:
    process.out(f"lowmem\t\t0x{0:016x}/{min(vm.memory_size, 3 << 30)}\n")


_BHYVECTL: Mapping[str, Callable[[Process, HostSystem, Vm, str], None]] = {
    "get-stats": _stats, "get-all": _get_all, "get-active-cpus": _active,
    "get-lowmem": _low_memory, "inject-nmi": _for_guest("nmi"),
    "force-reset": _for_guest("reset"), "force-poweroff": _for_guest("power_off"),
    "unassign-pptdev": _unassign, "destroy": _destroy,
}  # fmt: skip

COMMANDS: Mapping[str, Command] = {
    "bhyve": bhyve, "bhyveload": bhyveload, "bhyvectl": bhyvectl,
}  # fmt: skip
