"""A FreeBSD host that answers from recordings, and fails on any command it does not know.

Drivers change as devctl(8) changed them on the recorded host; all other answers are texts that
a test may replace.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from hil.pci.address import Address
from hil.platforms.freebsd import FreebsdBhyve
from hil.platforms.freebsd_pci import parse_pciconf
from hil.platforms.freebsd_undo import DRIVER
from tests.fakes import FLR, MSI, PM_RESETS, Answer, FakeTransport, config
from tests.recorded import recorded

EM = Address.parse("pci0:0:5:0")
IGB = Address.parse("pci0:0:6:0")
NVME = Address.parse("pci0:0:7:0")
PORT = Address.parse("pci0:0:8:0")
EDU = Address.parse("pci0:0:9:0")
FAR = Address.parse("pci0:1:0:0")

SYSCTLS = (
    recorded("1-host-setup/009").text
    + "machdep.acpi_root: 1013904\nvm.stats.vm.v_user_wire_count: 0\n"
    + recorded("1-host-setup/053").text
    + "dev.ivhd.0.event_intr_count: 0\n"
)


class FreebsdHost(FakeTransport):
    """The recorded host with AMD-Vi; ``texts`` are standard outputs by command line."""

    def __init__(self) -> None:
        super().__init__(self._answer, "lab1")
        self.entries = {e.address: e for e in parse_pciconf(recorded("1-host-setup/059").text)}
        #: Name as pciconf shows it, and whether its driver is attached.
        self.drivers = {
            address: (entry.name, not entry.name.startswith("none"))
            for address, entry in self.entries.items()
        }
        self.native = dict(self.drivers)
        self.pptdevs: set[Address] = set()
        self.held: set[Address] = set()
        self.configs = {
            address: config(
                entry.vendor,
                entry.device,
                header_type=entry.header_type,
                capabilities=() if address == EDU else (MSI, FLR, PM_RESETS),
            )
            for address, entry in self.entries.items()
        }
        self.sysctls = SYSCTLS
        #: What the PF's SR-IOV capability is said to be.
        self.iov = "IOV disabled"
        #: Answers to whole command lines, before all else.
        self.answers: dict[str, Answer] = {}
        self.texts = {
            "uname -r": "13.2-RELEASE\n",
            "uname -v": "FreeBSD 13.2-RELEASE BHYVEHOST\n",
            "mount -p": "/dev/gpt/rootfs\t/\tufs\trw 1 1\n",
            "swapinfo": "Device          1K-blocks     Used    Avail Capacity\n",
            "sysctl -n kern.geom.conftxt": "",
            "ifconfig -a": "",
            "ifconfig -l": "vtnet0 em0 lo0\n",
            "netstat -rn": "",
            "camcontrol devlist -v": "",
            "sysctl -i kern.console hw.pci.default_vgapci_unit": "",
            'sh -c echo "$SSH_CONNECTION"': "",
            "kldstat -v": recorded("1-host-setup/050").text,
            "true": "",
            "sh -c kldstat -q -m zfs && zpool status -LP": "",
            "kldload -n vmm": "",
            "kldload -n nmdm": "",
            "kldstat -q -m vmm": "",
            "kenv -q": 'hw.vmm.amdvi.enable="1"\n',
            "acpidump -t": recorded("1-host-setup/031").text,
            "dmesg": recorded("1-host-setup/052").text,
            "ps -axww -o pid= -o command=": "  1 /sbin/init\n",
            "mdconfig -l": "",
        }
        self.missing = {"ls /dev/vmm": "ls: /dev/vmm: No such file or directory\n"}

    def platform(self) -> FreebsdBhyve:
        return FreebsdBhyve("lab1", self, directory="/var/run/hil")

    @property
    def changes(self) -> list[str]:
        """Commands other than those that only look."""
        looking = ("pciconf -l", "pciconf -r", "pciconf -a", "devinfo", "kldstat", "sysctl -i")
        quiet = {*self.texts, *self.missing} - {"kldload -n vmm", "kldload -n nmdm"}
        return [
            line
            for line in map(" ".join, self.commands)
            if line not in quiet and not line.startswith(looking) and "hil: %s" not in line
        ]

    # ---- answers -------------------------------------------------------------------

    def _answer(self, command: tuple[str, ...], _stdin: bytes) -> Answer:
        line = " ".join(command)
        if "hil: %s" in line:
            told = list(self._asked(command[2]))
            return 0, "".join(out for out, _ in told), "".join(err for _, err in told)
        if line in self.answers:
            return self.answers[line]
        if line in self.texts:
            return 0, self.texts[line], ""
        if line in self.missing:
            return 1, "", self.missing[line]
        if command[0] == "devinfo":
            return 0, "nexus0\n" + "".join(f"  {n}\n" for n, a in self.drivers.values() if a), ""
        if command[:2] == ("sysctl", "-i"):
            return 0, self.sysctls, ""
        if command[0] in ("pciconf", "devctl"):
            return getattr(self, f"_{command[0]}")(command[1:])  # type: ignore[no-any-return]
        if command[:2] == ("sh", "-c") and command[2] == DRIVER.script:
            return self._returned(Address.parse(command[4]), command[5])
        if command[:2] == ("sh", "-c") and "pciconf -r" in command[2]:
            selectors = command[4:] or [address.selector for address in self.entries]
            selectors = [s for s in selectors if Address.parse(s) in self.entries]
            return 0, "".join(f"function {s}\n{self._dump(s)}" for s in selectors), ""
        raise AssertionError(f"the host was asked what it does not know: {line}")

    def _asked(self, script: str) -> Iterator[tuple[str, str]]:
        """The answers to several commands, which are asked for in one script."""
        for part in re.split(r"(?<=\"\$\?\")\n", script.rstrip("\n")):
            one, _, name = part.rpartition("; printf ")
            status, out, err = self._answer(tuple(shlex.split(one)), b"")
            yield f"{out!s}\nhil: {name.split()[-2]} {status}\n", str(err)

    def _pciconf(self, words: Sequence[str]) -> Answer:
        option, *rest = words
        if option == "-r":
            return 0, self._dump(rest[0]), ""
        if option == "-w":
            return 0, "", ""
        if option == "-a":
            attached = self.drivers[Address.parse(rest[0])][1]
            return (0, f"{rest[0]}: attached\n", "") if attached else (2, "", "")
        chosen = [Address.parse(rest[0])] if rest else list(self.entries)
        text = recorded(
            "1-host-setup/018" if option in ("-lvbce", "-lc") else "1-host-setup/059"
        ).text
        blocks = {Address.parse(b.split("@")[1].split(":\t")[0]): b for b in _blocks(text)}
        shown = "".join(
            self.drivers[a][0] + "@" + blocks[a].partition("@")[2] for a in chosen if a in blocks
        )
        return 0, shown.replace("IOV disabled", self.iov), ""

    def _dump(self, selector: str) -> str:
        data = self.configs[Address.parse(selector)].data
        words = [data[at : at + 4][::-1].hex() for at in range(0, len(data), 4)]
        return "\n".join(" ".join(words[at : at + 4]) for at in range(0, len(words), 4)) + " \n"

    def _devctl(self, words: Sequence[str]) -> Answer:
        verb = " ".join(word for word in words if not word.startswith("-"))
        if words[0] == "reset":
            return 0, "", ""
        if words[:2] == ["set", "driver"] or words[:2] == ("set", "driver"):
            address, driver = Address.parse(words[-2]), words[-1]
            if self.drivers[address][1] and "-f" not in words:
                return 1, "", f"devctl: Failed to set {words[-2]} driver to {driver}: Device busy\n"
            self.drivers[address] = (f"{driver}{address.device}", True)
            return 0, "", ""
        address = Address.parse(words[-1])
        if address in self.held:
            return 1, "", f"devctl: Failed to clear {words[-1]} driver: Device busy\n"
        assert verb.startswith("clear driver"), verb
        if address not in self.pptdevs:
            self.drivers[address] = self.native[address]
            if not self.native[address][1]:
                self.drivers[address] = (self.drivers[address][0], False)
                return 1, "", "devctl: Failed to clear driver: Device not configured\n"
        return 0, "", ""

    def _returned(self, address: Address, driver: str) -> Answer:
        status, out, err = self._devctl(("clear", "driver", "-f", address.selector))
        if address in self.held:
            return status, out, err
        if driver == "none":
            return 0, "", ""
        if not self.drivers[address][0].startswith(driver):
            return self._devctl(("set", "driver", "-f", address.selector, driver))
        return 0, "", ""


def _blocks(text: str) -> list[str]:
    return [part for part in re.split(r"(?m)^(?=\S+@pci)", text) if part]
