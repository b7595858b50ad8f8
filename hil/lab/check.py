"""Compares an inventory with what a host really has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hil.gpu.known import rest_of_card, vendor_of
from hil.lab.document import InvalidFileError, Problem
from hil.lab.models import Device, Lab, Match
from hil.pci.address import Address
from hil.pci.reset import reset_facts
from hil.platforms.contract import Function
from hil.probes.device_memory import is_memory


def check_against(
    lab: Lab, host: str, functions: Sequence[Function]
) -> Mapping[str, tuple[Function, ...]]:
    """The live functions of each device that the inventory gives to ``host``.

    Args:
        lab: the lab.
        host: a name of ``lab.hosts``.
        functions: all that the host has (:meth:`hil.platforms.contract.Platform.functions`).

    Returns:
        Device name → its functions, in the inventory's order, or by address where
        the inventory has only a ``match``.  A GPU that is found so is its whole card.

    Raises:
        InvalidFileError: an address that the host does not have, a ``match`` that fits
            no card or several, a bridge, a function found twice, a capability that is
            not there, or a function that the host itself needs (root disk, management
            NIC).
    """
    by_address = {function.address: function for function in functions}
    problems: list[Problem] = []
    found: dict[str, tuple[Function, ...]] = {}
    owners: dict[Address, str] = {}
    for name, device in lab.devices_of(host).items():
        key = f"devices.{name}"
        if device.functions:
            mine = _by_address(key, host, device, by_address, problems)
        else:
            mine = _by_match(key, host, device.match, functions, problems)
            if device.kind == "gpu" and mine:
                mine = [*mine, *(f for f in rest_of_card(mine[0], functions) if f not in mine)]
        for function in mine:
            owner = owners.setdefault(function.address, name)
            where = f"{key}.{function.address}"
            if owner != name:
                problems.append(Problem(where, f"already a function of devices.{owner}"))
            if function.in_use_as:
                text = (
                    f"{host} itself uses this function as its {function.in_use_as}; "
                    "passing it to a guest would take the host down"
                )
                problems.append(Problem(where, text))
            if function.config.header_type != 0:
                problems.append(Problem(where, "a bridge; only endpoints can be passed to guests"))
        if mine and (absent := sorted(set(device.capabilities) - capabilities(mine[0]))):
            text = f"{mine[0].address} does not have: {', '.join(absent)}"
            problems.append(Problem(f"{key}.capabilities", text))
        found[name] = tuple(mine)
    problems += _peers(lab, host, by_address)
    if problems:
        hint = f"`hil devices --lab {lab.source}` lists what the host has"
        raise InvalidFileError(lab.source, problems, hint)
    return found


def _by_address(
    key: str,
    host: str,
    device: Device,
    by_address: Mapping[Address, Function],
    problems: list[Problem],
) -> list[Function]:
    mine = []
    for index, address in enumerate(device.functions):
        function = by_address.get(address)
        where = f"{key}.functions[{index}]"
        if function is None:
            text = f"{host} has no function at {address}{_elsewhere(device, by_address)}"
            problems.append(Problem(where, text))
            continue
        # A GPU's other functions, its audio and USB, have ids of their own.
        identified = index == 0 or device.kind != "gpu"
        if device.match and identified and not fits(function, device.match):
            text = f"the function at {address} is {identity(function)}, not {_wanted(device.match)}"
            problems.append(Problem(where, text + _elsewhere(device, by_address)))
            continue
        mine.append(function)
    return mine


def _elsewhere(device: Device, by_address: Mapping[Address, Function]) -> str:
    if not device.match:
        return ""
    fitting = [str(a) for a, function in by_address.items() if fits(function, device.match)]
    return f"; a card that fits match is at {', '.join(fitting)}" if fitting else ""


def _by_match(
    key: str,
    host: str,
    match: Match | None,
    functions: Sequence[Function],
    problems: list[Problem],
) -> list[Function]:
    if match is None:
        return []
    fitting = sorted(
        (f for f in functions if f.physical_function is None and fits(f, match)),
        key=lambda function: function.address,
    )
    if not fitting:
        problems.append(Problem(f"{key}.match", f"{host} has no {_wanted(match)}"))
    # The functions of one slot are one card.
    cards = {(f.address.domain, f.address.bus, f.address.device) for f in fitting}
    if len(cards) > 1:
        places = ", ".join(str(function.address) for function in fitting)
        text = f"fits {len(cards)} cards of {host} ({places}); add serial or functions"
        problems.append(Problem(f"{key}.match", text))
        return []
    return fitting


def _peers(lab: Lab, host: str, by_address: Mapping[Address, Function]) -> list[Problem]:
    problems = []
    interfaces = [i for function in by_address.values() for i in function.interfaces]
    for name, device in lab.devices.items():
        peer = device.peer
        if peer is None or (peer.host or device.host) != host:
            continue
        if peer.function and peer.function not in by_address:
            text = f"{host} has no function at {peer.function}"
            problems.append(Problem(f"devices.{name}.peer.function", text))
        if peer.interface and peer.interface not in interfaces:
            text = f"{host} has no interface {peer.interface!r}; it has: {', '.join(interfaces)}"
            problems.append(Problem(f"devices.{name}.peer.interface", text))
    return problems


def fits(function: Function, match: Match) -> bool:
    """Whether ``function`` is the card that ``match`` describes."""
    config = function.config
    return (
        match.id == f"{function.vendor:04x}:{function.device:04x}"
        and match.subsystem
        in (None, f"{config.subsystem_vendor:04x}:{config.subsystem_device:04x}")
        and match.serial in (None, serial(function))
    )


def capabilities(function: Function) -> frozenset[str]:
    """What ``function`` has of the names that an inventory may state."""
    config = function.config
    resets = reset_facts(config)
    vendor = vendor_of(function)
    there = {
        "msi": config.msi,
        "msix": config.msix,
        "flr": resets.flr,
        "af_flr": resets.af_flr,
        "pm": resets.d3_resets,
        "sriov": config.sriov,
        "acs": config.acs,
        "ats": config.ats,
        "vram": any(is_memory(bar) for bar in function.bars),
        "compute": vendor is not None and vendor.opencl,
    }
    return frozenset(name for name, has in there.items() if has)


def serial(function: Function) -> str | None:
    """The PCIe device serial number as 16 hexadecimal digits; ``None`` if it has none."""
    number = function.config.serial_number
    return None if number is None else f"{number:016x}"


def identity(function: Function) -> str:
    """For people: ids and serial number."""
    config = function.config
    text = f"{function.vendor:04x}:{function.device:04x}"
    text += f" subsystem {config.subsystem_vendor:04x}:{config.subsystem_device:04x}"
    number = serial(function)
    return f"{text} serial {number}" if number else text


def _wanted(match: Match) -> str:
    text = match.id
    if match.subsystem:
        text += f" subsystem {match.subsystem}"
    return f"{text} serial {match.serial}" if match.serial else text
