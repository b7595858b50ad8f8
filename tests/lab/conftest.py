from __future__ import annotations

from pathlib import Path

import pytest

from hil.journal import Dialect
from tests.lab import places

# A lab host on this machine, by a local shell and by a real SSH server on loopback.
from tests.transport.conftest import connect, server, transport

__all__ = ["connect", "server", "transport"]


@pytest.fixture
def dialect(tmp_path: Path) -> Dialect:
    return places.dialect(tmp_path)
