"""Console bytes as text that is safe to show."""

from __future__ import annotations

import re

# ECMA-48 control sequences, operating system commands, and two-character escapes.
_ESCAPES = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)|[ -/]*[0-~])", re.ASCII
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f]")

#: Longest line that is shown, in characters; the log itself keeps it whole.
LINE_LIMIT = 2000


def clean(line: bytes) -> str:
    """One line without terminal escapes and control characters, decoded leniently."""
    if b"\x1b" in line:
        line = _ESCAPES.sub(b"", line)
    text = _CONTROLS.sub("", line[: LINE_LIMIT * 4].decode("utf-8", "replace"))
    return text if len(text) <= LINE_LIMIT else text[:LINE_LIMIT] + " …"
