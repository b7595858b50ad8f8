"""A simulated bhyve host that is up: the model, its userland, and sshd on loopback."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Sequence

from hil.simulated import releases
from hil.simulated.commands import host_commands
from hil.simulated.host_console import HostConsole
from hil.simulated.host_system import HostSystem
from hil.simulated.machine import Machine
from hil.simulated.server import SshServer
from hil.simulated.topology import spec_named
from hil.transport import keys


class SimulatedHost:
    """A host by name, such as ``freebsd-15-intel``.

    Args:
        name: release and vendor; ``recorded-13.2-amd`` is the machine of the transcripts.
        faults: bugs of the past that it has (:mod:`hil.simulated.faults`).
        iommu: whether vmm may use it: ``hw.vmm.iommu.enable`` in loader.conf, on AMD
            ``hw.vmm.amdvi.enable``.

    Raises:
        InventoryError: there is no such host, or no such fault.
    """

    def __init__(
        self, name: str = "freebsd-15-intel", faults: Sequence[str] = (), *, iommu: bool = True
    ) -> None:
        self.spec = spec_named(name)
        if not iommu:
            switch = "hw.vmm.amdvi.enable" if self.spec.vendor == "amd" else "hw.vmm.iommu.enable"
            off = {**self.spec.loader_conf, switch: "0"}
            self.spec = dataclasses.replace(self.spec, loader_conf=off)
        self.machine = Machine(self.spec, faults)
        release = releases.release_of(self.spec)
        self.system = HostSystem(
            self.machine,
            host_commands(),
            version=release.version,
            build=release.build,
            ident=release.ident,
            settings=releases.settings(self.spec),
        )
        #: The kernel's messages as they come: its serial console.
        self.console = HostConsole(self.spec.hostname)
        self.system.on_panic.append(lambda: self.console.panic(self.machine.panic))
        self.system.commands["reboot"] = lambda _process: self._reboot()
        self._port = 0
        self._finish_boot()
        self.key = keys.generate()
        """What logs in as root."""
        self.server = SshServer(
            self.system,
            authorized=[self.key.public],
            forward=self.system.networks.forward,
        )

    def _finish_boot(self) -> None:
        kernel = self.machine.kernel
        messages = releases.boot_messages(self.spec, kernel.dmesg)
        kernel.dmesg = self.console.messages(messages)
        kernel.kenv = {**releases.loader_variables(self.machine.acpi.root), **kernel.kenv}
        # The loopback interface comes after those of the devices that attach at boot.
        interfaces = kernel.stack.interfaces
        interfaces["lo0"] = interfaces.pop("lo0")

    def reboot(self, loader_conf: dict[str, str] | None = None) -> None:
        """Power off and on: every process ends, connections are cut, disks keep their contents."""
        port = self._port
        self.power_off()
        if loader_conf is not None:
            lines = "".join(f'{name}="{value}"\n' for name, value in loader_conf.items())
            self.system.files.write("/boot/loader.conf", lines.encode())
        self.machine.boot(self._loader_conf())
        self.system.restart()
        self._finish_boot()
        if port:
            self.server.start(port)

    def power_off(self) -> None:
        """Every process ends and connections are cut, until :meth:`reboot`."""
        self.server.close()
        self.system.kill_all()

    def _loader_conf(self) -> dict[str, str]:
        text = self.system.files.read("/boot/loader.conf").decode("utf-8", "replace")
        return dict(re.findall(r'^([\w.]+)="(.*)"', text, re.MULTILINE))

    def _reboot(self) -> int:
        threading.Thread(target=self.reboot, name="simulated-reboot", daemon=True).start()
        return 0

    def start(self) -> SimulatedHost:
        """Let clients in: at :attr:`port` of 127.0.0.1."""
        self.server.start()
        self._port = self.server.port
        return self

    @property
    def port(self) -> int:
        """Where its sshd listens."""
        return self.server.port

    @property
    def host_key(self) -> str:
        """The key that its sshd shows: ``ssh-ed25519 AAAA…``."""
        return self.server.host_key

    def close(self) -> None:
        """Everything ends."""
        self.console.close()
        self.server.close()
        self.system.kill_all()
