"""Word expansion of the simulated shell: parameters, substitutions, fields, patterns, paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hil.simulated.files import Files
from hil.simulated.grammar import Arithmetic, List, Parameter, Substitution, Text, Word

#: A run of characters, and whether they were quoted.
Run = tuple[str, bool]
_GLOB = re.compile(r"[*?\[]")


class ExpansionError(Exception):
    """An expansion that ends the shell: ``${x:?}``, or an unset name under ``set -u``."""


class Environment(Protocol):
    """What words are expanded in: a shell."""

    directory: str
    files: Files
    parameters: list[str]

    def value(self, name: str) -> str | None:
        """A variable's or special parameter's value; ``None`` if it is unset."""
        ...

    def assign(self, name: str, value: str) -> None: ...

    def substitute(self, body: List) -> str:
        """The output of commands."""
        ...

    def unset_is_error(self) -> bool:
        """Whether ``set -u`` is on."""
        ...

    def paths_are_expanded(self) -> bool:
        """Whether ``set -f`` is off."""
        ...


@dataclass
class _Builder:
    """Fields under construction."""

    separators: str
    splitting: bool
    done: list[list[Run]] = field(default_factory=list)
    current: list[Run] | None = None

    def add(self, text: str, *, quoted: bool) -> None:
        if self.current is None:
            self.current = []
        self.current.append((text, quoted))

    def end_field(self) -> None:
        if self.current is not None:
            self.done.append(self.current)
        self.current = None

    def add_value(self, text: str, *, quoted: bool) -> None:
        """A value that came out of an expansion: split, unless it was quoted."""
        if quoted or not self.splitting:
            self.add(text, quoted=quoted)
            return
        blanks = "".join(c for c in self.separators if c in " \t\n")
        others = "".join(c for c in self.separators if c not in " \t\n")
        at = 0
        while at < len(text):
            start = at
            while at < len(text) and text[at] not in self.separators:
                at += 1
            if at > start:
                self.add(text[start:at], quoted=False)
            if at >= len(text):
                break
            separator = at
            while at < len(text) and text[at] in blanks:
                at += 1
            if at < len(text) and text[at] in others:
                at += 1
                if self.current is None:
                    self.current = []
                while at < len(text) and text[at] in blanks:
                    at += 1
            if at > separator:
                self.end_field()


def fields(words: Iterable[Word], shell: Environment) -> list[str]:
    """All that ``words`` expand to, as arguments."""
    found: list[str] = []
    for word in words:
        for runs in _expand(word, shell, splitting=True):
            found.extend(_paths(runs, shell))
    return found


def one(word: Word, shell: Environment) -> str:
    """``word`` expanded to a single string: an assignment's value, a redirection's target."""
    return " ".join(_plain(runs) for runs in _expand(word, shell, splitting=False))


def pattern(word: Word, shell: Environment) -> re.Pattern[str]:
    """``word`` as a pattern of ``case``, to be matched whole."""
    runs = [run for each in _expand(word, shell, splitting=False) for run in each]
    return re.compile(_regex(runs), re.DOTALL)


def _plain(runs: Sequence[Run]) -> str:
    return "".join(text for text, _ in runs)


def _expand(word: Word, shell: Environment, *, splitting: bool) -> list[list[Run]]:
    separators = shell.value("IFS")
    builder = _Builder(" \t\n" if separators is None else separators, splitting)
    for index, part in enumerate(word):
        if isinstance(part, Text):
            text = part.text
            if index == 0 and not part.quoted and text.startswith("~"):
                name, slash, rest = text.partition("/")
                if name == "~" and (slash or len(word) == 1):
                    builder.add(shell.value("HOME") or "", quoted=True)
                    text = slash + rest
            builder.add(text, quoted=part.quoted)
        elif isinstance(part, Parameter):
            _parameter(part, shell, builder)
        elif isinstance(part, Substitution):
            builder.add_value(shell.substitute(part.body), quoted=part.quoted)
        else:
            builder.add_value(str(_arithmetic(part, shell)), quoted=part.quoted)
    builder.end_field()
    return builder.done


def _parameter(part: Parameter, shell: Environment, builder: _Builder) -> None:
    operator, quoted = part.operator, part.quoted
    if part.name in "@*" and not operator:
        _positional(part, shell, builder)
        return
    value = shell.value(part.name)
    if operator == "length":
        builder.add_value(str(len(value or "")), quoted=quoted)
        return
    missing = value is None or (operator.startswith(":") and not value)
    action = operator.removeprefix(":")
    if action == "+":
        if not missing:
            _alternative(part.word, shell, builder, quoted=quoted)
        elif quoted:
            builder.add("", quoted=True)
        return
    if missing and action == "-":
        _alternative(part.word, shell, builder, quoted=quoted)
        return
    if missing and action == "=":
        value = one(part.word, shell)
        shell.assign(part.name, value)
    elif missing and action == "?":
        message = one(part.word, shell) or "parameter not set"
        raise ExpansionError(f"{part.name}: {message}")
    elif value is None and action not in ("-", "+", "=", "?") and shell.unset_is_error():
        raise ExpansionError(f"{part.name}: parameter not set")
    text = value or ""
    if operator and operator[0] in "%#":
        text = _trim(text, operator, part.word, shell)
    if value is None and not quoted:
        return
    if text or quoted:
        builder.add_value(text, quoted=quoted)


def _alternative(word: Word, shell: Environment, builder: _Builder, *, quoted: bool) -> None:
    for index, runs in enumerate(_expand(word, shell, splitting=False)):
        if index:
            builder.end_field()
        for text, was_quoted in runs:
            builder.add_value(text, quoted=quoted or was_quoted)


def _positional(part: Parameter, shell: Environment, builder: _Builder) -> None:
    separators = shell.value("IFS")
    if part.quoted and part.name == "*":
        glue = " " if separators is None else separators[:1]
        builder.add(glue.join(shell.parameters), quoted=True)
        return
    for index, value in enumerate(shell.parameters):
        if index:
            if builder.splitting:
                builder.end_field()
            else:
                builder.add(" ", quoted=True)
        builder.add_value(value, quoted=part.quoted)


def _trim(text: str, operator: str, word: Word, shell: Environment) -> str:
    runs = [run for each in _expand(word, shell, splitting=False) for run in each]
    matches = re.compile(_regex(runs), re.DOTALL).fullmatch
    lengths = range(len(text) + 1)
    for length in reversed(lengths) if len(operator) == 2 else lengths:
        if operator[0] == "#" and matches(text[:length]):
            return text[length:]
        if operator[0] == "%" and matches(text[len(text) - length :]):
            return text[: len(text) - length]
    return text


def _regex(runs: Iterable[Run]) -> str:
    return "".join(re.escape(text) if quoted else glob(text) for text, quoted in runs)


def glob(text: str) -> str:
    """A file name pattern as a regular expression."""
    pieces = []
    at = 0
    while at < len(text):
        c = text[at]
        at += 1
        if c == "*":
            pieces.append(".*")
        elif c == "?":
            pieces.append(".")
        elif c == "\\" and at < len(text):
            pieces.append(re.escape(text[at]))
            at += 1
        elif c == "[" and (found := re.compile(r"([!^]?)(\]?[^\]]*)\]").match(text, at)):
            inside = re.sub(r"\[:(\w+):\]", _character_class, found.group(2)).replace("\\", r"\\")
            pieces.append(f"[{'^' if found.group(1) else ''}{inside.replace('[', chr(92) + '[')}]")
            at = found.end()
        else:
            pieces.append(re.escape(c))
    return "".join(pieces)


_CLASSES = {"digit": "0-9", "alpha": "a-zA-Z", "alnum": "a-zA-Z0-9", "space": r"\s", "upper": "A-Z"}


def _character_class(found: re.Match[str]) -> str:
    return _CLASSES.get(found.group(1), "")


def _paths(runs: Sequence[Run], shell: Environment) -> list[str]:
    """The names that a field's unquoted pattern matches; the field itself if none does."""
    plain = _plain(runs)
    if not shell.paths_are_expanded() or not any(not q and _GLOB.search(t) for t, q in runs):
        return [plain]
    # Take the pattern apart at its slashes, keeping what was quoted.
    levels: list[list[Run]] = [[]]
    for text, quoted in runs:
        first, *rest = text.split("/")
        levels[-1].append((first, quoted))
        levels.extend([(piece, quoted)] for piece in rest)
    found = [""] if plain.startswith("/") else [None]
    names: list[str] = [name if name is not None else "" for name in found]
    absolute = plain.startswith("/")
    for index, level in enumerate(levels[1:] if absolute else levels):
        names = _level(names, level, shell, absolute=absolute, first=index == 0)
    return names or [plain]


def _level(
    names: list[str], level: list[Run], shell: Environment, *, absolute: bool, first: bool
) -> list[str]:
    literal = _plain(level)
    grown = []
    for name in names:
        below = f"{name}/" if absolute or not first else ""
        folder = below if absolute else f"{shell.directory.rstrip('/')}/{below}"
        if any(not quoted and _GLOB.search(text) for text, quoted in level):
            matches = re.compile(_regex(level), re.DOTALL).fullmatch
            hidden = literal.startswith(".")
            grown += [
                below + each
                for each in shell.files.matching(folder, lambda n: bool(matches(n)))  # noqa: B023 - used at once
                if hidden or not each.startswith(".")
            ]
        elif shell.files.exists(folder + literal):
            grown.append(below + literal)
    return grown


# Arithmetic: C's integer expressions, as POSIX asks for (section 2.6.4).

_TOKEN = re.compile(
    r"\s*(0[xX][0-9a-fA-F]+|[0-9]+|[A-Za-z_][A-Za-z0-9_]*"
    r"|<<=|>>=|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|[-+*/%&|^~!<>=?:()])"
)
_LEVELS: tuple[tuple[str, ...], ...] = (
    ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", "<=", ">", ">="),
    ("<<", ">>"), ("+", "-"), ("*", "/", "%"),
)  # fmt: skip


def _arithmetic(part: Arithmetic, shell: Environment) -> int:
    text = one(part.expression, shell)
    return _Computation(text, shell).result()


class _Computation:
    def __init__(self, text: str, shell: Environment) -> None:
        self._shell = shell
        self._text = text
        self._tokens: list[str] = []
        at = 0
        while at < len(text.rstrip()):
            token = _TOKEN.match(text, at)
            if not token:
                raise self._wrong()
            self._tokens.append(token.group(1))
            at = token.end()

    def _wrong(self) -> ExpansionError:
        return ExpansionError(f'arithmetic expression: expecting primary: "{self._text}"')

    def result(self) -> int:
        if not self._tokens:
            return 0
        value = self._assignment()
        if self._tokens:
            raise self._wrong()
        return value

    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _assignment(self) -> int:
        if len(self._tokens) > 1 and re.fullmatch(r"(<<|>>|[-+*/%&|^])?=", self._tokens[1]):
            name, operator = self._tokens.pop(0), self._tokens.pop(0)
            value = self._assignment()
            if operator != "=":
                value = self._apply(operator[:-1], self._variable(name), value)
            self._shell.assign(name, str(value))
            return value
        condition = self._binary(0)
        if self._next() != "?":
            return condition
        self._tokens.pop(0)
        yes = self._assignment()
        if self._next() != ":":
            raise self._wrong()
        self._tokens.pop(0)
        no = self._assignment()
        return yes if condition else no

    def _binary(self, level: int) -> int:
        if level == len(_LEVELS):
            return self._unary()
        value = self._binary(level + 1)
        while self._next() in _LEVELS[level]:
            operator = self._tokens.pop(0)
            value = self._apply(operator, value, self._binary(level + 1))
        return value

    def _unary(self) -> int:
        token = self._next()
        if not token:
            raise self._wrong()
        self._tokens.pop(0)
        unary: dict[str, Callable[[int], int]] = {
            "-": lambda v: -v,
            "+": lambda v: v,
            "!": lambda v: int(not v),
            "~": lambda v: ~v,
        }
        if token in unary:
            return unary[token](self._unary())
        if token == "(":  # noqa: S105 - no password
            value = self._assignment()
            if self._next() != ")":
                raise self._wrong()
            self._tokens.pop(0)
            return value
        if token[0].isdigit():
            return _integer(token)
        if token[0].isalpha() or token[0] == "_":
            return self._variable(token)
        raise self._wrong()

    def _variable(self, name: str) -> int:
        text = (self._shell.value(name) or "0").strip()
        try:
            return _integer(text)
        except ValueError:
            raise self._wrong() from None

    def _apply(self, operator: str, left: int, right: int) -> int:
        if operator in "/%" and right == 0:
            raise ExpansionError(f'arithmetic expression: division by zero: "{self._text}"')
        quotient = abs(left) // abs(right or 1) * (1 if (left < 0) == (right < 0) else -1)
        value = {
            "+": left + right,
            "-": left - right,
            "*": left * right,
            "/": quotient,
            "%": left - quotient * right,
            "<<": left << (right & 63),
            ">>": left >> (right & 63),
            "<": int(left < right),
            "<=": int(left <= right),
            ">": int(left > right),
            ">=": int(left >= right),
            "==": int(left == right),
            "!=": int(left != right),
            "&": left & right,
            "|": left | right,
            "^": left ^ right,
            "&&": int(bool(left) and bool(right)),
            "||": int(bool(left) or bool(right)),
        }[operator]
        # intmax_t wraps.
        return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _integer(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    if digits.lower().startswith("0x"):
        return sign * int(digits, 16)
    if digits.startswith("0") and len(digits) > 1:
        return sign * int(digits, 8)
    return sign * int(digits)
