"""Reads what users write in TOML, and says what is wrong with it: all of it at once.

Shared by inventories (:mod:`hil.lab.load`) and policies (:mod:`hil.qualify.load`).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from hil.errors import InventoryError

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file."""

    key: str
    """Path of the key, for example ``devices.nic0.kind``."""
    text: str
    """What is wrong, and what is allowed."""
    seen: str = ""
    """The value found, as written; bounded."""

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" + (f" (seen: {self.seen})" if self.seen else "")


class InvalidFileError(InventoryError):
    """All that is wrong with a file; ``problems`` has them one by one.

    Args:
        source: the file.
        problems: what is wrong.
        text: what the file says, if the lines of the keys are to be told.
    """

    #: Most problems that are shown; the rest are counted.
    SHOWN = 20

    def __init__(
        self, source: Path, problems: Sequence[Problem], hint: str = "", *, text: str = ""
    ) -> None:
        self.problems = tuple(problems)
        lines = [line_of(text, problem.key) for problem in self.problems]
        if len(self.problems) == 1:
            place = f"{source}:{lines[0]}" if lines[0] else str(source)
            super().__init__(f"{place}: {self.problems[0]}", hint=hint)
            return
        shown = [
            f"line {line}: {problem}" if line else str(problem)
            for line, problem in zip(lines, self.problems[: self.SHOWN], strict=False)
        ]
        if len(self.problems) > self.SHOWN:
            shown.append(f"… and {len(self.problems) - self.SHOWN} more")
        super().__init__(
            f"{source}: {len(self.problems)} mistakes", seen="\n".join(shown), hint=hint
        )


def read(path: Path, what: str, *, hint: str = "") -> str:
    """The text of the file ``path``; ``what`` it is, for messages: "the inventory".

    Raises:
        InventoryError: it is missing, unreadable or not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InventoryError(f"{what} {path} does not exist", hint=hint) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InventoryError(f"{what} {path} cannot be read: {reason}") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise InventoryError(
            f"{path}:{line}:{column}: byte {raw[error.start]:#04x} is not UTF-8, as TOML must be",
            hint="save the file as UTF-8",
        ) from None


def parse(model: type[Model], text: str, source: Path) -> Model:
    """What the TOML ``text`` says, as a ``model``; ``source`` is its file, for messages.

    Raises:
        InventoryError: it is not TOML.
        InvalidFileError: it is TOML, but not what ``model`` allows.
    """
    try:
        data = tomllib.loads(text)
        document = json.dumps(data, default=str)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(source, text, error) from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InventoryError(f"{source} cannot be read as TOML: {reason}") from None
    try:
        # Through JSON: its strict mode takes lists for tuples but no "22" for 22.
        return model.model_validate_json(document, strict=True)
    except ValidationError as error:
        raise InvalidFileError(source, _problems(error, model), text=text) from None


def right_parts(model: type[BaseModel], text: str) -> dict[str, Any]:
    """The fields of ``model`` in a text in which :func:`parse` has found mistakes.

    ``None`` stands for a field in which there is one; where a field is a table of tables, only for
    those of them in which there is one.
    """
    data = tomllib.loads(text)
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value, kind = data.get(name), cast("Any", field.annotation)
        if get_origin(kind) is Mapping:
            entry = TypeAdapter[Any](get_args(kind)[1])
            tables = value.items() if isinstance(value, dict) else ()
            found[name] = {key: _right(entry, table) for key, table in tables}
        else:
            found[name] = _right(TypeAdapter(kind), value)
    return found


def _right(adapter: TypeAdapter[Any], value: object) -> Any:
    try:
        return adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError:
        return None


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def bounded(value: object, limit: int = 80) -> str:
    """``value`` quoted, on one line, without control characters, and not too long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return text if len(text) <= limit else f"{text[:limit]}…"


def key_of(where: Sequence[object]) -> str:
    """A path as TOML would write it: ``devices.nic0.functions[1]``."""
    key = ""
    for part in where:
        if isinstance(part, int):
            key += f"[{part}]"
        else:
            word = str(part)
            if not re.fullmatch(r"[A-Za-z0-9_-]+", word):
                word = bounded(word)
            key += f".{word}" if key else word
    return key


# ---- lines of keys -----------------------------------------------------------------------

_STRING = r'"(?:\\.|[^"\\])*"|' + r"'[^']*'"
_WORD = rf"(?:[A-Za-z0-9_-]+|{_STRING})"
_DOTTED = rf"{_WORD}(?:\s*\.\s*{_WORD})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ENTRY = re.compile(rf"\s*({_DOTTED})\s*=")
_LAST = re.compile(rf"(?:^|\.){_WORD}$|\[\d+\]$")


def line_of(text: str, key: str) -> int:
    """The line, from 1, of a TOML text where ``key`` is set, or else its table; 0: unknown.

    For messages about a text that tomllib has read: it tells no lines itself.
    """
    lines = _lines(text)
    while key and key not in lines:
        shorter = _LAST.sub("", key)
        if shorter == key:
            return 0
        key = shorter
    return lines.get(key, 0)


def _lines(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    table: tuple[object, ...] = ()
    arrays: dict[str, int] = {}
    quote, depth = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            # Within a string of several lines nothing is a key.
            _, closed, line = line.partition(quote)  # noqa: PLW2901
            quote = "" if closed else quote
            continue
        if not depth:
            if header := _HEADER.match(line):
                table = _words(header[2])
                if header[1] == "[[":
                    index = arrays[header[2]] = arrays.get(header[2], -1) + 1
                    table = (*table, index)
                found.setdefault(key_of(table), number)
                continue
            if entry := _ENTRY.match(line):
                words = _words(entry[1])
                for end in range(1, len(words) + 1):
                    found.setdefault(key_of((*table, *words[:end])), number)
                line = line[entry.end() :]  # noqa: PLW2901
        for mark in ('"""', "'''"):
            if line.count(mark) % 2:
                quote = mark
        bare = re.sub(_STRING, "", line).partition("#")[0]
        depth = max(0, depth + bare.count("[") - bare.count("]"))
    return found


def _words(dotted: str) -> tuple[str, ...]:
    # Escapes within quoted keys are left as they are: nobody is told a line for such a key.
    return tuple(word.strip("\"'") for word in re.findall(_WORD, dotted))


# ---- what is wrong -----------------------------------------------------------------------


def _syntax_error(source: Path, text: str, error: tomllib.TOMLDecodeError) -> InventoryError:
    words = str(error)
    lines = text.splitlines() or [""]
    place = re.search(r" \(at line (\d+), column (\d+)\)$", words)
    if place:
        line, column = int(place[1]), int(place[2])
        words = words[: place.start()]
    else:
        line, column = len(lines), len(lines[-1]) + 1
        words = words.removesuffix(" (at end of document)") + " at the end of the file"
    shown = lines[line - 1] if line <= len(lines) else ""
    start = max(0, column - 60)
    shown = "".join(c if c.isprintable() else " " for c in shown[start : start + 100])
    return InventoryError(
        f"{source}:{line}:{column}: not TOML: {words}",
        seen=f"{line} | {shown}\n{' ' * len(str(line))} | {' ' * (column - 1 - start)}^",
    )


def _problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    problems = []
    for detail in error.errors(include_url=False):
        where = tuple(part for part in detail["loc"] if part != "[key]")
        key = key_of(where)
        if detail["type"] == "extra_forbidden":
            known = _fields(model, where[:-1])
            text = f"unknown key{nearest(str(where[-1]), known)}"
            text += f" (known: {', '.join(known)})"
            problems.append(Problem(key, text))
        elif detail["type"] == "missing":
            problems.append(Problem(key, "missing; it must be given"))
        else:
            text = _plain(detail["msg"])
            if detail["type"] in ("literal_error", "enum"):
                text += nearest(str(detail["input"]), re.findall(r"'([^']*)'", text))
            problems.append(Problem(key, text, bounded(detail["input"])))
    return problems


def _plain(message: str) -> str:
    """A message of pydantic's in TOML's words."""
    text = message.removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    for theirs, ours in (
        ("an object", "a table"),
        ("a valid array", "a list"),
        ("a valid tuple", "a list"),
        ("a valid dictionary", "a table"),
        ("a valid mapping", "a table"),
    ):
        text = text.replace(theirs, ours)
    return text


def _fields(model: type[BaseModel], where: Sequence[object]) -> list[str]:
    """Names of the keys that the table at ``where`` may have."""
    kind: Any = model
    for part in where:
        kind = kind.model_fields[part].annotation if _is_model(kind) else get_args(kind)[-1]
        if type(None) in get_args(kind):  # Model | None
            kind = get_args(kind)[0]
    return list(kind.model_fields)


def _is_model(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)
