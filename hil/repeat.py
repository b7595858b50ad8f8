"""What a run was made with, noted well enough to repeat it: ``hil run --like RUN``.

In ``run.json``, below ``how``: pytest's arguments and the folder they were given in, the file
of the inventory and its hash, hil's version and commit, versions of what it stands on, and
the settings that :data:`SETTINGS` names.  Beside it lies ``inventory.toml``, a copy of the
inventory without what looks like a secret.

Test data (patterns, tags, keys) is random in every run and is not noted: no test's result may
depend on it, and what a failure saw of it is in its evidence.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hil
from hil.errors import InventoryError
from hil.lab.models import Lab, LabKind
from hil.reporting.allure import Environment
from hil.reporting.run import Run, write_whole
from hil.reporting.text import redact

#: Variables that change what a run is made with.
SETTINGS = ("HIL_QEMU", "HIL_QEMU_ARGS", "PYTEST_ADDOPTS")
#: Packages whose versions are noted: those that can change a result.
PACKAGES = ("pytest", "pytest-timeout", "pytest-xdist", "allure-pytest", "paramiko", "pexpect")
#: Options that say nothing of the tests: where reports go, how long to wait for a lab.
_OWN = ("--hil-report", "--hil-tag", "--hil-wait")
_OWN_FLAGS = ("--hil-no-html",)
#: Lines of a difference between inventories that are shown.
_SHOWN = 30


@dataclass(frozen=True, slots=True)
class Repetition:
    """How to repeat a run."""

    run: str
    """Its name."""
    arguments: tuple[str, ...]
    """For pytest."""
    notes: tuple[str, ...]
    """What will not be as it was."""


def note(run: Run, arguments: Sequence[str], directory: Path, lab: Lab) -> None:
    """Note in ``run`` what it is made with.

    Args:
        run: the run, which has begun.
        arguments: pytest's, as it was called.
        directory: where it was called.
        lab: its lab.
    """
    versions = _versions()
    how = {
        "arguments": [redact(word) for word in arguments],
        "altered": any(redact(word) != word for word in arguments),
        "directory": str(directory),
        "suites": str(_suites()),
        "inventory_file": str(directory / lab.source),
        "inventory_sha256": _hash(lab.source),
        "settings": _settings(),
        "versions": versions,
    }
    run.write_state({"how": how})
    # It was there when it was loaded; a test may not end because it is gone by now.
    with contextlib.suppress(OSError):
        copy = redact(lab.source.read_text("utf-8", "replace"))
        write_whole(run.directory / "inventory.toml", copy)
    Environment.write(run, {f"controller: {name}": text for name, text in versions.items()})


def like(run: Run, lab: str | None = None) -> Repetition:
    """How to do ``run`` again, and what will not be as it was.

    Args:
        run: one that :func:`note` was called for.
        lab: another lab than its own, by name or file.

    Raises:
        InventoryError: it did not note how it was made, or its inventory is gone.
    """
    how = run.state.get("how")
    if not isinstance(how, dict) or not isinstance(how.get("arguments"), list):
        raise InventoryError(
            f"{run.name} did not note how it was made",
            hint="it is a run of an older hil, or it was killed before its first test",
        )
    arguments = tuple(_arguments(how))
    if lab is not None:
        arguments += (f"--hil-lab={lab}",)
    return Repetition(run.name, arguments, tuple(_notes(run, how, lab)))


def _arguments(how: Mapping[str, Any]) -> Iterator[str]:
    """The arguments of then, with the paths of now."""
    then, suites = Path(str(how.get("directory", ""))), str(how.get("suites", ""))
    words = iter([str(word) for word in how["arguments"]])
    for word in words:
        name, equals, value = word.partition("=")
        if name in _OWN:
            if not equals:
                next(words, None)
        elif word in _OWN_FLAGS:
            continue
        elif name == "--hil-lab":
            yield f"--hil-lab={_lab(value if equals else next(words, ''), then)}"
        elif suites and (word == suites or word.startswith(f"{suites}/")):
            yield str(_suites()) + word.removeprefix(suites)
        else:
            path, colons, test = word.partition("::")
            known = not word.startswith("-") and (then / path).exists()
            yield f"{then / path}{colons}{test}" if known else word


def _lab(lab: str, then: Path) -> str:
    """A file is the one that it was then; a name stays."""
    name = lab.startswith("emulated:") or not (lab.endswith(".toml") or "/" in lab)
    return lab if name else str(then / lab)


def _notes(run: Run, how: Mapping[str, Any], lab: str | None) -> Iterator[str]:
    if how.get("altered"):
        yield "its arguments had what looks like a secret, which was not noted"
    was, now = _texts(how.get("versions")), _versions()
    for name in dict.fromkeys((*was, *now)):
        if was.get(name, "") != now.get(name, ""):
            yield f"{name} was {was.get(name) or 'not noted'}, and is {now.get(name) or 'gone'}"
    if "with changes" in was.get("hil", ""):
        yield "its hil had changes that are in no commit"
    was, now = _texts(how.get("settings")), _settings()
    for name in SETTINGS:
        if was.get(name, "") != now.get(name, ""):
            yield f"{name} was {was.get(name) or 'not set'}, and is {now.get(name) or 'not set'}"
    if lab is None:
        yield from _inventory(run, how)
    yield from _images(run)


def _inventory(run: Run, how: Mapping[str, Any]) -> Iterator[str]:
    source = Path(str(how.get("inventory_file", "")))
    copy = run.directory / "inventory.toml"
    if _part_of_hil(source):
        # hil's own; another version of hil may have it elsewhere.
        source = Path(__file__).parent / "lab" / source.name
    if not source.is_file():
        raise InventoryError(
            f"the inventory {source} of {run.name} is gone",
            hint=f"name another with --lab; {copy} is a copy, but files that it names are "
            f"looked for beside it, not in {source.parent}",
        )
    if _hash(source) == how.get("inventory_sha256"):
        return
    yield f"{source} has changed since; it is used as it is now"
    old = copy.read_text("utf-8", "replace") if copy.is_file() else ""
    new = redact(source.read_text("utf-8", "replace"))
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    changed = [line for line in lines if not line.startswith("@@")]
    yield from (f"  {line}" for line in changed[:_SHOWN])
    if len(changed) > _SHOWN:
        yield f"  … and {len(changed) - _SHOWN} lines more"


def _part_of_hil(source: Path) -> bool:
    """Whether an inventory is one of those that are part of hil."""
    return source.parent.name == "lab" and source.parent.parent.name == "hil"


def _images(run: Run) -> Iterator[str]:
    """Images that the emulated lab was made of, and that are gone."""
    if run.state.get("kind") != LabKind.EMULATED.value:
        return
    from hil.emulated import cache

    made = Environment.read(run).get(IMAGES, "")
    for name in filter(None, made.split(", ")):
        place = Path(name)
        if not (place if place.is_absolute() else cache.directory() / place).exists():
            yield f"the image {name} is gone; another is made of the packages of today"


#: The environment's entry for what an emulated lab's disks are; cached ones by their folder
#: below the cache.
IMAGES = "emulation: images"


def _versions() -> dict[str, str]:
    found = {"hil": _hil(), "python": platform.python_version(), "system": platform.platform()}
    packages = []
    for name in PACKAGES:
        try:
            packages.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "packages": ", ".join(packages)}


def _hil() -> str:
    """The version, and the commit where hil is a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return hil.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return hil.__version__
    commit = done.stdout.strip()
    if not commit:
        return hil.__version__
    changes = " with changes" if commit.endswith("+") else ""
    return f"{hil.__version__}, commit {commit.rstrip('+')}{changes}"


def _settings() -> dict[str, str]:
    return {name: redact(os.environ[name]) for name in SETTINGS if os.environ.get(name)}


def suites_folder() -> Path | None:
    """Where hil's own suites are: in the checkout or in the installed package."""
    places = (Path(folder) / "suites" for folder in hil.__path__)
    return next((place for place in places if place.is_dir()), None)


def _suites() -> Path:
    return suites_folder() or Path(__file__).parent / "suites"


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _texts(value: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
