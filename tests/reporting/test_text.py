"""Text of hosts and guests, made fit for a report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.reporting.text import _NAMED, REDACTED, clean, cut_middle, one_line, redact

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        "password: hunter2",
        "PASSWORD=hunter2",
        "root_password = 'hunter2'",
        '{"token": "hunter2"}',
        '{"api_key":"hunter2"}',
        "auth-token=hunter2,",
        "sshpass -p hunter2 ssh host",
        "Authorization: Bearer hunter2",
        "https://user:hunter2@host/path",
        "passphrase 'hunter2'",
        KEY.replace("b3Bl", "hunter2"),
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2 cut short",
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    redacted = redact(f"before {text} after")
    assert "hunter2" not in redacted
    assert REDACTED in redacted
    assert redacted.startswith("before ")


@given(st.from_regex(_NAMED))
def test_nothing_that_names_a_secret_is_passed_over(text: str) -> None:
    assert REDACTED in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "the token ring driver",
        "pci 0000:01:00.0: reset",
        "login: root",
        "-----BEGIN CERTIFICATE-----",
        "no password was asked for",
        "host:/path user@host",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


def test_a_public_key_stays_and_text_around_a_private_one_too() -> None:
    assert redact(f"a\n{KEY}\nb").startswith("a\n-----BEGIN OPENSSH PRIVATE KEY-----")
    assert redact(f"a\n{KEY}\nb").endswith("\nb")
    assert redact("ssh-ed25519 AAAAC3Nz me") == "ssh-ed25519 AAAAC3Nz me"


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]0;title\x1b\\text", "text"),
        ("50%\r100%\ndone\r\n", "100%\ndone\n"),
        ("a\x00b\x07", "a\ufffdb\ufffd"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\ud800", "?"),
    ],
)
def test_text_is_what_a_person_would_have_seen(raw: str, seen: str) -> None:
    assert clean(raw) == seen


@given(st.text())
def test_cleaned_text_can_be_written_and_is_stable(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert "\x1b" not in cleaned
    assert clean(cleaned) == cleaned


@given(st.text(max_size=400), st.integers(1, 100))
def test_one_line_is_one_line_of_at_most_so_many_characters(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1


@given(st.text(max_size=300), st.integers(2, 100))
def test_a_cut_keeps_head_and_tail_and_says_so(text: str, limit: int) -> None:
    cut = cut_middle(text, limit)
    if len(text) <= limit:
        assert cut == text
    else:
        assert cut.startswith(text[: limit // 2])
        assert cut.endswith(text[-(limit - limit // 2) :])
        assert f"{len(text) - limit} characters left out" in cut


def test_hostile_text_costs_linear_time() -> None:
    # Would take hours if a pattern were quadratic in the length.
    for piece in ("a-", "x", "\r", "\x1b]", "password", " ", "-----BEGIN A PRIVATE KEY-----"):
        redact(clean(piece * (1_000_000 // len(piece))))
