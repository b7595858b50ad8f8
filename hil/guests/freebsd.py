"""FreeBSD guests: what its base tools are asked, and what they answer.

Scripts are sh(1)'s; nothing but the base system is used.
"""

from __future__ import annotations

import re

from hil.errors import GuestError, HilError, LabError
from hil.guests.os import GuestOS, SeenBar, SeenFunction
from hil.pci.address import Address
from hil.platforms.contract import Bar
from hil.platforms.freebsd_pci import parse_pciconf
from hil.platforms.freebsd_text import parse_vmstat
from hil.transport.quoting import quote

#: In the buffer cache, that is in memory; gone with the guest, whose disk is a copy.
_TEXT = "/tmp/hil-text"  # noqa: S108

# The name of a function's driver and unit; a network interface has the same, but for these.
_NAME = r"""
name=$(pciconf -l "$1" | sed -e 's/@.*//' -e 's/^mlx5_core/mce/' -e 's/^mlx4_core/mlxen/')
"""
_DISK = r"""
unit=${name#nvme}
for disk in "/dev/nda$unit" "/dev/nvd$unit"; do
    if [ -e "$disk" ]; then echo "$disk"; break; fi
done
"""

_LET_IN = r"""
for interface in $(ifconfig -l); do
    if ifconfig "$interface" | grep -q "ether $1"; then break; fi
done
ifconfig "$interface" inet "$2" up || exit
if ! sockstat -4 -l -p "$4" | grep -q sshd; then
    umask 077
    rm -f /var/run/hil_key /var/run/hil_key.pub
    echo "$3" >/var/run/hil_authorized_keys
    ssh-keygen -q -t ed25519 -N '' -f /var/run/hil_key || exit
    /usr/sbin/sshd -f /dev/null -p "$4" -h /var/run/hil_key \
        -o PidFile=/var/run/hil_sshd.pid -o AuthorizedKeysFile=/var/run/hil_authorized_keys \
        -o PermitRootLogin=prohibit-password -o UseDNS=no || exit
fi
cat /var/run/hil_key.pub
"""


# A broadcast needs no answer and no ARP; its network is nobody's (RFC 2544).
_ANNOUNCE = r"""
ifconfig "$1" inet 198.18.201.1/24 alias up || exit
ping -q -n -c 3 -i 0.1 -t 1 198.18.201.255 >/dev/null
ifconfig "$1" inet 198.18.201.1 -alias
"""

_FLOOD = r"""
ifconfig "$1" inet 198.18.202.1/24 alias up || exit
to=198.18.202.2
case $2 in
ff:ff:ff:ff:ff:ff) to=198.18.202.255 ;;
*) arp -S "$to" "$2" >/dev/null || exit ;;
esac
echo ready
ping -q -n -i 0.0005 -s 1400 -p "$3" "$to" >/dev/null 2>&1 &
flood=$!
cat >/dev/null
kill "$flood"
arp -d "$to" >/dev/null 2>&1
ifconfig "$1" inet 198.18.202.1 -alias
"""

# Memory decoding may be off while ppt has the function for nobody.
_REGISTER = r"""
command=$(pciconf -r -h "$1" 4) || exit
pciconf -w -h "$1" 4 $((0x${command} | 2)) || exit
status=0
if [ -n "$4" ]; then
    printf "$4" | dd of=/dev/mem bs="$3" seek="$2" conv=notrunc status=none || status=1
fi
dd if=/dev/mem bs="$3" skip="$2" count=1 status=none | od -A n -t "u$3" || status=1
pciconf -w -h "$1" 4 $((0x${command}))
exit "$status"
"""


def _octal(data: bytes) -> str:
    """As printf(1) takes any bytes."""
    return "".join(f"\\{byte:03o}" for byte in data)


def _script(script: str, *arguments: object) -> list[str]:
    return ["sh", "-c", script, "hil", *map(str, arguments)]


class FreebsdGuest(GuestOS):
    """FreeBSD 12 and later; earlier ones lack ``devctl reset``."""

    name = "freebsd"
    #: Single-user mode (sbin/init/init.c); a kernel that finds no root (sys/kern/vfs_mountroot.c).
    rescue = rb"Enter full pathname of shell|or \^D to go multi-user|mountroot> ?$"

    def power_off(self) -> list[str]:
        return ["shutdown", "-p", "now"]

    def reboot(self) -> list[str]:
        return ["shutdown", "-r", "now"]

    def crash(self) -> list[str]:
        return ["sysctl", "debug.kdb.panic=1"]

    def triple_fault(self) -> list[str]:
        raise LabError(
            "FreeBSD's base system has no command that ends a CPU by a triple fault",
            hint="use a Linux guest for this test",
        )

    def let_in(self, mac: str, address: str, key: str, port: int) -> list[str]:
        return _script(_LET_IN, mac, address, key, port)

    def boot_id(self) -> list[str]:
        return ["sysctl", "-n", "kern.boottime"]

    def list_functions(self) -> list[str]:
        return ["pciconf", "-l"]

    def parse_functions(self, text: str) -> tuple[SeenFunction, ...]:
        try:
            entries = parse_pciconf(text)
        except HilError as error:
            raise GuestError(
                "the guest lists its PCI functions in no known form", seen=error.seen
            ) from error
        return tuple(SeenFunction(e.address, e.vendor, e.device, e.driver) for e in entries)

    def list_bars(self, address: Address) -> list[str]:
        return ["pciconf", "-lb", address.selector]

    def parse_bars(self, text: str) -> dict[int, SeenBar]:
        (entry,) = parse_pciconf(text)
        return {bar.index: SeenBar(bar.address, bar.size) for bar in entry.bars}

    def interfaces(self, address: Address) -> list[str]:
        script = _NAME + "\nifconfig -l | tr ' ' '\\n' | grep -x -- \"$name\"\ntrue"
        return _script(script, address.selector)

    def disks(self, address: Address) -> list[str]:
        script = f"{_NAME}\ncase $name in nvme*) ;; *) exit 0 ;; esac\n{_DISK}"
        return _script(script, address.selector)

    def work(self, address: Address) -> list[str]:
        # ping floods no multicast address; a broadcast one needs no answer and no ARP.
        script = f"""
        {_NAME}
        echo working
        case $name in
        nvme*)
            disk=$({_DISK})
            while dd if="$disk" of=/dev/null bs=1m 2>/dev/null; do :; done
            ;;
        *)
            ifconfig "$name" inet 198.18.200.10/24 alias up
            exec ping -q -n -f 198.18.200.255
            ;;
        esac
        """
        return _script(script, address.selector)

    def list_interrupts(self, address: Address) -> list[str]:
        return _script('pciconf -l "$1" && vmstat -ia', address.selector)

    def parse_interrupts(self, text: str) -> dict[str, int]:
        return parse_interrupts(text)

    def hold_text(self) -> list[str]:
        return ["sh", "-c", f"cat > {_TEXT}"]

    def drop_text(self) -> list[str]:
        return ["rm", "-f", _TEXT]

    def link_up(self, interface: str) -> list[str]:
        return ["ifconfig", interface, "up"]

    def hardware_address(self, interface: str) -> list[str]:
        return _script("ifconfig \"$1\" | sed -n 's/^[[:space:]]*ether //p'", interface)

    def received_frames(self, interface: str) -> list[str]:
        # Name Mtu Network Address Ipkts …: the second line is the link's own.
        script = "netstat -n -f link -I \"$1\" | sed -n '2s/  */ /gp' | cut -d ' ' -f 5"
        return _script(script, interface)

    def sent_frames(self, interface: str) -> list[str]:
        script = "netstat -n -f link -I \"$1\" | sed -n '2s/  */ /gp' | cut -d ' ' -f 8"
        return _script(script, interface)

    def announce(self, interface: str) -> list[str]:
        return _script(_ANNOUNCE, interface)

    def flood(self, interface: str, mac: str, payload: bytes) -> list[str]:
        return _script(_FLOOD, interface, mac, payload[:16].hex())

    def lie(self, interface: str, address: str) -> list[str]:
        raise LabError(
            "FreeBSD's base system has no tool that answers echoes wrongly",
            seen=f"asked for {address} on {interface}",
        )

    def register(
        self, address: Address, bar: Bar, offset: int, width: int, value: int | None = None
    ) -> list[str]:
        place = bar.address + offset
        if place % width:
            raise LabError(f"register {offset:#x} of {address} is not aligned to its width")
        data = "" if value is None else _octal(value.to_bytes(width, "little"))
        return _script(_REGISTER, address.selector, place // width, width, data)

    def disk_write(self, disk: str, block: int, number: int) -> list[str]:
        # What comes from a pipe is gathered into whole blocks where ibs and obs differ (dd(1)).
        return ["dd", f"of={disk}", "ibs=512", f"obs={block}", f"seek={number}", "status=none"]

    def disk_read(self, disk: str, block: int, number: int, count: int) -> list[str]:
        command = ["dd", f"if={disk}", f"bs={block}", f"skip={number}", f"count={count}"]
        return [*command, "status=none"]

    def disk_digest(self, disk: str, block: int, number: int, count: int) -> list[str]:
        return ["sh", "-c", f"{quote(self.disk_read(disk, block, number, count))} | sha256"]

    def configure_interface(self, interface: str, address: str) -> list[str]:
        return ["ifconfig", interface, "inet", address, "alias", "up"]

    def ping(self, destination: str, *, size: int, pattern: bytes = b"") -> list[str]:
        command = ["ping", "-n", "-c", "1", "-t", "5", "-s", str(size), "-D"]
        if pattern:
            command += ["-p", pattern[:16].hex()]
        return [*command, destination]

    def reset_function(self, address: Address) -> list[str]:
        return ["devctl", "reset", "-d", address.selector]

    def is_up(self) -> str:
        # Its rescue shells ask on the console first, which is seen there.
        return "true"

    def before_saving(self) -> str:
        raise LabError("FreeBSD guests cannot be saved: bhyve is built without snapshots")

    def after_continuing(self, name: str, now: float, key: str) -> str:  # noqa: ARG002 - never so far
        raise LabError(f"{name} cannot continue a saved guest: bhyve is built without snapshots")


def parse_interrupts(text: str) -> dict[str, int]:
    """Counts of a function's interrupts: its line of ``pciconf -l``, then ``vmstat -ia``.

    Keys are the line's source and name (``irq35 em0:rxq0``).  Lines belong to the function
    whose driver and unit they begin with.

    Raises:
        GuestError: it is neither.
    """
    first, _, rest = text.partition("\n")
    owner = re.match(r"(\S+)@pci", first)
    if owner is None:
        raise GuestError("the guest lists its interrupts in no known form", seen=first[:300])
    try:
        lines = parse_vmstat(rest)
    except HilError as error:
        raise GuestError(
            "the guest lists its interrupts in no known form", seen=error.seen
        ) from error
    return {
        f"{line.source} {line.name}".strip(): line.total
        for line in lines
        if line.name.partition(":")[0] == owner[1]
    }
