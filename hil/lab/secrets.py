"""The secrets that an inventory leads to, told to :mod:`hil.secrets` before anything is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from hil import secrets
from hil.lab.models import Lab

#: Bytes that are read of a file: keys and passwords are shorter.
_LIMIT = 64 * 1024
_IN_URL = re.compile(r"://[^\s/:@]*:([^\s/@]+)@")


def remember(lab: Lab) -> None:
    """Remember the private keys, passwords, and passwords in addresses and commands of ``lab``.

    A file that cannot be read is passed over: whoever needs it will say so.
    """
    for host in lab.hosts.values():
        secrets.remember_key(_read(lab.file(host.key_file)))
        _remember_words(host.console)
        if (power := host.power) is not None:
            if power.password_file:
                secrets.remember(_read(lab.file(power.password_file)).partition("\n")[0])
            _remember_words((power.address,))


def _remember_words(words: Sequence[str]) -> None:
    """Of a command or an address: ``user:PASSWORD@``, ``-P PASSWORD``, ``--password=PASSWORD``."""
    for before, word in zip(("", *words), words, strict=False):
        for found in _IN_URL.findall(word):
            secrets.remember(found)
            secrets.remember(unquote(found))
        option, equals, value = word.partition("=")
        if option in ("--password", "--passwd") and equals:
            secrets.remember(value)
        elif before in ("-P", "--password", "--passwd") or (words[0], before) == ("sshpass", "-p"):
            secrets.remember(word)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ""
