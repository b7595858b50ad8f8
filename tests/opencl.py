"""An OpenCL device on any machine: Debian's PoCL, which makes one of the CPU."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hil.deadline import Deadline
from hil.probes.compute import Compute, ComputeDevice
from hil.transport.local import LocalTransport


def limit(seconds: float, what: str) -> Deadline:
    return Deadline(10 * seconds, what)


def first(devices: Sequence[ComputeDevice]) -> ComputeDevice:
    return devices[0]


def path_to_this_python() -> str:
    """For PATH: ``python3`` is the one that runs the tests, with its packages."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@contextlib.contextmanager
def pocl(cache: Path) -> Iterator[None]:
    """Whatever ``python3`` is started meanwhile finds PoCL and no other OpenCL.

    Args:
        cache: a folder for what it compiles.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path_to_this_python())
        patch.setenv("POCL_CACHE_DIR", str(cache))
        patch.setenv("POCL_DEVICES", "pthread")
        patch.setenv("POCL_MEMORY_LIMIT", "1")  # GiB that it tells of
        patch.setenv("OCL_ICD_FILENAMES", "libpocl.so.2")
        yield


def opened() -> Compute:
    """PoCL's device, by a new process."""
    return Compute(LocalTransport("here"), limit, first)
