"""Regular expressions of re_format(7), basic and extended, as Python's."""

from __future__ import annotations

import re

_BASIC = {"(": r"\(", ")": r"\)", "{": r"\{", "}": r"\}", "+": r"\+", "?": r"\?", "|": r"\|"}
CLASSES = {
    "[:space:]": r"\s", "[:blank:]": r" \t", "[:digit:]": "0-9", "[:alpha:]": "a-zA-Z",
    "[:alnum:]": "a-zA-Z0-9", "[:upper:]": "A-Z", "[:lower:]": "a-z", "[:xdigit:]": "0-9a-fA-F",
    "[:print:]": " -~", "[:punct:]": r"!-/:-@\[-`{-~",
}  # fmt: skip


def regex(text: str, *, extended: bool, ignore_case: bool = False) -> re.Pattern[bytes]:
    """A regular expression of re_format(7) as Python's."""
    pieces: list[str] = []
    at = 0
    while at < len(text):
        c = text[at]
        at += 1
        if c == "\\" and at < len(text):
            following = text[at]
            at += 1
            if following in "<>":
                pieces.append(r"\b")
            elif extended or following not in "(){}+?|":
                pieces.append("\\" + following)
            else:
                pieces.append(following)
        elif c == "[":
            end = at if text[at : at + 1] != "^" else at + 1
            end += text.startswith("]", end)  # first, it stands for itself
            while end < len(text) and text[end] != "]":
                closing = text.find(":]", end) if text.startswith("[:", end) else -1
                end = closing + 2 if closing >= 0 else end + 1
            inside = text[at:end].replace("\\", "\\\\")
            for name, members in CLASSES.items():
                inside = inside.replace(name, members)
            pieces.append(f"[{inside}]")
            at = end + 1
        elif not extended and c in _BASIC:
            pieces.append(_BASIC[c])
        elif not extended and c == "*" and (not pieces or pieces[-1] in ("^", "(")):
            pieces.append(r"\*")
        else:
            pieces.append(c)
    flags = re.IGNORECASE if ignore_case else 0
    return re.compile("".join(pieces).encode("utf-8", "surrogateescape"), flags)
