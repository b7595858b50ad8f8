"""The cache: things that cost minutes to make and are made once.

``$HIL_CACHE``, else ``$XDG_CACHE_HOME/hil``, else ``~/.cache/hil``.  An entry is a
folder.  It is built below a name that nobody looks for and renamed when it is whole, so
what can be found is complete; a lock, which the kernel frees when its holder dies, lets
one of several processes build it while the others wait.  Entries that nobody used for
two weeks go when a new one of their kind is made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hil.deadline import Deadline
from hil.errors import LabError

Progress = Callable[[str], None]

#: Seconds that an entry is kept after its last use.
KEEP = 14 * 86400.0
_BUILDING = ".build-"


def directory() -> Path:
    """The cache's folder; it need not exist."""
    if own := os.environ.get("HIL_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hil"


def entry(
    name: str,
    build: Callable[[Path], None],
    *,
    deadline: Deadline,
    progress: Progress = lambda _: None,
    space: int = 0,
) -> Path:
    """The folder ``name`` of the cache, made by ``build`` if it is not there.

    Args:
        name: path below the cache, such as ``images/host-12ab``.
        build: fills the empty folder that it is given, and raises if it cannot.
        deadline: for waiting while another process builds the same.
        progress: told why this takes time.
        space: bytes of disk that must be free before ``build`` is tried.

    Raises:
        LabError: the cache cannot be written, or the disk has too little space.
    """
    path = directory() / name
    if _use(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LabError(
            f"the cache {path.parent} cannot be made: {error.strerror}",
            hint="name another folder in HIL_CACHE",
        ) from None
    with _lock(path.with_name(f".{path.name}.lock"), deadline, progress):
        if _use(path):
            return path
        _sweep(path.parent, path.name)
        _require(path.parent, space)
        place = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{path.name}-", dir=path.parent))
        try:
            build(place)
            place.rename(path)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    return path


@contextlib.contextmanager
def _lock(path: Path, deadline: Deadline, progress: Progress) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress(f"waiting for another process, which is making {path.name[1:-5]}")
            lock.acquire(timeout=max(deadline.remaining, 0.01))
    except filelock.Timeout:
        raise deadline.exceeded(f"another process still holds {path}") from None
    except OSError as error:
        raise LabError(f"{path} cannot be locked: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _use(path: Path) -> bool:
    """Whether ``path`` is there; notes that it is of use."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        return path.is_dir()  # a cache that is only read is a good cache
    return True


def _sweep(parent: Path, name: str) -> None:
    """Remove what a dead builder of ``name`` left, whose lock we hold, and old entries."""
    for left in parent.glob(f"{_BUILDING}{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    for old in parent.iterdir():
        with contextlib.suppress(OSError):
            if not old.name.startswith(".") and old.stat().st_mtime < time.time() - KEEP:
                # Not to be found half removed.
                doomed = parent / f"{_BUILDING}{old.name}-old"
                old.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def _require(place: Path, space: int) -> None:
    free = shutil.disk_usage(place).free
    if free < space:
        raise LabError(
            f"{place} has {free / 2**30:.1f} GiB of free disk, {space / 2**30:.1f} GiB are needed",
            hint="free space there, or name a folder on another disk in HIL_CACHE",
        )
