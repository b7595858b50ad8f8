"""Jenkins' declarative pipelines: Groovy by its grammar, then what a pipeline may hold.

The grammar is that of groovy-parser, Groovy 3's own put into Python.  It knows nothing of
pipelines, so :func:`mistakes` looks at the sections:
https://www.jenkins.io/doc/book/pipeline/syntax/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Block:
    """A call: ``name 'argument', key: value { body }``."""

    name: str
    words: tuple[str, ...]
    """The string literals among its arguments."""
    text: str
    """All before its body, without spaces."""
    body: tuple[Block, ...] | None = None

    def __iter__(self) -> Iterator[Block]:
        return iter(self.body or ())

    def get(self, name: str) -> Block:
        return next(block for block in self if block.name == name)

    def all(self, name: str) -> Iterator[Block]:
        """Every block of a name, however deep."""
        for block in self:
            if block.name == name:
                yield block
            yield from block.all(name)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    structural: bool
    """Not within a string."""


def parse(text: str) -> Block:
    """The pipeline.

    Raises:
        lark.exceptions.LarkError: it is not Groovy.
    """
    from groovy_parser.parser import parse_groovy_content
    from lark import Token

    tree: Any = parse_groovy_content(text)
    tokens = []
    for token in tree.scan_values(lambda value: isinstance(value, Token)):
        kind, plain, _ = token.value
        tokens.append(_Token(token.type, str(plain), "GString" not in str(kind)))
    body, rest = _blocks(tokens, 0)
    assert rest == len(tokens)
    return Block("", (), "", body)


def _blocks(tokens: list[_Token], at: int) -> tuple[tuple[Block, ...], int]:
    """The calls from ``at`` to the end of their block."""
    found: list[Block] = []
    head: list[_Token] = []
    depth = 0

    def end(body: tuple[Block, ...] | None = None) -> None:
        if head:
            words = tuple(t.text for t in head if t.kind == "STRING_LITERAL")
            text = "".join(t.text for t in head)
            found.append(Block(head[0].text, words, text, body))
            head.clear()

    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token.structural and depth == 0 and token.kind == "LBRACE":
            body, at = _blocks(tokens, at)
            end(body)
        elif token.structural and depth == 0 and token.kind == "RBRACE":
            end()
            return tuple(found), at
        elif depth == 0 and token.kind in ("NL", "SEMI"):
            end()
        elif token.kind != "NL":
            depth += (token.kind in ("LPAREN", "LBRACK")) - (token.kind in ("RPAREN", "RBRACK"))
            head.append(token)
    end()
    return tuple(found), at


_STAGE = {"agent", "environment", "failFast", "input", "options", "post", "tools", "when"}
_WORK = {"matrix", "parallel", "stages", "steps"}
#: Section → what it may hold.
_MAY: Mapping[str, set[str]] = {
    "pipeline": {
        *("agent", "environment", "libraries", "options", "parameters", "post", "stages"),
        *("tools", "triggers"),
    },
    "stages": {"stage"},
    "parallel": {"stage"},
    "stage": _STAGE | _WORK,
    "matrix": {"axes", "excludes", "stages"} | _STAGE,
    "axes": {"axis"},
    "axis": {"name", "values", "notValues"},
    "agent": {"label", "node", "docker", "dockerfile", "kubernetes"},
    "parameters": {"string", "booleanParam", "choice", "text", "password"},
    "triggers": {"cron", "pollSCM", "upstream"},
    "options": {
        *("buildDiscarder", "disableConcurrentBuilds", "disableResume", "lock", "retry"),
        *("quietPeriod", "skipDefaultCheckout", "skipStagesAfterUnstable", "timeout", "timestamps"),
    },
    "post": {
        *("aborted", "always", "changed", "cleanup", "failure", "fixed", "regression"),
        *("success", "unstable", "unsuccessful"),
    },
    "when": {
        *("allOf", "anyOf", "beforeAgent", "beforeInput", "beforeOptions", "branch"),
        *("environment", "equals", "expression", "not", "triggeredBy"),
    },
}
#: Section → what it must hold; of the words in one text, exactly one.
_MUST: Mapping[str, tuple[str, ...]] = {
    "pipeline": ("agent", "stages"),
    "stages": ("stage",),
    "stage": (" ".join(sorted(_WORK)),),
    "matrix": ("axes", "stages"),
    "axes": ("axis",),
    "axis": ("name", "values"),
}
#: What holds steps, and every step that is known here.
_STEPS_IN = {"steps", "script", "catchError", "dir", "lock", "node", "timeout", "for"} | _MAY[
    "post"
]
_STEPS = {
    *("allure", "archiveArtifacts", "catchError", "deleteDir", "dir", "echo", "for", "junit"),
    *("lock", "node", "script", "sh", "stash", "timeout", "unstash"),
}


def mistakes(root: Block) -> list[str]:
    """What a Jenkins server would refuse, one line each."""
    if [block.name for block in root] != ["pipeline"]:
        return [f"not one pipeline but: {[block.name for block in root]}"]
    return list(_mistakes(root.get("pipeline")))


def _mistakes(section: Block) -> Iterator[str]:
    names = [block.name for block in section]
    known = _MAY.get(section.name) or (_STEPS if section.name in _STEPS_IN else None)
    if section.name in ("environment", "expression"):
        return
    if known is None:
        if section.body is not None:
            yield f"{section.name} is no section and no step with a body"
        return
    if section.body is not None and not names:
        yield f"{section.text} is empty"
    for name in names:
        if name not in known:
            yield f"{section.text} holds {name}"
    for choice in _MUST.get(section.name, ()):
        there = [word for word in choice.split() if word in names]
        if section.body is not None and len(there) != 1:
            yield f"{section.text} has {there} where one of '{choice}' must be"
    once = (_MAY["pipeline"] | _STAGE | _WORK) if section.name in ("pipeline", "stage") else set()
    for name in sorted(once):
        if names.count(name) > 1:
            yield f"{section.text} has {name} twice"
    for block in section:
        if block.body is not None:
            yield from _mistakes(block)
        elif block.name in ("stages", "steps", "stage", "post", "matrix"):
            yield f"{block.text} has no body"
