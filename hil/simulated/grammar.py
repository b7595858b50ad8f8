"""The grammar of the simulated hosts' shell: text in, a tree of frozen nodes out.

What POSIX calls the Shell Command Language (IEEE Std 1003.1, chapter 2), as far as
FreeBSD's sh(1) goes without editing, aliases and job control.  :mod:`hil.simulated.shell`
runs the tree.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

#: The words that begin, divide or end a compound command.
RESERVED = frozenset(
    "if then elif else fi while until for in do done case esac { } !".split()  # noqa: SIM905
)
#: Those of them that can only stand where a list of commands ends.
_CLOSING = frozenset("then elif else fi do done esac }".split())  # noqa: SIM905
_OPERATORS = (
    "<<-", "&&", "||", ";;", "<<", ">>", "<&", ">&", "<>", ">|",
    "&", "|", ";", "<", ">", "(", ")", "\n",
)  # fmt: skip
_REDIRECTIONS = frozenset({"<", ">", ">>", "<<", "<<-", "<&", ">&", "<>", ">|"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]")
#: The characters that a backslash quotes within double quotes.
_ESCAPED_IN_QUOTES = '$`"\\\n'


class ShellSyntaxError(Exception):
    """Text that is no shell command; the message is sh's, without the name before it.

    ``incomplete`` says that more text could make it one: what a prompt waits for.
    """

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.incomplete = incomplete


@dataclass(frozen=True, slots=True)
class Text:
    """Characters that stand for themselves; ``quoted`` ones are no pattern."""

    text: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """``$name`` or ``${name OPERATOR word}``; operator ``"length"`` is ``${#name}``."""

    name: str
    quoted: bool
    operator: str = ""
    word: Word = ()


@dataclass(frozen=True, slots=True)
class Substitution:
    """``$(body)`` or the same between backquotes."""

    body: List
    quoted: bool


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """``$((expression))``; the expression is expanded before it is computed."""

    expression: Word
    quoted: bool


Part: TypeAlias = Text | Parameter | Substitution | Arithmetic
Word: TypeAlias = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Redirection:
    """``[descriptor]operator target``; a here-document's target is its text."""

    descriptor: int
    operator: str
    target: Word


@dataclass(frozen=True, slots=True)
class Simple:
    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]
    redirections: tuple[Redirection, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """``{ body }``, or with ``subshell`` ``( body )``."""

    body: List
    subshell: bool
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class If:
    branches: tuple[tuple[List, List], ...]
    otherwise: List | None
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """``while``, or with ``until`` its opposite."""

    condition: List
    body: List
    until: bool
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class For:
    """Without ``words`` it runs over the positional parameters."""

    name: str
    words: tuple[Word, ...] | None
    body: List
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    subject: Word
    branches: tuple[tuple[tuple[Word, ...], List], ...]
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    body: Command


Command: TypeAlias = Simple | Group | If | Loop | For | Case | Function


@dataclass(frozen=True, slots=True)
class Pipeline:
    commands: tuple[Command, ...]
    negated: bool
    text: str
    """As it was written: what a job is called."""


@dataclass(frozen=True, slots=True)
class AndOr:
    """Pipelines, each but the first with what stands before it: ``&&`` or ``||``."""

    first: Pipeline
    rest: tuple[tuple[str, Pipeline], ...]
    background: bool


@dataclass(frozen=True, slots=True)
class List:
    items: tuple[AndOr, ...] = ()


@functools.lru_cache(maxsize=256)
def parse(text: str) -> List:
    """The commands in ``text``; scripts come again and again.

    Raises:
        ShellSyntaxError: it is none, or not a whole one.
    """
    parser = _Parser(text)
    commands = parser.list_until(lambda: parser.at_end)
    parser.take_here_documents()
    return commands


@dataclass
class _Pending:
    """A here-document whose text comes after the line's end."""

    delimiter: str
    quoted: bool
    strip_tabs: bool


@dataclass
class _Parser:
    text: str
    at: int = 0
    pending: list[_Pending] = field(default_factory=list)

    # Characters and tokens

    @property
    def at_end(self) -> bool:
        self.skip_blanks()
        return self.at >= len(self.text)

    def skip_blanks(self) -> None:
        while self.at < len(self.text):
            if self.text[self.at] in " \t":
                self.at += 1
            elif self.text.startswith("\\\n", self.at):
                self.at += 2
            elif self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return

    def operator(self) -> str:
        """The operator that stands next, without taking it; empty if there is none."""
        self.skip_blanks()
        for operator in _OPERATORS:
            if self.text.startswith(operator, self.at):
                return operator
        return ""

    def accept(self, *operators: str) -> str:
        found = self.operator()
        if found and found in operators:
            self.at += len(found)
            if found == "\n":
                self.take_here_documents()
            return found
        return ""

    def expect(self, operator: str) -> None:
        if not self.accept(operator):
            raise self.unexpected(f'"{operator}"')

    def newlines(self) -> None:
        while self.accept("\n"):
            pass

    def reserved(self) -> str:
        """The reserved word that stands next, unquoted, without taking it."""
        self.skip_blanks()
        found = re.compile(r"[a-z{}!]+").match(self.text, self.at)
        if not found or found.group() not in RESERVED:
            return ""
        after = self.text[found.end() : found.end() + 1]
        return (
            found.group()
            if after in ("", " ", "\t", "\n", ";", "&", "|", "(", ")", "<", ">")
            else ""
        )

    def accept_word(self, *words: str) -> str:
        found = self.reserved()
        if found and found in words:
            self.at += len(found)
            return found
        return ""

    def expect_word(self, word: str) -> None:
        if not self.accept_word(word):
            raise self.unexpected(f'"{word}"')

    def unexpected(self, wanted: str = "") -> ShellSyntaxError:
        self.skip_blanks()
        if self.at >= len(self.text):
            found = "end of file"
        elif operator := self.operator():
            found = "newline" if operator == "\n" else f'"{operator}"'
        elif word := self.reserved():
            found = f'"{word}"'
        else:
            found = "word"
        expecting = f" (expecting {wanted})" if wanted else ""
        return ShellSyntaxError(
            f"Syntax error: {found} unexpected{expecting}", incomplete=found == "end of file"
        )

    # Commands

    def list_until(self, closed: Callable[[], bool]) -> List:
        items: list[AndOr] = []
        while True:
            self.newlines()
            if closed():
                return List(tuple(items))
            items.append(self.and_or())
            if closed():
                return List(tuple(items))
            if self.operator() not in ("\n", ";", "&") and items[-1].background is False:
                raise self.unexpected()
            self.accept(";")

    def compound_list(self, *closing: str) -> List:
        """Commands up to one of the reserved words (or ``)``), which is left standing."""

        def closed() -> bool:
            if self.operator() == ")" or self.operator() == ";;":
                return True
            return self.reserved() in _CLOSING

        commands = self.list_until(closed)
        here = self.operator() or self.reserved()
        if here not in closing or not commands.items:
            raise self.unexpected(f'"{closing[0]}"' if here not in closing else "")
        return commands

    def and_or(self) -> AndOr:
        first = self.pipeline()
        rest: list[tuple[str, Pipeline]] = []
        while operator := self.accept("&&", "||"):
            self.newlines()
            rest.append((operator, self.pipeline()))
        return AndOr(first, tuple(rest), background=bool(self.accept("&")))

    def pipeline(self) -> Pipeline:
        self.skip_blanks()
        start = self.at
        negated = bool(self.accept_word("!"))
        commands = [self.command()]
        while self.accept("|"):
            self.newlines()
            commands.append(self.command())
        return Pipeline(tuple(commands), negated, self.text[start : self.at].strip())

    def command(self) -> Command:
        if self.accept("("):
            body = self.compound_list(")")
            self.expect(")")
            return Group(body, subshell=True, redirections=self.redirections())
        word = self.reserved()
        if word in _CLOSING or word == "in":
            raise self.unexpected()
        if self.accept_word("{"):
            body = self.compound_list("}")
            self.expect_word("}")
            return Group(body, subshell=False, redirections=self.redirections())
        if self.accept_word("if"):
            return self.if_command()
        if self.accept_word("while"):
            return self.loop(until=False)
        if self.accept_word("until"):
            return self.loop(until=True)
        if self.accept_word("for"):
            return self.for_command()
        if self.accept_word("case"):
            return self.case_command()
        return self.simple_or_function()

    def if_command(self) -> If:
        branches = []
        otherwise = None
        while True:
            condition = self.compound_list("then")
            self.expect_word("then")
            branches.append((condition, self.compound_list("fi", "elif", "else")))
            if not self.accept_word("elif"):
                break
        if self.accept_word("else"):
            otherwise = self.compound_list("fi")
        self.expect_word("fi")
        return If(tuple(branches), otherwise, self.redirections())

    def loop(self, *, until: bool) -> Loop:
        condition = self.compound_list("do")
        body = self.do_group()
        return Loop(condition, body, until, self.redirections())

    def do_group(self) -> List:
        self.expect_word("do")
        body = self.compound_list("done")
        self.expect_word("done")
        return body

    def for_command(self) -> For:
        self.skip_blanks()
        name = _NAME.match(self.text, self.at)
        if not name:
            raise ShellSyntaxError("Syntax error: Bad for loop variable")
        self.at = name.end()
        self.newlines()
        words: list[Word] | None = None
        if self.accept_word("in"):
            words = []
            while (word := self.word()) is not None:
                words.append(word)
            if not self.accept(";", "\n"):
                raise self.unexpected('"do"')
        else:
            self.accept(";")
        self.newlines()
        body = self.do_group()
        return For(name.group(), None if words is None else tuple(words), body, self.redirections())

    def case_command(self) -> Case:
        subject = self.word()
        if subject is None:
            raise self.unexpected()
        self.newlines()
        self.expect_word("in")
        branches = []
        self.newlines()
        while not self.accept_word("esac"):
            self.accept("(")
            patterns = []
            while True:
                pattern = self.word()
                if pattern is None:
                    raise self.unexpected('")"')
                patterns.append(pattern)
                if not self.accept("|"):
                    break
            self.expect(")")

            def closed() -> bool:
                return self.operator() == ";;" or self.reserved() == "esac"

            branches.append((tuple(patterns), self.list_until(closed)))
            self.newlines()
            if not self.accept(";;") and self.reserved() != "esac":
                raise self.unexpected('";;"')
            self.newlines()
        return Case(subject, tuple(branches), self.redirections())

    def simple_or_function(self) -> Command:
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirections: list[Redirection] = []
        while True:
            redirection = self.redirection()
            if redirection:
                redirections.append(redirection)
                continue
            self.skip_blanks()
            assignment = None if words else _ASSIGNMENT.match(self.text, self.at)
            if assignment:
                self.at = assignment.end()
                assignments.append((assignment.group(1), self.glued_word()))
                continue
            start = self.at
            word = self.word()
            if word is None:
                break
            if not words and not assignments and not redirections and self.operator() == "(":
                name = self.text[start : self.at].strip()
                self.expect("(")
                self.expect(")")
                if not _NAME.fullmatch(name):
                    raise ShellSyntaxError("Syntax error: Bad function name")
                self.newlines()
                return Function(name, self.command())
            words.append(word)
        if not (assignments or words or redirections):
            raise self.unexpected()
        # A here-document's text is read at the end of the line: take it when it is needed.
        return Simple(tuple(assignments), tuple(words), self.filled(redirections))

    def redirections(self) -> tuple[Redirection, ...]:
        found = []
        while redirection := self.redirection():
            found.append(redirection)
        return self.filled(found)

    def filled(self, redirections: list[Redirection]) -> tuple[Redirection, ...]:
        """``redirections``, with the texts of here-documents looked up ahead."""
        if not self.pending:
            return tuple(redirections)
        end = self.text.find("\n", self.at)
        if end < 0:
            raise ShellSyntaxError("Syntax error: end of file unexpected", incomplete=True)
        documents: list[Word] = []
        # The rest of the line is parsed later, from the same place; what follows the line is
        # cut out of the text here, once.
        at = end + 1
        for pending in self.pending:
            document, at = _here_document(self.text, at, pending)
            documents.append(document)
        self.text = self.text[: end + 1] + self.text[at:]
        self.pending.clear()
        found = iter(documents)
        return tuple(
            Redirection(r.descriptor, r.operator, next(found)) if r.operator == "<<" else r
            for r in redirections
        )

    def redirection(self) -> Redirection | None:
        self.skip_blanks()
        number = re.compile(r"[0-9]+(?=[<>])").match(self.text, self.at)
        start = self.at
        if number:
            self.at = number.end()
        operator = self.operator()
        if operator not in _REDIRECTIONS:
            self.at = start
            return None
        self.at += len(operator)
        self.skip_blanks()
        begin = self.at
        target = self.word()
        if target is None:
            raise self.unexpected()
        default = 0 if operator.startswith("<") else 1
        descriptor = int(number.group()) if number else default
        if operator in ("<<", "<<-"):
            raw = self.text[begin : self.at]
            quoted = any(c in raw for c in "'\"\\")
            delimiter = "".join(part.text for part in target if isinstance(part, Text))
            self.pending.append(_Pending(delimiter, quoted, operator == "<<-"))
            operator = "<<"
        return Redirection(descriptor, operator, target)

    def take_here_documents(self) -> None:
        if self.pending:
            raise ShellSyntaxError("Syntax error: end of file unexpected", incomplete=True)

    # Words

    def word(self) -> Word | None:
        """The next word; ``None`` where an operator or the end stands."""
        if self.operator() or self.at >= len(self.text):
            return None
        return self.glued_word()

    def glued_word(self) -> Word:
        """The word that begins right here, which may be empty."""
        return _Words(self).until(lambda c: c in " \t\n;&|<>()", quoted=False)


@dataclass
class _Words:
    """Reads the parts of words out of a parser's text."""

    parser: _Parser

    def until(self, stop: Callable[[str], bool], *, quoted: bool) -> Word:
        """Parts up to a character that ``stop`` takes, which is left standing."""
        parser = self.parser
        parts: list[Part] = []
        plain: list[str] = []

        def flush() -> None:
            if plain:
                parts.append(Text("".join(plain), quoted))
                plain.clear()

        while parser.at < len(parser.text):
            c = parser.text[parser.at]
            if stop(c):
                break
            if c == "\\":
                following = parser.text[parser.at + 1 : parser.at + 2]
                if following == "\n":
                    parser.at += 2
                elif not following or (quoted and following not in _ESCAPED_IN_QUOTES + "}"):
                    plain.append("\\")
                    parser.at += 1
                else:
                    flush()
                    parts.append(Text(following, quoted=True))
                    parser.at += 2
            elif c == "'" and not quoted:
                end = parser.text.find("'", parser.at + 1)
                if end < 0:
                    raise _unterminated()
                flush()
                parts.append(Text(parser.text[parser.at + 1 : end], quoted=True))
                parser.at = end + 1
            elif c == '"':
                flush()
                parser.at += 1
                inner = self.until(lambda d: d == '"', quoted=True)
                self.close('"')
                # Empty quotes are a word too.
                parts.extend(inner or (Text("", quoted=True),))
            elif c == "$":
                flush()
                parts.append(self.dollar(quoted=quoted))
            elif c == "`":
                flush()
                parts.append(self.backquotes(quoted=quoted))
            else:
                plain.append(c)
                parser.at += 1
        flush()
        return tuple(parts)

    def close(self, character: str) -> None:
        if not self.parser.text.startswith(character, self.parser.at):
            raise _unterminated()
        self.parser.at += len(character)

    def dollar(self, *, quoted: bool) -> Part:
        parser = self.parser
        if parser.text.startswith("$((", parser.at):
            end = _matching(parser.text, parser.at + 3)
            if end is not None:
                inside = parser.text[parser.at + 3 : end]
                parser.at = end + 2
                expression = _Words(_Parser(inside)).until(lambda _: False, quoted=True)
                return Arithmetic(expression, quoted)
        if parser.text.startswith("$(", parser.at):
            parser.at += 2
            body = parser.list_until(lambda: parser.operator() == ")")
            parser.expect(")")
            return Substitution(body, quoted)
        if parser.text.startswith("${", parser.at):
            return self.braces(quoted=quoted)
        found = _PARAMETER.match(parser.text, parser.at + 1)
        if not found:
            parser.at += 1
            return Text("$", quoted)
        name = found.group()
        if name.isdigit():
            name = name[0]
        parser.at += 1 + len(name)
        return Parameter(name, quoted)

    def braces(self, *, quoted: bool) -> Part:
        parser = self.parser
        parser.at += 2
        length = re.compile(r"#([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*?$!-])\}").match(
            parser.text, parser.at
        )
        if length:
            parser.at = length.end()
            return Parameter(length.group(1), quoted, "length")
        found = _PARAMETER.match(parser.text, parser.at)
        if not found:
            raise ShellSyntaxError("Syntax error: Bad substitution")
        parser.at = found.end()
        operator = re.compile(r":?[-=?+]|%%|%|##|#").match(parser.text, parser.at)
        if not operator:
            self.close_brace()
            return Parameter(found.group(), quoted)
        parser.at = operator.end()
        # The pattern of a trim is a pattern even between double quotes.
        trims = operator.group()[0] in "%#"
        word = self.until(lambda c: c == "}", quoted=quoted and not trims)
        self.close_brace()
        return Parameter(found.group(), quoted, operator.group(), word)

    def close_brace(self) -> None:
        if self.parser.at >= len(self.parser.text):
            raise ShellSyntaxError(
                'Syntax error: end of file unexpected (expecting "}")', incomplete=True
            )
        if self.parser.text[self.parser.at] != "}":
            raise ShellSyntaxError("Syntax error: Bad substitution")
        self.parser.at += 1

    def backquotes(self, *, quoted: bool) -> Part:
        parser = self.parser
        parser.at += 1
        inside: list[str] = []
        escaped = '$`\\"' if quoted else "$`\\"
        while True:
            if parser.at >= len(parser.text):
                raise ShellSyntaxError(
                    "Syntax error: EOF in backquote substitution", incomplete=True
                )
            c = parser.text[parser.at]
            if c == "`":
                parser.at += 1
                return Substitution(parse("".join(inside)), quoted)
            following = parser.text[parser.at + 1 : parser.at + 2]
            if c == "\\" and following and following in escaped:
                inside.append(following)
                parser.at += 2
            else:
                inside.append(c)
                parser.at += 1


def _unterminated() -> ShellSyntaxError:
    return ShellSyntaxError("Syntax error: Unterminated quoted string", incomplete=True)


def _matching(text: str, at: int) -> int | None:
    """Where the ``))`` stands that ends an arithmetic expansion begun before ``at``."""
    depth = 0
    while at < len(text):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            if depth == 0:
                return at if text.startswith("))", at) else None
            depth -= 1
        at += 1
    raise _unterminated()


def _here_document(text: str, at: int, pending: _Pending) -> tuple[Word, int]:
    """The document that begins at ``at``, and where the text goes on after it."""
    lines: list[str] = []
    while at < len(text):
        end = text.find("\n", at)
        line = text[at:] if end < 0 else text[at:end]
        at = len(text) if end < 0 else end + 1
        if pending.strip_tabs:
            line = line.lstrip("\t")
        if line == pending.delimiter:
            body = "".join(f"{each}\n" for each in lines)
            if pending.quoted:
                return (Text(body, quoted=True),), at
            # Double quotes are ordinary characters in a here-document.
            inner = _Parser(body.replace('"', "\0"))
            word = _Words(inner).until(lambda _: False, quoted=True)
            return tuple(
                Text(part.text.replace("\0", '"'), quoted=True) if isinstance(part, Text) else part
                for part in word
            ), at
        lines.append(line)
    raise ShellSyntaxError("Syntax error: end of file unexpected", incomplete=True)
