"""Why a kernel's headers cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.errors import LabError
from tests.bisect import kernel


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (
            "E: Unable to locate package linux-headers-1.2-amd64",
            r"the mirror has no linux-headers-1\.2-amd64 any more",
        ),
        ("E: Unable to locate package mawk", "packages are missing"),
        ("Could not resolve 'deb.debian.org'", "packages are missing"),
    ],
)
def test_what_the_mirror_lacks_is_told(
    seen: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(*_: object) -> None:
        raise LabError("packages are missing", seen=seen)

    monkeypatch.setenv("HIL_CACHE", str(tmp_path))
    monkeypatch.setattr("hil.emulated.debian.unpack", unpack)
    with pytest.raises(LabError, match=told):
        kernel.toolchain("1.2-amd64")
    assert not list(tmp_path.glob("headers/[!.]*"))
