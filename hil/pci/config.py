"""Parse a PCI function's configuration space."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """A function's configuration space: 64, 256 or 4096 bytes."""

    data: bytes
