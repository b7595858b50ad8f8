"""A verdict with all that it stands on, in one folder; and the check of such a folder.

::

    BUNDLE/
        verdict.html, verdict.pdf   for people; the page links to the reports below runs/
        verdict.json                the verdict, for programs
        policy.toml                 the policy, to the byte
        runs/RUN/                   each run's folder, but for Allure's own files
        manifest.json               who judged what and when; size and SHA-256 of every file
                                    here, and of every file of the runs
        manifest.json.sig           a signature of the manifest (ssh-keygen -Y), if it was signed

The signature is of the manifest, and the manifest has the sums of all else.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import hil
from hil import transient
from hil.errors import HilError, InventoryError
from hil.qualify import render, signing
from hil.qualify.evidence import RunRecord, gather
from hil.qualify.judge import judge
from hil.qualify.links import links, reports_of
from hil.qualify.policy import parse
from hil.qualify.verdict import Verdict
from hil.reporting.run import Run
from hil.reporting.text import one_line

FORMAT = "hil-qualification-1"
MANIFEST = "manifest.json"
SIGNATURE = f"{MANIFEST}.sig"
#: No bundle was judged later: the year 2100, in seconds since the epoch.
LATEST = 4102444800
#: Files of a run that ``hil report`` makes anew from the others.
DERIVED = frozenset({"report.html", "summary.json"})


def write(
    folder: Path,
    verdict: Verdict,
    policy: str,
    runs: Sequence[RunRecord],
    *,
    key: Path | None = None,
) -> tuple[str, ...]:
    """Write the bundle ``folder``, whole or not at all; return what a person should know of it.

    Args:
        folder: it must not be there yet.
        verdict: what was judged.
        policy: the text of the policy's file.
        runs: what it was judged from.
        key: to sign with; see :func:`hil.qualify.signing.sign`.

    Raises:
        InventoryError: the folder is there, cannot be written, or the key is no good.
        LabError: ssh-keygen is missing.
    """
    if folder.exists() or folder.is_symlink():
        raise InventoryError(
            f"{folder} is there already, and a bundle is never overwritten", hint="name another one"
        )
    for run in runs:
        if folder.resolve().is_relative_to(run.data.directory):
            raise InventoryError(
                f"{folder} is within the run {run.name}, which is to be copied there",
                hint="name a folder elsewhere",
            )
    notes = []
    with _named_when_whole(folder) as work:
        sums = {run.name: _copy(run.data.directory, work / "runs" / run.name) for run in runs}
        (work / "policy.toml").write_text(policy, "utf-8", newline="")
        # Of the runs themselves: Allure's files, which say where a test is in a report, stay there.
        found = links(verdict, reports_of({r.name: r.data.directory for r in runs}, "runs"))
        (work / "verdict.json").write_text(
            json.dumps({"verdict": render.as_json(verdict), "links": found}, indent=1)
        )
        (work / "verdict.html").write_text(render.page(verdict, found), "utf-8")
        try:
            (work / "verdict.pdf").write_bytes(render.pdf(verdict))
        except HilError as error:
            notes.append(error.explain())
        manifest = {
            "format": FORMAT,
            "hil": hil.__version__,
            "policy": verdict.policy,
            "judged": verdict.judged,
            "judgement": verdict.judgement,
            "files": _sums(work),
            "runs": sums,
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if key is not None:
            signing.sign(work / MANIFEST, key)
    return tuple(notes)


@contextlib.contextmanager
def _named_when_whole(folder: Path) -> Iterator[Path]:
    """An empty folder that becomes ``folder`` at the end of the block."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with transient.folder(folder.parent, ".hil-bundle-") as place:
            work = place / "bundle"
            work.mkdir()
            yield work
            work.rename(folder)
    except OSError as error:
        raise InventoryError(
            f"{folder} cannot be written: {error.strerror or error}", seen=str(error.filename or "")
        ) from None


def _copy(source: Path, target: Path) -> dict[str, dict[str, Any]]:
    """Copy a run's folder but for Allure's own files; return the sums of all its files."""
    sums = {}
    target.mkdir(parents=True)
    for path in _files(source):
        name = path.relative_to(source).as_posix()
        copied = path
        if not name.startswith("allure-results/"):
            copied = target / name
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
        sums[name] = _sum(copied)
    return sums


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def _sums(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.relative_to(folder).as_posix(): _sum(path) for path in _files(folder)}


def _sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


# ---- the check ---------------------------------------------------------------------------


class State(enum.StrEnum):
    """What a check found."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"
    """It could not be told, and nobody asked for it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked."""

    what: str
    state: State
    text: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A bundle that was checked."""

    policy: str
    judgement: str
    judged: float
    checks: tuple[Check, ...]

    @property
    def intact(self) -> bool:
        return all(check.state is not State.BAD for check in self.checks)


def verify(
    folder: Path, *, allowed_signers: Path | None = None, originals: Sequence[Path] = ()
) -> Checked:
    """Whether the bundle ``folder`` is as it was made, by whom, and whether it says what is so.

    Args:
        folder: the bundle.
        allowed_signers: who may have signed; without it a bundle without signature is not bad.
        originals: folders of runs, to be compared with what the bundle was made from.

    Raises:
        InventoryError: it is no bundle, or one of another format; an original is no run.
        LabError: ssh-keygen is missing.
    """
    manifest = _manifest(folder)
    checks = [_check_signature(folder, allowed_signers), *_check_files(folder, manifest["files"])]
    checks.append(_check_verdict(folder, manifest))
    checks += [_check_original(path, manifest["runs"]) for path in originals]
    return Checked(
        one_line(str(manifest["policy"])),
        str(manifest["judgement"]),
        float(manifest["judged"]),
        tuple(checks),
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InventoryError(
            f"{folder} is not a bundle: it has no {MANIFEST}",
            hint="name a folder that hil qualify --bundle made",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InventoryError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = one_line(str(data.get("format"))) if isinstance(data, dict) else "nothing known"
        raise InventoryError(
            f"{path} is of another format than {FORMAT}", seen=found, hint="is this hil too old?"
        )
    shapes = {"files": dict, "runs": dict, "policy": str, "judgement": str, "judged": float}
    for name, shape in shapes.items():
        value = data.get(name)
        if not isinstance(value, (shape, int) if shape is float else shape):
            raise InventoryError(f"{path}: {name} is missing, or not of its kind")
    if not 0 <= data["judged"] <= LATEST:
        raise InventoryError(f"{path}: judged is no time", seen=str(data["judged"]))
    for files in (data["files"], *data["runs"].values()):
        if not isinstance(files, dict) or not all(map(_is_inside, files)):
            raise InventoryError(f"{path} names files that are not below {folder}")
    names = data["runs"]
    if not all(name and _is_inside(name) and PurePosixPath(name).name == name for name in names):
        raise InventoryError(f"{path} names runs that are not below {folder}")
    return data


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _check_signature(folder: Path, allowed_signers: Path | None) -> Check:
    signature = folder / SIGNATURE
    if not signature.is_file():
        state = State.UNKNOWN if allowed_signers is None else State.BAD
        return Check("signature", state, "not signed: nothing tells who made this bundle")
    found = signing.check(folder / MANIFEST, signature, allowed_signers)
    state = State.GOOD if found.signer else State.UNKNOWN if found.good else State.BAD
    return Check("signature", state, found.text)


def _check_files(folder: Path, sums: Mapping[str, Any]) -> list[Check]:
    bad = []
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    for name, wanted in sums.items():
        if words := _differs(folder, name, wanted):
            bad.append(Check(one_line(name), State.BAD, words))
    bad += [
        Check(one_line(name), State.BAD, "was put there afterwards: the manifest does not have it")
        for name in sorted(there - set(sums) - {MANIFEST, SIGNATURE})
    ]
    return bad or [Check("files", State.GOOD, f"{len(sums)} files are as they were")]


def _differs(folder: Path, name: str, wanted: object) -> str:
    """How a file is not as it was; empty if it is."""
    path = folder / name
    try:
        # A link may lead anywhere, also if its target is the same today.
        if any(p.is_symlink() for p in (path, *path.parents[: name.count("/")])):
            return "is a link now, not a file"
        if not path.is_file():
            return "is missing"
        return "" if _sum(path) == wanted else "was changed"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _check_verdict(folder: Path, manifest: Mapping[str, Any]) -> Check:
    """Judge anew: does the verdict follow from the policy and the runs?"""
    what = "verdict"
    try:
        policy = parse((folder / "policy.toml").read_text("utf-8"), folder / "policy.toml")
        runs, _ = gather(folder / "runs" / name for name in manifest["runs"])
        anew = render.as_json(judge(policy, runs, float(manifest["judged"])))
        told = json.loads((folder / "verdict.json").read_text("utf-8"))["verdict"]
        judgement = told["judgement"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return Check(what, State.BAD, f"cannot be judged anew: {one_line(str(error))}")
    except HilError as error:
        return Check(what, State.BAD, f"cannot be judged anew: {one_line(error.message)}")
    if manifest["policy"] != policy.policy.name:
        return Check(what, State.BAD, "it was made by another policy than the bundle's")
    if judgement != anew["judgement"] or judgement != manifest["judgement"]:
        words = f"judged anew it comes to {anew['judgement']}, not {one_line(str(judgement))}"
    elif anew != told:
        words = f"{judgement} judged anew too, but not for the same reasons"
    else:
        return Check(what, State.GOOD, f"judged anew it comes to the same: {judgement}")
    if manifest.get("hil") != hil.__version__:
        made = one_line(str(manifest.get("hil")))
        words += f" (by hil {hil.__version__}; it was made by hil {made})"
    return Check(what, State.BAD, words)


def _check_original(directory: Path, runs: Mapping[str, Any]) -> Check:
    """Compare a run's folder with what the bundle was made from."""
    name = Run.open(directory).name
    state = _sum(directory / "run.json")
    # Of two runs of one name, the second is called otherwise in the bundle.
    name = next((n for n, sums in runs.items() if sums.get("run.json") == state), name)
    sums = runs.get(name)
    if sums is None:
        return Check(name, State.BAD, "the bundle was not made from this run")
    now = _sums(directory)
    changed = {n for n in {*sums, *now} if sums.get(n) != now.get(n)}
    words = []
    for title, names in (
        ("changed since", sorted(n for n in changed if n in sums and n in now)),
        ("gone since", sorted(n for n in changed if n not in now)),
        ("new since", sorted(n for n in changed if n not in sums)),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            words.append(f"{title}: {', '.join(map(one_line, names[:3]))}{more}")
    if not changed:
        return Check(name, State.GOOD, f"its {len(sums)} files are as they were when judged")
    if changed <= DERIVED:
        return Check(name, State.GOOD, f"its results are as they were; {'; '.join(words)}")
    return Check(name, State.BAD, f"its results were changed after the verdict; {'; '.join(words)}")
