"""Inventories that say the same have one fingerprint, others have others."""

from __future__ import annotations

from pathlib import Path

from hil.lab.fingerprint import fingerprint
from hil.lab.load import parse

TEXT = """
[lab]
name = "bench"
kind = "physical"
[hosts.alpha]
platform = "linux-vfio"
address = "192.0.2.1"
[devices.nic0]
kind = "nic"
host = "alpha"
functions = ["0000:03:00.0"]
"""


def of(text: str) -> str:
    return fingerprint(parse(text, Path("bench.toml")))


def test_comments_and_order_do_not_matter() -> None:
    moved = TEXT.replace('platform = "linux-vfio"\n', "# better\n") + (
        '[hosts.alpha]\nplatform = "linux-vfio"\naddress = "192.0.2.1"\n'
    )
    moved = moved.replace('[hosts.alpha]\n# better\naddress = "192.0.2.1"\n', "# moved\n")
    assert of(moved) == of(TEXT)


def test_what_it_says_does_matter() -> None:
    changes = (("03:00.0", "04:00.0"), ("192.0.2.1", "192.0.2.2"), ('"bench"', '"other"'))
    assert len({of(TEXT), *(of(TEXT.replace(*change)) for change in changes)}) == 4
