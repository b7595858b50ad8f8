"""A guest under a bhyve of the tests' own: a VM of the model, devices passed, console in memory."""

from __future__ import annotations

import ipaddress
import re
import threading
from collections.abc import Callable, Mapping

from hil.deadline import Deadline, poll
from hil.simulated.files import Files
from hil.simulated.guest import Guest, guest_class
from hil.simulated.guest_image import GuestImage
from hil.simulated.guest_kernel import Hardware
from hil.simulated.guest_network import GuestNetworks, Tap
from hil.simulated.machine import Machine
from hil.simulated.net import Tap as HostTap
from hil.simulated.passthru import GuestWindows, Passthru
from hil.simulated.process import SIGKILL, System, execute

#: How bhyve is told its own devices, but for passed ones.
SLOTS = {(0, 0): "hostbridge", (31, 0): "lpc", (3, 0): "virtio-blk"}
TAP = "02:68:69:00:00:01"


def joined(machine: Machine, name: str, address: str) -> None:
    """Give the host's end of a cable an address."""
    interface = machine.kernel.interfaces()[name]
    interface.addresses = [ipaddress.IPv4Interface(address)]
    interface.set_up(True)


class Bhyve:
    """One guest's run, from its first line to its end.

    Args:
        machine: the host.
        devices: names of the functions in the machine's specification, by slot.
        tap: whether it gets a virtio NIC, in slot 4.
    """

    def __init__(
        self,
        machine: Machine,
        devices: Mapping[int, str],
        *,
        image: GuestImage,
        memory: int = 256 << 20,
        tap: bool = False,
    ) -> None:
        self.machine = machine
        self.printed = bytearray()
        self.status: int | None = None
        self.networks = GuestNetworks()
        self.vm = machine.vmm.create(f"g{len(machine.vmm.vms)}")
        self.vm.setup_memory(memory, wired=True)
        slots = dict(SLOTS)
        taps = []
        if tap:
            slots[4, 0] = "virtio-net"
            made = machine.kernel.create_interface("tap")
            assert isinstance(made, HostTap)
            made.set_up(True)
            taps.append(Tap(TAP, made))
        self._passed = self._pass(devices)
        self.guest: Guest = guest_class(image)(
            Hardware(
                vm=self.vm,
                cpus=1,
                passthru={(slot, 0): device for slot, device in self._passed.items()},
                slots=slots,
                taps=taps,
            ),
            image,
            send=self.printed.extend,
            networks=self.networks,
        )
        host = System("host", {}, Files(), machine, version="13.2-RELEASE", build="", ident="X")
        self.process = host.process(["bhyve"], environment={}, files={})
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _pass(self, devices: Mapping[int, str]) -> dict[int, Passthru]:
        passed = {}
        for slot, name in devices.items():
            at = self.machine.function_named(name).address
            selector = f"pci0:{at.bus}:{at.device}:{at.function}"
            self.machine.kernel.set_driver(selector, "ppt", force=True)
            passed[slot] = Passthru(self.vm, (at.bus, at.device, at.function))
            passed[slot].setup()
        requests = [request for each in passed.values() for request in each.requests()]
        placed = GuestWindows(self.vm.memory_size, self.machine.faults).place(requests)
        for each in passed.values():
            each.place(placed)
        return passed

    def passed(self, slot: int) -> Passthru:
        """What was passed at a slot."""
        return self._passed[slot]

    def _run(self) -> None:
        self.status = execute(self.process, lambda process: int(self.guest.run(process)))

    @property
    def console(self) -> str:
        return self.printed.decode()

    def expect(self, pattern: str) -> str:
        """What was printed up to and with ``pattern``, which is then forgotten."""
        deadline = Deadline(60, f"{pattern!r} on the console")
        match = poll(
            lambda: re.search(pattern, self.console), deadline, last_seen=lambda: self.console
        )
        del self.printed[: len(self.console[: match.end()].encode())]
        return match.string[: match.end()]

    def log_in(self) -> None:
        self.expect(r"login: $")
        self.type("root")
        self.expect(r":~ ?# $")

    def type(self, line: str) -> None:
        self.guest.receive(line.encode() + b"\r")

    def run(self, command: str) -> str:
        """What a command typed at the console printed."""
        self.type(command)
        text = self.expect(r"\n(?:[^\n]*\r)?[^\n]*root@[^\n]*:~ ?# $")
        out = text.partition("\r\n")[2].rpartition("root@")[0].replace("\r\n", "\n")
        return out.removesuffix("\x1b[?2004h")

    def end(self) -> int:
        """The status with which it ended by itself."""
        self._thread.join(60)
        assert self.status is not None, self.console
        return self.status

    def kill(self) -> None:
        self.process.signal(SIGKILL)
        self._thread.join(60)


#: Boots a guest on a machine; see the fixture ``boot``.
Boot = Callable[..., Bhyve]
