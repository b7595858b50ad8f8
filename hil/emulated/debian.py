"""Packages of a Debian release, unpacked into one archive by mmdebstrap.

Variant *extract*: nothing is configured and no maintainer script runs, so it takes
seconds, needs no chroot, and gives an ordinary user the same files as root.
Source: mmdebstrap(1), apt-get(8) (indextargets), apt.conf(5).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import urllib.parse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hil.deadline import Deadline
from hil.emulated import cache
from hil.errors import LabError

#: The release for machines whose own apt sources are not Debian's.
FALLBACK = "trixie"
_HAS_IGB = {"trixie", "forky", "sid"}
_TARGET = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(SIGNED_BY)"
_PACKAGES = "hil-packages"

# Debian 12's own QEMU has no igb; its backports' has, with the firmware it was built with.
_PREFERENCES = """\
Package: src:qemu src:seabios src:ipxe
Pin: release n=bookworm-backports
Pin-Priority: 600
"""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where packages come from: a release, and apt source lines (``deb URI SUITE main``).

    With no lines mmdebstrap takes the mirrors it knows.
    """

    release: str
    lines: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Lines of apt.conf: how this machine reaches the mirrors."""


def sources() -> Sources:
    """The machine's own Debian mirrors, or none if it is not a Debian machine.

    Asking apt takes half a second, so its answer is kept until apt's files change.
    """
    stamp = hashlib.sha256(repr(_state_of_apt()).encode()).hexdigest()
    place = cache.directory() / "sources.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(place.read_text())
        if kept["stamp"] == stamp:
            return Sources(kept["release"], tuple(kept["lines"]), tuple(kept["options"]))
    found = _ask_apt()
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = place.with_name(f"{place.name}.{os.getpid()}")
        new.write_text(json.dumps({"stamp": stamp, **asdict(found)}))
        new.replace(place)
    return found


def _state_of_apt() -> list[tuple[str, int, int]]:
    files = [Path("/etc/os-release"), *sorted(Path("/etc/apt").rglob("*"))]
    files += sorted(Path("/var/lib/apt/lists").glob("*Release"))
    state = []
    for path in files:
        with contextlib.suppress(OSError):
            status = path.stat()
            state.append((str(path), status.st_mtime_ns, status.st_size))
    return state


def _ask_apt() -> Sources:
    targets = _output(["apt-get", "indextargets", "--format", _TARGET, "Created-By: Packages"])
    release = _codename()
    lines: dict[str, None] = {}
    main = ""
    for target in sorted(set(targets.splitlines())):
        origin, uri, suite, codename, component, signed_by = (*target.split("|"), *[""] * 6)[:6]
        if not origin.startswith("Debian") or component != "main" or not uri:
            continue
        if codename == release:
            main = uri
        if codename.removesuffix("-backports").split("-")[0] != release:
            continue
        option = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
        lines[f"deb {option}{uri} {suite} main"] = None
    if not main:
        return Sources(FALLBACK, (), _options())
    if release == "bookworm" and not any("bookworm-backports" in line for line in lines):
        lines[f"deb {main} bookworm-backports main"] = None
    return Sources(release, tuple(lines), _options())


def _codename() -> str:
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return ""
    found = re.search(r"^VERSION_CODENAME=\"?([a-z]+)", text, re.MULTILINE)
    return found[1] if found else ""


def _options() -> tuple[str, ...]:
    wanted = re.compile(r"Acquire::(https?::Proxy\S*|Check-Valid-Until|Check-Date|Retries) ")
    found = _output(["apt-config", "dump"]).splitlines()
    chosen = (line for line in found if wanted.match(line) and not line.endswith('"";'))
    return ('Acquire::Languages "none";', *chosen)


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def unpack(
    origin: Sources, packages: Sequence[str], archive: Path, deadline: Deadline
) -> dict[str, str]:
    """Write ``archive``, a tar of the files of ``packages`` and all they depend on.

    Returns:
        The version of each package in it, by name.

    Raises:
        LabError: mmdebstrap could not, with the last lines of what it said.
    """
    command = ["mmdebstrap", f"--mode={_mode()}", "--variant=extract", "--format=tar"]
    command += [f"--aptopt={option}" for option in origin.options]
    if origin.release == "bookworm":
        text = base64.b64encode(_PREFERENCES.encode()).decode()
        hook = f'echo {text} | base64 -d > "$1/etc/apt/preferences.d/hil"'
        command.append(f"--setup-hook={hook}")
    command.append(f'--extract-hook=ls "$1/var/cache/apt/archives" > "$1/{_PACKAGES}"')
    command += [f"--include={','.join(packages)}", origin.release, str(archive)]
    if origin.lines:
        command.append("-")
    try:
        done = subprocess.run(
            command,
            input="".join(f"{line}\n" for line in origin.lines).encode(),
            capture_output=True,
            check=False,
            timeout=max(deadline.remaining, 1),
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"").decode("utf-8", "replace")
        raise deadline.exceeded(_last(said), hint="is the package mirror slow?") from None
    except FileNotFoundError:
        raise LabError("mmdebstrap is not installed", hint="apt-get install mmdebstrap") from None
    if done.returncode != 0:
        raise _failure(command, done.stderr.decode("utf-8", "replace"))
    with tarfile.open(archive) as tar:
        listing = tar.extractfile(f"./{_PACKAGES}")
        names = listing.read().decode().split() if listing else []
    versions = {}
    for name in names:
        if name.endswith(".deb"):
            package, version, _ = name.split("_")
            versions[package] = urllib.parse.unquote(version)
    return versions


def _mode() -> str:
    if os.geteuid() == 0:
        return "root"
    clone = Path("/proc/sys/kernel/unprivileged_userns_clone")
    if clone.exists() and clone.read_text().strip() == "0":
        raise LabError(
            "images cannot be made: this kernel lets no ordinary user make namespaces",
            seen=f"{clone} is 0",
            hint="run this once as root, or: sysctl kernel.unprivileged_userns_clone=1",
        )
    if shutil.which("newuidmap") is None:
        raise LabError(
            "images cannot be made by an ordinary user: newuidmap is not installed",
            hint="apt-get install uidmap",
        )
    return "unshare"


def _last(text: str, count: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-count:])


def _failure(command: Sequence[str], said: str) -> LabError:
    hints = {
        r"Could not resolve|Temporary failure resolving|Network is unreachable|"
        r"Could not connect|Connection (refused|timed out)|Cannot initiate the connection": (
            "the package mirror cannot be reached",
            "check the network and the proxy: apt-get update",
        ),
        r"No space left on device": (
            "the disk is full",
            "free space in TMPDIR (or /tmp) and in HIL_CACHE",
        ),
        r"NO_PUBKEY|not signed|invalid signature|EXPKEYSIG": (
            "the package mirror's signature cannot be checked",
            "apt-get install debian-archive-keyring",
        ),
        r"Unable to locate package|have unmet dependencies|held broken packages": (
            "packages are missing on the mirror",
            "apt-get update; are main and, on Debian 12, backports in its sources?",
        ),
        r"subuid|subgid|newuidmap|unshare": (
            "this user cannot make a user namespace",
            'usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "$USER"',
        ),
    }
    why, hint = "mmdebstrap failed", "run the command by hand"
    for pattern, (cause, remedy) in hints.items():
        if re.search(pattern, said):
            why, hint = cause, remedy
            break
    step = "starting"
    for line in said.splitlines():
        if line.startswith("I: "):
            step = line[3:].rstrip(".")
    return LabError(
        f"unpacking Debian packages failed ({step}): {why}",
        seen=_last(said),
        hint=hint,
        command=command,
    )
