"""Commands that a FreeBSD guest has and its host has not, or has otherwise; SSH's of any guest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from hil.simulated import commands
from hil.simulated.commands.options import flags, getopt
from hil.simulated.errno import SimError
from hil.simulated.guest_python import python3
from hil.simulated.process import Command, Process

if TYPE_CHECKING:
    from hil.simulated.guest import FreebsdGuest, Guest

#: Functions of the backtrace of a panic by sysctl, inmost first.
_PANIC_BY_SYSCTL = (
    "kdb_sysctl_panic",
    "sysctl_root_handler_locked",
    "sysctl_root",
    "userland_sysctl",
    "sys___sysctl",
    "amd64_syscall",
    "fast_syscall_common",
)


def guest_commands(guest: FreebsdGuest) -> dict[str, Command]:
    """Everything that can be run in a FreeBSD guest."""
    found = {**commands.standard_commands(), **commands.freebsd_commands()}
    usual_sysctl = found["sysctl"]
    own: dict[str, Callable[[FreebsdGuest, Process], int]] = {
        "shutdown": _shutdown,
        "reboot": functools.partial(_at_once, how="reboot"),
        "poweroff": functools.partial(_at_once, how="poweroff"),
        "halt": functools.partial(_at_once, how="halt"),
    }
    if guest.image.python:
        own["python3"] = _python3
    found |= {name: functools.partial(body, guest) for name, body in own.items()}
    found |= ssh_commands(guest)
    found["sysctl"] = functools.partial(_sysctl, guest, usual_sysctl)
    return found


# ---- the end -----------------------------------------------------------------------


def _shutdown(guest: FreebsdGuest, process: Process) -> int:
    usage = (
        "usage: shutdown [-] [-c | -f | -h | -p | -r | -k] [-o [-n]] [-q] time "
        "[warning-message ...]\n"
    )
    found, words = getopt(process, "cfhknopqr", usage)
    option = flags(found)
    how = next((name for letter, name in _HOW.items() if letter in option), "")
    if not how or words[:1] not in (["now"], ["+0"]):
        process.err(usage)
        return 1
    process.out(f"Shutdown NOW!\nshutdown: [pid {process.pid}]\n")
    guest.go_down(how, pid=process.pid)
    return 0


_HOW = {"p": "poweroff", "r": "reboot", "h": "halt"}


def _at_once(guest: FreebsdGuest, process: Process, *, how: str) -> int:
    del process
    guest.go_down(how, by_shutdown=False)
    return 0


def _sysctl(guest: FreebsdGuest, usual: Command, process: Process) -> int:
    """sysctl(8), with the settings that end a kernel."""
    for word in process.arguments[1:]:
        name, equals, value = word.partition("=")
        if name == "debug.kdb.panic" and equals and value not in ("", "0"):
            process.out("debug.kdb.panic: 0")
            guest.panic("kdb_sysctl_panic", process.pid, _PANIC_BY_SYSCTL)
            process.check()
            return 0
    return usual(process)


# ---- SSH ---------------------------------------------------------------------------


def ssh_commands(guest: Guest) -> dict[str, Command]:
    """ssh-keygen(1) and sshd(8), which are the same everywhere."""
    return {"ssh-keygen": _ssh_keygen, "sshd": functools.partial(_sshd, guest)}


def _ssh_keygen(process: Process) -> int:
    import asyncssh

    found, _ = getopt(process, "qt:N:f:C:b:")
    option = flags(found)
    path = process.path(option.get("f", "/root/.ssh/id_ed25519"))
    key = asyncssh.generate_private_key("ssh-ed25519", comment=f"root@{process.system.name}")
    files = process.system.files
    files.write(path, key.export_private_key(), 0o600)
    files.write(f"{path}.pub", key.export_public_key(), 0o644)
    return 0


def _sshd(guest: Guest, process: Process) -> int:
    """sshd(8) with a host key and authorized keys of its own; goes on in the background."""
    import asyncssh

    from hil.simulated.server import SshServer

    found, _ = getopt(process, "46DdeGiqTtV?E:f:g:h:k:o:p:u:")
    option = flags(found)
    options = dict(word.split("=", 1) for letter, word in found if letter == "o")
    files = process.system.files
    port = int(option.get("p", "22"))
    try:
        key = files.read(process.path(option.get("h", "/etc/ssh/ssh_host_ed25519_key")))
        authorized = files.read(
            process.path(options.get("AuthorizedKeysFile", "/root/.ssh/authorized_keys"))
        )
    except SimError as error:
        process.err(
            f"Unable to load host key: {error.text}\nsshd: no hostkeys available -- exiting.\n"
        )
        return 1
    server = SshServer(
        guest.system,
        authorized=[line for line in authorized.decode().splitlines() if line.strip()],
        host_key=asyncssh.import_private_key(key.decode()),
    ).start()
    daemon = guest.listen(port, server)
    if "PidFile" in options:
        files.write(process.path(options["PidFile"]), f"{daemon.pid}\n".encode())
    return 0


# ---- Python ------------------------------------------------------------------------


def _python3(guest: FreebsdGuest, process: Process) -> int:
    version = guest.image.release.partition(".")[0]
    return python3(process, guest.kernel.ram, f"freebsd{version}")
