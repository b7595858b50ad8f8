"""Argument lists as text for a POSIX shell: the one place where hil quotes.

``sshd`` hands a command to the user's login shell as one string, so an argument
list has to survive that shell's word splitting (POSIX.1-2017, Shell Command
Language, sections 2.2 and 2.4).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hil.errors import InventoryError

#: Words that a shell takes as its own when they come first (POSIX 2.4, and bash's).
_RESERVED = frozenset(
    (
        "case",
        "coproc",
        "do",
        "done",
        "elif",
        "else",
        "esac",
        "fi",
        "for",
        "function",
        "if",
        "in",
        "select",
        "then",
        "time",
        "until",
        "while",
    )
)


def quote(command: Sequence[str]) -> str:
    """``command`` as one line that a POSIX shell splits back into the same words.

    The first word always names a program, never an assignment or a reserved word.

    Raises:
        InventoryError: no command at all, or a NUL, which no argument can hold.
    """
    if isinstance(command, str) or not command:
        raise InventoryError(
            "a command is a list of words, the program first", seen=repr(command)[:200]
        )
    for word in command:
        if "\0" in word:
            raise InventoryError("a command's words cannot hold a NUL", seen=repr(word)[:200])
    first, *rest = command
    if "=" in first or first in _RESERVED:
        first = "'" + first.replace("'", "'\"'\"'") + "'"
    else:
        first = shlex.quote(first)
    return " ".join([first, *map(shlex.quote, rest)])
