"""A simulated host as a *physical* lab: behind a real SSH server, with a power switch.

What lies in :data:`RACK` is for tests that pytest runs within this process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hil.console.console import Console
from hil.deadline import Deadline
from hil.lab import live, power
from hil.power.base import Power, PowerState
from hil.simulated.host import SimulatedHost
from tests.plugin.conftest import Ran, RunHil

LAB = """
[lab]
name = "rack"
kind = "physical"
[hosts.alpha]
platform = "freebsd-bhyve"
address = "127.0.0.1"
port = {port}
key_file = "{key}"
host_key = "{host_key}"
danger = 3
console = {console}
[devices.nic1]
kind = "nic"
host = "alpha"
match = {{ id = "8086:10d3" }}
capabilities = ["msi", "msix", "pm"]
"""


@dataclass
class Rack:
    """The host under test, for the tests that pytest runs in this process."""

    host: SimulatedHost | None = None
    end: Callable[[], None] = lambda: None
    switched: int = 0
    spoils: bool = False


RACK = Rack()


class Switch(Power):
    """What a power switch does, for the host of :data:`RACK`."""

    def state(self, deadline: Deadline) -> PowerState:
        return PowerState.UNKNOWN

    def on(self, deadline: Deadline) -> None:
        assert RACK.host is not None
        RACK.host.reboot()

    def off(self, deadline: Deadline) -> None:
        RACK.switched += 1

    def cycle(self, deadline: Deadline) -> None:
        self.off(deadline)
        self.on(deadline)


@pytest.fixture
def rack_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedHost]:
    found = SimulatedHost("freebsd-15-intel").start()
    found.system.booted -= 3600  # an hour ago
    RACK.host, RACK.switched = found, 0
    monkeypatch.setattr(power, "power_of", lambda _lab, name: Switch(name))
    monkeypatch.setattr(live, "_console", lambda _lab, name, _end: Console(name, found.console))
    yield found
    found.close()
    RACK.host = None


@pytest.fixture
def run_on_rack(
    rack_host: SimulatedHost, run_hil: RunHil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Run a module on the host; the fake that brings labs up is taken away again."""
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text(rack_host.key.private)

    def start(module: str, *arguments: str, console: bool = True) -> Ran:
        words = LAB.format(
            port=rack_host.port, key=key, host_key=rack_host.host_key,
            console='["console"]' if console else "[]",
        )  # fmt: skip
        return run_hil(module, *arguments, lab=words)

    monkeypatch.setattr("hil.fixtures.pool.LabPool._bring_up", REAL_BRING_UP)
    return start


# Before a fixture puts a fake in its place.
REAL_BRING_UP = importlib.import_module("hil.fixtures.pool").LabPool._bring_up
