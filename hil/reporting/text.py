"""Text from hosts and guests, made fit for a report: readable, bounded, without secrets."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from hil.secrets import REDACTED, take_out

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "REDACTED",
    "KeyBlocks",
    "clean",
    "cut_middle",
    "on_paper",
    "one_line",
    "plain",
    "redact",
    "short",
]

#: Escape sequences of terminals: CSI, OSC and the two-byte ones (ECMA-48, 5.4 and 5.6).
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -~])")
#: And those that turn the direction of writing, so that a line reads as another (UAX #9).
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_KEY_BLOCK = re.compile(
    r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL
)
_NAMED = re.compile(
    r"""(?ix)
    (
        (?: password | passwd | passphrase | secret (?: [_-]access )? (?: [_-]key )? | api[_-]?key
          | private[_-]?key | token )
        ["']? (?: \s{0,9} [=:] \s{0,9} | \s{1,9} (?= ["'] ) )
        | -- (?: password | passwd | passphrase | secret | token ) \s{1,9}
        | authorization \s{0,9} : \s{0,9} (?: basic | bearer ) \s{1,9}
        | sshpass \s{1,9} -p \s{0,9}
    )
    ( "[^"\n]*" | '[^'\n]*' | [^\s"',;]+ )
    """
)
#: One of these is in whatever ``_NAMED`` finds, in any case: to look for them is 20 times as fast.
_NAMES = ("passw", "passp", "sshpass", "secret", "key", "token", "authorization")
_URL = re.compile(r"(://[^\s/:@]{1,200}:)[^\s/@]{1,500}(?=@)")

_KEY_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
#: A line within a private key; continued input of a shell has ``>`` before it.
_KEY_LINE = re.compile(r"[>\s]*(?:[A-Za-z0-9+/]+=*|(?:Proc-Type|DEK-Info):.*)\s*")


def redact(text: str) -> str:
    """``text`` without the secrets that hil knows, and without what looks like one.

    That is a private key, a password or a token.
    """
    text = take_out(text)
    text = _KEY_BLOCK.sub(rf"-----BEGIN \1----- {REDACTED}", text)
    folded = text.casefold()
    if any(name in folded for name in _NAMES):
        text = _NAMED.sub(rf"\1{REDACTED}", text)
    return _URL.sub(rf"\1{REDACTED}", text)


class KeyBlocks:
    """:func:`redact` for text that comes line by line: private keys have many lines."""

    #: Lines of a key, at most: its end may be lost.
    LONGEST = 120

    def __init__(self) -> None:
        self._left = 0

    def redact(self, line: str) -> str:
        """The next line."""
        if self._left:
            self._left -= 1
            if _KEY_LINE.fullmatch(line):
                return REDACTED
            if "-----END" in line:
                self._left = 0
        if (begin := _KEY_BEGINS.search(line)) and "-----END" not in line[begin.end() :]:
            self._left = self.LONGEST
        return redact(line)


def clean(text: str) -> str:
    """``text`` without escape sequences and control characters, but for line ends and tabs."""
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    if "\r" in text:
        # It overwrites the line; what was written last is what a person saw.
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    text = _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
    # Lone surrogates cannot be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def one_line(text: str, limit: int = 200) -> str:
    """``text`` redacted, cleaned, on one line, and at most ``limit`` characters long."""
    line = " ".join(redact(clean(text)).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def plain(text: str) -> str:
    """``text`` cleaned and on one line, whole: for what is a name elsewhere too."""
    return clean(text).replace("\n", " ")


def cut_middle(text: str, limit: int) -> str:
    """``text``, or its head and its tail with a line between them that tells of the cut.

    Args:
        text: anything.
        limit: characters to keep, beside that line.
    """
    if len(text) <= limit:
        return text
    head, tail = text[: limit // 2], text[-(limit - limit // 2) :]
    return f"{head}\n… {len(text) - limit} characters left out here …\n{tail}"


def short(text: str, limit: int = 300) -> str:
    """``text``, or its two ends with a note of the cut between them, on the same line.

    For names as a person sees them: whoever wrote a file may have written names of a megabyte.

    Args:
        text: on one line.
        limit: characters to keep, beside that note.
    """
    if len(text) <= limit:
        return text
    tail = limit // 3
    left_out = len(text) - limit
    return f"{text[: limit - tail]} … {left_out} characters left out … {text[-tail:]}"


def on_paper(width: int, *, colour: bool) -> tuple[Console, io.StringIO]:
    """A console of rich's for a terminal of ``width`` columns, and where its text is kept."""
    from rich.console import Console

    paper = io.StringIO()
    return Console(
        file=paper,
        width=width,
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
        legacy_windows=False,
    ), paper
