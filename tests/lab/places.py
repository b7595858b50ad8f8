"""A lab host in a temporary directory: this machine, with a journal and locks of its own."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hil.journal import LINUX, Dialect, Kind, Undo

#: Changes that are files: $1 a file that the change makes.  What was there to be undone is
#: written in ``undone.log`` beside it; with ``NAME.stuck`` beside it, it cannot be undone.
FILE = Kind(
    "file",
    script='[ ! -e "$1.stuck" ] || { echo "$1 is stuck" >&2; exit 1; }; '
    '[ ! -e "$1" ] || echo "${1##*/}" >> "${1%/*}/undone.log"; rm -f "$1"',
    accepts=(r"/[A-Za-z0-9._/-]+",),
    by_hand="rm -f {0}",
    made="the file {0} was made",
)
KINDS = (FILE,)


def dialect(folder: Path) -> Dialect:
    """Linux's, in ``folder``."""
    return replace(LINUX, leases=str(folder / "leases"), journal=str(folder / "journal"))


def change(path: Path) -> tuple[Undo, list[str]]:
    """A change that makes the file ``path``, and its undo."""
    return Undo("file", (str(path),)), ["touch", str(path)]


def benchmark(name: str) -> Any:
    """A module of the benchmarks, which stand beside each other in no package."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)
