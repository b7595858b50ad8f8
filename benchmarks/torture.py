"""Runs and hosts that are killed at random points: is all as it was, and does the next run work?

    python benchmarks/torture.py [--kills N] [--host-kills N] [--seed S] [--seconds LIMIT]
                                 [--simulated HOST] [--name NAME] [--log FILE]

An emulated host (or a simulated one) is brought up as ``hil lab up`` does, and used as a
*physical* one: over SSH, by an inventory.  ``hil run`` works on it, again and again, on one
or two tests, and is ended by SIGKILL after a random time; or the host loses its power, or
its kernel panics, and the run must go on.  Each time the host is then looked at, file by file,
process by process, driver by driver, and compared with what it was.

Each kill is a line of JSON in ``--log``; a later call goes on where an earlier one stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from _report import verdict

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hil.deadline import Deadline, poll  # noqa: E402 - the checkout is no package
from hil.errors import HilError  # noqa: E402
from hil.lab import keeper  # noqa: E402
from hil.lab.lease import look  # noqa: E402
from hil.lab.live import connect, platform_of  # noqa: E402
from hil.lab.load import BUILT_IN, load  # noqa: E402
from hil.lab.recover import recover  # noqa: E402
from hil.platforms.contract import Platform  # noqa: E402

#: What a run does, in turn: words for ``hil run``.
SELECTIONS = (
    ("assignment", "-k", "edu0 and cycles"),
    ("assignment", "-k", "edu0 and working"),
    ("sriov", "-k", "made_later"),
    ("lifecycle", "-k", "nic0 and destroyed_at_work"),
    ("assignment", "-k", "nic0 and cycles"),
    ("dma", "-k", "nic0 and every_size"),
)
SIMULATED_BASE = ROOT / "hil" / "lab" / "simulated.toml"
#: Every so often a run is left to end by itself, and nothing is put back before it.
GREEN_EVERY = 20
#: Seconds for whatever must come right by itself.
SETTLE = 120.0

# All that a run could leave on a Linux host; what the system itself changes is left out.
_LOOK_LINUX = r"""
for d in /sys/bus/pci/devices/*; do
    driver=$(readlink "$d/driver")
    echo "function ${d##*/} ${driver##*/} $(cat "$d/driver_override")" \
        "$(cat "$d/sriov_numvfs" 2>/dev/null)"
done
find /run/hil /var/lib/hil /run/lock/hil /dev/shm /tmp -type f 2>/dev/null \
    | grep -v '^/run/lock/hil/[0-9a-f]*:[0-9a-f:]*$' | sed 's/^/file /'
ip -o -4 addr | awk '{ print "address", $2, $4 }'
for p in /proc/[0-9]*; do
    name=$(tr '\0' ' ' 2>/dev/null < "$p/cmdline")
    case $name in
    ''|*sshd*|*hil-look*|*kworker*|tr\ *|sed\ *|sort\ *) ;;
    *) echo "process $name" | cut -c 1-200 ;;
    esac
done
"""
_LOOK_FREEBSD = r"""
pciconf -l | sed 's/@.*class/ class/; s/^/function /'
walk() {
    for file in "$1"/*; do
        if [ -d "$file" ]; then
            walk "$file"
        elif [ -e "$file" ]; then
            case $file in /var/run/hil-leases/*:*) ;; *) echo "file $file" ;; esac
        fi
    done
}
for folder in /var/run/hil-leases /var/db/hil /tmp /vm; do walk "$folder"; done
ls /dev/vmm 2>/dev/null | sed 's/^/machine /'
ifconfig -l | tr ' ' '\n' | sed 's/^/interface /'
ps -axo command= | grep -E 'bhyve|lockf|hil' | grep -v hil-look | sed 's/^/process /'
true
"""


@dataclass(frozen=True)
class Kill:
    """What was killed, when, and what was wrong after it."""

    what: str
    selection: str
    after: float
    """Seconds of the run."""
    at: str
    """The last line that the run had printed."""
    recovered: int
    """Changes that were put back."""
    seconds: float
    """From the kill until all was as before."""
    wrong: str = ""


class Rack:
    """A host that is kept up: runs reach it as they do a physical one."""

    def __init__(self, name: str, simulated: str, folder: Path) -> None:
        self.folder = folder
        self.name = name
        self.simulated = simulated
        if keeper.find(name) is None:
            words = [simulated] if simulated else []
            keeper.start(name, Deadline(1800, "the lab"), say, lab=words)
        state = keeper.get(name)
        base = SIMULATED_BASE if simulated else BUILT_IN["emulated"]
        images = base.read_text().partition("[images.")[2]
        self.inventory = folder / "rack.toml"
        self.inventory.write_text(f"""[lab]
name = "rack"
kind = "{"simulated" if simulated else "emulated"}"
[hosts.host]
platform = "{"freebsd-bhyve" if simulated else "linux-vfio"}"
address = "127.0.0.1"
port = {state.ssh_port}
key_file = "{state.key_file}"
host_key = "{state.host_key}"
power = {{ driver = "kept", address = "{name}" }}
console = ["{sys.executable}", "-m", "hil.cli", "lab", "console", "--follow", "--name", "{name}"]
[devices.nic0]
kind = "nic"
host = "host"
match = {{ id = "8086:10c9" }}
functions = ["0000:01:00.0"]
capabilities = ["msi", "msix", "flr", "pm", "sriov"]
vfs = 2
peer = {{ function = "0000:02:00.0" }}
[devices.edu0]
kind = "edu"
host = "host"
functions = ["0000:04:00.0"]
capabilities = ["msi"]
[images.{images}""")
        self._platform: Platform | None = None
        self.before = self.look()

    @property
    def platform(self) -> Platform:
        if self._platform is None:
            lab = load(str(self.inventory))
            transport = connect(lab, "host", Deadline(300, "the host"))
            self._platform = platform_of(lab, "host", transport)
        return self._platform

    def forget(self) -> None:
        """The host was started anew: connect again."""
        if self._platform is not None:
            self._platform.transport.close()
        self._platform = None

    def answers(self) -> bool:
        with contextlib.suppress(HilError):
            transport = connect(load(str(self.inventory)), "host", Deadline(15, "an answer"))
            transport.close()
            return True
        return False

    def look(self) -> frozenset[str]:
        script = _LOOK_FREEBSD if self.simulated else _LOOK_LINUX
        command = ["sh", "-c", script, "hil-look"]
        result = self.platform.transport.run(command, deadline=Deadline(60, "a look"))
        return frozenset(result.check().stdout.splitlines())

    def wrong(self, within: float = SETTLE) -> str:
        """What is not as it was before; empty if all is so in time."""
        last = ""

        def as_before() -> bool:
            nonlocal last
            now = self.look()
            held = look(self.platform.transport, self.platform.dialect, Deadline(60, "leases"))
            lines = [f"+ {line}" for line in sorted(now - self.before)]
            lines += [f"- {line}" for line in sorted(self.before - now)]
            lines += [f"lease {lease.name} of {lease.holder}" for lease in held]
            last = "\n".join(lines)
            return not lines

        try:
            poll(as_before, Deadline(within, "the host to be as it was"), interval=0.1)
        except HilError:
            return last
        return ""

    def recover(self) -> int:
        """Put back what dead runs left; how many changes it was."""
        undone = 0

        def nobody_lives() -> bool:
            # A run that was killed this instant holds its leases until its host hears of it.
            nonlocal undone
            recovered = recover(self.platform, Deadline(SETTLE, "the recovery"))
            if recovered.failed or recovered.unreadable:
                raise AssertionError(f"not recovered: {recovered}")
            undone += len(recovered.undone)
            return not (recovered.busy or recovered.kept)

        poll(nobody_lives, Deadline(SETTLE, "the end of dead runs' leases"), interval=0.1)
        return undone

    def kill(self, how: str) -> None:
        """End the host: ``power`` or ``panic``."""
        if how == "power":
            keeper.switch(self.name, "cycle", Deadline(300, "the power cycle"))
            return
        crash = ["sysctl", "debug.kdb.panic=1"] if self.simulated else ["sh", "-c", _PANIC]
        with contextlib.suppress(HilError):
            self.platform.transport.run(crash, deadline=Deadline(5, "the panic"))


_PANIC = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"


class RunOfHil:
    """One ``hil run`` on the rack, in a process of its own."""

    def __init__(self, rack: Rack, words: Sequence[str], number: int) -> None:
        self.reports = rack.folder / f"reports-{number}"
        self.temporary = rack.folder / f"tmp-{number}"
        self.temporary.mkdir()
        self.output = rack.folder / f"output-{number}"
        suite, *rest = words
        command = [sys.executable, "-m", "hil.cli", "run", "--lab", str(rack.inventory)]
        command += [
            "--report-dir",
            str(self.reports),
            "--wait",
            "120",
            "--cycles",
            "1",
            suite,
            "--",
            *rest,
        ]
        environment = {
            **os.environ, "TMPDIR": str(self.temporary), "HIL_TORTURE": str(number),
            "HIL_ALLURE": "/nonexistent", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=environment, start_new_session=True,
            )  # fmt: skip
        self.begin = time.monotonic()

    @property
    def lines(self) -> list[str]:
        return self.output.read_text("utf-8", "replace").splitlines()

    def has_its_host(self) -> bool:
        """Or has ended."""
        told = any("comparing" in line for line in self.lines)
        return told or self.process.poll() is not None

    def outcomes(self) -> int:
        path = self.reports / "latest" / "outcomes.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def results_lost(self) -> str:
        """Every test whose end was told must be on disk."""
        told = sum(" s  " in line and "/" in line.split(" ")[0] for line in self.lines)
        kept = self.outcomes()
        return f"{told} tests had ended, {kept} are recorded" if kept < told else ""

    def temporary_files(self) -> list[str]:
        return sorted(str(p.relative_to(self.temporary)) for p in self.temporary.rglob("*"))

    def processes(self) -> list[str]:
        """What of it still runs on this machine."""
        mark = f"TMPDIR={self.temporary}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes() + b"\0":
                    command = (path.parent / "cmdline").read_bytes().replace(b"\0", b" ")
                    found.append(command.decode("utf-8", "replace")[:200])
        return found

    def wait(self, seconds: float = 900) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def left_here(self) -> str:
        with contextlib.suppress(HilError):
            poll(lambda: not self.processes(), Deadline(SETTLE, "its processes to end"))
        return "\n".join([*self.processes(), *self.temporary_files()])


class Torture:
    """A number of kills, one after the other."""

    def __init__(self, rack: Rack, rng: random.Random, log: Path | None) -> None:
        self.rack, self.rng, self.log = rack, rng, log
        self.number = 0
        self.lengths: dict[str, float] = {}
        """Seconds of a run that was left to end, by its words."""
        self.kills: list[Kill] = []
        if log is not None and log.exists():
            for line in log.read_text().splitlines():
                found = json.loads(line)
                if "lengths" in found:
                    self.lengths = found["lengths"]
                else:
                    self.kills.append(Kill(**found))

    def run(self, words: Sequence[str]) -> RunOfHil:
        self.number += 1
        return RunOfHil(self.rack, words, self.number)

    def green(self, words: Sequence[str]) -> str:
        """A run that is left to end; what was wrong with it."""
        run = self.run(words)
        status = run.wait()
        self.lengths[" ".join(words)] = time.monotonic() - run.begin
        wrong = "" if status == 0 else f"a run ended with {status}:\n" + "\n".join(run.lines)
        return "\n".join(filter(None, [wrong, run.left_here(), self.rack.wrong()]))

    def kill_run(self, words: Sequence[str]) -> Kill:
        run = self.started(words, self.rng.uniform(0.05, 1.0))
        after = time.monotonic() - run.begin
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        begin = time.monotonic()
        at = run.lines[-1] if run.lines else ""
        recovered, wrong = 0, ""
        if (len(self.kills) + 1) % GREEN_EVERY == 0:
            wrong = self.green(words)  # the next run itself puts back what this one left
        else:
            try:
                recovered = self.rack.recover()
                wrong = self.rack.wrong()
            except (HilError, AssertionError) as error:
                wrong = str(error)
        seconds = time.monotonic() - begin
        lost = [run.results_lost(), run.left_here(), self._no_report(run)]
        wrong = "\n".join(filter(None, [wrong, *lost]))
        return Kill("run", words[0], after, at.strip()[:100], recovered, seconds, wrong)

    def _no_report(self, run: RunOfHil) -> str:
        """Whether no report can be made of a killed run, or it does not say that it is one."""
        if (len(self.kills) + 1) % GREEN_EVERY or not (run.reports / "latest").exists():
            return ""
        command = [sys.executable, "-m", "hil.cli", "report", str(run.reports / "latest")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HIL_ALLURE": "/nonexistent"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        summary = run.reports / "latest" / "summary.json"
        if not summary.exists():
            return f"no report of a killed run:\n{done.stdout}{done.stderr}"
        told = json.loads(summary.read_text())
        if told["complete"] and len(told["tests"]) < told["planned"]:
            return "a killed run is called complete"
        return ""

    def started(self, words: Sequence[str], part: float) -> RunOfHil:
        """A run of which about that part is over; the time that one takes changes."""
        while True:
            run = self.run(words)
            try:
                run.process.wait(part * self.lengths[" ".join(words)])
            except subprocess.TimeoutExpired:
                return run
            self.lengths[" ".join(words)] = time.monotonic() - run.begin

    def at_work(self, words: Sequence[str]) -> RunOfHil:
        """A run that has its host, at a random moment of what is left of it."""
        while True:
            run = self.run(words)
            poll(run.has_its_host, Deadline(600, "the run to have its host"))
            try:
                run.process.wait(self.rng.uniform(0.0, 0.6) * self.lengths[" ".join(words)])
            except subprocess.TimeoutExpired:
                return run
            self.lengths[" ".join(words)] = time.monotonic() - run.begin

    def kill_host(self, words: Sequence[str], how: str) -> Kill:
        run = self.at_work(words)
        after = time.monotonic() - run.begin
        at = run.lines[-1] if run.lines else ""
        # Once its last test has ended, a run needs its host no more.
        needed = run.outcomes() == 0
        self.rack.kill(how)
        begin = time.monotonic()
        wrong = ""
        try:
            run.wait()
        except subprocess.TimeoutExpired:
            wrong = "the run did not end:\n" + "\n".join(run.lines[-30:])
        self.rack.forget()
        if needed and not self.rack.answers():
            wrong = f"{wrong}\nthe run did not bring the host back:\n" + "\n".join(run.lines)
        if not self.rack.answers():
            keeper.switch(self.rack.name, "cycle", Deadline(300, "the power cycle"))
        self.rack.forget()
        try:
            recovered = self.rack.recover()
            wrong = "\n".join(filter(None, [wrong, self.rack.wrong()]))
        except (HilError, AssertionError) as error:
            recovered, wrong = 0, f"{wrong}\n{error}".strip()
        seconds = time.monotonic() - begin
        wrong = "\n".join(filter(None, [wrong, run.results_lost(), run.left_here()]))
        return Kill(how, words[0], after, at.strip()[:100], recovered, seconds, wrong)

    def go_on(self, kills: int, host_kills: int, until: float) -> None:
        """To so many kills in all, or until that time (``time.monotonic()``)."""
        while time.monotonic() < until:
            runs = [kill for kill in self.kills if kill.what == "run"]
            hosts = [kill for kill in self.kills if kill.what != "run"]
            if len(runs) >= kills and len(hosts) >= host_kills:
                return
            words = SELECTIONS[len(self.kills) % len(SELECTIONS)]
            if " ".join(words) not in self.lengths and (wrong := self.green(words)):
                raise SystemExit(f"without any kill, {words} left or said:\n{wrong}")
            if len(runs) < kills:
                kill = self.kill_run(words)
            else:
                kill = self.kill_host(words, ("power", "panic")[len(hosts) % 2])
            self.kills.append(kill)
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(json.dumps(asdict(kill)) + "\n")
                    file.write(json.dumps({"lengths": self.lengths}) + "\n")
            outcome = "WRONG\n" + kill.wrong if kill.wrong else "well"
            say(
                f"{len(self.kills)}: {kill.what} {kill.selection} killed after {kill.after:.1f} s "
                f"({kill.at}): {kill.recovered} put back in {kill.seconds:.1f} s: {outcome}"
            )


def say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", flush=True)


@contextlib.contextmanager
def kept(name: str, simulated: str, folder: Path) -> Iterator[Rack]:
    """A rack for the length of a block; one that was up already stays up."""
    there = keeper.find(name) is not None
    try:
        yield Rack(name, simulated, folder)
    finally:
        if not there:
            keeper.stop(name, Deadline(60, "the lab's end"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--host-kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--simulated", default="", metavar="HOST")
    parser.add_argument("--name", default="torture")
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="hil-torture-") as folder,
        contextlib.ExitStack() as stack,
    ):
        # The runs have a TMPDIR each, but must find the kept lab.
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        rack = stack.enter_context(kept(given.name, given.simulated, Path(folder)))
        torture = Torture(rack, random.Random(given.seed), given.log)
        torture.go_on(given.kills, given.host_kills, time.monotonic() + given.seconds)
    return report(torture.kills)


def report(kills: Sequence[Kill]) -> int:
    bad = [kill for kill in kills if kill.wrong]
    for what in ("run", "power", "panic"):
        of = [kill for kill in kills if kill.what == what]
        if of:
            wrong = sum(bool(kill.wrong) for kill in of)
            print(f"{what}: {len(of)} kills, {sum(k.recovered for k in of)} changes put back")
            verdict("left something or lost something", wrong, "0", wrong == 0)
            verdict("longest until all was as before, s", max(k.seconds for k in of), "", not wrong)
    for kill in bad:
        print(f"{kill.what} after {kill.after:.1f} s ({kill.at}):\n{kill.wrong}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
