"""A guest's userland: its files, its disks and memory in /dev, its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from hil.simulated.files import Device, Node
from hil.simulated.guest_memory import GuestFiles
from hil.simulated.host_system import DevMem, HostSystem, RawDisk
from hil.simulated.process import System

if TYPE_CHECKING:
    from hil.simulated.guest_image import GuestImage
    from hil.simulated.guest_kernel import GuestKernel


class GuestSystem(System):
    """The processes of one boot of a guest, over its kernel."""

    def __init__(self, image: GuestImage, kernel: GuestKernel) -> None:
        files = GuestFiles(kernel.ram)
        super().__init__(
            image.hostname,
            {},
            files,
            kernel.machine,
            version=image.release,
            build="",
            ident=image.kernel,
        )
        #: What the devices of a host's /dev ask, and a guest's too.
        self.host = kernel.machine
        for name in ("/usr", "/usr/local", "/root/.ssh"):
            files.make_directory(name)
        files.directory("/dev").dynamic = self._devices

    def _devices(self) -> dict[str, Node]:
        # The same devices as a host's: they need what both have.
        system = cast("HostSystem", self)
        found: dict[str, Node] = {"mem": Device(lambda _process, _mode: DevMem(system), 0o640)}
        for name in list(self.host.kernel.disks):
            found[name] = Device(lambda _process, _mode, n=name: RawDisk(system, n), 0o640)  # type: ignore[misc]
        return found
