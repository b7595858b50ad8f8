"""A driver's history in a real git, and a test that fails from one of its commits on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hil.bisect.record import Settings
from tests.inventories import HERE

#: Fails by whose fault the installed driver says.
TEST = """
import pathlib, pytest
from hil.errors import GuestError, LabError, ProductError
pytestmark = pytest.mark.danger(0)
def test_driver():
    match pathlib.Path(__file__).with_name("installed").read_text().split():
        case ["product"]: raise ProductError("bytes are wrong")
        case ["guest"]: raise GuestError("it panicked")
        case ["lab"]: raise LabError("the host is gone")
        case ["skip"]: pytest.skip("no such device")
"""


@dataclass(frozen=True)
class Driver:
    """A tree whose file ``driver`` says what a build of it does."""

    tree: Path
    commits: tuple[str, ...]
    folder: Path

    def settings(self, **more: object) -> Settings:
        values: dict[str, object] = {
            "tree": str(self.tree),
            "good": (self.commits[0],),
            "bad": self.commits[-1],
            "build": f"! grep broken driver && cp driver {self.folder}/installed",
            "lab": str(self.folder / "here.toml"),
            "tests": (str(self.folder / "test_driver.py"),),
        }
        return Settings(**{**values, **more})  # type: ignore[arg-type]

    def git(self, *words: str) -> str:
        return git(self.tree, *words)


def git(tree: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(tree), *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of whoever runs the tests; no Allure, which costs time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.setenv("HIL_ALLURE", "/bin/false")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A. Developer")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "developer@example.org")
    for name in [name for name in os.environ if name in ("GIT_DIR", "GIT_INDEX_FILE")]:
        monkeypatch.delenv(name)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def make(folder: Path, *drivers: str) -> Driver:
    """A history with one commit a word: ``fine``, ``product``, ``broken`` (does not build) …"""
    tree = folder / "tree"
    tree.mkdir()
    git(tree, "init", "-q", "-b", "main")
    commits = []
    for number, driver in enumerate(drivers):
        # Each commit differs, also from one that does the same.
        (tree / "driver").write_text(f"{driver}\n" + "\n" * number)
        git(tree, "add", "driver")
        git(tree, "commit", "-q", "-m", f"change {number}: {driver}")
        commits.append(git(tree, "rev-parse", "HEAD"))
    (folder / "here.toml").write_text(HERE)
    (folder / "test_driver.py").write_text(TEST)
    return Driver(tree, tuple(commits), folder)
