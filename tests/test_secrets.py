"""What hil was told to keep to itself."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil import secrets
from hil.lab.load import parse
from hil.lab.secrets import remember
from hil.transport import keys


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", {})


SECRET = 'it\'s a "secret" with ü/%'


@pytest.mark.parametrize(
    "shown",
    [
        SECRET,
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        repr(SECRET),
        shlex.quote(SECRET),
        f"https://user:{quote(SECRET)}@host/",
        f"https://user:{quote(SECRET, safe='')}@host/",
        base64.b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_secret_is_found_however_it_is_written(shown: str) -> None:
    secrets.remember(SECRET)
    taken = secrets.take_out(f"before {shown} after")
    assert secrets.REDACTED in taken
    assert "secret" not in taken.lower()
    assert taken.startswith("before ")
    assert taken.endswith(" after")


def test_a_short_secret_is_taken_out_as_a_word_only() -> None:
    secrets.remember("calvin")
    assert secrets.take_out("-P calvin, calvinism") == "-P [redacted], calvinism"


def test_what_is_too_short_to_be_a_secret_is_left() -> None:
    secrets.remember("abc")
    secrets.remember("")
    secrets.remember("   ")
    assert secrets.take_out("abc   ") == "abc   "


def test_a_secret_within_another_leaves_nothing_of_the_longer() -> None:
    secrets.remember("swordfish")
    secrets.remember("swordfish-and-more")
    assert secrets.take_out("swordfish-and-more") == secrets.REDACTED


def test_each_line_of_a_key_is_a_secret() -> None:
    pair = keys.generate()
    secrets.remember_key(pair.private)
    for line in pair.private.splitlines():
        if "-----" not in line and len(line) >= secrets.KEY_LINE:
            assert line not in secrets.take_out(f"$ echo {line!r} >key")
    assert secrets.take_out(pair.public) != ""


@given(st.lists(st.text(min_size=1, max_size=30), max_size=5), st.text(max_size=200))
def test_any_secrets_and_any_text(found: list[str], text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "_known", {})
        for secret in found:
            secrets.remember(secret)
        taken = secrets.take_out(text + "".join(found))
        for secret in map(str.strip, found):
            if len(secret) >= secrets.SHORT and secret not in secrets.REDACTED:
                assert secret not in taken.replace(secrets.REDACTED, "\0")


def test_an_inventory_leads_to_its_secrets(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(keys.generate().private)
    (tmp_path / "bmc.secret").write_text("correct horse\nnot the password\n")
    text = """
        [lab]
        name = "rack"
        kind = "physical"
        [hosts.alpha]
        platform = "linux-vfio"
        address = "alpha.example.org"
        key_file = "key"
        power = { driver = "ipmi", address = "b", user = "u", password_file = "bmc.secret" }
        console = ["ipmitool", "-P", "battery", "--password=staple", "sol", "activate"]
        [hosts.beta]
        platform = "linux-vfio"
        address = "beta.example.org"
        key_file = "missing"
        [hosts.beta.power]
        driver = "labgrid"
        model = "rest"
        address = "http://u:tr%6Fub@pdu"
        index = "1"
    """
    remember(parse(text, tmp_path / "rack.toml"))
    middle = (tmp_path / "key").read_text().splitlines()[3]
    shown = f"correct horse / battery / staple / tr%6Fub / troub / {middle} / not the password"
    assert secrets.take_out(shown) == " / ".join(["[redacted]"] * 6) + " / not the password"
