"""A guest's userland: its files, its disks and memory in /dev, its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from hil.simulated.files import Device, Node
from hil.simulated.guest_memory import GuestFiles
from hil.simulated.host_system import DevMem, HostSystem, RawDisk
from hil.simulated.process import System

if TYPE_CHECKING:
    from hil.simulated.guest_image import GuestImage
    from hil.simulated.guest_kernel import GuestKernel


class GuestSystem(System):
    """The processes of one boot of a guest, over its kernel."""

    #: Permissions of a disk in /dev.
    disk_mode: ClassVar[int]

    def __init__(
        self, image: GuestImage, kernel: GuestKernel, *, build: str = "", ident: str = ""
    ) -> None:
        files = GuestFiles(kernel.ram)
        super().__init__(
            image.hostname,
            {},
            files,
            kernel.machine,
            version=image.release,
            build=build,
            ident=ident,
        )
        #: What the devices of a host's /dev ask, and a guest's too.
        self.host = kernel.machine
        for name in ("/usr", "/usr/local", "/root/.ssh"):
            files.make_directory(name)
        files.directory("/dev").dynamic = self._devices

    def _devices(self) -> dict[str, Node]:
        # The same devices as a host's: they need what both have.
        system = cast("HostSystem", self)
        return {
            name: Device(lambda _process, _mode, n=name: RawDisk(system, n), self.disk_mode)  # type: ignore[misc]
            for name in list(self.host.kernel.disks)
        }


class FreebsdSystem(GuestSystem):
    """The processes of one boot of a FreeBSD guest."""

    disk_mode = 0o640

    def __init__(self, image: GuestImage, kernel: GuestKernel) -> None:
        super().__init__(image, kernel, ident=image.kernel)

    def _devices(self) -> dict[str, Node]:
        system = cast("HostSystem", self)
        memory = Device(lambda _process, _mode: DevMem(system), 0o640)
        return {"mem": memory} | super()._devices()
