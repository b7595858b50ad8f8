"""``hil qualify``: exit codes, and words for mistakes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from hil.cli import main
from hil.reporting.outcome import Status
from tests.qualify.runs import POLICY, folder_of, outcome

OUTCOMES = {
    0: outcome("a"),
    1: outcome("a", Status.FAILED, reason="no FLR"),
    6: outcome("a", Status.SKIPPED, reason="no MSI"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text(POLICY)
    for code, found in OUTCOMES.items():
        folder_of(tmp_path, [found], name=f"run{code}", state={"started": time.time() - 60})
    return tmp_path


@pytest.mark.parametrize("code", OUTCOMES)
def test_the_status_is_the_verdict(
    here: Path, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["qualify", "policy.toml", f"run{code}"]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    words = {0: "QUALIFIED", 1: "NOT QUALIFIED", 6: "NOT ENOUGH EVIDENCE"}
    assert last.endswith(f"passthrough 1.0: {words[code]}")


def test_a_bundle_is_made_and_checked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qualify", "policy.toml", "run1", "--bundle", "out"]) == 1
    assert main(["qualify", "--verify", "out", "run1"]) == 1
    out = capsys.readouterr().out
    assert "✓ run1: its " in out
    assert "passthrough 1.0: not qualified" in out
    with (here / "out" / "verdict.html").open("a") as file:
        file.write(" ")
    assert main(["qualify", "--verify", "out"]) == 7
    assert "not to be relied on" in capsys.readouterr().out
    assert main(["qualify", "--verify", "out", "--json"]) == 7
    assert json.loads(capsys.readouterr().out)["intact"] is False


def test_json_and_a_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qualify", "policy.toml", "run1", "--json", "--html", "v.html"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"]["judgement"] == "not qualified"
    assert (here / "run1").as_uri() in (here / "v.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name a policy and at least one run"),
        (["policy.toml"], "name a policy and at least one run"),
        (["none.toml", "run0"], "the policy none.toml does not exist"),
        (["policy.toml", "."], "is not the folder of a run"),
        (["policy.toml", "run0", "--sign", "key"], "--sign goes with --bundle"),
        (["policy.toml", "run0", "--allowed-signers", "f"], "goes with --verify"),
        (["--verify", "run0"], "is not a bundle"),
        (["--verify", "run0", "--bundle", "b"], "--verify only looks"),
        (["policy.toml", "run0", "--html", "no/where.html"], "cannot be written"),
        (["policy.toml", "run0", "--bundle", "run0"], "there already"),
    ],
)
def test_mistakes_are_told(
    here: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["qualify", *words]) == 5
    assert told in capsys.readouterr().err


def test_a_run_that_is_gone_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["qualify", "policy.toml", "run0", "--bundle", "out"])
    shutil.rmtree(here / "run0")
    assert main(["qualify", "--verify", "out"]) == 0
    assert main(["qualify", "--verify", "out", "run0"]) == 5
    assert "run0" in capsys.readouterr().err
