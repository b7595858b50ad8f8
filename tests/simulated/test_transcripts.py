"""Every transcript of a real host, replayed on a simulated one: same bytes, same statuses.

What is masked, and which commands are not compared, stands below with the reason.  Commands of
the recorder itself (``guest-wait`` and ``guest-cmd`` type at a guest's console) are carried out;
what guests print is compared in the guests' own tests.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from hil.deadline import Deadline, poll
from hil.simulated.host import SimulatedHost
from hil.simulated.process import Process
from tests.recorded import Recorded, all_recorded
from tests.simulated.machine import Outcome, run

#: Reasons are for the reader; a pattern is replaced on both sides before they are compared.
MASKS: tuple[tuple[str, str, str], ...] = (
    ("when a file was made", r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d (?=\S+$)", "DATE "),
    ("device numbers", r"0x[0-9a-f]{2}(?= DATE)", "0xNN"),
    (
        "directories of devfs, by what else the host has",
        r"(?<=x  )( ?\d+) (?=root  wheel   512)",
        "N ",
    ),
    ("time of day, load", r"^ ?\d+:\d\d[AP]M  up .*, 0 users, load averages: .*", "UPTIME"),
    ("how long a ping took", r"time=[\d.]+ ms", "time=T ms"),
    ("how long pings took", r"(stddev = )[\d./]+ ms", r"\1T ms"),
    ("the speed of the processor", r"\([\d.]+-MHz", "(N-MHz"),
    ("a boot's time stamp", r"^\d+\.\d+ \[ *\d+\]", "STAMP"),
    ("lines of the loader", r"^can't find '[^']*'", "can't find"),
    ("how often a processor left the guest", r"^([a-zA-Z%][^\n\t]*\t)\d+$", r"\1N"),
    ("registers of a running processor", r"^([\w /]+\[\d+\]\t+)0x[0-9a-f/x]+$", r"\1X"),
    ("numbers of processes", r"^\d+ (?=bhyve$)", "N "),
    ("counters of the IOMMU's commands", r"(command_(?:head|tail|count): )\d+", r"\1N"),
    ("links come up when they come up", r"^(?:em|igb)\d: link state changed to UP\n", ""),
    ("an identifier of an NVMe command", r"cid:\d+", "cid:N"),
    ("a bridge's windows", r"^ +0x(6000-0x6fff|c0000000-0xc01fffff|e000000000-0xe01fffffff)\n", ""),
    (
        "a bridge that has windows",
        r"(handle=\S+S40_\n(?: .*lines:\n(?: +0x..\n)+)?) +I/O ports:\n",
        r"\1",
    ),
    ("where a module lies, and how large it is", r"(\d) 0xffffffff\w+ +\w+ (vmm.ko)", r"\1 A S \2"),
    ("how many of the kernel's modules are used", r"^ 1 +\d+ (0xffffffff80200000)", r" 1 N \1"),
    ("the guest's clock", r"^rtc (nvram|time).*", "RTC"),
)


@dataclass
class Replay:
    """A folder's host, and what the recorder did between the commands."""

    host: str
    before: Mapping[str, str] = field(default_factory=dict)
    """By a command's number: what was run before it, unrecorded."""
    loader_conf: dict[str, str] | None = None
    not_compared: Mapping[str, str] = field(default_factory=dict)
    """By number: why."""


FRESH = "bhyvectl --vm=g1 --destroy; bhyveload -S -c stdio -m 512M -d /vm/guest.img g1"
AMD, INTEL = "recorded-13.2-amd", "recorded-13.2-intel"
GUEST = "what a guest prints is compared in the guests' own tests"


def started(passed: str, order: str = "") -> str:
    """The recorder starts the guest g1, and keeps what it and bhyve print."""
    usual = f"-l com1,/dev/nmdm0A {passed}"
    return (
        # One reader at the console, and it is there before bhyve is.
        f"pkill -x cat; while pgrep -q -x cat; do :; done; {FRESH}; rm -f /vm/g1.*; "
        "sleep 1000 <>/dev/nmdm0A & exec 4<>/dev/nmdm0B; stty raw -echo clocal <&4; kill $!; "
        "cat <&4 >/vm/g1.console & exec 4<&-; "
        "sh -c 'bhyve -c 1 -m 512M -S -H -A -P -s 0,hostbridge -s 31,lpc "
        f"-s 3,virtio-blk,/vm/guest.img {order or usual} g1 > /vm/g1.bhyve 2>&1; "
        'echo "exit status $?" >> /vm/g1.bhyve\' &'
    )


TO_PPT = "kldload nmdm; kldload vmm; " + "; ".join(
    f"devctl set driver -f pci0:0:{place} ppt" for place in ("5:0", "6:0", "7:0", "31:3", "9:0")
)
AGAIN = f"{FRESH}"

ONE = started("-s 7,passthru,0/5/0") + " guest-wait g1 60 login:"

REPLAYS: Mapping[str, Replay] = {
    "1-host-setup": Replay(
        AMD, not_compared={"041": "the bar that the loader turns, and when it prints what"}
    ),
    "2-failures-then-guest": Replay(
        AMD,
        before={"001": "kldload nmdm", "050": started("-s 7,passthru,0/5/0")},
        not_compared={
            "051": "the recorder's own processes",
            "056": "which of a device's vectors the guest has asked for",
            "057": "counts, and which vectors there are",
        },
    ),
    "3-each-failure-from-fresh": Replay(
        AMD,
        before={
            "001": f"{TO_PPT}; {AGAIN}",
            **{f"{n:03}": AGAIN for n in (3, *range(5, 19))},
            "019": "bhyvectl --vm=g1 --destroy",
            "022": "bhyvectl --vm=g7 --destroy; "
            + started(
                "-s 7,passthru,0/5/0 -s 8,passthru,0/6/0 -s 9,passthru,0/7/0 -s 10,passthru,0/9/0"
            ),
        },
        not_compared={"029": "counts, and which vectors there are", "036": GUEST},
    ),
    "4-in-use": Replay(
        AMD,
        before={
            "001": "kldload nmdm; kldload vmm; devctl set driver -f pci0:0:5:0 ppt; "
            + started("", "-s 7,passthru,0/5/0 -l com1,/dev/nmdm0A")
        },
        not_compared={"002": "the recorder's own processes"},
    ),
    "5-exits-and-kills": Replay(
        AMD,
        before={
            "001": f"kldload nmdm; kldload vmm; devctl set driver -f pci0:0:5:0 ppt; {ONE}; "
            "guest-cmd g1 0 20 'shutdown -r now'; guest-end",
            "006": f"{ONE}; guest-cmd g1 0 20 'shutdown -p now'; guest-end",
            "007": f"{ONE}; guest-cmd g1 0 20 halt",
            # Two guests that ended in ways which need a module of the recorder's own.
            "009": f"{ONE}; {ONE}",
            "012": f"{ONE}; kill $(pgrep bhyve); guest-end",
            "014": f"{ONE}; kill -9 $(pgrep bhyve); guest-end",
            "016": f"{ONE}",
            "017": "guest-end",
            "018": f"{ONE}",
            "019": "guest-end",
            "021": "bhyvectl --vm=g1 --destroy",
        },
        not_compared={
            "009": "processors halted with interrupts off: needs a module of the recorder's",
            "011": "a process number of then",
            "013": "a process number of then",
            "039": "a triple fault: needs a module of the recorder's",
        },
    ),
    "6-iommu-disabled": Replay(AMD),
    "7-pptdevs-at-boot": Replay(
        AMD,
        loader_conf={
            "autoboot_delay": "-1",
            "beastie_disable": "YES",
            "loader_logo": "none",
            "console": "comconsole",
            "comconsole_speed": "115200",
            "boot_serial": "YES",
            "boot_multicons": "NO",
            "vm.pmap.pti": "0",
            "hw.vmm.amdvi.enable": "1",
            "vfs.root.mountfrom": "ufs:/dev/gpt/rootfs",
            "vmm_load": "YES",
            "pptdevs": "0/5/0 0/6/0",
        },
        not_compared={"032": "the message buffer still had the boot before"},
    ),
    "8-vtd-machine": Replay(INTEL),
    "9-host-panics": Replay(
        AMD,
        before={
            "024": "kldload nmdm; kldload vmm; devctl set driver -f pci0:0:5:0 ppt; "
            + started("-s 7,passthru,0/5/0")
            + " guest-wait g1 60 login:; guest-cmd g1 0 20 'shutdown -r now'"
        },
    ),
    "10-behind-a-root-port": Replay(
        AMD,
        before={
            "001": "kldload nmdm; kldload vmm",
            "002": started("-s 7,passthru,1/0/0"),
        },
    ),
}


class Recorder:
    """The recorder's own commands, in the host's shell."""

    def __init__(self, host: SimulatedHost) -> None:
        self._system = host.system
        self._system.commands |= {
            "guest-wait": self._wait,
            "guest-cmd": self._command,
            "guest-end": self._end,
        }

    def _contents(self, path: str) -> str:
        if not self._system.files.exists(path):
            return ""
        return self._system.files.read(path).decode("utf-8", "replace")

    def _console(self) -> str:
        return self._contents("/vm/g1.console")

    def _ended(self) -> bool:
        return "exit status" in self._contents("/vm/g1.bhyve")

    def _until(self, text: str, start: int) -> None:
        def seen() -> bool:
            console = self._console()[start:]
            return text in console or "press any key" in console or self._ended()

        poll(seen, Deadline(60, f"{text!r} on the guest's console"), last_seen=self._console)

    def _type(self, process: Process, text: str) -> None:
        file = self._system.files.open(process, "/dev/nmdm0B", "rwn").reference()
        file.stream.write(process, text.encode())
        file.release()

    def _wait(self, process: Process) -> int:
        self._until(process.arguments[3], 0)
        process.out("seen after 18s\n")
        return 0

    def _command(self, process: Process) -> int:
        before = len(self._console())
        if self._console().rstrip().endswith("login:"):
            self._type(process, "root\r")
            self._until("# ", before)
            before = len(self._console())
        self._type(process, f"{process.arguments[4]}\r")
        self._until("# ", before + 1)
        process.out(self._console()[before:].replace("\r", ""))
        return 0

    def _end(self, process: Process) -> int:
        poll(self._ended, Deadline(60, "bhyve to end"), last_seen=self._console)
        return 0


def differences(recorded: Recorded, outcome: Outcome) -> Iterator[str]:
    if outcome.status != recorded.status:
        yield f"status {outcome.status}, recorded {recorded.status}"
    for name, was, now in (
        ("stdout", recorded.stdout, outcome.out),
        ("stderr", recorded.stderr, outcome.err),
    ):
        left, right = (masked(data.decode("utf-8", "surrogateescape")) for data in (was, now))
        if "dmesg | tail" in recorded.command:
            # A masked line lets one more from above into the other side's tail.
            lines = min(left.count("\n"), right.count("\n"))
            left, right = (
                "".join(text.splitlines(keepends=True)[-lines:]) for text in (left, right)
            )
        if "tail -c" in recorded.command:
            # The console's last bytes are the guest's; around them stands what became of bhyve.
            left, right = (
                "\n".join(re.findall(r"^(?:exit status \d+|\d+ bhyve)$", text, re.MULTILINE))
                for text in (left, right)
            )
        if left != right:
            yield from difflib.unified_diff(
                left.splitlines(), right.splitlines(), f"recorded {name}", "simulated", n=0,
                lineterm="",
            )  # fmt: skip


def masked(text: str) -> str:
    # A disk is found while its controller still talks.
    text = re.sub(
        r"(?:^(?:nvd0: <|nvd0: 64MB|nvme0: SET|nvme0: FEATURE).*\n)+",
        lambda found: "".join(sorted(found[0].splitlines(keepends=True))),
        text,
        flags=re.MULTILINE,
    )
    for _, pattern, replacement in MASKS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


@pytest.mark.parametrize("folder", REPLAYS)
def test_a_simulated_host_prints_what_the_real_one_printed(folder: str) -> None:
    replay = REPLAYS[folder]
    host = SimulatedHost(replay.host)
    Recorder(host)
    if replay.loader_conf is not None:
        host.reboot(replay.loader_conf)
    try:
        wrong = list(_replayed(folder, replay, host))
    finally:
        host.close()
    assert wrong == []


def _replayed(folder: str, replay: Replay, host: SimulatedHost) -> Iterator[str]:
    for recorded in all_recorded():
        if not recorded.name.startswith(f"{folder}/"):
            continue
        number = recorded.name.partition("/")[2][:3]
        if number in replay.before:
            run(host.system, replay.before[number])
        # A guest that is left to run is ended sooner than the recorder did it.
        command = re.sub(r"^timeout (-s KILL )?\d+", r"timeout \g<1>1", recorded.command)
        command = re.sub(r"\bsleep 2", "guest-end", command)
        command = re.sub(r"\bsleep \d+", "sleep 0", command)
        outcome = run(host.system, command)
        if number in replay.not_compared or "guest-" in recorded.command:
            continue
        found = list(differences(recorded, outcome))
        if found:
            yield "\n".join([f"{recorded.name}: {recorded.command}", *found])
