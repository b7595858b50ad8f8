"""getopt(3), and the words in which commands refuse their arguments."""

from __future__ import annotations

from collections.abc import Mapping

from hil.simulated.process import Exit, Process


def getopt(
    process: Process, known: str, usage: str = "", status: int = 1
) -> tuple[list[tuple[str, str]], list[str]]:
    """The options of ``process`` and what follows them.

    Args:
        process: whose arguments are read.
        known: option letters, each with ``:`` after it if it takes a value.
        usage: printed after the complaint about an option that is not known.
        status: exit status then.
    """
    words = process.arguments[1:]
    found: list[tuple[str, str]] = []
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            at = known.find(letter)
            if letter == ":" or at < 0:
                process.complain(f"illegal option -- {letter}")
                refuse(process, usage, status)
            if known[at + 1 : at + 2] != ":":
                found.append((letter, ""))
                continue
            if not letters and not words:
                process.complain(f"option requires an argument -- {letter}")
                refuse(process, usage, status)
            found.append((letter, letters or words.pop(0)))
            letters = ""
    return found, words


def refuse(process: Process, usage: str, status: int = 1) -> None:
    """Print ``usage`` and end the process."""
    process.err(usage)
    raise Exit(status)


def flags(found: list[tuple[str, str]]) -> Mapping[str, str]:
    """The options by letter; the last of several counts."""
    return dict(found)


def size_of(text: str) -> int:
    """A size as expand_number(3) reads it: a number and perhaps k, m, g, t.

    Raises:
        ValueError: it is none.
    """
    units = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
    letter = text[-1:].lower()
    if letter in units and text[:-1].isdigit():
        return int(text[:-1]) << units[letter]
    return int(text, 0)
