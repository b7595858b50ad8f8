"""What may not outlive a process of hil, however that ends: its folders, and programs it started.

A folder has a lock that the kernel lets go of when its holder dies, so whoever makes the next one
can tell which folders are of the dead, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hil.errors import LabError

#: The file in a folder of :func:`make` that is locked for as long as somebody needs the folder.
LOCK = "lock"
#: Seconds after which a folder without a lock belongs to nobody.
_STARTING = 3600.0


def runtime() -> Path:
    """The user's folder for what runs: ``$XDG_RUNTIME_DIR/hil``, which may be memory.

    Without that variable it is :func:`temporary`'s.

    Raises:
        LabError: it cannot be made, or others can write there.
    """
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return private(Path(base) / "hil")
    return temporary()


def temporary() -> Path:
    """The user's folder for what may be large: ``hil-UID`` in ``$TMPDIR`` or ``/tmp``.

    Raises:
        LabError: it cannot be made, or others can write there.
    """
    return private(Path(tempfile.gettempdir()) / f"hil-{os.getuid()}")


def private(base: Path) -> Path:
    """``base``, made in its parent if it is not there, and seen to be this user's alone.

    Raises:
        LabError: it cannot be made, or others can write there.
    """
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        status = base.lstat()
    except OSError as error:
        raise LabError(
            f"{base} cannot be made: {error.strerror}",
            hint="name other folders in XDG_RUNTIME_DIR, which need not be set, and TMPDIR",
        ) from None
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        # In /tmp anybody could have made it first.
        raise LabError(
            f"{base} is open to other users",
            hint=f"chmod 700 {base}, or remove it if it is not yours",
        )
    return base


def make(base: Path, prefix: str) -> Path:
    """A new folder in ``base``; removes those there of this prefix whose owners are dead.

    The caller, or a process that it starts, shall soon hold a lock on :data:`LOCK` in it
    (:func:`hold`), and remove the folder in the end.

    Raises:
        OSError: it cannot be made.
    """
    for left in base.glob(f"{prefix}*"):
        _remove_if_dead(left)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=base))


def hold(folder: Path) -> int:
    """Lock a folder of :func:`make`; returns the descriptor, which ends the lock when closed.

    The lock is there under its name only when it is held: nobody can come in between.
    """
    new = folder / f"{LOCK}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / LOCK)
    return lock


@contextlib.contextmanager
def folder(base: Path | None = None, prefix: str = "tmp-") -> Iterator[Path]:
    """A folder for the length of a block.

    Where the process is killed within it, the next call removes the folder.

    Args:
        base: where to make it, if not in :func:`temporary`.
        prefix: begins its name, and those of the dead folders that are removed: not a name that
            anybody else could choose.

    Raises:
        LabError: there is no place for it.
        OSError: it cannot be made there.
    """
    made = make(temporary() if base is None else base, prefix)
    lock = -1
    try:
        lock = hold(made)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def tied(command: Sequence[str], signal: str = "KILL") -> list[str]:
    """``command``, which gets a signal when the thread that starts it ends, or its process.

    That takes setpriv(1) of util-linux, and so Linux; elsewhere ``command`` is as it was.
    """
    setpriv = shutil.which("setpriv")
    return [*([setpriv, "--pdeathsig", signal] if setpriv else []), *command]


def _remove_if_dead(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if not (folder / LOCK).exists():
            # Who is just starting has no lock yet.
            if folder.stat().st_mtime < time.time() - _STARTING:
                shutil.rmtree(folder, ignore_errors=True)
            return
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
