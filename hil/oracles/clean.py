"""Is a device that came back as it was before anybody used it?

Asked after a test that went wrong, so that the next one gets a good device or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hil.bench import BenchDevice
from hil.errors import HilError, ProductError
from hil.oracles.iommu import check_phase
from hil.platforms.contract import Feature, Function, Phase
from hil.probes import host_io

#: Bit of COMMAND that lets a function do DMA (PCI 3.0, 6.2.2).
_BUS_MASTER = 1 << 2


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a function must be again: its driver, ids and BARs, and whether it may do DMA."""

    driver: str | None
    ids: tuple[int, int, int, int]
    bars: tuple[tuple[int, str], ...]
    """Index, and address and size, ``0xc8000000+0x20000``, of each."""
    bus_master: bool

    @classmethod
    def of(cls, function: Function) -> Baseline:
        config = function.config
        return cls(
            driver=function.driver,
            ids=(
                function.vendor,
                function.device,
                config.subsystem_vendor,
                config.subsystem_device,
            ),
            bars=tuple((bar.index, f"{bar.address:#x}+{bar.size:#x}") for bar in function.bars),
            bus_master=bool(config.command & _BUS_MASTER),
        )

    def differences(self, other: Baseline) -> list[str]:
        """What ``other``, which is now, lacks or has too much."""
        found = []
        if other.driver != self.driver:
            found.append(f"bound to {other.driver or 'no driver'}, not to {self.driver or 'none'}")
        if other.ids != self.ids:
            found.append(f"another device: {_ids(other.ids)}, not {_ids(self.ids)}")
        mine, theirs = dict(self.bars), dict(other.bars)
        for index in sorted(mine | theirs):
            if mine.get(index) != theirs.get(index):
                now, then = theirs.get(index, "gone"), mine.get(index, "not there")
                found.append(f"BAR {index} is {now}, not {then}")
        if other.bus_master and not self.bus_master:
            found.append("it may do DMA: bus mastering is on")
        if self.bus_master and not other.bus_master and other.driver == self.driver:
            found.append("it can do no DMA: bus mastering is off")
        return found


def _ids(ids: tuple[int, int, int, int]) -> str:
    return "{:04x}:{:04x} {:04x}:{:04x}".format(*ids)


Baselines = Mapping[str, tuple[Baseline, ...]]


def baselines(devices: Iterable[BenchDevice]) -> Baselines:
    """What devices are now, before any of them is used, by name."""
    kept = list(devices)
    surveys = {host: host.functions() for host in dict.fromkeys(d.host for d in kept)}
    return {
        device.name: tuple(
            Baseline.of(function)
            for address in device.functions
            for function in surveys[device.host]
            if function.address == address
        )
        for device in kept
    }


def check(device: BenchDevice, before: tuple[Baseline, ...]) -> None:
    """The device is with the host, as it was, and works there.

    Its functions' driver, ids, BARs and bus mastering are compared, its IOMMU entry must be what
    the platform states for a returned device, and the host does a little I/O with it.

    Args:
        device: on the host.
        before: what its functions were.

    Raises:
        ProductError: with all that differs.
    """
    wrong: list[str] = []
    for baseline, function in zip(before, device.look_at_all(), strict=True):
        if function.config.absent:
            wrong.append(f"{function.address}: does not answer: all ones")
            continue
        differences = baseline.differences(Baseline.of(function))
        wrong += [f"{function.address}: {difference}" for difference in differences]
    platform = device.host.platform
    if not wrong and Feature.TABLES in platform.features:
        deadline = device.host.limit(20, f"the IOMMU of {device}")
        if platform.iommu_in_use(deadline):
            check_phase(device, Phase.RETURNED)
    if not wrong:
        host_io.check(device)
    if wrong:
        raise ProductError(
            f"{device} is not as it was before: {wrong[0].partition(': ')[2]}",
            host=device.host.name,
            seen="\n".join(wrong),
        )


def unclean(devices: Iterable[BenchDevice], before: Baselines) -> dict[str, str]:
    """Why devices are not clean, by name; those that are, are left out."""
    found = {}
    for device in devices:
        try:
            device.give_back()
            check(device, before[device.name])
        except HilError as error:
            found[device.name] = error.message
    return found
