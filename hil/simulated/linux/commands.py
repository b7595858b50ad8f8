"""Commands of a Linux guest that FreeBSD has not, or has otherwise.

iproute2, iputils, systemd's way to end a system, coreutils' sha256sum, kmod's modprobe.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import itertools
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hil.simulated import commands
from hil.simulated.commands import files
from hil.simulated.commands.kernel import dmesg
from hil.simulated.commands.network import nc
from hil.simulated.commands.options import flags, getopt
from hil.simulated.commands.text import chunks, had_errors, opened
from hil.simulated.errno import SimError
from hil.simulated.guest_commands import ssh_commands
from hil.simulated.guest_python import python3
from hil.simulated.net import Interface
from hil.simulated.process import SIGINT, Command, Process

if TYPE_CHECKING:
    from hil.simulated.linux.guest import LinuxGuest


def linux_commands(guest: LinuxGuest) -> dict[str, Command]:
    """Everything that can be run in a Linux guest."""
    found = {**commands.standard_commands(), **ssh_commands(guest), **_COMMANDS}
    for how in ("poweroff", "reboot", "halt"):
        found[how] = functools.partial(_end, guest, how)
    if guest.image.python:
        found["python3"] = functools.partial(_python3, guest)
    for name in ("sha256", "md5", "sha1", "sha512"):
        found.pop(name, None)
    return found


# ---- the end -----------------------------------------------------------------------


def _end(guest: LinuxGuest, how: str, process: Process) -> int:
    found, _ = getopt(process, "fnpw")
    guest.go_down(how, force="f" in flags(found))
    return 0


def _python3(guest: LinuxGuest, process: Process) -> int:
    return python3(process, guest.kernel.ram, "linux", guest.kernel.huge_pages)


# ---- files and the kernel ----------------------------------------------------------


def _sum(kind: str, process: Process) -> int:
    """sha256sum(1) and its like: ``DIGEST  NAME``."""
    _, names = getopt(process, "bct")
    for each, file in opened(process, names):
        digest = hashlib.new(kind, usedforsecurity=False)
        for piece in chunks(process, file):
            digest.update(piece)
            process.check()
        process.out(f"{digest.hexdigest()}  {each}\n")
    return had_errors(process)


def readlink(process: Process) -> int:
    """Coreutils' ``readlink [-f]``, which says nothing of what is no link."""
    try:
        return files.readlink(process, "efmnqsvz")
    except SimError:
        return 1


def uname(process: Process) -> int:
    """``uname [-amnrsv]``."""
    found, _ = getopt(process, "amnoprsv")
    option = {letter for letter, _ in found} or {"s"}
    system = process.system
    words = {
        "s": "Linux", "n": system.name, "r": system.version, "v": system.build, "m": "x86_64",
        "o": "GNU/Linux",
    }  # fmt: skip
    wanted = set(words) if "a" in option else option
    process.out(" ".join(word for letter, word in words.items() if letter in wanted) + "\n")
    return 0


def modprobe(process: Process) -> int:
    """The kernel has what it needs built in, and no more."""
    _, names = getopt(process, "abqrv")
    for name in names[:1]:
        process.err(
            f"modprobe: FATAL: Module {name} not found in directory "
            f"/lib/modules/{process.system.version}\n"
        )
        return 1
    return 0


# ---- ip ----------------------------------------------------------------------------


def ip(process: Process) -> int:
    """``ip link set``, ``ip addr add|replace|del|flush``; both show without a verb."""
    words = [word for word in process.arguments[1:] if not word.startswith("-")]
    what = words[0] if words else ""
    verb, *rest = words[1:] or ["show"]
    addresses = "address".startswith(what)
    if not what or not (addresses or "link".startswith(what)):
        process.err(f'Object "{what}" is unknown, try "ip help".\n')
        return 1
    interfaces: Mapping[str, Interface] = process.system.kernel.interfaces()
    device = rest[rest.index("dev") + 1] if "dev" in rest[:-1] else ""
    if not addresses and not device and rest:
        device = rest[0]
    if device and device not in interfaces:
        process.err(f'Cannot find device "{device}"\n')
        return 1
    if verb in ("show", "list", "ls"):
        for number, interface in enumerate(interfaces.values(), 1):
            if device in ("", interface.name):
                _show(process, number, interface, addresses=addresses)
        return 0
    if not device:
        process.err('Not enough information: "dev" argument is required.\n')
        return 255
    if addresses:
        return _address(process, interfaces[device], verb, rest)
    for word in rest:
        if word in ("up", "down"):
            interfaces[device].set_up(word == "up")
    return 0


def _address(process: Process, interface: Interface, verb: str, words: Sequence[str]) -> int:
    if verb == "flush":
        interface.addresses.clear()
        return 0
    try:
        address = ipaddress.IPv4Interface(words[0])
    except ValueError:
        process.err(f'Error: any valid prefix is expected rather than "{words[0]}".\n')
        return 1
    known = address in interface.addresses
    if verb == "add" and known:
        process.err("RTNETLINK answers: File exists\n")
        return 2
    if verb == "del" and not known:
        process.err("RTNETLINK answers: Cannot assign requested address\n")
        return 2
    if verb == "del":
        interface.addresses.remove(address)
    elif not known:
        interface.addresses.append(address)
    return 0


def _show(process: Process, number: int, interface: Interface, *, addresses: bool) -> None:
    loop = not interface.mac
    state = "LOOPBACK" if loop else "BROADCAST,MULTICAST"
    up = ",UP,LOWER_UP" if interface.up else ""
    shown = "UNKNOWN" if loop else "UP" if interface.up else "DOWN"
    process.out(
        f"{number}: {interface.name}: <{state}{up}> mtu {interface.mtu} qdisc fq_codel "
        f"state {shown} qlen 1000\n"
        f"    link/{'loopback' if loop else 'ether'} {(interface.mac or bytes(6)).hex(':')} "
        f"brd {'00:00:00:00:00:00' if loop else 'ff:ff:ff:ff:ff:ff'}\n"
    )
    for each in interface.addresses if addresses else ():
        process.out(f"    inet {each} scope {'host' if loop else 'global'} {interface.name}\n")


# ---- ping (iputils) ----------------------------------------------------------------

#: Bytes at the front of the payload that hold the time a request was sent.
_STAMP = 16
_ALL_NODES = bytes.fromhex("333300000001")


def ping(process: Process) -> int:
    found, words = getopt(process, "46AabBc:DdfF:hI:i:Ll:M:m:nOp:Qqrs:S:t:UvVw:W:")
    option = flags(found)
    if len(words) != 1:
        process.err("ping: usage error: Destination address required\n")
        return 1
    (target,) = words
    if "6" in option:
        return _flood_all_nodes(process, target, option)
    try:
        ipaddress.IPv4Address(target)
    except ValueError:
        process.err(f"ping: {target}: Name or service not known\n")
        return 2
    return _Pinging(process, target, option).run()


class _Pinging:
    def __init__(self, process: Process, target: str, option: Mapping[str, str]) -> None:
        self._process = process
        self._target = target
        self._option = option
        size = int(option.get("s", 56))
        self._payload = bytes(index & 0xFF for index in range(size))
        self._pattern = b""
        if "p" in option:
            self._pattern = bytes.fromhex(option["p"] + "0" * (len(option["p"]) % 2))
            self._payload = (self._pattern * (size // len(self._pattern) + 1))[:size]
        self._sent = self._received = 0
        self._interrupted = False
        self._times: list[float] = []

    def run(self) -> int:
        process, option = self._process, self._option
        process.handlers[SIGINT] = lambda _: setattr(self, "_interrupted", True)
        stack = process.system.kernel.stack
        if stack.route(ipaddress.IPv4Address(self._target)) is None:
            process.err("ping: connect: Network is unreachable\n")
            return 2
        if self._pattern:
            process.out(f"PATTERN: 0x{self._pattern.hex()}\n")
        size = len(self._payload)
        process.out(f"PING {self._target} ({self._target}) {size}({size + 28}) bytes of data.\n")
        count = int(option["c"]) if "c" in option else None
        identifier = stack.new_identifier()
        for sequence in itertools.count(1) if count is None else range(1, count + 1):
            self._once(stack, identifier, sequence)
            process.check()
            if self._interrupted:
                break
            if sequence != count:
                # A simulated machine hurries; a flood lets others get a word in.
                process.sleep(0.01)
        lost = 100 * (self._sent - self._received) // self._sent
        process.out(
            f"\n--- {self._target} ping statistics ---\n{self._sent} packets transmitted, "
            f"{self._received} received, {lost}% packet loss, time {sum(self._times):.0f}ms\n"
        )
        if self._times:
            low, high = min(self._times), max(self._times)
            mean = sum(self._times) / len(self._times)
            process.out(f"rtt min/avg/max/mdev = {low:.3f}/{mean:.3f}/{high:.3f}/0.000 ms\n")
        return 0 if self._received else 1

    def _once(self, stack: Any, identifier: int, sequence: int) -> None:
        payload = self._payload
        if len(payload) >= _STAMP:
            payload = time.time_ns().to_bytes(_STAMP, "little") + payload[_STAMP:]
        started = time.monotonic()
        echo = stack.echo(self._target, identifier, sequence, payload)
        self._sent += 1
        reply = None if echo is None else echo.wait(min(float(self._option.get("W", "10")), 1.0))
        if reply is None:
            return
        elapsed = (time.monotonic() - started) * 1000
        self._times.append(elapsed)
        self._received += 1
        if {"q", "f"} & self._option.keys():
            return
        out = self._process.out
        out(f"{len(reply.payload) + 8} bytes from {self._target}: icmp_seq={sequence} ")
        out(f"ttl={reply.ttl} time={elapsed:.3f} ms")
        for index in range(_STAMP, len(payload)):
            got = reply.payload[index] if index < len(reply.payload) else -1
            if got != payload[index]:
                out(f"\nwrong data byte #{index} should be {payload[index]:#x} ")
                out(f"but was {max(got, 0):#x}")
                break
        out("\n")


def _flood_all_nodes(process: Process, target: str, option: Mapping[str, str]) -> int:
    """``ping -6 [-f] -I INTERFACE ff02::1``: multicast, which nobody here answers."""
    interface: Interface | None = process.system.kernel.interfaces().get(option.get("I", ""))
    if interface is None or target != "ff02::1":
        process.err("ping: connect: Network is unreachable\n")
        return 2
    # Ethernet, IPv6 with hop limit 1, an ICMPv6 echo request; its checksum is nobody's business
    head = _ALL_NODES + interface.mac + b"\x86\xdd" + bytes.fromhex("600000000040")
    body = bytes.fromhex("3a01fe80" + "00" * 14 + "ff02" + "00" * 13 + "018000") + bytes(62)
    frame = head + body
    count = int(option["c"]) if "c" in option else None
    for _ in itertools.count() if count is None else range(count):
        interface.send(frame)
        process.sleep(0.01)
    return 0


def ss(process: Process) -> int:
    """``ss -tln``: what listens."""
    process.out("State  Recv-Q Send-Q Local Address:Port Peer Address:Port\n")
    for each in process.system.processes.values():
        for address, port in each.listening:
            shown = re.sub(r"^\*$", "0.0.0.0", address)
            process.out(f"LISTEN 0      128    {shown}:{port}       0.0.0.0:*\n")
    return 0


_COMMANDS: Mapping[str, Command] = {
    "uname": uname, "dmesg": dmesg, "modprobe": modprobe, "ip": ip, "ping": ping, "ss": ss,
    "nc": nc, "readlink": readlink,
    **{f"{kind}sum": functools.partial(_sum, kind) for kind in ("sha256", "sha512", "sha1", "md5")},
}  # fmt: skip
