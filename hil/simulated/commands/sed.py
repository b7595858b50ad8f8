"""sed(1): substitution, printing, deleting, quitting, with addresses of every kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hil.simulated.commands.options import getopt
from hil.simulated.commands.regex import regex
from hil.simulated.commands.text import had_errors, lines, opened
from hil.simulated.process import Command, Process


@dataclass
class _Edit:
    """One command of sed(1)."""

    first: str | None
    second: str | None
    negated: bool
    letter: str
    pattern: re.Pattern[bytes] | None = None
    replacement: bytes = b""
    flags: str = ""
    active: bool = False


class _SedError(Exception):
    pass


def sed(process: Process) -> int:
    usage = "usage: sed script [-EHalnru] [-i extension] [file ...]\n"
    found, words = getopt(process, "Eae:f:i:lnru", usage)
    option = dict(found)
    extended = "E" in option or "r" in option
    scripts = [value for letter, value in found if letter == "e"]
    if not scripts:
        if not words:
            process.err(usage)
            return 1
        scripts.append(words.pop(0))
    try:
        edits = [
            _edit(each.strip(), extended=extended)
            for script in scripts
            for each in _commands(script)
            if each.strip()
        ]
    except (_SedError, re.error) as error:
        process.complain(f'1: "{scripts[0]}": {error}')
        return 1
    whole = [line for _, file in opened(process, words) for line in lines(process, file)]
    for number, line in enumerate(whole, 1):
        if _sed_line(process, edits, line, number, number == len(whole), quiet="n" in option):
            break
    return had_errors(process)


def _commands(script: str) -> Iterator[str]:
    """The commands of a script: divided by ``;`` and newlines that stand outside of ``s///``."""
    at = start = 0
    while at < len(script):
        c = script[at]
        if c == "/" or (c == "s" and at + 1 < len(script) and not script[at + 1].isalnum()):
            delimiter = script[at + 1] if c == "s" else "/"
            at += 2 if c == "s" else 1
            for _ in range(2 if c == "s" else 1):
                while at < len(script) and script[at] != delimiter:
                    at += 2 if script[at] == "\\" else 1
                at += 1
            continue
        if c in ";\n":
            yield script[start:at]
            start = at + 1
        at += 1
    yield script[start:]


_ADDRESS = re.compile(r"([0-9]+|\$|/(?:[^/\\]|\\.)*/)")


def _edit(text: str, *, extended: bool) -> _Edit:
    addresses: list[str] = []
    while len(addresses) < 2 and (found := _ADDRESS.match(text)):
        addresses.append(found.group())
        text = text[found.end() :]
        if len(addresses) == 1 and text.startswith(","):
            text = text[1:]
        else:
            break
    negated = text.startswith("!")
    text = text.lstrip("! ")
    first = addresses[0] if addresses else None
    second = addresses[1] if len(addresses) > 1 else None
    letter = text[:1]
    if letter == "s":
        delimiter = text[1]
        parts = re.split(rf"(?<!\\){re.escape(delimiter)}", text[2:])
        if len(parts) != 3:
            raise _SedError("unterminated substitute pattern")
        pattern, replacement, flags = parts
        if delimiter != "/":
            pattern = pattern.replace("\\" + delimiter, delimiter)
        return _Edit(
            first,
            second,
            negated,
            "s",
            regex(pattern.replace("\\/", "/"), extended=extended, ignore_case="i" in flags.lower()),
            _replacement(replacement.replace("\\" + delimiter, delimiter)),
            flags,
        )
    if letter not in ("p", "d", "q", "="):
        raise _SedError(f"invalid command code {letter}")
    return _Edit(first, second, negated, letter)


def _replacement(text: str) -> bytes:
    """Sed's replacement as Python's template."""
    pieces = []
    at = 0
    while at < len(text):
        c = text[at]
        at += 1
        if c == "&":
            pieces.append(r"\g<0>")
        elif c == "\\" and at < len(text):
            following = text[at]
            at += 1
            if following.isdigit():
                pieces.append(rf"\g<{following}>")
            else:
                pieces.append("\n" if following == "n" else following.replace("\\", "\\\\"))
        else:
            pieces.append(c)
    return "".join(pieces).encode("utf-8", "surrogateescape")


def _sed_line(
    process: Process, edits: list[_Edit], line: bytes, number: int, last: bool, *, quiet: bool
) -> bool:
    """Edit and print one line; whether sed quits after it."""
    newline = b"\n" if line.endswith(b"\n") else b""
    body = line.removesuffix(b"\n")
    for edit in edits:
        if _selected(edit, body, number, last) is edit.negated:
            continue
        if edit.letter == "d":
            return False
        if edit.letter == "=":
            process.out(f"{number}\n")
        elif edit.letter == "p":
            process.out(body + newline)
        elif edit.letter == "q":
            if not quiet:
                process.out(body + newline)
            return True
        elif edit.pattern is not None:
            count = 0 if "g" in edit.flags else 1
            body, done = edit.pattern.subn(edit.replacement, body, count=count)
            if done and "p" in edit.flags:
                process.out(body + newline)
    if not quiet:
        process.out(body + newline)
    return False


def _selected(edit: _Edit, body: bytes, number: int, last: bool) -> bool:
    def at(address: str) -> bool:
        if address == "$":
            return last
        if address.isdigit():
            return number == int(address)
        return bool(regex(address[1:-1].replace("\\/", "/"), extended=False).search(body))

    if edit.first is None:
        return True
    if edit.second is None:
        return at(edit.first)
    if edit.active:
        beyond = edit.second.isdigit() and number >= int(edit.second)
        edit.active = not (beyond or at(edit.second))
        return True
    if at(edit.first):
        edit.active = not (edit.second.isdigit() and int(edit.second) <= number)
        return True
    return False


COMMANDS: Mapping[str, Command] = {"sed": sed}
