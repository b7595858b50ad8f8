"""Commands that handle files: ls, mkdir, rm, cp, mv, ln, stat, mktemp, dd and their like."""

from __future__ import annotations

import secrets
import stat as mode_bits
import time
from collections.abc import Mapping

from hil.simulated.commands.options import getopt, size_of
from hil.simulated.errno import Errno, SimError
from hil.simulated.files import Device, Directory, Link, Node, Regular
from hil.simulated.process import Command, OpenFile, Process, Stream


def _names(process: Process, path: str) -> dict[str, Node]:
    return process.system.files.directory(path).entries()


def _each(process: Process, names: list[str]) -> tuple[dict[str, Node], int]:
    """The nodes of ``names``; what is missing is complained about."""
    found: dict[str, Node] = {}
    status = 0
    for name in names:
        try:
            found[name] = process.system.files.find(process.path(name), follow=False)
        except SimError as error:
            process.complain(f"{name}: {error.text}")
            status = 1
    return found, status


# ls

_KINDS = {Directory: mode_bits.S_IFDIR, Device: mode_bits.S_IFCHR, Link: mode_bits.S_IFLNK}


def _permissions(node: Node) -> str:
    return mode_bits.filemode(_KINDS.get(type(node), mode_bits.S_IFREG) | node.mode)


def _size(node: Node) -> str:
    if isinstance(node, Regular):
        return str(node.size)
    if isinstance(node, Device):
        return node.size
    return str(len(node.target)) if isinstance(node, Link) else "512"


def _row(node: Node, name: str) -> tuple[str, str, str, str, str, str, str]:
    below = node.entries().values() if isinstance(node, Directory) else ()
    links = (
        2 + sum(isinstance(each, Directory) for each in below)
        if below or isinstance(node, Directory)
        else 1
    )
    group = "tty" if isinstance(node, Device) and node.mode == 0o620 else "wheel"
    when = time.strftime("%b %e %H:%M", time.gmtime(node.changed))
    arrow = f" -> {node.target}" if isinstance(node, Link) else ""
    return _permissions(node), str(links), "root", group, _size(node), when, name + arrow


def _long(process: Process, rows: list[tuple[str, str, str, str, str, str, str]]) -> None:
    width = [max(len(row[i]) for row in rows) for i in range(6)]
    for permissions, links, owner, group, size, when, name in rows:
        process.out(
            f"{permissions}  {links:>{width[1]}} {owner:<{width[2]}}  {group:<{width[3]}}  "
            f"{size:>{width[4]}} {when} {name}\n"
        )


def ls(process: Process) -> int:
    found, names = getopt(process, "ABCFGHILPRSTUWZabcdfghiklmnopqrstuwxy1,")
    option = {letter for letter, _ in found}
    nodes, status = _each(process, sorted(names) or ["."])
    folders = (
        {name: node for name, node in nodes.items() if isinstance(node, Directory)}
        if "d" not in option
        else {}
    )
    single = {name: node for name, node in nodes.items() if name not in folders}
    if single:
        _listing(process, single, option)
    for index, (name, folder) in enumerate(folders.items()):
        if len(nodes) > 1 or status:
            process.out(f"{chr(10) if index or single else ''}{name}:\n")
        entries = dict(sorted(folder.entries().items()))
        if "a" in option:
            above = process.system.files.find(process.path(f"{name}/.."))
            entries = {".": folder, "..": above, **entries}
        elif "A" not in option:
            entries = {n: node for n, node in entries.items() if not n.startswith(".")}
        if "l" in option and entries:
            blocks = sum(
                (node.size + 511) // 512 for node in entries.values() if isinstance(node, Regular)
            )
            process.out(f"total {max(1, blocks)}\n")
        _listing(process, entries, option)
    return status


def _listing(process: Process, nodes: Mapping[str, Node], option: set[str]) -> None:
    if not nodes:
        return
    if "l" in option:
        _long(process, [_row(node, name) for name, node in nodes.items()])
    else:
        process.out("".join(f"{name}\n" for name in nodes))


# Making and removing


def mkdir(process: Process) -> int:
    usage = "usage: mkdir [-pv] [-m mode] directory_name ...\n"
    found, names = getopt(process, "m:pv", usage, 64)
    option = dict(found)
    if not names:
        process.err(usage)
        return 64
    files = process.system.files
    status = 0
    for name in names:
        path = process.path(name)
        try:
            if "p" in option:
                at = ""
                for word in [word for word in path.split("/") if word]:
                    at += f"/{word}"
                    if not files.exists(at):
                        files.make_directory(at)
                    elif not isinstance(files.find(at), Directory):
                        raise SimError(Errno.ENOTDIR, at)
            else:
                files.make_directory(path)
            if "m" in option:
                files.find(path).mode = int(option["m"], 8)
        except SimError as error:
            process.complain(f"{name}: {error.text}")
            status = 1
    return status


def rmdir(process: Process) -> int:
    _, names = getopt(process, "pv")
    status = 0
    for name in names:
        try:
            path = process.path(name)
            process.system.files.directory(path)
            process.system.files.remove(path)
        except SimError as error:
            process.complain(f"{name}: {error.text}")
            status = 1
    return status


def rm(process: Process) -> int:
    usage = "usage: rm [-f | -i] [-dIPRrvWx] file ...\n       unlink [--] file\n"
    found, names = getopt(process, "dfiIPRrvWx", usage, 64)
    option = {letter for letter, _ in found}
    if not names and "f" not in option:
        process.err(usage)
        return 64
    status = 0
    for name in names:
        try:
            _remove(process, process.path(name), recursive=bool(option & {"r", "R"}))
        except SimError as error:
            if error.number is Errno.ENOENT and "f" in option:
                continue
            text = "is a directory" if error.number is Errno.EISDIR else error.text
            process.complain(f"{name}: {text}")
            status = 1
    return status


def _remove(process: Process, path: str, *, recursive: bool) -> None:
    files = process.system.files
    node = files.find(path, follow=False)
    if isinstance(node, Directory):
        if not recursive:
            raise SimError(Errno.EISDIR, path)
        for name in list(node.entries()):
            _remove(process, f"{path.rstrip('/')}/{name}", recursive=True)
    files.remove(path)


def cp(process: Process) -> int:
    usage = "usage: cp [-R [-H | -L | -P]] [-f | -i | -n] [-alpsvx] source_file target_file\n"
    found, names = getopt(process, "aHLPRfinlprsvx", usage, 64)
    recursive = bool({letter for letter, _ in found} & {"R", "r", "a"})
    if len(names) < 2:
        process.err(usage)
        return 64
    *sources, target = names
    files = process.system.files
    into = process.path(target)
    is_folder = files.exists(into) and isinstance(files.find(into), Directory)
    status = 0
    for source in sources:
        try:
            path = process.path(source)
            node = files.find(path)
            if isinstance(node, Directory) and not recursive:
                process.complain(f"{source} is a directory (not copied).")
                status = 1
                continue
            place = f"{into}/{source.rstrip('/').rpartition('/')[2]}" if is_folder else into
            _copy(process, node, place)
        except SimError as error:
            process.complain(f"{source if error.path == path else target}: {error.text}")
            status = 1
    return status


def _copy(process: Process, node: Node, place: str) -> None:
    files = process.system.files
    if isinstance(node, Directory):
        if not files.exists(place):
            files.make_directory(place, node.mode)
        for name, each in node.entries().items():
            _copy(process, each, f"{place}/{name}")
    elif isinstance(node, Regular) and not (
        files.exists(place) and isinstance(files.find(place), Device)
    ):
        files.parent(place)
        files.add(place, node.copy())
    elif isinstance(node, Regular):
        target = files.open(process, place, "w").reference()
        target.stream.write(process, node.data)
        target.release()


def mv(process: Process) -> int:
    _, names = getopt(process, "finv")
    if len(names) < 2:
        process.err("usage: mv [-f | -i | -n] [-hv] source target\n")
        return 64
    *sources, target = names
    status = 0
    for source in sources:
        try:
            process.system.files.rename(process.path(source), process.path(target))
        except SimError as error:
            process.complain(f"rename {source} to {target}: {error.text}")
            status = 1
    return status


def ln(process: Process) -> int:
    found, names = getopt(process, "FLPfhinsvw")
    option = {letter for letter, _ in found}
    source, target = [*names, names[0].rpartition("/")[2]][:2]
    files = process.system.files
    path = process.path(target)
    if files.exists(path) and "f" not in option:
        process.complain(f"{target}: File exists")
        return 1
    files.add(path, Link(source) if "s" in option else files.find(process.path(source)))
    return 0


def touch(process: Process) -> int:
    _, names = getopt(process, "acd:fhmr:t:A:")
    for name in names:
        path = process.path(name)
        if process.system.files.exists(path):
            process.system.files.find(path).changed = time.time()
        else:
            process.system.files.write(path, b"")
    return 0


def chmod(process: Process) -> int:
    _, words = getopt(process, "fhvRHLP")
    nodes, status = _each(process, words[1:])
    for node in nodes.values():
        if words[0].isdigit():
            node.mode = int(words[0], 8)
        elif "+x" in words[0]:
            node.mode |= 0o111
    return status


def chown(process: Process) -> int:
    _, words = getopt(process, "fhvRxHLP")
    return _each(process, words[1:])[1]


def truncate(process: Process) -> int:
    found, names = getopt(process, "cr:s:")
    size = size_of(dict(found).get("s", "0").lstrip("+"))
    files = process.system.files
    for name in names:
        path = process.path(name)
        if not files.exists(path):
            files.write(path, b"")
        node = files.find(path)
        if isinstance(node, Regular):
            node.truncate(size)
    return 0


def mktemp(process: Process) -> int:
    found, words = getopt(process, "dqt:u")
    option = dict(found)
    template = words[0] if words else f"/tmp/{option.get('t', 'tmp')}.XXXXXXXXXX"
    stem = template.rstrip("X")
    name = stem + secrets.token_urlsafe(20)[: len(template) - len(stem)].replace("-", "x")
    if "d" in option:
        process.system.files.make_directory(process.path(name), 0o700)
    else:
        process.system.files.write(process.path(name), b"", 0o600)
    process.out(f"{name}\n")
    return 0


def stat(process: Process) -> int:
    """``stat -f FORMAT``: %z size, %m changed, %Sp permissions, %N name, %p mode, %i inode."""
    found, names = getopt(process, "FHLnqf:lrsxt:")
    option = dict(found)
    nodes, status = _each(process, names)
    for name, node in nodes.items():
        if isinstance(node, Link) and "L" in option:
            node = process.system.files.find(process.path(name))  # noqa: PLW2901 - what it is
        values = {
            "%Sp": _permissions(node), "%Lp": f"{node.mode:o}", "%OLp": f"{node.mode:o}",
            "%z": _size(node), "%m": str(int(node.changed)), "%N": name, "%i": str(node.number),
            "%Su": "root", "%Sg": "wheel", "%u": "0", "%g": "0",
        }  # fmt: skip
        text = option.get("f", "%Sp 1 %Su %Sg %z %m %N")
        for key, value in values.items():
            text = text.replace(key, value)
        process.out(f"{text}\n")
    return status


def realpath(process: Process) -> int:
    nodes, status = _each(process, process.arguments[1:])
    for name in nodes:
        process.out(f"{process.path(name)}\n")
    return status


def readlink(process: Process, options: str = "fn") -> int:
    found, names = getopt(process, options)
    for name in names:
        node = process.system.files.find(process.path(name), follow=False)
        if isinstance(node, Link):
            process.out(f"{node.target}\n")
        elif ("f", "") in found:
            process.out(f"{process.path(name)}\n")
        else:
            return 1
    return 0


def nothing(process: Process) -> int:
    """sync(8) and others that have nothing to do here."""
    return 0


# dd


class _DdError(Exception):
    pass


def dd(process: Process) -> int:
    """Copy blocks, by those of its operands that can matter here."""
    values: dict[str, str] = {}
    for word in process.arguments[1:]:
        name, equals, value = word.partition("=")
        if not equals or name not in _DD:
            process.complain(f"unknown operand {name}")
            return 1
        values[name] = value
    try:
        sizes = {name: _blocks(values.get(name, "0")) for name in _DD_NUMBERS}
    except _DdError as error:
        process.complain(str(error))
        return 1
    block = sizes["bs"] or sizes["ibs"] or 512
    out_block = sizes["bs"] or sizes["obs"] or 512
    conversions = set(values.get("conv", "").split(",")) - {""}
    source, target = process.file(0), process.file(1)
    files: list[OpenFile] = []
    try:
        if "if" in values:
            source = _dd_open(process, values["if"], "r", files)
        if "of" in values:
            keep = "notrunc" in conversions or (sizes["seek"] or sizes["oseek"])
            target = _dd_open(process, values["of"], "rw" if keep else "w", files)
        return _dd_copy(process, source, target, values, sizes, block, out_block, conversions)
    except _DdError as error:
        process.complain(str(error))
        return 1
    finally:
        for file in files:
            file.release()


_DD_NUMBERS = ("bs", "ibs", "obs", "cbs", "count", "skip", "iseek", "seek", "oseek", "speed")
_DD = frozenset({"if", "of", "conv", "status", "files", "iflag", "oflag", "fillchar", *_DD_NUMBERS})


def _blocks(text: str) -> int:
    total = 1
    for part in text.lower().split("x") if not text.startswith("0x") else [text]:
        try:
            total *= size_of(part) if part[-1:] != "b" else int(part[:-1]) * 512
        except ValueError:
            raise _DdError(f"{text}: illegal numeric value") from None
    return total


def _dd_open(process: Process, name: str, mode: str, files: list[OpenFile]) -> OpenFile:
    try:
        file = process.system.files.open(process, process.path(name), mode).reference()
    except SimError as error:
        raise _DdError(f"{name}: {error.text}") from None
    files.append(file)
    return file


def _dd_copy(
    process: Process,
    source: OpenFile,
    target: OpenFile,
    values: Mapping[str, str],
    sizes: Mapping[str, int],
    block: int,
    out_block: int,
    conversions: set[str],
) -> int:
    started = time.monotonic()
    _seek(process, source.stream, (sizes["skip"] or sizes["iseek"]) * block)
    _seek(process, target.stream, (sizes["seek"] or sizes["oseek"]) * out_block)
    whole = partial = moved = 0
    held = b""
    limit = sizes["count"] if "count" in values else None
    out = [0, 0]
    status = 0
    while limit is None or whole + partial < limit:
        try:
            data = _read_block(
                process, source.stream, block, full=values.get("iflag") == "fullblock"
            )
        except SimError as error:
            process.complain(f"{values.get('if', 'stdin')}: {error.text}")
            status = 1
            break
        if not data:
            break
        whole, partial = (whole + 1, partial) if len(data) == block else (whole, partial + 1)
        if "sync" in conversions:
            data = data.ljust(block, b"\0")
        held += data
        try:
            if sizes["bs"]:
                target.stream.write(process, held)
                out[len(held) != out_block] += 1
                moved += len(held)
                held = b""
            while len(held) >= out_block:
                target.stream.write(process, held[:out_block])
                held = held[out_block:]
                out[0] += 1
                moved += out_block
        except SimError as error:
            process.complain(f"{values.get('of', 'stdout')}: {error.text}")
            status = 1
            held = b""
            break
    if held:
        target.stream.write(process, held)
        moved += len(held)
        out[1] += 1
    if values.get("status") != "none":
        _dd_summary(process, values, (whole, partial), (out[0], out[1]), moved, started)
    return status


def _dd_summary(
    process: Process,
    values: Mapping[str, str],
    read: tuple[int, int],
    written: tuple[int, int],
    moved: int,
    started: float,
) -> None:
    process.err(f"{read[0]}+{read[1]} records in\n{written[0]}+{written[1]} records out\n")
    if values.get("status") != "noxfer":
        seconds = max(time.monotonic() - started, 1e-6)
        process.err(
            f"{moved} bytes transferred in {seconds:.6f} secs ({int(moved / seconds)} bytes/sec)\n"
        )


def _read_block(process: Process, stream: Stream, size: int, *, full: bool) -> bytes:
    data = stream.read(process, size)
    while full and data and len(data) < size and (more := stream.read(process, size - len(data))):
        data += more
    return data


def _seek(process: Process, stream: Stream, offset: int) -> None:
    if not offset:
        return
    if hasattr(stream, "offset"):
        stream.offset += offset
        return
    left = offset
    while left and (piece := stream.read(process, min(left, 65536))):
        left -= len(piece)


COMMANDS: Mapping[str, Command] = {
    "ls": ls, "mkdir": mkdir, "rmdir": rmdir, "rm": rm, "cp": cp, "mv": mv, "ln": ln,
    "touch": touch, "chmod": chmod, "chown": chown, "truncate": truncate, "mktemp": mktemp,
    "stat": stat, "realpath": realpath, "readlink": readlink, "sync": nothing, "dd": dd,
    "fsync": nothing,
}  # fmt: skip
