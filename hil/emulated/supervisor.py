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
import signal
import sys

_PR_SET_PDEATHSIG = 1
#: Exit status of what cannot be run, as a shell has it.
_NOT_RUN = 127


def main(arguments: list[str]) -> int:
    """See above.  Returns 0, or 1 if there can be no more files or processes."""
    owner, folder, lifeline, descriptors = arguments[:4]
    command = arguments[5:]
    kept = [int(number) for number in descriptors.split(",")]
    # Held for as long as this process lives: the folder is in use.
    # Under its name only when it is held, as hil.transient.hold does it.
    name = os.path.join(folder, "lock")  # noqa: PTH118
    lock = os.open(f"{name}.new", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(f"{name}.new", name)  # noqa: PTH104
    os.set_inheritable(int(lifeline), False)
    for end in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(end, lambda *_: sys.exit(1))
    process = 0
    try:
        process = _run(command, os.path.join(folder, "qemu.log"))  # noqa: PTH118
        for number in kept:
            os.close(number)
        while os.getppid() == int(owner):
            ready, _, _ = select.select([int(lifeline)], [], [], 0.5 if process else 5)
            if ready:
                break
            if process and (ended := os.waitpid(process, os.WNOHANG)) != (0, 0):
                process = 0
                print(f"ended {os.waitstatus_to_exitcode(ended[1])}", flush=True)
    except OSError as error:
        print(f"failed {error.strerror}", flush=True)
        return 1
    else:
        return 0
    finally:
        if process:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        import shutil  # takes as long to import as Python to start

        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], log_file: str) -> int:
    """Start COMMAND in a process that dies with this one; its process id.

    What :mod:`subprocess` does, which takes a third of this program's start to import.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT, 0o600)
    process = os.fork()
    if process:
        os.close(log)
        return process
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(log, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(_NOT_RUN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
