"""Which remapping unit a function belongs to, by the firmware's tables.

VT-d specification, revision 4.1, section 8.3.1: a unit names devices and bridges by the
path to them, and at most one of a segment has all that no other names.  AMD 48882, section 5.2: a
block names ranges of requester ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hil.iommu.acpi import Drhd, Ivhd, Scope
from hil.pci.address import Address
from hil.pci.config import ConfigSpace

_ENDPOINT, _BRIDGE = 1, 2


class FunctionLike(Protocol):
    """What is needed to know of a PCI function."""

    @property
    def address(self) -> Address: ...

    @property
    def config(self) -> ConfigSpace: ...

    @property
    def physical_function(self) -> Address | None: ...


@dataclass(frozen=True, slots=True)
class Topology:
    """What of a segment's PCI functions decides whose they are; all by requester id."""

    buses: Mapping[int, range] = field(default_factory=dict)
    """For each bridge the buses behind it: secondary to subordinate."""
    physical_functions: Mapping[int, int] = field(default_factory=dict)
    """For each virtual function its physical one."""

    @classmethod
    def of(cls, functions: Iterable[FunctionLike], segment: int = 0) -> Topology:
        """Of a host's functions as they are now."""
        buses: dict[int, range] = {}
        physical: dict[int, int] = {}
        for function in functions:
            if function.address.domain != segment:
                continue
            requester_id = function.address.requester_id
            if function.config.buses is not None:
                _, secondary, subordinate = function.config.buses
                buses[requester_id] = range(secondary, subordinate + 1)
            if function.physical_function is not None:
                physical[requester_id] = function.physical_function.requester_id
        return cls(buses, physical)


def drhd_of(units: Sequence[Drhd], requester_id: int, topology: Topology) -> Drhd | None:
    """The unit among one segment's that has the function, ``None`` if none has.

    A sole unit has every function: what is plugged in later is in no firmware's table.  A
    virtual function belongs to its physical one's unit.
    """
    if len(units) == 1:
        return units[0]
    requester_id = topology.physical_functions.get(requester_id, requester_id)
    for unit in units:
        if any(_names(scope, requester_id, topology) for scope in unit.scopes):
            return unit
    return next((unit for unit in units if unit.include_all), None)


def _names(scope: Scope, requester_id: int, topology: Topology) -> bool:
    if scope.type not in (_ENDPOINT, _BRIDGE) or not scope.path:
        return False
    bus = scope.start_bus
    *bridges, last = scope.path
    for device, function in bridges:
        behind = topology.buses.get(bus << 8 | device << 3 | function)
        if behind is None:
            return False  # no such bridge here: firmware names what may be absent
        bus = behind.start
    named = bus << 8 | last[0] << 3 | last[1]
    if requester_id == named:
        return True
    return scope.type == _BRIDGE and requester_id >> 8 in topology.buses.get(named, ())


def ivhd_of(units: Sequence[Ivhd], requester_id: int, topology: Topology) -> Ivhd | None:
    """As :func:`drhd_of`, for AMD's."""
    if len(units) == 1:
        return units[0]
    requester_id = topology.physical_functions.get(requester_id, requester_id)
    return next((unit for unit in units if unit.has(requester_id)), None)
