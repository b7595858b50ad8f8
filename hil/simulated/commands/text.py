"""Commands that read and print text: cat, grep, sed, head, tail, sort and their like."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping

from hil.simulated.commands.options import getopt
from hil.simulated.commands.regex import CLASSES, regex
from hil.simulated.errno import SimError
from hil.simulated.process import PIPE_SIZE, Command, Exit, OpenFile, Process


def opened(process: Process, names: list[str]) -> Iterator[tuple[str, OpenFile]]:
    """Each of ``names`` opened for reading (``-``, or none at all: standard input).

    A name that cannot be opened is complained about; see :func:`had_errors`.
    """
    for name in names or ["-"]:
        if name == "-":
            yield name, process.file(0)
            continue
        try:
            file = process.system.files.open(process, process.path(name), "r").reference()
        except SimError as error:
            process.complain(f"{name}: {error.text}")
            process.environment["_failed"] = "1"
            continue
        try:
            yield name, file
        except SimError as error:
            process.complain(f"{name}: {error.text}")
            process.environment["_failed"] = "1"
        finally:
            file.release()


def had_errors(process: Process) -> int:
    """1 if a file could not be read, else 0."""
    return int("_failed" in process.environment)


def chunks(process: Process, file: OpenFile) -> Iterator[bytes]:
    while piece := file.stream.read(process, PIPE_SIZE):
        yield piece


def lines(process: Process, file: OpenFile) -> Iterator[bytes]:
    """Lines with their newlines; the last may be without."""
    rest: list[bytes] = []
    for piece in chunks(process, file):
        if b"\n" not in piece:  # binary data may be one line of any length
            rest.append(piece)
            continue
        *whole, last = b"".join([*rest, piece]).split(b"\n")
        rest = [last]
        for line in whole:
            yield line + b"\n"
    if any(rest):
        yield b"".join(rest)


def _contents(process: Process, names: list[str]) -> bytes:
    return b"".join(b"".join(chunks(process, file)) for _, file in opened(process, names))


def _all_lines(process: Process, names: list[str]) -> list[bytes]:
    return [line for _, file in opened(process, names) for line in lines(process, file)]


def cat(process: Process) -> int:
    _, names = getopt(process, "benstuvl", "usage: cat [-belnstuv] [file ...]\n")
    for name, file in opened(process, names):
        try:
            for piece in chunks(process, file):
                process.out(piece)
        except SimError as error:
            process.complain(f"{'stdin' if name == '-' else name}: {error.text}")
            return 1
    return had_errors(process)


def tee(process: Process) -> int:
    found, names = getopt(process, "ai", "usage: tee [-ai] [file ...]\n")
    mode = "a" if ("a", "") in found else "w"
    files = [
        process.system.files.open(process, process.path(name), mode).reference() for name in names
    ]
    while piece := process.read():
        process.out(piece)
        for file in files:
            file.stream.write(process, piece)
    for file in files:
        file.release()
    return 0


def _count(process: Process, known: str) -> tuple[dict[str, str], list[str]]:
    """Options, with the old form ``-5`` taken as ``-n 5``."""
    arguments = process.arguments
    if len(arguments) > 1 and re.fullmatch(r"-[0-9]+", arguments[1]):
        process.arguments = [arguments[0], "-n", arguments[1][1:], *arguments[2:]]
    found, names = getopt(process, known)
    return dict(found), names


def head(process: Process) -> int:
    found, names = _count(process, "n:c:q")
    if "c" in found:
        left = int(found["c"])
        for _, file in opened(process, names):
            while left and (piece := file.stream.read(process, min(left, PIPE_SIZE))):
                process.out(piece)
                left -= len(piece)
        return had_errors(process)
    for name, file in opened(process, names):
        if len(names) > 1:
            process.out(f"==> {name} <==\n")
        left = int(found.get("n", 10))
        if left:
            for line in lines(process, file):
                process.out(line)
                left -= 1
                if not left:
                    break
    return had_errors(process)


def tail(process: Process) -> int:
    found, names = _count(process, "n:c:rfFq")
    for _, file in opened(process, names):
        data = b"".join(chunks(process, file))
        if "c" in found:
            process.out(_from_end(data, found["c"]))
            continue
        whole = data.splitlines(keepends=True) if b"\r" not in data else _split(data)
        if "r" in found:
            process.out(b"".join(reversed(whole)))
            continue
        wanted = found.get("n", "10")
        if wanted.startswith("+"):
            process.out(b"".join(whole[max(0, int(wanted) - 1) :]))
        else:
            count = abs(int(wanted))
            process.out(b"".join(whole[len(whole) - count if count < len(whole) else 0 :]))
    return had_errors(process)


def _from_end(data: bytes, count: str) -> bytes:
    if count.startswith("+"):
        return data[max(0, int(count) - 1) :]
    number = abs(int(count))
    return data[-number:] if number else b""


def _split(data: bytes) -> list[bytes]:
    pieces = data.split(b"\n")
    return [piece + b"\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])


_GREP_USAGE = """\
usage: grep [-abcdDEFGHhIiLlmnOopqRSsUVvwxz] [-A num] [-B num] [-C[num]]
\t[-e pattern] [-f file] [--binary-files=value] [--color=when]
\t[--context[=num]] [--directories=action] [--label] [--line-buffered]
\t[--null] [pattern] [file ...]
"""


def grep(process: Process) -> int:
    found, words = getopt(process, "A:B:C:EFGHILabce:f:hilm:noqrsvwxz", _GREP_USAGE, 2)
    option = dict(found)
    patterns = [value for letter, value in found if letter == "e"]
    if not patterns:
        if not words:
            process.err(_GREP_USAGE)
            return 2
        patterns.append(words.pop(0))
    extended = "E" in option or process.name == "egrep"
    fixed = "F" in option or process.name == "fgrep"
    try:
        tests = [
            regex(
                re.sub(r"([^\w\s])", r"\\\1", each) if fixed else each,
                extended=extended or fixed,
                ignore_case="i" in option,
            )
            for pattern in patterns
            for each in pattern.split("\n")
        ]
    except re.error as error:
        process.complain(str(error))
        return 2
    if "w" in option:
        tests = [re.compile(rb"(?<!\w)(?:" + t.pattern + rb")(?!\w)", t.flags) for t in tests]

    def matches(line: bytes) -> re.Match[bytes] | None:
        body = line.rstrip(b"\n")
        for test in tests:
            hit = test.fullmatch(body) if "x" in option else test.search(body)
            if hit:
                return hit
        return None

    after = int(option.get("A", option.get("C", 0)))
    before = int(option.get("B", option.get("C", 0)))
    hits = 0
    if {"b", "o"} <= option.keys() and fixed and len(patterns) == 1:
        for _, file in opened(process, words):
            hits += _offsets(process, file, patterns[0].encode("utf-8", "surrogateescape"))
        return 0 if hits else 1
    for name, file in opened(process, words):
        shown = name if (len(words) > 1 and "h" not in option) or "H" in option else ""
        if fixed and {"o", "b"} <= option.keys() and len(patterns) == 1:
            hits += _places(process, file, patterns[0].encode(), shown)
            continue
        hits += _grep_file(process, file, option, matches, shown, before, after)
        if hits and "q" in option:
            raise Exit(0)
        if hits and "l" in option:
            process.out(f"{name}\n")
    if had_errors(process):
        return 2 if not (hits and "q" in option) else 0
    return 0 if hits else 1


def _offsets(process: Process, file: OpenFile, text: bytes) -> int:
    """``grep -b -o -F``: where ``text`` stands, by bytes from the start; how often."""
    held, start, hits = b"", 0, 0
    while piece := file.stream.read(process, PIPE_SIZE):
        held += piece
        at = held.find(text)
        while at >= 0:
            process.out(b"%d:%s\n" % (start + at, text))
            hits += 1
            at = held.find(text, at + len(text))
        kept = held[-(len(text) - 1) :] if len(text) > 1 else b""
        start, held = start + len(held) - len(kept), kept
    return hits


def _places(process: Process, file: OpenFile, text: bytes, name: str) -> int:
    """``-F -o -b``: each match with its offset, in lines of any length."""
    prefix = f"{name}:".encode() if name else b""
    hits, end, tail = 0, 0, b""
    for piece in chunks(process, file):
        data, start = tail + piece, end - len(tail)
        at = data.find(text)
        while at >= 0:
            hits += 1
            process.out(prefix + f"{start + at}:".encode() + text + b"\n")
            at = data.find(text, at + len(text))
        end += len(piece)
        tail = data[len(data) - len(text) + 1 :] if len(text) > 1 else b""
    return hits


def _grep_file(
    process: Process,
    file: OpenFile,
    option: Mapping[str, str],
    matches: Callable[[bytes], re.Match[bytes] | None],
    name: str,
    before: int,
    after: int,
) -> int:
    prefix = f"{name}:".encode() if name else b""
    silent = bool({"q", "c", "l"} & option.keys())
    hits = 0
    left = 0
    held: list[bytes] = []
    last_shown = 0
    for number, each in enumerate(lines(process, file), 1):
        match = matches(each)
        line = each if each.endswith(b"\n") else each + b"\n"
        if bool(match) is ("v" not in option):
            hits += 1
            if "q" in option or "l" in option:
                return 1
            if not silent:
                first = number - len(held)
                if (before or after) and last_shown and first > last_shown + 1:
                    process.out(b"--\n")
                process.out(b"".join(held))
                where = f"{number}:".encode() if "n" in option else b""
                body = match.group() + b"\n" if "o" in option and match else line
                process.out(prefix + where + body)
            held, left, last_shown = [], after, number
            if "m" in option and hits >= int(option["m"]):
                break
        elif left and not silent:
            process.out(line)
            left -= 1
            last_shown = number
        elif before:
            held = [*held, line][-before:]
    if "c" in option:
        process.out(prefix + f"{hits}\n".encode())
    return hits


# The rest


def wc(process: Process) -> int:
    found, names = getopt(process, "clmw")
    letters = [letter for letter, _ in found] or ["l", "w", "c"]
    for name, file in opened(process, names):
        data = b"".join(chunks(process, file))
        counts = {"l": data.count(b"\n"), "w": len(data.split()), "c": len(data), "m": len(data)}
        text = "".join(f" {counts[letter]:7d}" for letter in "lwcm" if letter in letters)
        process.out(f"{text}{'' if name == '-' else ' ' + name}\n")
    return had_errors(process)


def sort(process: Process) -> int:
    found, names = getopt(process, "bdfghik:mno:rst:uVz")
    option = dict(found)
    whole = [line.rstrip(b"\n") for line in _all_lines(process, names)]
    field = int(re.split(r"\D", option["k"])[0]) - 1 if "k" in option else None
    separator = option["t"].encode() if "t" in option else None

    def key(line: bytes) -> tuple[float, bytes]:
        text = line
        if field is not None:
            parts = line.split(separator)
            text = parts[field] if field < len(parts) else b""
        number = re.match(rb"\s*-?[0-9]*\.?[0-9]*", text) if "n" in option else None
        try:
            return (float(number.group()) if number else 0.0, text)
        except ValueError:
            return (0.0, text)

    ordered = sorted(whole, key=key, reverse="r" in option)
    if "u" in option:
        ordered = list(dict.fromkeys(ordered))
    process.out(b"".join(line + b"\n" for line in ordered))
    return had_errors(process)


def uniq(process: Process) -> int:
    found, names = getopt(process, "cdu")
    previous: bytes | None = None
    count = 0
    for line in [*_all_lines(process, names[:1]), None]:
        if line == previous:
            count += 1
            continue
        if previous is not None:
            process.out((f"{count:4d} ".encode() if ("c", "") in found else b"") + previous)
        previous, count = line, 1
    return had_errors(process)


def cut(process: Process) -> int:
    found, names = getopt(process, "b:c:d:f:s")
    option = dict(found)
    wanted = option.get("f") or option.get("c") or option.get("b") or "1"
    delimiter = option.get("d", "\t").encode()
    for line in _all_lines(process, names):
        body = line.rstrip(b"\n")
        if "f" in option:
            if delimiter not in body:
                if "s" not in option:
                    process.out(body + b"\n")
                continue
            parts = body.split(delimiter)
            process.out(delimiter.join(_chosen(parts, wanted)) + b"\n")
        else:
            pieces = [body[i : i + 1] for i in range(len(body))]
            process.out(b"".join(_chosen(pieces, wanted)) + b"\n")
    return had_errors(process)


def _chosen(parts: list[bytes], wanted: str) -> list[bytes]:
    indexes: set[int] = set()
    for piece in wanted.split(","):
        low, dash, high = piece.partition("-")
        first = int(low or 1)
        last = int(high or len(parts)) if dash else first
        indexes |= set(range(first, last + 1))
    return [part for number, part in enumerate(parts, 1) if number in indexes]


def tr(process: Process) -> int:
    found, sets = getopt(process, "Ccdsu")
    option = {letter for letter, _ in found}
    first = _set(sets[0])
    if option & {"c", "C"}:
        first = bytes(b for b in range(256) if b not in first)
    data = process.read_all()
    if "d" in option:
        data = data.translate(None, first)
    elif len(sets) > 1:
        second = _set(sets[1])
        second += second[-1:] * (len(first) - len(second))
        data = data.translate(bytes.maketrans(first, second[: len(first)]))
    if "s" in option:
        squeezed = _set(sets[-1])
        data = re.sub(b"([" + re.escape(squeezed) + rb"])\1+", rb"\1", data, flags=re.DOTALL)
    process.out(data)
    return 0


def _set(text: str) -> bytes:
    for name, members in {**CLASSES, "[:space:]": " \t\n\r\v\f"}.items():
        text = text.replace(name, members)
    text = text.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r").replace("\\0", "\0")

    def expand(found: re.Match[str]) -> str:
        return "".join(map(chr, range(ord(found.group(1)), ord(found.group(2)) + 1)))

    return re.sub(r"(.)-(.)", expand, text, flags=re.DOTALL).encode("latin-1", "replace")


def cmp(process: Process) -> int:
    found, names = getopt(process, "lsx", "usage: cmp [-l | -s | -x] [-hz] file1 file2\n", 2)
    first, second = (_contents(process, [name]) for name in names[:2])
    if had_errors(process):
        return 2
    if first == second:
        return 0
    if ("s", "") not in found:
        shorter = min(len(first), len(second))
        at = next((i for i in range(shorter) if first[i] != second[i]), None)
        if at is None:
            process.complain(f"EOF on {names[0] if len(first) < len(second) else names[1]}")
        else:
            line = first[:at].count(b"\n") + 1
            process.out(f"{names[0]} {names[1]} differ: char {at + 1}, line {line}\n")
    return 1


def _digest(name: str, title: str) -> Command:
    def command(process: Process) -> int:
        found, names = getopt(process, "c:pqrs:t")
        quiet = any(letter == "q" for letter, _ in found)
        for each, file in opened(process, names):
            digest = hashlib.new(name, usedforsecurity=False)
            for piece in chunks(process, file):
                digest.update(piece)
                process.check()
            plain = quiet or each == "-"
            process.out(f"{'' if plain else f'{title} ({each}) = '}{digest.hexdigest()}\n")
        return had_errors(process)

    return command


def od(process: Process) -> int:
    """``od -An -tx1 [-v] [-N count] [-j skip]``, and with -t x4 and x8."""
    found, names = getopt(process, "A:vN:j:t:bcdosx")
    option = dict(found)
    data = _contents(process, names)[int(option.get("j", "0"), 0) :]
    if "N" in option:
        data = data[: int(option["N"], 0)]
    kind = option.get("t", "x2" if "x" in option else "o2")
    width = int(kind[1:] or 4)
    letter = kind[0]
    columns = {"x": 2 * width, "o": {1: 3, 2: 6, 4: 11, 8: 22}.get(width, 6), "u": 3 * width}
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        values = [
            int.from_bytes(row[i : i + width].ljust(width, b"\0"), "little")
            for i in range(0, len(row), width)
        ]
        form = f"{columns['u']}d" if letter == "u" else f"0{columns.get(letter, 3)}{letter}"
        shown = "".join(f"  {value:{form}}" for value in values)
        process.out(("" if option.get("A") == "n" else f"{at:07o}") + shown + "\n")
    if option.get("A") != "n":
        process.out(f"{len(data):07o}\n")
    return had_errors(process)


def hexdump(process: Process) -> int:
    """``hexdump -C``, and ``hexdump -v -e '1/1 "%02x"'``."""
    found, names = getopt(process, "Cve:n:s:x")
    option = dict(found)
    data = _contents(process, names)[int(option.get("s", "0"), 0) :]
    if "n" in option:
        data = data[: int(option["n"], 0)]
    if "e" in option:
        process.out(data.hex())
        return had_errors(process)
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        halves = [" ".join(f"{b:02x}" for b in half) for half in (row[:8], row[8:])]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        process.out(f"{at:08x}  {halves[0]:<23}  {halves[1]:<23}  |{text}|\n")
    process.out(f"{len(data):08x}\n" if data else "")
    return had_errors(process)


def seq(process: Process) -> int:
    _, words = getopt(process, "f:s:w")
    numbers = [int(word) for word in words]
    first, step, last = {1: (1, 1, numbers[0])}.get(
        len(numbers),
        (numbers[0], numbers[1] if len(numbers) == 3 else 1, numbers[-1]),
    )
    for value in range(first, last + (1 if step > 0 else -1), step):
        process.out(f"{value}\n")
    return 0


def basename(process: Process) -> int:
    name = process.arguments[1].rstrip("/").rpartition("/")[2] or "/"
    suffix = process.arguments[2] if len(process.arguments) > 2 else ""
    process.out(f"{name.removesuffix(suffix) if name != suffix else name}\n")
    return 0


def dirname(process: Process) -> int:
    above, slash, _ = process.arguments[1].rstrip("/").rpartition("/")
    process.out(f"{above or (slash or '.')}\n")
    return 0


COMMANDS: Mapping[str, Command] = {
    "cat": cat, "tee": tee, "head": head, "tail": tail, "grep": grep, "egrep": grep,
    "fgrep": grep, "wc": wc, "sort": sort, "uniq": uniq, "cut": cut, "tr": tr,
    "cmp": cmp, "od": od, "hexdump": hexdump, "seq": seq, "basename": basename,
    "dirname": dirname, "sha256": _digest("sha256", "SHA256"), "md5": _digest("md5", "MD5"),
    "sha512": _digest("sha512", "SHA512"), "sha1": _digest("sha1", "SHA1"),
}  # fmt: skip
