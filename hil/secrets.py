"""What must never be shown: passwords and private keys that hil was given.

Whoever reads a secret tells it here; whatever is written for people goes through
:func:`take_out` (see :func:`hil.reporting.text.redact`, which also finds what only looks like a
secret).  They are kept in memory only.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import threading
from urllib.parse import quote

#: What is shown in place of a secret.
REDACTED = "[redacted]"
#: Characters that a secret has at least: of shorter ones, every report would be full.
SHORTEST = 4
#: Characters below which a secret is only found as a word of its own.
SHORT = 8
#: Characters of a line of a private key that is worth finding; ends of keys are shorter.
KEY_LINE = 16

_lock = threading.Lock()
_known: dict[str, re.Pattern[str] | None] = {}
"""Secret → how it is found if it is short; the longest first."""


def remember(secret: str) -> None:
    """Have ``secret`` taken out of all that is shown from now on.

    Also as JSON, in a URL, quoted for a shell, and in base64.  One that is shorter than
    :data:`SHORTEST` is not.
    """
    secret = secret.strip()
    if len(secret) < SHORTEST:
        return
    ways = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    ways |= {quote(secret), quote(secret, safe=""), shlex.quote(secret), repr(secret)[1:-1]}
    ways.add(base64.b64encode(secret.encode("utf-8", "replace")).decode("ascii"))
    _add(ways)


def remember_key(text: str) -> None:
    """Have each line of a private key in PEM form taken out, wherever it stands."""
    lines = (line.strip() for line in text.splitlines())
    _add({line for line in lines if len(line) >= KEY_LINE and "-----" not in line})


def take_out(text: str) -> str:
    """``text`` with :data:`REDACTED` in place of every secret that was remembered."""
    for secret, word in _known.items():
        if secret in text:
            text = word.sub(REDACTED, text) if word else text.replace(secret, REDACTED)
    return text


def _add(secrets: set[str]) -> None:
    global _known  # noqa: PLW0603 - replaced whole, so that readers need no lock
    with _lock:
        merged = {**_known, **{secret: _word(secret) for secret in secrets}}
        _known = dict(sorted(merged.items(), key=lambda item: -len(item[0])))


def _word(secret: str) -> re.Pattern[str] | None:
    if len(secret) >= SHORT:
        return None
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])")
