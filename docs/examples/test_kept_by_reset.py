"""Does a reset give a function back the way the host had set it up?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from hil.bench import BenchDevice, GuestPool
from hil.errors import ProductError
from hil.pci.config import ConfigSpace
from hil.pci.diff import difference

pytestmark = pytest.mark.needs(capability="flr")

# ---- the oracle: values in, a ProductError out ---------------------------------------


def check_header_kept(before: ConfigSpace, after: ConfigSpace) -> None:
    """COMMAND and the BARs are what they were before the reset.

    Raises:
        ProductError: one differs; with every register that changed.
    """
    was = (before.command, *(bar.value for bar in before.bars))
    now = (after.command, *(bar.value for bar in after.bars))
    if was != now:
        raise ProductError(
            "COMMAND or a BAR differs after the reset",
            seen=difference(before, after),
            hint="a reset clears both; the platform has to write them back (PCIe 6.6.2)",
        )


# ---- the probe: makes the device do, or be, something --------------------------------

COMMAND, SERR_ENABLE = 4, 0x100


@contextlib.contextmanager
def other_command(device: BenchDevice) -> Iterator[None]:
    """SERR# Enable the other way round, for the length of a block."""
    platform = device.host.platform
    deadline = device.host.limit(20, f"COMMAND of {device}")
    command = platform.read_config(device.address, deadline).command

    def write(value: int) -> None:
        platform.write_config(device.address, COMMAND, value.to_bytes(2, "little"), deadline)

    write(command ^ SERR_ENABLE)
    try:
        yield
    finally:
        write(command)


# ---- the test and its control --------------------------------------------------------


@pytest.mark.catalogue("RS3")
@pytest.mark.danger(1)
def test_a_reset_keeps_the_header(device: BenchDevice, guests: GuestPool) -> None:
    guests.release(device)
    device.reserve()
    before = device.look().config
    device.host.platform.reset(device.address, device.host.limit(20, f"the reset of {device}"))
    check_header_kept(before, device.look().config)


@pytest.mark.catalogue("RS3")
@pytest.mark.danger(1)
def test_control_another_command_is_seen(device: BenchDevice, guests: GuestPool) -> None:
    guests.release(device)
    device.reserve()
    before = device.look().config
    with other_command(device), pytest.raises(ProductError, match="COMMAND or a BAR"):
        check_header_kept(before, device.look().config)
