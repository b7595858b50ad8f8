"""Commands about disks: mdconfig, mount, newfs, zfs, zpool, swapinfo, camcontrol, gstat."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from hil.simulated.commands.options import flags, getopt, refuse, size_of
from hil.simulated.errno import Errno, SimError
from hil.simulated.files import Regular
from hil.simulated.host_system import Mount, host_storage
from hil.simulated.process import Command, Process

_SECTOR = 512


_MDCONFIG = """\
usage: mdconfig -a -t type [-n] [-o [no]option] ... [-f file]
                [-s size] [-S sectorsize] [-u unit] [-L label]
                [-x sectors/track] [-y heads/cylinder]
       mdconfig -d -u unit [-o [no]force]
       mdconfig -r -u unit -s size [-o [no]force]
       mdconfig -l [-v] [-n] [-f file] [-u unit]
"""


def mdconfig(process: Process) -> int:
    usage = _MDCONFIG
    found, _ = getopt(process, "ab:df:lno:rs:S:t:u:vx:y:L:", usage)
    option = flags(found)
    kernel = process.system.kernel
    try:
        if "l" in option:
            units = sorted(kernel.md_units())
            wanted = option.get("u", "").removeprefix("md")
            if "v" in option:
                for unit, disk in sorted(kernel.md_units().items()):
                    process.out(f"md{unit}\tmalloc\t{disk.size // 1024:8d}K\t-\t\n")
            elif not wanted or int(wanted) in units:
                process.out(" ".join(f"md{unit}" for unit in units) + ("\n" if units else ""))
            return 0
        if "d" in option and "u" in option:
            kernel.md_destroy(_unit(option["u"]))
            return 0
        size = _md_size(option.get("s", "0"))
        wanted_unit = _unit(option["u"]) if "u" in option else None
        unit = kernel.md_create(size, wanted_unit)
    except SimError as error:
        process.complain(f"ioctl(/dev/mdctl): {error.text}")
        return 1
    except ValueError:
        refuse(process, usage)
        return 1
    if "u" not in option:
        process.out(f"{unit}\n" if "n" in option else f"md{unit}\n")
    return 0


def _unit(text: str) -> int:
    return int(text.removeprefix("/dev/").removeprefix("md"))


def _md_size(text: str) -> int:
    """As mdconfig reads it: sectors, unless a letter follows."""
    return int(text) * _SECTOR if text.isdigit() else size_of(text)


# Mounted file systems


def mount(process: Process) -> int:
    found, words = getopt(process, "adeF:fLlno:prt:uvw")
    option = flags(found)
    storage = host_storage(process.system)
    if not words:
        for each in storage.mounts:
            if "p" in option:
                process.out(f"{each.device}\t\t{each.where}\t\t\t{each.kind}\trw\t\t0 0\n")
            else:
                process.out(f"{each.device} on {each.where} ({each.kind}{each.options})\n")
        return 0
    device, where = words[0], words[-1]
    name = device.removeprefix("/dev/")
    disk = process.system.kernel.disks.get(name)
    if disk is None:
        process.complain(f"{device}: {Errno.ENOENT.text}")
        return 1
    if not process.system.files.exists(process.path(where)):
        process.complain(f"{where}: {Errno.ENOENT.text}")
        return 1
    disk.mounted = where
    storage.mounts.append(Mount(device, where, "ufs", ", local"))
    return 0


def umount(process: Process) -> int:
    _, words = getopt(process, "AaF:fh:nNt:v")
    storage = host_storage(process.system)
    status = 0
    for word in words:
        match = [each for each in storage.mounts if word in (each.where, each.device)]
        if not match:
            process.complain(f"{word}: not a file system root directory")
            status = 1
            continue
        storage.mounts.remove(match[-1])
        disk = process.system.kernel.disks.get(match[-1].device.removeprefix("/dev/"))
        if disk is not None:
            disk.mounted = ""
    return status


def newfs(process: Process) -> int:
    """What newfs says of a disk; nothing reads the file system afterwards."""
    _, words = getopt(process, "EJNUjk:lntO:S:T:a:b:c:d:e:f:g:h:i:m:o:p:r:s:L:")
    name = words[0].removeprefix("/dev/")
    disk = process.system.kernel.disks.get(name)
    if disk is None:
        process.complain(f"{words[0]}: could not find special device")
        return 1
    sectors = disk.size // _SECTOR
    if disk.size == 64 << 20:
        layout = "4 cylinder groups of 16.03MB, 513 blks, 2176 inodes"
        backups = [192, 33024, 65856, 98688]
    else:
        groups = max(1, -(-disk.size // (625 << 20)))
        layout = f"{groups} cylinder groups of 625.22MB, 20007 blks, 80128 inodes"
        backups = [192 + 1280448 * group for group in range(groups)]
    disk.write(65536, b"UFS2" + bytes(_SECTOR - 4))
    process.out(
        f"/dev/{name}: {disk.size / (1 << 20):.1f}MB ({sectors} sectors) block size 32768, "
        f"fragment size 4096\n\tusing {layout}.\n"
        f"super-block backups (for fsck_ffs -b #) at:\n {', '.join(map(str, backups))}\n"
    )
    return 0


def swapinfo(process: Process) -> int:
    getopt(process, "ghkm")
    process.out("Device          1K-blocks     Used    Avail Capacity\n")
    return 0


def camcontrol(process: Process) -> int:
    words = process.arguments[1:]
    if words[:1] == ["devlist"]:
        if "-v" in words:
            for index in range(6):
                process.out(f"scbus{index} on ahcich{index} bus 0:\n")
                process.out(f"<>{'':33}at scbus{index} target -1 lun ffffffff ()\n")
            _nvme_buses(process, 6)
            process.out("scbus-1 on xpt0 bus 0:\n")
            process.out(f"<>{'':33}at scbus-1 target -1 lun ffffffff (xpt0)\n")
        return 0
    return 1


def _nvme_buses(process: Process, first: int) -> None:
    """The disks of nda(4), each on its controller's bus."""
    number = first
    for device in process.system.kernel.devices():
        disk = getattr(device.state, "disk", "")
        if disk.startswith("nda"):
            model = process.system.kernel.disks[disk].description
            process.out(f"scbus{number} on {device.name} bus 0:\n")
            place = f"at scbus{number} target 0 lun 1"
            process.out(f"{f'<{model} 10.0.2>':<34} {place} (pass{number},{disk})\n")
            number += 1


def gstat(process: Process) -> int:
    getopt(process, "abBcCdf:I:ops")
    process.out("dT: 1.001s  w: 1.000s\n")
    process.out(" L(q)  ops/s    r/s   kBps   ms/r    w/s   kBps   ms/w   %busy Name\n")
    for name in process.system.kernel.disks:
        process.out(
            f"{0:5d} {0:6d} {0:6d} {0:6d} {0:6.1f} {0:6d} {0:6d} {0:6.1f} {0:7.1f} {name}\n"
        )
    return 0


# ZFS


def zpool(process: Process) -> int:
    words = process.arguments[1:]
    if words[:1] == ["status"]:
        process.err("no pools available\n") if not host_storage(
            process.system
        ).datasets else process.out(_POOL)
        return 0
    if words[:1] == ["list"]:
        pools = sorted({name.partition("/")[0] for name in host_storage(process.system).datasets})
        process.out("".join(f"{pool}\n" for pool in pools) or "no pools available\n")
        return 0
    return 2


_POOL = """\
  pool: tank
 state: ONLINE
config:

\tNAME              STATE     READ WRITE CKSUM
\ttank              ONLINE       0     0     0
\t  /dev/gpt/tank   ONLINE       0     0     0

errors: No known data errors
"""


def zfs(process: Process) -> int:
    words = process.arguments[1:]
    actions = {
        "list": _zfs_list, "clone": _zfs_clone, "destroy": _zfs_destroy, "snapshot": _zfs_snapshot,
        "get": _zfs_get, "create": _zfs_create,
    }  # fmt: skip
    action = actions.get(words[0] if words else "")
    if action is None:
        process.err("usage: zfs command args ...\n")
        return 2
    try:
        return action(process, words[1:])
    except _ZfsError as error:
        process.err(f"{error}\n")
        return 1


class _ZfsError(Exception):
    pass


def _operands(words: list[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        if word in ("-o", "-V", "-t", "-d", "-s", "-S"):
            next(rest, None)
        elif not word.startswith("-"):
            yield word


def _zfs_list(process: Process, words: list[str]) -> int:
    datasets = host_storage(process.system).datasets
    wanted = list(_operands(words))
    snapshots = "snapshot" in words or "all" in words
    for name in wanted:
        if name not in datasets:
            process.err(f"cannot open '{name}': dataset does not exist\n")
            return 1
    for name in sorted(datasets):
        if wanted and not any(name == each or name.startswith(f"{each}/") for each in wanted):
            continue
        if "@" in name and not snapshots and name not in wanted:
            continue
        process.out(f"{name}\n")
    return 0


def _zfs_get(process: Process, words: list[str]) -> int:
    datasets = host_storage(process.system).datasets
    name = list(_operands(words))[-1]
    if name not in datasets:
        raise _ZfsError(f"cannot open '{name}': dataset does not exist")
    process.out(f"{datasets[name].size}\n")
    return 0


def _zfs_clone(process: Process, words: list[str]) -> int:
    datasets = host_storage(process.system).datasets
    source, target = list(_operands(words))[:2]
    if source not in datasets:
        raise _ZfsError(f"cannot open '{source}': dataset does not exist")
    if target in datasets:
        raise _ZfsError(f"cannot create '{target}': dataset already exists")
    if target.rpartition("/")[0] not in datasets:
        raise _ZfsError(f"cannot create '{target}': parent does not exist")
    datasets[target] = datasets[source].copy()
    return 0


def _zfs_snapshot(process: Process, words: list[str]) -> int:
    datasets = host_storage(process.system).datasets
    for name in _operands(words):
        source = name.partition("@")[0]
        if source not in datasets:
            raise _ZfsError(f"cannot open '{source}': dataset does not exist")
        datasets[name] = datasets[source].copy()
    return 0


def _zfs_create(process: Process, words: list[str]) -> int:
    datasets = host_storage(process.system).datasets
    size = size_of(words[words.index("-V") + 1]) if "-V" in words else 0
    for name in _operands(words):
        datasets[name] = Regular(size=size)
    return 0


def _zfs_destroy(process: Process, words: list[str]) -> int:
    datasets = host_storage(process.system).datasets
    for name in _operands(words):
        if name not in datasets:
            raise _ZfsError(f"cannot open '{name}': dataset does not exist")
        below = [each for each in datasets if re.match(re.escape(name) + r"[/@]", each)]
        if below and "-r" not in words and "-R" not in words:
            raise _ZfsError(
                f"cannot destroy '{name}': filesystem has children\n"
                f"use '-r' to destroy the following datasets:\n" + "\n".join(below)
            )
        for each in [*below, name]:
            del datasets[each]
    return 0


COMMANDS: Mapping[str, Command] = {
    "mdconfig": mdconfig, "mount": mount, "umount": umount, "newfs": newfs, "swapinfo": swapinfo,
    "camcontrol": camcontrol, "gstat": gstat, "zpool": zpool, "zfs": zfs,
}  # fmt: skip
