"""FreeBSD's error numbers and their texts (sys/sys/errno.h, lib/libc/gen/errlst.c)."""

from __future__ import annotations

import enum


class Errno(enum.IntEnum):
    """What system calls of the simulated hosts fail with."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    ENXIO = 6
    E2BIG = 7
    ENOEXEC = 8
    EBADF = 9
    ECHILD = 10
    EDEADLK = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EXDEV = 18
    ENODEV = 19
    ENOTDIR = 20
    EISDIR = 21
    EINVAL = 22
    ENFILE = 23
    EMFILE = 24
    ENOTTY = 25
    EFBIG = 27
    ENOSPC = 28
    ESPIPE = 29
    EROFS = 30
    EPIPE = 32
    EDOM = 33
    ERANGE = 34
    EAGAIN = 35
    EOPNOTSUPP = 45
    EADDRINUSE = 48
    ECONNREFUSED = 61
    ENOTEMPTY = 66

    @property
    def text(self) -> str:
        """As strerror(3) says it."""
        return _TEXTS[self]


_TEXTS = {
    Errno.EPERM: "Operation not permitted",
    Errno.ENOENT: "No such file or directory",
    Errno.ESRCH: "No such process",
    Errno.EINTR: "Interrupted system call",
    Errno.EIO: "Input/output error",
    Errno.ENXIO: "Device not configured",
    Errno.E2BIG: "Argument list too long",
    Errno.ENOEXEC: "Exec format error",
    Errno.EBADF: "Bad file descriptor",
    Errno.ECHILD: "No child processes",
    Errno.EDEADLK: "Resource deadlock avoided",
    Errno.ENOMEM: "Cannot allocate memory",
    Errno.EACCES: "Permission denied",
    Errno.EFAULT: "Bad address",
    Errno.EBUSY: "Device busy",
    Errno.EEXIST: "File exists",
    Errno.EXDEV: "Cross-device link",
    Errno.ENODEV: "Operation not supported by device",
    Errno.ENOTDIR: "Not a directory",
    Errno.EISDIR: "Is a directory",
    Errno.EINVAL: "Invalid argument",
    Errno.ENFILE: "Too many open files in system",
    Errno.EMFILE: "Too many open files",
    Errno.ENOTTY: "Inappropriate ioctl for device",
    Errno.EFBIG: "File too large",
    Errno.ENOSPC: "No space left on device",
    Errno.ESPIPE: "Illegal seek",
    Errno.EROFS: "Read-only file system",
    Errno.EPIPE: "Broken pipe",
    Errno.EDOM: "Numerical argument out of domain",
    Errno.ERANGE: "Result too large",
    Errno.EAGAIN: "Resource temporarily unavailable",
    Errno.EOPNOTSUPP: "Operation not supported",
    Errno.EADDRINUSE: "Address already in use",
    Errno.ECONNREFUSED: "Connection refused",
    Errno.ENOTEMPTY: "Directory not empty",
}


class SimError(Exception):
    """A call that failed, with its number; ``path`` names what it was about."""

    def __init__(self, number: int, path: str = "") -> None:
        super().__init__(f"{path}: {Errno(number).text}" if path else Errno(number).text)
        self.number = Errno(number)
        self.path = path

    @property
    def text(self) -> str:
        """What strerror(3) says of it."""
        return self.number.text
