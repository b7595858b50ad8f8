"""Linux guests: what its base tools are asked, and what they answer."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files

from hil.errors import GuestError
from hil.guests.os import GuestOS, SeenBar, SeenFunction
from hil.pci.address import Address
from hil.platforms.contract import Bar
from hil.transport.quoting import quote

#: On tmpfs: in memory, and gone with the guest.
_TEXT = "/dev/shm/hil-text"  # noqa: S108

# /run is a tmpfs: what stands there is of this boot.
_LET_IN = r"""
for interface in /sys/class/net/*; do
    if [ "$(cat "$interface/address")" = "$1" ]; then break; fi
done
interface=${interface##*/}
ip link set "$interface" up && ip addr replace "$2" dev "$interface" || exit
if ! kill -0 "$(cat /run/hil_sshd.pid 2>/dev/null)" 2>/dev/null; then
    umask 077
    rm -f /run/hil_key /run/hil_key.pub
    echo "$3" >/run/hil_authorized_keys
    ssh-keygen -q -t ed25519 -N '' -f /run/hil_key || exit
    mkdir -p /run/sshd
    "$(command -v sshd || echo /usr/sbin/sshd)" -f /dev/null -p "$4" -h /run/hil_key \
        -o PidFile=/run/hil_sshd.pid -o AuthorizedKeysFile=/run/hil_authorized_keys \
        -o PermitRootLogin=prohibit-password -o UseDNS=no || exit
fi
cat /run/hil_key.pub
"""


class LinuxGuest(GuestOS):
    """Linux with coreutils or busybox, iproute2 and iputils."""

    name = "linux"

    def power_off(self) -> list[str]:
        return ["poweroff"]

    def reboot(self) -> list[str]:
        return ["reboot"]

    def crash(self) -> list[str]:
        return ["sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"]

    def triple_fault(self) -> list[str]:
        # Documentation/ABI/testing/sysfs-kernel-reboot, Linux 5.11 and later.
        return ["sh", "-c", "echo triple > /sys/kernel/reboot/type && sync && reboot -f"]

    def let_in(self, mac: str, address: str, key: str, port: int) -> list[str]:
        return ["sh", "-c", _LET_IN, "hil", mac, address, key, str(port)]

    def boot_id(self) -> list[str]:
        return ["cat", "/proc/sys/kernel/random/boot_id"]

    def list_functions(self) -> list[str]:
        script = r"""
        cd /sys/bus/pci/devices || exit 1
        for d in *; do
            l=$(readlink "$d/driver")
            read -r vendor < "$d/vendor"; read -r device < "$d/device"
            echo "$d $vendor $device ${l##*/}"
        done
        """
        return ["sh", "-c", script]

    def parse_functions(self, text: str) -> tuple[SeenFunction, ...]:
        return tuple(_seen(line) for line in text.splitlines() if line.strip())

    def list_bars(self, address: Address) -> list[str]:
        return ["cat", f"/sys/bus/pci/devices/{address}/resource"]

    def parse_bars(self, text: str) -> dict[int, SeenBar]:
        # start, end and flags of each resource, the six BARs first (sysfs-bus-pci)
        found = {}
        for index, line in enumerate(text.splitlines()[:6]):
            numbers = re.fullmatch(r"0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+)", line.strip())
            if numbers is None:
                raise GuestError("the guest lists its BARs in no known form", seen=line[:300])
            start, end, flags = (int(number, 16) for number in numbers.groups())
            if flags:
                found[index] = SeenBar(start, end - start + 1)
        return found

    def interfaces(self, address: Address) -> list[str]:
        return [
            "sh",
            "-c",
            'ls "/sys/bus/pci/devices/$1/net" 2>/dev/null; true',
            "hil",
            str(address),
        ]

    def disks(self, address: Address) -> list[str]:
        script = r"""
        for b in /sys/class/block/*; do
            case $(readlink "$b") in
                */"$1"/*) [ -e "$b/partition" ] || echo "/dev/${b##*/}" ;;
            esac
        done | sed 's/\(nvme[0-9]*\)c[0-9]*n/\1n/'  # multipath: nvme0c1n1 serves nvme0n1
        """
        return ["sh", "-c", script, "hil", str(address)]

    def work(self, address: Address) -> list[str]:
        script = r"""
        d=/sys/bus/pci/devices/$1
        net=$(ls "$d/net" 2>/dev/null)
        echo working
        if [ -n "$net" ]; then
            ip link set "$net" up
            exec ping -q -f -6 -I "$net" ff02::1
        fi
        disk=$(ls -d "$d"/nvme/nvme*/nvme*n1 | sed 's/.*\///; s/c[0-9]*n/n/')
        while dd if="/dev/$disk" of=/dev/null bs=1M iflag=direct status=none; do :; done
        """
        return ["sh", "-c", script, "hil", str(address)]

    def list_interrupts(self, address: Address) -> list[str]:
        script = r"""
        cd "/sys/bus/pci/devices/$1" || exit 1
        echo "irqs $(ls msi_irqs 2>/dev/null | tr '\n' ' ') $(cat irq)"
        cat /proc/interrupts
        """
        return ["sh", "-c", script, "hil", str(address)]

    def parse_interrupts(self, text: str) -> dict[str, int]:
        return parse_interrupts(text)

    def hold_text(self) -> list[str]:
        return ["sh", "-c", f"cat > {_TEXT}"]

    def drop_text(self) -> list[str]:
        return ["rm", "-f", _TEXT]

    def link_up(self, interface: str) -> list[str]:
        return ["ip", "link", "set", interface, "up"]

    def hardware_address(self, interface: str) -> list[str]:
        return ["cat", f"/sys/class/net/{interface}/address"]

    def received_frames(self, interface: str) -> list[str]:
        return ["cat", f"/sys/class/net/{interface}/statistics/rx_packets"]

    def sent_frames(self, interface: str) -> list[str]:
        return ["cat", f"/sys/class/net/{interface}/statistics/tx_packets"]

    def announce(self, interface: str) -> list[str]:
        # Multicast leaves by the named interface, whatever the host's routes say: an address
        # of the same host at the far end would be short-cut within the kernel.
        script = 'ip link set "$1" up && ping -6 -n -c 3 -i 0.2 -W 1 -I "$1" ff02::1 >/dev/null'
        return ["sh", "-c", script, "hil", interface]

    def flood(self, interface: str, mac: str, payload: bytes) -> list[str]:
        return _program("on_peer_blast.py", interface, mac, payload.hex())

    def lie(self, interface: str, address: str) -> list[str]:
        return _program("on_peer_liar.py", interface, address)

    def register(
        self, address: Address, bar: Bar, offset: int, width: int, value: int | None = None
    ) -> list[str]:
        more = [] if value is None else [value]
        return _program("on_registers.py", address, bar.index, offset, width, *more)

    def disk_write(self, disk: str, block: int, number: int) -> list[str]:
        command = ["dd", f"of={disk}", f"bs={block}", f"seek={number}", "iflag=fullblock"]
        return [*command, "oflag=direct", "conv=notrunc", "status=none"]

    def disk_read(self, disk: str, block: int, number: int, count: int) -> list[str]:
        command = ["dd", f"if={disk}", f"bs={block}", f"skip={number}", f"count={count}"]
        return [*command, "iflag=direct", "status=none"]

    def disk_digest(self, disk: str, block: int, number: int, count: int) -> list[str]:
        return ["sh", "-c", f"{quote(self.disk_read(disk, block, number, count))} | sha256sum"]

    def configure_interface(self, interface: str, address: str) -> list[str]:
        script = 'ip link set "$1" up && ip addr replace "$2" dev "$1"'
        return ["sh", "-c", script, "hil", interface, address]

    def ping(self, destination: str, *, size: int, pattern: bytes = b"") -> list[str]:
        # Of several packets, iputils waits for the last only twice the time of the others.
        command = ["ping", "-n", "-c", "1", "-W", "5", "-s", str(size), "-M", "do"]
        if pattern:
            command += ["-p", pattern[:16].hex()]
        return [*command, destination]

    def read_rom(self, address: Address) -> list[str]:
        # Readable only while it is switched on (Documentation/PCI/sysfs-pci.rst).
        script = r"""
        rom=/sys/bus/pci/devices/$1/rom
        echo 1 > "$rom" || exit
        base64 -w 0 "$rom"
        status=$?
        echo 0 > "$rom"
        exit $status
        """
        return ["sh", "-c", script, "hil", str(address)]

    def reset_function(self, address: Address) -> list[str]:
        # Not every driver survives a reset under its feet (igb has no reset_prepare).
        script = r"""
        d=/sys/bus/pci/devices/$1
        l=$(readlink "$d/driver")
        if [ -n "$l" ]; then echo "$1" > "$d/driver/unbind" || exit; fi
        echo 1 > "$d/reset" || exit
        if [ -n "$l" ]; then echo "$1" > "/sys/bus/pci/drivers/${l##*/}/bind" || exit; fi
        """
        return ["sh", "-c", script, "hil", str(address)]

    def is_up(self) -> str:
        # An initramfs is left for the real root by a mount over it (switch_root(8)).
        # Without starting a program, which takes a while in a guest on an emulated host.
        return (
            'root=; while read -r from place _; do [ "$place" != / ] || root=$from; done'
            ' </proc/mounts; [ "${root:-rootfs}" != rootfs ]'
        )

    def before_saving(self) -> str:
        # All drivers of PCI functions, since which will be passed is not known, and of what is
        # on top of virtio's.
        return (
            "sed -n 's/^alias \\(pci\\|virtio\\):[^ ]* //p'"
            " /lib/modules/$(uname -r)/modules.alias | sort -u | xargs modprobe -abq;"
            " python3 -c 'import array, base64, ctypes, json, mmap, select, subprocess, typing';"
            " true"
        )

    def after_continuing(self, name: str, now: float, key: str) -> str:
        return (
            f"echo {shlex.quote(name)} > /proc/sys/kernel/hostname; date -s @{now:.0f} >/dev/null;"
            f" echo {shlex.quote(key)} > /root/.ssh/authorized_keys;"
            " echo 1 > /sys/bus/pci/rescan"
        )


def _program(name: str, *arguments: object) -> list[str]:
    """One of hil's programs for Python 3, sent as text."""
    code = files("hil.probes.remote").joinpath(name).read_text("utf-8")
    return ["python3", "-u", "-c", code, *map(str, arguments)]


def parse_interrupts(text: str) -> dict[str, int]:
    """Counts over all CPUs of the interrupts named in the first line (``irqs 24 25 …``).

    The rest is ``/proc/interrupts`` (proc(5)).  Keys are its description column; an
    interrupt that has no row, because nobody has requested it, has no key.
    """
    first, _, rest = text.partition("\n")
    wanted = set(first.split()[1:])
    counts: dict[str, int] = {}
    for line in rest.splitlines():
        number, colon, tail = line.partition(":")
        if not colon or number.strip() not in wanted:
            continue
        words = tail.split()
        numbers = []
        for word in words:
            if not word.isdigit():
                break
            numbers.append(int(word))
        name = f"{number.strip()} {' '.join(words[len(numbers) :])}".strip()
        counts[name] = sum(numbers)
    return counts


def _seen(line: str) -> SeenFunction:
    match = re.fullmatch(r"(\S+) 0x([0-9a-f]{4}) 0x([0-9a-f]{4}) ?(\S*)", line.strip())
    if not match:
        raise GuestError("the guest lists its PCI functions in no known form", seen=line[:300])
    return SeenFunction(
        Address.parse(match[1]), int(match[2], 16), int(match[3], 16), match[4] or None
    )
