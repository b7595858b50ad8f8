"""Did a reset reset, and is a function quiet while nobody owns it?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from hil.bench import BenchDevice
from hil.deadline import Deadline
from hil.errors import LabError, ProductError
from hil.oracles import iommu
from hil.pci.config import ConfigSpace
from hil.pci.reset import defaults_after_reset
from hil.probes.registers import Registers, Sentinel, sentinel_of

#: PCIe 6.6.2: software waits this long after starting an FLR before it goes on.
FLR_WAIT = 0.1
#: PCIe 6.6.1: a function answers configuration requests within one second of a reset.
READY = 1.0
#: Offset of the COMMAND register, and its bus master bit (PCIe 7.5.1.1.3).
COMMAND, BUS_MASTER = 4, 0x4


def sentinel(device: BenchDevice) -> Sentinel | None:
    """The device's sentinel register, if one is known."""
    function = device.look()
    return sentinel_of(function.vendor, function.device)


def plant(device: BenchDevice) -> Sentinel:
    """Write the sentinel on the host; the device must be reserved.

    Raises:
        LabError: the register does not hold the value, so it could prove nothing.
    """
    mark = sentinel(device)
    if mark is None:
        raise LabError(f"no sentinel register is known for {device}")
    registers = Registers(device.host.platform, device.address)
    back = registers.write(mark, device.host.limit(20, f"register {mark.name}"))
    if back != mark.value:
        raise LabError(f"{mark.name} of {device} reads {back:#x} after {mark.value:#x} was written")
    return mark


def check_gone(device: BenchDevice, mark: Sentinel) -> int:
    """The sentinel's register holds something else now.  Returns its value.

    Raises:
        ProductError: the state of before has survived.
    """
    registers = Registers(device.host.platform, device.address)
    value = registers.read(mark, device.host.limit(20, f"register {mark.name}"))
    if value == mark.value:
        raise ProductError(
            f"{mark.name} of {device} still holds {value:#x}: its state survived the reset",
            seen=f"reset methods: {' '.join(device.look().reset_methods) or 'none'}",
        )
    if value == (1 << (8 * mark.width)) - 1:
        raise ProductError(f"{device} reads all ones after the reset: it has not come back")
    return value


#: Complaints that say nothing here: platforms write BARs and decoding back after a reset,
#: let an idle function sleep, and keep its pin from interrupting.
_RESTORED = ("COMMAND: I/O decode", "COMMAND: memory decode", "COMMAND: INTx", "power state")
#: Bits of COMMAND of which the same is true.
_PLATFORMS_OWN = 0x1 | 0x2 | 0x400


def check_quiet(
    before: ConfigSpace, after: ConfigSpace, what: str, *, mastering: bool = False
) -> None:
    """After its guest the function is as it was ``before`` it.

    It cannot master the bus nor interrupt, and what the guest wrote to COMMAND, BARs and
    interrupt control is gone.

    Args:
        before: its configuration when no guest had had it.
        after: and now.
        what: the function and the moment, for the error.
        mastering: the platform leaves bus mastering as the guest left it; then it says nothing.

    Raises:
        ProductError: with each register that is not.
    """
    complaints = [
        complaint
        for complaint in defaults_after_reset(after, bars_restored=True)
        if not complaint.startswith((*_RESTORED, *(["COMMAND: bus master"] if mastering else [])))
    ]
    ignored = _PLATFORMS_OWN | (BUS_MASTER if mastering else 0)
    for name, was, now in (
        ("COMMAND", before.command & ~ignored, after.command & ~ignored),
        ("the BARs", before.raw_bars, after.raw_bars),
        ("MSI", before.msi, after.msi),
        ("MSI-X", before.msix, after.msix),
    ):
        if was != now:
            complaints.append(f"{name}: before the guest {was}, after it {now}")
    if complaints:
        raise ProductError(f"{what} is not quiet", seen="\n".join(complaints))


def timed_reset(device: BenchDevice) -> float:
    """Reset the function and return how long the platform took, in seconds.

    Raises:
        ProductError: the function does not answer a second later, or has transactions
            pending.
    """
    platform = device.host.platform
    begin = time.monotonic()
    platform.reset(device.address, device.host.limit(20, f"the reset of {device}"))
    took = time.monotonic() - begin
    config = platform.read_config(device.address, device.host.limit(READY, f"{device} after reset"))
    if config.absent:
        raise ProductError(f"{device} reads all ones after its reset")
    if config.pcie is not None and config.pcie.transactions_pending:
        raise ProductError(f"{device} has transactions pending after its reset")
    return took


def check_cannot_reach_memory(device: BenchDevice) -> None:
    """Nobody owns the device, and none of its functions can do DMA.

    Its bus mastering is off; where the platform leaves it on, the IOMMU blocks its DMA.

    Raises:
        ProductError: one can: DMA of its last owner could go on.
        LabError: the tables would have to tell, and cannot be read here.
    """
    platform = device.host.platform
    for function in device.look_at_all():
        if function.config.command & BUS_MASTER:
            if platform.masters_while_idle and iommu.is_blocked(device.host, function.address):
                continue
            raise ProductError(
                f"bus mastering is on at {function.address} while nobody owns it",
                seen=f"COMMAND {function.config.command:#06x}, driver {function.driver}",
            )


@contextlib.contextmanager
def bus_mastering(device: BenchDevice) -> Iterator[None]:
    """Switch it on at the first function for the length of a block: for controls."""
    platform = device.host.platform

    def limit() -> Deadline:
        return device.host.limit(20, f"COMMAND of {device}")

    command = platform.read_config(device.address, limit()).command

    def write(value: int) -> None:
        platform.write_config(device.address, COMMAND, value.to_bytes(2, "little"), limit())

    write(command | BUS_MASTER)
    try:
        yield
    finally:
        write(command)


def d3_reset(device: BenchDevice) -> None:
    """Reset by way of D3hot, which is what a platform falls back to without FLR."""
    platform = device.host.platform
    platform.reset(device.address, device.host.limit(20, f"the reset of {device}"), method="pm")
