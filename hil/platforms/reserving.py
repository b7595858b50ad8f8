"""What reserving and returning functions have in common on all platforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hil.errors import REFUSALS, Fault, HilError, InventoryError
from hil.pci.address import Address
from hil.platforms.contract import Function


def passable(everything: Mapping[Address, Function], address: Address, host: str) -> Function:
    """The function at ``address``, if one may be taken from its host at all.

    Raises:
        InventoryError: there is none; it is a bridge; the host needs it itself.
    """
    function = everything.get(address)
    if function is None:
        raise InventoryError(
            f"host {host} has no PCI function {address}",
            host=host,
            hint="see what it has with: hil devices",
        )
    if function.config.header_type != 0:
        # FreeBSD's "devctl set driver" would fail, and first detach all that is behind it.
        raise InventoryError(
            f"{address} is a bridge (header type {function.config.header_type}); "
            "only functions of header type 0 can be passed",
            host=host,
        )
    if function.in_use_as:
        raise InventoryError(
            f"{address} is the host's {function.in_use_as}; it will not be taken away",
            host=host,
            hint="name another device in the inventory",
        )
    return function


def raise_all(failures: Sequence[HilError]) -> None:
    """Raise what went wrong with one function, or one error that tells of several."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        faults = [failure.fault for failure in failures]
        worst = Fault.PRODUCT if Fault.PRODUCT in faults else faults[0]
        raise REFUSALS[worst](
            f"{len(failures)} functions could not be returned",
            seen="\n".join(error.explain() for error in failures),
            host=failures[0].host,
        )
