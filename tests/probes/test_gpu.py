"""What a guest's own tools say of a GPU, for the report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hil import events
from hil.pci.config import ConfigSpace
from hil.probes.gpu import report
from hil.transport.base import Result
from tests.fakes import config, function


def reported(status: int, ids: tuple[int, int] = (0x10DE, 0x1B39)) -> dict[str, str]:
    """By name, the evidence of a card whose vendor's tool ends with a status."""
    data = bytearray(config(vendor=ids[0], device=ids[1]).data)
    data[9:12] = (0x030000).to_bytes(3, "little")
    found = function(config=ConfigSpace(bytes(data)))
    device: Any = SimpleNamespace(name="gpu0", look=lambda: found)
    guest: Any = SimpleNamespace(
        run=lambda command: Result(tuple(command), status, b"Driver Version: 580", b"", 0.0)
    )
    heard: list[events.Event] = []
    with events.subscribed(heard.append):
        report(guest, device)
    return {e.name: e.data.decode() for e in heard if isinstance(e, events.Evidence)}


def test_what_the_tool_says_is_kept() -> None:
    told = reported(0)
    assert told["gpu0: nvidia-smi -q"] == "Driver Version: 580"
    assert "the platform resets it by flr" in told["gpu0 between guests"]
    assert "known: where a guest's driver falls back to INTx" in told["gpu0 between guests"]


def test_a_tool_that_fails_tells_that_too() -> None:
    assert "gpu0: nvidia-smi -q" in reported(9)


@pytest.mark.parametrize(
    ("status", "ids"), [(127, (0x10DE, 1)), (0, (0x1AF4, 0x1050)), (0, (0x1234, 0x1111))]
)
def test_without_a_tool_there_is_the_host_s_word_only(status: int, ids: tuple[int, int]) -> None:
    assert list(reported(status, ids)) == ["gpu0 between guests"]
