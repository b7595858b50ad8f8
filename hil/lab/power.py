"""The power of an inventory's hosts."""

from __future__ import annotations

from hil.errors import InventoryError
from hil.lab.models import Lab, PowerSwitch
from hil.power.base import Power
from hil.power.none import NoPower


def power_of(lab: Lab, host: str) -> Power:
    """What can switch a physical host off and on.  Connects to nothing yet.

    Raises:
        InventoryError: the file of the password cannot be read.
    """
    switch = lab.hosts[host].power
    if switch is None or switch.driver == "none":
        return NoPower(host)
    if switch.driver == "labgrid":
        from hil.power.outlet import OutletPower

        return OutletPower(host, switch.model, switch.address, switch.index, switch.port)
    if switch.driver == "kept":
        from hil.lab.keeper import KeptPower

        return KeptPower(host, switch.address)
    from hil.power.bmc import IPMI_PORT, IpmiPower, RedfishPower

    password = _password(lab, host, switch)
    if switch.driver == "ipmi":
        port = switch.port or IPMI_PORT
        return IpmiPower(host, switch.address, switch.user, password, port)
    url = switch.address + (f":{switch.port}" if switch.port else "")
    verify = str(lab.file(switch.ca_file)) if switch.ca_file else True
    return RedfishPower(host, url, switch.user, password, switch.system, verify)


def _password(lab: Lab, host: str, switch: PowerSwitch) -> str:
    path = lab.file(switch.password_file)
    try:
        return path.read_text("utf-8").partition("\n")[0]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InventoryError(
            f"the password file {path} of the power of {host} cannot be read: {reason}",
            hint=f"hosts.{host}.power.password_file names a file whose first line is the password",
        ) from None
