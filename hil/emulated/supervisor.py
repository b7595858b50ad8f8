"""Keeps one QEMU no longer than its owner lives.

``python supervisor.py OWNER FOLDER LIFELINE FD[,FD…] -- COMMAND…``: runs COMMAND, whose
standard output and error go to FOLDER/qemu.log, with the descriptors FD open.  When the
owner's end of the pipe LIFELINE closes (however the owner ends, SIGKILL included), or the
process OWNER is no longer the parent, it kills COMMAND and removes FOLDER.  If this
program itself is killed, the kernel kills COMMAND (PR_SET_PDEATHSIG, prctl(2)), and the
next lab removes the folder, whose lock is then free.

A program of its own, because PR_SET_PDEATHSIG tells of the death of the *thread* that
forked: here there is one.  Imports little: it starts in a few milliseconds.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """See above.  Returns 0, or 1 if COMMAND cannot be run."""
    owner, folder, lifeline, descriptors = arguments[:4]
    command = arguments[5:]
    kept = [int(number) for number in descriptors.split(",")]
    # Held for as long as this process lives: the folder is in use.
    # Under its name only when it is held, as hil.transient.hold does it.
    name = os.path.join(folder, "lock")  # noqa: PTH118
    lock = os.open(f"{name}.new", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(f"{name}.new", name)  # noqa: PTH104
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def follow_into_death() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    for end in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(end, lambda *_: sys.exit(1))
    log = os.open(os.path.join(folder, "qemu.log"), os.O_WRONLY | os.O_CREAT, 0o600)  # noqa: PTH118
    process = None
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=kept,
            preexec_fn=follow_into_death,  # noqa: PLW1509 - one thread only
        )
        for number in kept:
            os.close(number)
        print("started", flush=True)
        status: int | None = None
        while os.getppid() == int(owner):
            ready, _, _ = select.select([int(lifeline)], [], [], 0.5 if status is None else 5)
            if ready:
                break
            if status is None and (status := process.poll()) is not None:
                print(f"ended {status}", flush=True)
    except OSError as error:
        print(f"failed {error.strerror}", flush=True)
        return 1
    else:
        return 0
    finally:
        if process is not None:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
