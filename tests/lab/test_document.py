"""Mistakes in TOML files are told with their lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from hil.errors import InventoryError
from hil.lab.document import InvalidFileError, line_of, parse, read

TEXT = '''\
top = 1
[hosts.alpha]
platform = "x"  # [not.a.table]
words = [
  "a",
  ["b"]
]
"odd name".deep = 1
text = """
platform = 2
"""
after = 1
[[list]]
a = 1
[[list]]
a = 2
[ hosts . beta ]
platform = "x"
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("top", 1),
        ("hosts.alpha", 2),
        ("hosts.alpha.platform", 3),
        ("hosts.alpha.words[1]", 4),
        ('hosts.alpha."odd name".deep', 8),
        ("hosts.alpha.missing", 2),
        ("hosts.alpha.after", 12),
        ("list[0].a", 14),
        ("list[1].a", 16),
        ("hosts.beta.platform", 18),
        ("elsewhere.a", 0),
        ("", 0),
    ],
)
def test_a_key_has_its_line_or_that_of_its_table(key: str, line: int) -> None:
    assert line_of(TEXT, key) == line


@given(st.text(alphabet="[]\"'=.#\\ a\n", max_size=80), st.text(alphabet='[]".a0', max_size=20))
def test_no_text_breaks_the_search_for_a_line(text: str, key: str) -> None:
    assert 0 <= line_of(text, key) <= len(text.splitlines())


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    things: Mapping[str, Inner] = Field(default_factory=dict)


def test_one_mistake_and_several() -> None:
    with pytest.raises(InvalidFileError, match=r"x\.toml:3: things\.a\.size: should be a valid"):
        parse(Outer, '# why\n[things.a]\nsize = "9"\n', Path("x.toml"))
    with pytest.raises(InvalidFileError) as caught:
        parse(Outer, "[things.a]\n[things.b]\nsize = 1\nsise = 2\n", Path("x.toml"))
    assert caught.value.message == "x.toml: 2 mistakes"
    assert caught.value.seen.splitlines() == [
        "line 1: things.a.size: missing; it must be given",
        "line 4: things.b.sise: unknown key; did you mean 'size'? (known: size)",
    ]


def test_a_file_that_is_not_there_is_named_by_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"the policy .* does not exist"):
        read(tmp_path / "none.toml", "the policy")
