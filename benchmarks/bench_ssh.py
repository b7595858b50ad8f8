"""A command over an open SSH connection: hil, plain paramiko, and labgrid's SSHDriver.

    python benchmarks/bench_ssh.py [PORT USER KEYFILE]

Without arguments a server is started on loopback, asyncssh in a process of its own, which
answers each command at once.  labgrid is measured if it is installed (pip install labgrid)
and OpenSSH's client is there.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
from _report import alternate, ratio, show, verdict

from hil.deadline import Deadline
from hil.transport.ssh import SshTransport

COMMANDS = 20
ROUNDS = 15

# Answers without starting a process: starting one takes longer than all the rest, and
# equally long for all.
_SERVER = """
import asyncio, asyncssh, sys
async def serve(process):
    if process.command == "cat":  # labgrid keeps one open
        await process.stdin.read()
    process.exit(0)
async def main(port, key):
    await asyncssh.listen('127.0.0.1', port, server_host_keys=[key], encoding=None,
        authorized_client_keys=key + '.pub', process_factory=serve)
    await asyncio.get_running_loop().create_future()
asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


@contextlib.contextmanager
def server() -> Iterator[tuple[int, str, Path]]:
    """Its port, the user and the key to come with."""
    with tempfile.TemporaryDirectory() as name:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        key = Path(name) / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        with subprocess.Popen([sys.executable, "-c", _SERVER, str(port), str(key)]) as process:
            try:
                yield port, getpass.getuser(), key
            finally:
                process.terminate()


def plain(port: int, user: str, key: Path) -> Callable[[], None]:
    """paramiko as its documentation shows it."""
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect("127.0.0.1", port, user, key_filename=str(key), look_for_keys=False)

    def run() -> None:
        for _ in range(COMMANDS):
            _, out, _ = client.exec_command("true")
            out.read()
            assert out.channel.recv_exit_status() == 0

    return run


def labgrid(port: int, user: str, key: Path) -> Callable[[], None]:
    target: Any = importlib.import_module("labgrid").Target("bench")
    service = importlib.import_module("labgrid.resource").NetworkService
    service(target, None, address="127.0.0.1", username=user, port=port)
    driver = importlib.import_module("labgrid.driver").SSHDriver(target, None, keyfile=str(key))
    target.activate(driver)

    def run() -> None:
        for _ in range(COMMANDS):
            assert driver.run("true")[2] == 0

    return run


def measure(port: int, user: str, key: Path) -> None:
    deadline = Deadline(600, "the benchmark")
    ours = SshTransport.connect(
        "bench", "127.0.0.1", port=port, user=user, key_file=key, host_key="any", deadline=deadline
    )

    def hil() -> None:
        for _ in range(COMMANDS):
            assert ours.run(["true"], deadline=deadline).status == 0

    contenders: dict[str, Callable[[], object]] = {
        "hil": hil,
        "paramiko as it comes": plain(port, user, key),
    }
    if importlib.util.find_spec("labgrid") and shutil.which("ssh"):
        contenders["labgrid SSHDriver"] = labgrid(port, user, key)
    else:
        print("labgrid's SSHDriver is left out: labgrid or ssh(1) is not installed")
    seconds = alternate(contenders, ROUNDS)
    show("One command over an open connection", seconds, COMMANDS)
    mine = statistics.median(seconds["hil"]) / COMMANDS * 1000
    verdict("hil, milliseconds", mine, "< 2", mine < 2)
    for name in list(seconds)[1:]:
        factor = ratio(seconds, name, "hil")
        wanted = 3.0 if name.startswith("labgrid") else 1.0
        verdict(f"times as long: {name}", factor, f">= {wanted}", factor >= wanted)
    ours.close()


def main() -> None:
    # ssh and sshd close every descriptor there may be; with a limit of a million, as in some
    # containers, that alone takes longer than a command.  In favour of the others.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    if len(sys.argv) == 4:
        measure(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
        return
    with server() as (port, user, key):
        # paramiko's own client does not wait for a server that starts.
        SshTransport.connect(
            "bench",
            "127.0.0.1",
            port=port,
            user=user,
            key_file=key,
            host_key="any",
            deadline=Deadline(60, "the server"),
        ).close()
        measure(port, user, key)


if __name__ == "__main__":
    main()
