"""Builds modules for the emulated host's kernel, with the headers and compiler of its Debian.

They are unpacked into a folder of the cache and entered by chroot(8), so that nothing depends
on what this machine's system is and has.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from hil.deadline import Deadline
from hil.emulated import cache, debian
from hil.emulated.images import HOST, build
from hil.errors import LabError

#: The headers of a Debian kernel depend on the compiler that it was built with; its makefiles
#: need these besides.
_TOOLS = (
    "base-files", "bash", "coreutils", "dash", "diffutils", "findutils", "grep", "make", "mawk",
    "sed",
)  # fmt: skip
_LEFT_OUT = ("doc", "info", "locale", "man")


def release() -> str:
    """The kernel of the emulated lab's host, as ``uname -r`` says it there."""
    prefix = "linux-image-"
    names = [name.removeprefix(prefix) for name in build(HOST).packages if name.startswith(prefix)]
    (found,) = [name for name in names if name[0].isdigit()]
    return found


def toolchain(kernel: str) -> Path:
    """The folder with the headers of ``kernel`` and what it takes to use them.

    Raises:
        LabError: the mirror cannot be reached, or has no headers of this kernel any more.
    """
    # A slow mirror counts.
    deadline = Deadline(900, f"the headers of {kernel}")

    def make(place: Path) -> None:
        archive = place / "packages.tar"
        packages = (*_TOOLS, f"linux-headers-{kernel}")
        try:
            debian.unpack(debian.sources(), packages, archive, deadline)
        except LabError as error:
            if "Unable to locate package linux-headers" not in error.seen:
                raise
            raise LabError(
                f"the mirror has no linux-headers-{kernel} any more",
                hint=f"remove {cache.directory()}/images: what is made anew has a newer kernel",
            ) from None
        command = ["tar", "-x", "-f", str(archive), "-C", str(place)]
        command += [f"--exclude=./usr/share/{name}" for name in _LEFT_OUT]
        if os.geteuid() != 0:
            command += ["--exclude=./dev/*"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace")
            raise LabError("the headers could not be unpacked", seen=said, command=command)
        archive.unlink()
        # What packages leave to scripts that did not run.
        for link, program in (("usr/bin/awk", "mawk"), ("bin/sh", "dash")):
            if not (place / link).exists():
                (place / link).symlink_to(program)

    return cache.entry(f"headers/{kernel}", make, deadline=deadline, space=1 << 30)


def within(tree: Path) -> list[str]:
    """What to put before a command for it to run with ``tree`` as its root."""
    if os.geteuid() == 0:
        return ["chroot", str(tree)]
    # An ordinary user can make no device nodes, but lend those of this machine.
    script = 'mount --rbind /dev "$0/dev" && PATH=$PATH:/usr/sbin:/sbin exec chroot "$0" "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(tree)]
