"""Bundles: whole, signed, and every change to them is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hil import transient
from hil.errors import InventoryError, LabError
from hil.qualify import bundle, render, signing
from hil.qualify.bundle import State, verify
from hil.qualify.evidence import gather
from hil.qualify.judge import judge
from hil.reporting.outcome import Status
from tests.qualify.runs import NOW, POLICY, folder_of, outcome, policy

needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen (openssh-client) is not installed"
)


@pytest.fixture(autouse=True)
def _no_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    def pdf(verdict: object) -> bytes:
        raise LabError("no PDF was made: it takes long")

    monkeypatch.setattr(render, "pdf", pdf)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    first = folder_of(tmp_path / "reports", [outcome("a"), outcome("b")])
    (first / "allure-results" / "x-attachment.txt").write_text("evidence")
    (first / "report.html").write_text("<html>")
    return [first, folder_of(tmp_path / "reports", [outcome("a", reason="again")])]


def make(folder: Path, runs: list[Path], key: Path | None = None) -> tuple[str, ...]:
    records, _ = gather(runs)
    return bundle.write(folder, judge(policy(), records, NOW), POLICY, records, key=key)


def new_key(folder: Path, name: str, passphrase: str = "") -> Path:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f"]
    subprocess.run([*words, str(folder / name)], check=True, stdin=subprocess.DEVNULL)
    return folder / name


def signers(folder: Path, **keys: Path) -> Path:
    file = folder / "allowed_signers"
    lines = [
        f"{name}@example.org {key.with_suffix('.pub').read_text()}" for name, key in keys.items()
    ]
    file.write_text("".join(lines))
    return file


def bad(folder: Path, **more: object) -> dict[str, str]:
    """What is bad about a bundle."""
    checked = verify(folder, **more)  # type: ignore[arg-type]
    found = {check.what: check.text for check in checked.checks if check.state is State.BAD}
    assert checked.intact == (not found)
    return found


def test_a_bundle_has_all_and_holds(tmp_path: Path, runs: list[Path]) -> None:
    folder = tmp_path / "out" / "bundle"
    (note,) = make(folder, runs)
    assert "no PDF was made" in note
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    kept = ("environment.json", "outcomes.jsonl", "plan.json", "run.json")
    assert files == {
        "manifest.json",
        "policy.toml",
        "verdict.html",
        "verdict.json",
        "runs/run0/report.html",
        *(f"runs/run{n}/{name}" for n in range(2) for name in kept),
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "allure-results/x-attachment.txt" in manifest["runs"]["run0"]
    assert (folder / "policy.toml").read_text() == POLICY
    assert bad(folder, originals=runs) == {}
    checked = verify(folder)
    assert (checked.policy, checked.judgement) == ("passthrough 1.0", "qualified")
    states = {check.what: check.state for check in checked.checks}
    assert states == {
        "signature": State.UNKNOWN, "files": State.GOOD, "verdict": State.GOOD
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_bundle_may_be_moved(tmp_path: Path, runs: list[Path]) -> None:
    make(tmp_path / "bundle", runs)
    shutil.rmtree(tmp_path / "reports")
    (tmp_path / "bundle").rename(tmp_path / "moved")
    assert bad(tmp_path / "moved") == {}


def test_a_bundle_is_never_overwritten(tmp_path: Path, runs: list[Path]) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(InventoryError, match="there already"):
        make(tmp_path / "bundle", runs)


def test_a_bundle_within_a_run_is_refused(runs: list[Path]) -> None:
    with pytest.raises(InventoryError, match="within the run run0"):
        make(runs[0] / "bundle", runs)
    assert not (runs[0] / "bundle").exists()


def _append(path: Path) -> None:
    with path.open("a") as file:
        file.write(" ")


def _mend(folder: Path, name: str) -> None:
    """Put right what the manifest says of a file, as whoever forges a bundle would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = bundle._sum(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _change_result(folder: Path) -> None:
    _append(folder / "runs/run0/outcomes.jsonl")


def _change_page(folder: Path) -> None:
    _append(folder / "verdict.html")


def _remove_policy(folder: Path) -> None:
    (folder / "policy.toml").unlink()


def _add_file(folder: Path) -> None:
    (folder / "runs/run0/notes").touch()


def _link(folder: Path) -> None:
    (folder / "verdict.html").rename(folder.parent / "page")
    (folder / "verdict.html").symlink_to("../page")


def _forge_verdict(folder: Path) -> None:
    (folder / "verdict.json").write_text('{"verdict": {"judgement": "qualified"}}')
    _mend(folder, "verdict.json")


def _forge_policy(folder: Path) -> None:
    (folder / "policy.toml").write_text(POLICY + "passes = 9\n")
    _mend(folder, "policy.toml")


def _forge_result(folder: Path) -> None:
    file = folder / "runs" / "run0" / "outcomes.jsonl"
    file.write_text(file.read_text().replace("failed", "passed"))
    _mend(folder, "runs/run0/outcomes.jsonl")


def _break_verdict(folder: Path) -> None:
    (folder / "verdict.json").write_text("{")


CHANGES: list[tuple[Callable[[Path], None], str, str]] = [
    (_change_result, "runs/run0/outcomes.jsonl", "was changed"),
    (_change_page, "verdict.html", "was changed"),
    (_remove_policy, "policy.toml", "is missing"),
    (_add_file, "runs/run0/notes", "was put there afterwards"),
    (_link, "verdict.html", "is a link now"),
    (_forge_verdict, "verdict", "judged anew it comes to not qualified, not qualified"),
    (_forge_policy, "verdict", "not qualified judged anew too, but not for the same reasons"),
    (_forge_result, "verdict", "judged anew it comes to qualified, not not qualified"),
    (_break_verdict, "verdict", "cannot be judged anew"),
]


@pytest.mark.parametrize(("change", "what", "words"), CHANGES)
def test_every_change_is_found(
    tmp_path: Path, change: Callable[[Path], None], what: str, words: str
) -> None:
    folder = tmp_path / "bundle"
    make(folder, [folder_of(tmp_path / "r", [outcome("a", Status.FAILED, reason="x")])])
    assert bad(folder) == {}
    change(folder)
    assert words in bad(folder)[what]


def test_results_changed_after_the_verdict_are_found(tmp_path: Path, runs: list[Path]) -> None:
    folder = tmp_path / "bundle"
    make(folder, runs)
    _append(runs[0] / "report.html")
    assert bad(folder, originals=runs) == {}
    _append(runs[0] / "allure-results" / "x-attachment.txt")
    (runs[1] / "plan.json").unlink()
    (runs[1] / "new").touch()
    found = bad(folder, originals=runs)
    assert "changed after the verdict; changed since: allure-results/x-" in found["run0"]
    assert "gone since: plan.json; new since: new" in found["run1"]
    other = folder_of(tmp_path / "x", [outcome("a")], name="other", state={"lab": "other"})
    assert bad(folder, originals=[other]) == {"other": "the bundle was not made from this run"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not a bundle"),
        ("{", "cannot be read"),
        ("[]", "of another format"),
        ('{"format": "hil-qualification-9"}', "of another format"),
        ('{"format": "hil-qualification-1", "files": []}', "files is missing"),
        (
            json.dumps(
                {"format": bundle.FORMAT, "files": {"../x": {}}, "runs": {}}
                | {"policy": "p", "judgement": "qualified", "judged": 1}
            ),
            "names files that are not below",
        ),
        *(
            (
                json.dumps(
                    {"format": bundle.FORMAT, "files": {}, "runs": {run: {}}}
                    | {"policy": "p", "judgement": "qualified", "judged": 1}
                ),
                "names runs that are not below",
            )
            for run in ("..", "../../other", "")
        ),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_no_bundle_is_told(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InventoryError, match=words):
        verify(tmp_path)


def test_the_name_of_another_policy_is_found(tmp_path: Path, runs: list[Path]) -> None:
    folder = tmp_path / "bundle"
    make(folder, runs)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "policy": "FreeBSD 99"}))
    assert "by another policy" in bad(folder)["verdict"]


@needs_ssh_keygen
def test_a_signature_tells_who_and_a_change_breaks_it(tmp_path: Path, runs: list[Path]) -> None:
    folder = tmp_path / "bundle"
    anna, ben = new_key(tmp_path, "anna"), new_key(tmp_path, "ben")
    make(folder, runs, anna)
    allowed = signers(tmp_path, anna=anna)
    checked = verify(folder, allowed_signers=allowed)
    assert checked.intact
    assert checked.checks[0].state is State.GOOD
    assert checked.checks[0].text.startswith("signed by anna@example.org with ED25519 key SHA256:")
    # Without the file it is a good signature of somebody.
    assert verify(folder).checks[0].state is State.UNKNOWN
    others = signers(tmp_path, ben=ben)
    assert "does not allow" in bad(folder, allowed_signers=others)["signature"]
    _append(folder / "manifest.json")
    for found in (bad(folder), bad(folder, allowed_signers=signers(tmp_path, anna=anna))):
        assert "not one of this verdict" in found["signature"]


@needs_ssh_keygen
def test_a_bundle_that_should_be_signed_and_is_not(tmp_path: Path, runs: list[Path]) -> None:
    folder = tmp_path / "bundle"
    key = new_key(tmp_path, "anna")
    make(folder, runs)
    assert "not signed" in bad(folder, allowed_signers=signers(tmp_path, anna=key))["signature"]
    make(tmp_path / "signed", runs, key)
    with pytest.raises(InventoryError, match=r"allowed signers .* does not exist"):
        verify(tmp_path / "signed", allowed_signers=tmp_path / "none")


@needs_ssh_keygen
def test_a_signature_for_something_else_is_not_taken(tmp_path: Path, runs: list[Path]) -> None:
    folder = tmp_path / "bundle"
    key = new_key(tmp_path, "anna")
    make(folder, runs)
    words = ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", "git", str(folder / "manifest.json")]
    subprocess.run(words, check=True, capture_output=True)
    assert "not one of this verdict" in bad(folder)["signature"]


@needs_ssh_keygen
def test_keys_that_cannot_sign_leave_nothing(tmp_path: Path, runs: list[Path]) -> None:
    locked = new_key(tmp_path, "locked", "a passphrase")
    with pytest.raises(InventoryError, match="locked by a passphrase") as caught:
        make(tmp_path / "out" / "bundle", runs, locked)
    assert "ssh-add" in caught.value.hint
    with pytest.raises(InventoryError, match="does not exist"):
        make(tmp_path / "out" / "bundle", runs, tmp_path / "none")
    (tmp_path / "odd").write_text("no key")
    with pytest.raises(InventoryError, match="nothing could be signed"):
        make(tmp_path / "out" / "bundle", runs, tmp_path / "odd")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_ssh_keygen_the_words_are_plain(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.touch()
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(LabError, match="no ssh-keygen on PATH"):
        signing.sign(runs[0] / "run.json", key)


def test_what_a_killed_writer_left_goes_with_the_next_bundle(
    tmp_path: Path, runs: list[Path]
) -> None:
    left = transient.make(tmp_path, ".hil-bundle-")
    os.close(transient.hold(left))
    make(tmp_path / "bundle", runs)
    assert not list(tmp_path.glob(".*"))
