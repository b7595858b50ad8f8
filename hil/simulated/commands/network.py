"""Commands about the network: ifconfig, ping, netstat, arp, sockstat, nc."""

from __future__ import annotations

import ipaddress
import itertools
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hil.simulated.commands.options import flags, getopt, refuse
from hil.simulated.errno import SimError
from hil.simulated.process import SIGINT, Command, Process

# ifconfig

_IFF = {
    0x1: "UP", 0x2: "BROADCAST", 0x8: "LOOPBACK", 0x10: "POINTOPOINT", 0x40: "RUNNING",
    0x80: "NOARP", 0x100: "PROMISC", 0x200: "ALLMULTI", 0x800: "SIMPLEX", 0x8000: "MULTICAST",
    0x1000000: "LOWER_UP",
}  # fmt: skip
_OPTIONS = {
    "vtnet": "80028<VLAN_MTU,JUMBO_MTU,LINKSTATE>",
    "em": "481249b<RXCSUM,TXCSUM,VLAN_MTU,VLAN_HWTAGGING,VLAN_HWCSUM,LRO,WOL_MAGIC,VLAN_HWFILTER,"
    "NOMAP>",
    "igb": "4e507bb<RXCSUM,TXCSUM,VLAN_MTU,VLAN_HWTAGGING,JUMBO_MTU,VLAN_HWCSUM,TSO4,TSO6,LRO,"
    "VLAN_HWFILTER,VLAN_HWTSO,RXCSUM_IPV6,TXCSUM_IPV6,NOMAP>",
    "tap": "80000<LINKSTATE>",
    "lo": "680003<RXCSUM,TXCSUM,LINKSTATE,RXCSUM_IPV6,TXCSUM_IPV6>",
}
_MEDIA = {"vtnet": "10Gbase-T", "em": "1000baseT", "igb": "1000baseT", "igbvf": "1000baseT"}


def _kind(name: str) -> str:
    return re.sub(r"[0-9.]+$", "", name)


def _interface(process: Process, name: str) -> Any:
    return process.system.kernel.interfaces().get(name)


def _flags(interface: Any, release: tuple[int, int]) -> str:
    kind = _kind(interface.name)
    value = 0x8000
    value |= 0x8 if kind == "lo" else 0x802
    if interface.up:
        value |= 0x41
        value |= 0x1000000 if release >= (14, 0) and kind != "bridge" else 0
    if getattr(interface, "bridge", None) is not None:
        value |= 0x100
    names = ",".join(name for bit, name in _IFF.items() if value & bit)
    return f"flags={value:x}<{names}>"


def _describe(process: Process, interface: Any) -> str:
    kind = _kind(interface.name)
    state = _flags(interface, process.system.release)
    lines = [f"{interface.name}: {state} metric 0 mtu {interface.mtu}"]
    if interface.description:
        lines.append(f"\tdescription: {interface.description}")
    if kind in _OPTIONS:
        lines.append(f"\toptions={_OPTIONS[kind]}")
    if interface.mac:
        lines.append(f"\tether {interface.mac.hex(':')}")
    if kind == "lo":
        lines += ["\tinet6 ::1 prefixlen 128", "\tinet6 fe80::1%lo0 prefixlen 64 scopeid 0x5"]
    for address in interface.addresses:
        mask = int(address.network.netmask)
        line = f"\tinet {address.ip} netmask {mask:#010x}"
        if kind != "lo":
            line += f" broadcast {address.network.broadcast_address}"
        lines.append(line)
    if kind == "bridge":
        lines += _BRIDGE
        for member in interface.members:
            lines += [
                f"\tmember: {member.name} flags=143<LEARNING,DISCOVER,AUTOEDGE,AUTOPTP>",
                "\t        ifmaxaddr 0 port 7 priority 128 path cost 2000000",
            ]
    groups = ["lo"] if kind == "lo" else list(interface.groups)
    if groups:
        lines.append(f"\tgroups: {' '.join(groups)}")
    if kind in _MEDIA or kind == "tap":
        speed = f" ({_MEDIA[kind]} <full-duplex>)" if kind in _MEDIA else ""
        lines.append(f"\tmedia: Ethernet autoselect{speed}")
        carrier = kind != "tap" or getattr(interface, "far_end", None) is not None
        lines.append(f"\tstatus: {'active' if carrier else 'no carrier'}")
    lines.append(
        f"\tnd6 options={_ND6['lo' if kind == 'lo' else 'bridge' if kind == 'bridge' else '']}"
    )
    return "".join(f"{line}\n" for line in lines)


_ND6 = {
    "lo": "21<PERFORMNUD,AUTO_LINKLOCAL>",
    "bridge": "9<PERFORMNUD,IFDISABLED>",
    "": "29<PERFORMNUD,IFDISABLED,AUTO_LINKLOCAL>",
}
_BRIDGE = (
    "\tid 00:00:00:00:00:00 priority 32768 hellotime 2 fwddelay 15",
    "\tmaxage 20 holdcnt 6 proto rstp maxaddr 2000 timeout 1200",
    "\troot id 00:00:00:00:00:00 priority 32768 ifcost 0 port 0",
)


def ifconfig(process: Process) -> int:
    words = process.arguments[1:]
    kernel = process.system.kernel
    interfaces: Mapping[str, Any] = kernel.interfaces()
    if not words or words == ["-a"]:
        process.out("".join(_describe(process, each) for each in interfaces.values()))
        return 0
    if words[0] == "-l":
        process.out(" ".join(interfaces) + "\n")
        return 0
    if words[0] == "-C":
        process.out("bridge epair lo tap tun vlan\n")
        return 0
    if words[0] == "-g":
        for each in interfaces.values():
            if words[1] in each.groups or words[1] == "all":
                process.out(f"{each.name}\n")
        return 0
    if words[0].startswith("-"):
        words = words[1:]
    name, *rest = words
    if rest[:1] == ["create"]:
        return _create(process, name, rest[1:])
    interface = interfaces.get(name)
    if interface is None:
        process.complain(f"interface {name} does not exist")
        return 1
    if not rest:
        process.out(_describe(process, interface))
        return 0
    try:
        return _configure(process, interface, rest)
    except SimError as error:
        process.complain(error.text)
        return 1


def _create(process: Process, name: str, rest: Sequence[str]) -> int:
    try:
        made = process.system.kernel.create_interface(name)
    except SimError as error:
        text = "SIOCIFCREATE2"
        detail = f" ({name})" if re.search(r"\d$", name) else ""
        process.complain(f"{text}{detail}: {error.text}")
        return 1
    if not re.search(r"\d$", name):
        process.out(f"{made.name}\n")
    return _configure(process, made, rest) if rest else 0


def _configure(process: Process, interface: Any, words: Sequence[str]) -> int:
    kernel = process.system.kernel
    rest = list(words)
    address: ipaddress.IPv4Interface | None = None
    remove = add = False
    while rest:
        word = rest.pop(0)
        if word in ("up", "down"):
            interface.set_up(word == "up")
        elif word == "destroy":
            kernel.destroy_interface(interface.name)
        elif word in ("inet", "alias", "add", "-alias", "delete", "remove"):
            add |= word in ("alias", "add")
            remove |= word in ("-alias", "delete", "remove")
            if rest and re.match(r"\d+\.\d+\.\d+\.\d+(/\d+)?$", rest[0]):
                address = _address(rest)
        elif re.match(r"\d+\.\d+\.\d+\.\d+(/\d+)?$", word):
            address = _address([word, *rest], rest)
        elif word in ("description", "descr"):
            interface.description = rest.pop(0)
        elif word == "-description":
            interface.description = ""
        elif word == "mtu":
            interface.mtu = int(rest.pop(0))
        elif word in ("addm", "deletem"):
            member = rest.pop(0)
            try:
                change = kernel.add_member if word == "addm" else kernel.remove_member
                change(interface.name, member)
            except SimError as error:
                request = "BRDGADD" if word == "addm" else "BRDGDEL"
                process.complain(f"{request} {member}: {error.text}")
                return 1
        elif word in ("ether", "group", "-group", "name", "netmask", "broadcast", "media"):
            value = rest.pop(0)
            if word == "group":
                interface.groups.append(value)
        elif word.lstrip("-") in _CAPABILITIES:
            continue
        else:
            process.complain(f"{word}: bad value")
            return 1
    if address is not None:
        _apply(interface, address, add=add, remove=remove)
    return 0


_CAPABILITIES = frozenset(
    {"promisc", "rxcsum", "txcsum", "tso", "lro", "vlanhwtag", "vlanhwfilter", "arp", "static"}
    | {"rxcsum6", "txcsum6", "tso4", "tso6", "private", "polling"}
)


def _address(words: list[str], rest: list[str] | None = None) -> ipaddress.IPv4Interface:
    """An address at the front of ``words``, with a netmask after it if it has no prefix."""
    queue = words if rest is None else rest
    text = words.pop(0) if rest is None else words[0]
    if "/" not in text and queue[:1] == ["netmask"]:
        queue.pop(0)
        mask = queue.pop(0)
        if mask.startswith("0x"):
            mask = str(ipaddress.IPv4Address(int(mask, 16)))
        return ipaddress.IPv4Interface(f"{text}/{mask}")
    return ipaddress.IPv4Interface(text if "/" in text else f"{text}/24")


def _apply(interface: Any, address: ipaddress.IPv4Interface, *, add: bool, remove: bool) -> None:
    if remove:
        interface.addresses[:] = [each for each in interface.addresses if each.ip != address.ip]
        return
    kept = [each for each in interface.addresses if each.ip != address.ip]
    # Without alias the first address is replaced.
    interface.addresses[:] = [*kept, address] if add else [address, *kept[1:]]
    interface.set_up(True)


# ping

_PING = """\
usage: ping [-AaDdfHnoQqRrv] [-c count] [-G sweepmaxsize] [-g sweepminsize]
            [-h sweepincrsize] [-i wait] [-l preload] [-M mask | time] [-m ttl]
            [-P policy] [-p pattern] [-S src_addr] [-s packetsize] [-t timeout]
            [-W waittime] [-z tos] host
"""
#: Bytes at the front of the payload that hold the time a request was sent.
_STAMP = 8
#: Of ping's own pauses between requests, so much passes on a simulated machine.
_HURRY = 0.02


def ping(process: Process) -> int:
    found, words = getopt(process, "AaC:c:DdfG:g:Hh:I:i:Ll:M:m:nop:QqRrS:s:T:t:vW:z:4", _PING, 64)
    option = flags(found)
    if len(words) != 1:
        refuse(process, _PING, 64)
    (target,) = words
    try:
        ipaddress.IPv4Address(target)
    except ValueError:
        process.complain(f"cannot resolve {target}: Name does not resolve")
        return 68
    size = int(option.get("s", 56))
    payload = bytearray((index & 0xFF) for index in range(size))
    if "p" in option:
        pattern = bytes.fromhex(option["p"] + "0" * (len(option["p"]) % 2))
        payload = bytearray((pattern * (size // len(pattern) + 1))[:size])
        if "q" not in option:
            process.out(f"PATTERN: 0x{pattern.hex()}\n")
    process.out(f"PING {target} ({target}): {size} data bytes\n")
    return _Pinging(process, target, option, bytes(payload)).run()


class _Pinging:
    def __init__(
        self, process: Process, target: str, option: Mapping[str, str], payload: bytes
    ) -> None:
        self._process = process
        self._target = target
        self._option = option
        self._payload = payload
        self._times: list[float] = []
        self._sent = self._received = 0
        self._interrupted = False

    def run(self) -> int:
        process, option = self._process, self._option
        process.handlers[SIGINT] = lambda _: setattr(self, "_interrupted", True)
        count = int(option["c"]) if "c" in option else None
        flood = "f" in option
        interval = 0.01 if flood else float(option.get("i", 1))
        patience = float(option["W"]) / 1000 if "W" in option else 10.0
        end = time.monotonic() + float(option["t"]) if "t" in option else None
        identifier = process.system.kernel.stack.new_identifier()
        for sequence in itertools.count() if count is None else range(count):
            last = count is not None and sequence == count - 1
            echo = self._send(identifier, sequence)
            wait = patience if last else min(interval, 1.0)
            if end is not None:
                wait = min(wait, max(0.0, end - time.monotonic()))
            if echo is not None:
                self._await(echo, sequence, min(wait, 1.0))
            process.check()
            if self._interrupted or (end is not None and time.monotonic() >= end):
                break
            if not last:
                # A flood keeps its pace: others shall get a word in.
                process.sleep(interval if interval <= 0.01 else min(interval * _HURRY, 0.02))
        self._summary()
        return 0 if self._received else 2

    def _send(self, identifier: int, sequence: int) -> Any:
        payload = self._payload
        if len(payload) >= _STAMP:
            payload = int(time.time() * 1e6).to_bytes(_STAMP, "big") + payload[_STAMP:]
        kernel = self._process.system.kernel
        self._started = time.monotonic()
        echo = kernel.stack.echo(self._target, identifier, sequence, payload)
        self._sent += 1
        if echo is None:
            self._process.err("ping: sendto: No route to host\n")
        return echo

    def _await(self, echo: Any, sequence: int, seconds: float) -> None:
        reply = echo.wait(seconds)
        if reply is None:
            return
        elapsed = (time.monotonic() - self._started) * 1000
        self._times.append(elapsed)
        self._received += 1
        if {"q", "f"} & self._option.keys():
            return
        process = self._process
        process.out(
            f"{len(reply.payload) + 8} bytes from {self._target}: icmp_seq={sequence} "
            f"ttl={reply.ttl}"
        )
        if len(self._payload) >= _STAMP:
            process.out(f" time={elapsed:.3f} ms")
        skip = _STAMP if len(self._payload) >= _STAMP else 0
        for index in range(skip, len(self._payload)):
            wanted = self._payload[index]
            got = reply.payload[index] if index < len(reply.payload) else -1
            if got != wanted:
                process.out(
                    f"\nwrong data byte #{index} should be {wanted:#x} but was {max(got, 0):#x}"
                )
                process.out("\ncp:" + _bytes(reply.payload) + "\ndp:" + _bytes(self._payload))
                break
        process.out("\n")

    def _summary(self) -> None:
        process = self._process
        lost = 100.0 * (self._sent - self._received) / self._sent if self._sent else 0.0
        process.out(
            f"\n--- {self._target} ping statistics ---\n{self._sent} packets transmitted, "
            f"{self._received} packets received, {lost:.1f}% packet loss\n"
        )
        if self._times and len(self._payload) >= _STAMP:
            mean = sum(self._times) / len(self._times)
            deviation = (sum((each - mean) ** 2 for each in self._times) / len(self._times)) ** 0.5
            process.out(
                f"round-trip min/avg/max/stddev = {min(self._times):.3f}/{mean:.3f}/"
                f"{max(self._times):.3f}/{deviation:.3f} ms\n"
            )


def _bytes(data: bytes) -> str:
    return "".join(
        ("\n\t" if index % 16 == 0 else "") + f"{byte:2x} " for index, byte in enumerate(data)
    )


# netstat, arp, sockstat, nc


def netstat(process: Process) -> int:
    found, _ = getopt(process, "46AaBbdF:f:ghI:iLlM:mN:np:Qq:RrSsTuWw:xyz")
    option = flags(found)
    interfaces: Mapping[str, Any] = process.system.kernel.interfaces()
    if "r" in option:
        _routes(process, interfaces)
        return 0
    if "I" in option or "i" in option:
        wanted = [interfaces[option["I"]]] if option.get("I") in interfaces else []
        if "i" in option and "I" not in option:
            wanted = list(interfaces.values())
        _counters(process, wanted, option)
    return 0


def _routes(process: Process, interfaces: Mapping[str, Any]) -> None:
    process.out("Routing tables\n\nInternet:\n")
    process.out(f"{'Destination':<18} {'Gateway':<18} {'Flags':<9} {'Netif':>8} Expire\n")
    rows: list[tuple[str, str, str, str]] = []
    gateway = getattr(process.system.kernel, "gateway", None)
    if gateway:
        rows.append(("default", gateway[0], "UGS", gateway[1]))
    for index, interface in enumerate(interfaces.values(), 1):
        for address in interface.addresses:
            if interface.name == "lo0":
                rows.append((str(address.ip), f"link#{index}", "UH", "lo0"))
                continue
            rows.append((str(address.network), f"link#{index}", "U", interface.name))
            rows.append((str(address.ip), f"link#{index}", "UHS", "lo0"))
    for destination, via, letters, name in rows:
        process.out(f"{destination:<18} {via:<18} {letters:<9} {name:>8}\n")


def _counters(process: Process, interfaces: Sequence[Any], option: Mapping[str, str]) -> None:
    wide = "b" in option
    inbound = " Ipkts Ierrs Idrop" + ("     Ibytes" if wide else "")
    outbound = "    Opkts Oerrs" + ("     Obytes" if wide else "")
    process.out(f"Name    Mtu Network       Address           {inbound:>23}{outbound}  Coll\n")
    numbers = {name: n for n, name in enumerate(process.system.kernel.interfaces(), 1)}
    for each in interfaces:
        link = f"<Link#{numbers[each.name]}>"
        address = each.mac.hex(":") if each.mac else each.name
        line = f"{each.name:<5} {each.mtu:>5} {link:<13} {address:<17} {each.received:>8}"
        line += f" {0:>5} {0:>5}"
        line += f" {each.received_bytes:>10}" if wide else ""
        line += f" {each.sent:>8} {0:>5}" + (f" {each.sent_bytes:>10}" if wide else "")
        process.out(f"{line} {0:>5}\n")
        if option.get("f") == "link":
            continue
        for inet in each.addresses:
            process.out(
                f"{each.name:<5} {'-':>5} {inet.network!s:<13} {inet.ip!s:<17} "
                f"{each.received:>8} {'-':>5} {'-':>5} {each.sent:>8} {'-':>5} {'-':>5}\n"
            )


def arp(process: Process) -> int:
    found, words = getopt(process, "adi:nSsf:")
    option = {letter for letter, _ in found}
    stack = process.system.kernel.stack
    if option & {"S", "s"} and len(words) >= 2:
        stack.set_neighbour(
            ipaddress.IPv4Address(words[0]), bytes.fromhex(words[1].replace(":", ""))
        )
    elif "d" in option and words:
        stack.forget_neighbour(ipaddress.IPv4Address(words[0]))
        process.out(f"{words[0]} ({words[0]}) deleted\n")
    return 0


def _listening(process: Process) -> list[tuple[str, int, Process]]:
    """What listens on this machine: (address, port, process)."""
    return [
        (address, port, each)
        for each in process.system.processes.values()
        for address, port in each.listening
    ]


def sockstat(process: Process) -> int:
    found, _ = getopt(process, "46ACcIij:LlnP:p:qSsUuvw")
    option = flags(found)
    ports = {int(each) for each in option["p"].split(",")} if "p" in option else None
    if "q" not in option:
        process.out(
            f"{'USER':<8} {'COMMAND':<10} {'PID':<5} {'FD':<3} {'PROTO':<6} "
            f"{'LOCAL ADDRESS':<21} {'FOREIGN ADDRESS':<21}\n"
        )
    for address, port, each in _listening(process):
        if ports is None or port in ports:
            local = f"{address}:{port}"
            process.out(
                f"{'root':<8} {each.command_name[:10]:<10} {each.pid:<5} {3:<3} {'tcp4':<6} "
                f"{local:<21} {'*:*':<21}\n"
            )
    return 0


def nc(process: Process) -> int:
    """``nc -z HOST PORT``: connect, and leave at once."""
    found, words = getopt(process, "46dDEFhklNnrSUuvzI:i:M:O:P:p:s:T:V:w:X:x:")
    host, port = words[0], int(words[1])
    for address, number, each in _listening(process):
        if number == port and address in (host, "*", "0.0.0.0"):
            each.connected(port)
            if ("v", "") in found:
                process.err(f"Connection to {host} {port} port [tcp/*] succeeded!\n")
            return 0
    if ("v", "") in found:
        process.err(f"nc: connect to {host} port {port} (tcp) failed: Connection refused\n")
    return 1


COMMANDS: Mapping[str, Command] = {
    "ifconfig": ifconfig, "ping": ping, "netstat": netstat, "arp": arp, "sockstat": sockstat,
    "nc": nc,
}  # fmt: skip
