"""Files that anybody may have written break nothing; and no choice of runs makes a failure good."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import HilError
from hil.qualify import bundle, render
from hil.qualify.evidence import RunRecord, gather
from hil.qualify.judge import judge
from hil.qualify.links import fragments
from hil.qualify.verdict import Judgement
from hil.reporting.outcome import Outcome, Status
from hil.reporting.run import Run
from tests.qualify.runs import NOW, POLICY, folder_of, outcome, policy, run_of

FILES = ("run.json", "plan.json", "outcomes.jsonl", "environment.json")
#: JSON of any shape, more often of the right one.
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = ("state", "started", "kind", "lab", "inventory", "cycles", "tests", "deselected", "narrowed",
        "test", "status", "seconds", "devices", "platforms", "hosts", "guest", "reason",
        "device nic0", "alpha: system")  # fmt: skip


@settings(max_examples=60)
@given(
    name=st.sampled_from(FILES),
    raw=st.binary(max_size=60) | st.builds(lambda value: json.dumps(value).encode(), VALUES),
    key=st.sampled_from(KEYS),
    value=VALUES,
    merge=st.booleans(),
)
def test_no_file_of_a_run_breaks_the_verdict(
    name: str, raw: bytes, key: str, value: object, merge: bool
) -> None:
    with tempfile.TemporaryDirectory() as base:
        directory = folder_of(Path(base), [outcome("a"), outcome("b")])
        path = directory / name
        if merge:
            lines = path.read_text().splitlines()
            lines[0] = json.dumps({**json.loads(lines[0]), key: value}) if lines[0] != "{" else "{"
            path.write_text("\n".join(lines))
        else:
            path.write_bytes(raw)
        text = POLICY + '[devices.nic0]\nid = "8086:10c9"\n'
        records, _ = gather([directory])
        verdict = judge(policy(text), records, NOW)
        render.terminal(verdict, {})
        render.page(verdict, {})
        json.dumps(render.as_json(verdict))


@settings(max_examples=40)
@given(st.binary(max_size=80) | st.builds(lambda value: json.dumps(value).encode(), VALUES))
def test_no_file_of_allure_breaks_a_link(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as base:
        directory = folder_of(Path(base), [outcome("a")])
        (directory / "allure-results" / "x-result.json").write_bytes(raw)
        assert fragments(Run(directory), (outcome("a"),)) == {}


@settings(max_examples=60)
@given(
    key=st.sampled_from(("format", "files", "runs", "policy", "judgement", "judged", "hil")),
    value=VALUES,
)
def test_no_manifest_breaks_the_check(bundled: Path, key: str, value: object) -> None:
    manifest = bundled / "manifest.json"
    whole = manifest.read_text()
    try:
        manifest.write_text(json.dumps({**json.loads(whole), key: value}))
        bundle.verify(bundled)
    except HilError:
        pass
    finally:
        manifest.write_text(whole)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("bundled")
    records, _ = gather([folder_of(base, [outcome("a")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "pdf", lambda verdict: b"%PDF-")
        bundle.write(base / "bundle", judge(policy(), records, NOW), POLICY, records)
    return base / "bundle"


ENDINGS = st.tuples(
    st.sampled_from(Status), st.sampled_from(("", "guest", "lab")), st.sampled_from("ab")
)


def _outcome(ending: tuple[Status, str, str]) -> Outcome:
    status, fault, name = ending
    return outcome(name, status, fault=fault if status is Status.BROKEN else "")


@settings(max_examples=30)
@given(st.lists(st.lists(ENDINGS, max_size=3), min_size=1, max_size=4), st.booleans())
def test_a_run_more_never_makes_a_failure_good(
    endings: list[list[tuple[Status, str, str]]], killed: bool
) -> None:
    with tempfile.TemporaryDirectory() as base:
        state = {"state": "running"} if killed else {}
        records: list[RunRecord] = [
            run_of(Path(base), *map(_outcome, run), name=f"run{n}", state=state if n == 0 else {})
            for n, run in enumerate(endings)
        ]
        judgements = [
            judge(policy(), records[:count], NOW).judgement for count in range(1, len(records) + 1)
        ]
    if Judgement.NOT_QUALIFIED in judgements:
        first = judgements.index(Judgement.NOT_QUALIFIED)
        assert set(judgements[first:]) == {Judgement.NOT_QUALIFIED}
