"""The emulated lab and its guests, beside the same QEMU started by hand.

* a lab host, nothing → first SSH command: restored, cold, and the same command line run
  by hand until its console asks for a log-in;
* a guest, start → shell: as suites start it, which is to continue a saved one; booted by hil;
  and the same command line typed on the host, until somebody who logs in has the shell's prompt.

Each contender runs in turn; the figures are medians of ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _report import alternate, ratio, show, verdict

from hil.bench import Bench
from hil.deadline import Deadline
from hil.emulated.machine import ROM, EmulatedLab, rom
from hil.lab.assemble import bench_of
from hil.lab.live import live_emulated
from hil.lab.load import load
from hil.platforms.contract import GuestSpec
from hil.platforms.linux_guest import QemuMachine

#: Takes down what was measured.
Ending = Callable[[], object]


def limit() -> Deadline:
    return Deadline(600, "the benchmark")


def up(*, fresh: bool) -> Ending:
    """Its last step is a command by SSH, which finds that all devices are there."""
    return EmulatedLab.up(fresh=fresh, deadline=limit()).close


def wait_for(prompt: bytes, read: Callable[[], bytes], who: str) -> None:
    seen = b""
    while prompt not in seen:
        part = read()
        if not part:
            raise SystemExit(f"{who} by hand ended: {seen!r}")
        seen = seen[-4000:] + part


def by_hand(command: list[str]) -> Ending:
    """Run QEMU with a serial port of our own until it prints a log-in prompt."""
    with contextlib.ExitStack() as stack:
        near, far = map(stack.enter_context, socket.socketpair())
        _, monitor = map(stack.enter_context, socket.socketpair())
        words = [
            word.replace("fd=CONSOLE", f"fd={far.fileno()}").replace(
                "fd=MONITOR", f"fd={monitor.fileno()}"
            )
            for word in command
        ]
        process = stack.enter_context(
            subprocess.Popen(words, pass_fds=(far.fileno(), monitor.fileno()))
        )
        stack.callback(process.kill)
        far.close()  # so that QEMU's end is the console's
        wait_for(b"login:", lambda: near.recv(4096), "the lab host")
        return stack.pop_all().close


def command_of(lab: EmulatedLab, given: Path) -> list[str]:
    """The lab's command line, with places for the console's and the monitor's descriptor."""
    for name in ("client", "client.pub", "host", "host.pub"):
        (given / name).write_bytes((lab.key_file.parent / name).read_bytes())
    command: list[str] = lab._plan.command(  # noqa: SLF001 - to run the very same by hand
        "socket,id=console,fd=CONSOLE", "socket,id=monitor,fd=MONITOR", given
    )
    return command


def guest_by_hand(bench: Bench) -> Ending:
    """The same QEMU command line on the host, its serial port on the SSH channel."""
    host = bench.host
    image = host.platform.images["linux"]  # type: ignore[attr-defined]
    spec = GuestSpec(name="by-hand", image="linux")
    machine = QemuMachine(
        "host", host.platform.transport, spec, image, "/run/by-hand", host.platform.journal
    )
    words = [word for word in machine.command() if word != "-S"]
    at = words.index("-chardev")
    del words[at : at + 8]  # console and monitor
    keys = [index for index, word in enumerate(words) if "host_key" in word]
    for index in reversed(keys):
        del words[index - 1 : index + 1]
    stream = host.platform.transport.open_stream([*words, "-serial", "stdio"], deadline=limit())
    with contextlib.ExitStack() as stack:
        stack.callback(stream.close)
        for prompt, answer in ((b"login:", b"root\n"), (b"# ", b"")):
            wait_for(prompt, stream.read, "the guest")
            stream.write(answer)
        return stack.pop_all().close


def guest_by_hil(bench: Bench, *, cold: bool) -> Ending:
    return bench.guests.fresh(host=bench.host, cold=cold).destroy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    lab = EmulatedLab.up(deadline=limit())
    with contextlib.ExitStack() as stack:
        given = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(lab.close)
        command = command_of(lab, given)
        bench = bench_of(live_emulated(load("emulated"), lab, limit()), limit())
        guests = alternate(
            {
                "as suites start it": lambda: guest_by_hil(bench, cold=False),
                "booted by hil": lambda: guest_by_hil(bench, cold=True),
                "booted by hand": lambda: guest_by_hand(bench),
            },
            rounds,
        )
        (given / ROM).write_bytes(rom())
        lab.close()
        hosts = alternate(
            {
                "restored": lambda: up(fresh=False),
                "cold": lambda: up(fresh=True),
                "by hand": lambda: by_hand(command),
            },
            rounds,
        )
    show("a lab host", hosts)
    restored, cold = ratio(hosts, "restored", "cold"), ratio(hosts, "cold", "by hand")
    verdict("restored / cold", restored, "<= 0.12", restored <= 0.12)
    verdict("cold / by hand", cold, "<= 1.15", cold <= 1.15)
    show("a guest, start to shell", guests)
    start = ratio(guests, "as suites start it", "booted by hand")
    verdict("as suites start it / by hand", start, "<= 1.05", start <= 1.05)
    booted = ratio(guests, "booted by hil", "booted by hand")
    verdict("booted by hil / by hand", booted, "<= 1.05", booted <= 1.05)
    print(time.strftime("measured on %Y-%m-%d"))


if __name__ == "__main__":
    main()
