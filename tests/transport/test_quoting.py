from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import InventoryError
from hil.transport.quoting import quote

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
@settings(max_examples=40, deadline=None)
@given(arguments=st.lists(words, max_size=5))
def test_a_shell_splits_it_back_into_the_same_words(shell: str, arguments: list[str]) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    start = ["busybox", "sh"] if shell == "busybox" else [shell]
    line = quote(["printf", "%s\\0", "x", *arguments])
    out = subprocess.run([*start, "-c", line], capture_output=True, check=True).stdout
    assert out.decode().split("\0")[:-1] == ["x", *arguments]


@pytest.mark.parametrize("first", ["A=b", "if", "!", "{", "time", "a b", "~", "*"])
def test_the_first_word_is_a_program_and_nothing_else(first: str) -> None:
    done = subprocess.run(["bash", "-c", quote([first, "x"])], capture_output=True, check=False)
    assert done.returncode == 127, done.stderr


@pytest.mark.parametrize("command", [[], "ls -l", ["a\0b"]])
def test_what_is_no_argument_list_is_refused(command: list[str]) -> None:
    with pytest.raises(InventoryError):
        quote(command)
