from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hil.emulated import accel
from hil.emulated.images import Image

Fake = Callable[[str, str], None]
IMAGE = Image("host", Path("/kernel"), Path("/initrd"), Path("/root"), "key")


@pytest.fixture(autouse=True)
def _a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "DEVICE", tmp_path / "kvm")
    monkeypatch.setenv("HIL_CACHE", str(tmp_path / "cache"))


def choose(version: str = "10.0") -> accel.Accelerator:
    return accel.choose("qemu-system-x86_64", version, IMAGE, lambda _: None)


BANNER = "echo 'Linux version 6.1'"
MARK = "echo 'hil: userland runs, nested virtualization:"


@pytest.mark.parametrize(
    ("script", "name", "reason"),
    [
        (f"{BANNER}; {MARK} yes'", "kvm", "was seen to run"),
        (f"{BANNER}; {MARK} no'", "tcg", "no nested virtualization"),
        (f"{BANNER}; exec sleep 60", "tcg", "did not reach its init"),
        ("exec sleep 60", "tcg", "printed nothing"),
        ("echo 'qemu: failed to initialize kvm' >&2; exit 1", "tcg", "failed to initialize kvm"),
        ("exit 0", "tcg", "printed nothing"),
    ],
)
def test_only_what_was_seen_to_work(
    script: str, name: str, reason: str, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in script:
        monkeypatch.setattr(accel, "TRIAL", 0.3)
    fake("qemu-system-x86_64", script)
    found = choose()
    assert found.name == name
    assert reason in found.reason


def test_tried_once(fake: Fake, tmp_path: Path) -> None:
    fake("qemu-system-x86_64", f"echo x >>{tmp_path}/tried; {MARK} yes'")
    assert choose() == choose()
    assert (tmp_path / "tried").read_text() == "x\n"
    choose("10.1")
    assert (tmp_path / "tried").read_text() == "x\nx\n", "another QEMU is another matter"


def test_a_damaged_memory_of_it_is_no_answer(fake: Fake, tmp_path: Path) -> None:
    fake("qemu-system-x86_64", f"{MARK} yes'")
    choose()
    (kept,) = (tmp_path / "cache").glob("kvm-*.json")
    kept.write_text("{")
    assert choose().name == "kvm"


def test_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accel, "DEVICE", tmp_path / "nonesuch")
    assert choose() == accel.Accelerator("tcg", "there is no /dev/kvm")
