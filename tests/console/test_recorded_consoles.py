"""Panic patterns on consoles of real FreeBSD hosts: what panicked is seen, what did not is not."""

from __future__ import annotations

import pytest

from hil.console.patterns import classify
from tests.recorded import all_recorded, console_log


def fatal(data: bytes) -> list[str]:
    lines = data.decode("utf-8", "replace").replace("\r", "").split("\n")
    return [found.kind for line in lines if (found := classify(line)) and found.fatal]


def test_a_host_that_stands_at_the_debugger_has_panicked() -> None:
    assert fatal(console_log("9-host-panics/host-panic.console")) == [
        *("trap", "panic", "debugger", "debugger"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("host-boot.console", "1-host-setup/host-boot-console", "8-vtd-machine/host-console"),
        *("6-iommu-disabled/host-console", "7-pptdevs-at-boot/host-console"),
    ],
)
def test_hosts_that_lived_show_no_panic(name: str) -> None:
    assert fatal(console_log(name)) == []


def test_no_command_that_was_recorded_looks_like_a_panic() -> None:
    assert [one.name for one in all_recorded() if fatal(one.stdout + b"\n" + one.stderr)] == []
