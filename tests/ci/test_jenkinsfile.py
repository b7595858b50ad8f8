"""The Jenkinsfile is Groovy, a pipeline, and each of its shell steps does what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from lark.exceptions import LarkError

from hil.deadline import Deadline, poll
from tests.ci.pipeline import Block, mistakes, parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Jenkinsfile").read_text("utf-8")

SAMPLE = """
pipeline {
    agent none
    options { timeout(time: 1, unit: 'HOURS') }
    stages {
        stage('One') {
            matrix {
                axes { axis { name 'HOST'; values 'a', 'b' } }
                agent { label "hil-${HOST}" }
                stages { stage('Run') { steps { lock(resource: "x") { sh 'true' } } } }
            }
        }
    }
    post { always { node('hil') { allure results: [[path: 'x']] } } }
}
"""


@pytest.fixture(scope="module")
def pipeline() -> Block:
    root = parse(TEXT)
    assert mistakes(root) == []
    return root.get("pipeline")


# ---- grammar and sections ------------------------------------------------------------------


def test_the_sample_is_right() -> None:
    assert mistakes(parse(SAMPLE)) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("'HOURS'", "'HOURS"),
        ("label ", "label = = "),
        ("values 'a',", "values ,"),
        ('(resource: "x")', '(resource: "x"'),
        ("    post {", "    }}} post {"),
        ("[[path: 'x']]", "[[path: 'x']"),
    ],
)
def test_control_what_is_not_groovy_is_refused(right: str, wrong: str) -> None:
    assert right in SAMPLE
    with pytest.raises(LarkError):
        parse(SAMPLE.replace(right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong", "seen"),
    [
        ("agent none", "", "pipeline has [] where one of 'agent' must be"),
        ("stages {\n        stage('One')", "stage {\n        stage('One')", "pipeline holds stage"),
        ("steps {", "step {", "holds step"),
        ("always {", "anyway {", "post holds anyway"),
        ("axes {", "axis {", "matrix holds axis"),
        ("values 'a', 'b'", "", "axis has [] where one of 'values' must be"),
        ("timeout(", "timeouts(", "options holds timeouts"),
        ("sh 'true'", "shell 'true'", "holds shell"),
        ("sh 'true'", "", "is empty"),
        ("matrix {", "steps { sh 'x' }\nmatrix {", "['matrix', 'steps'] where one of"),
        ("agent none", "agent none\nagent none", "has agent twice"),
    ],
)
def test_control_what_is_groovy_but_no_pipeline_is_refused(
    right: str, wrong: str, seen: str
) -> None:
    assert right in SAMPLE
    found = mistakes(parse(SAMPLE.replace(right, wrong)))
    assert any(seen in line for line in found), found


# ---- what it promises ------------------------------------------------------------------------


def stages(pipeline: Block) -> dict[str, Block]:
    return {block.words[0]: block for block in pipeline.all("stage")}


def test_its_parameters_are_those_that_the_guide_names(pipeline: Block) -> None:
    names = [block.words[0] for block in pipeline.get("parameters")]
    assert names == ["SUITES", "LABS", "HOSTS", "DANGER", "REPEAT"]
    guide = (ROOT / "docs" / "ci.md").read_text("utf-8")
    assert all(f"`{name}`" in guide for name in names)


def test_checks_come_first_then_the_emulated_lab_then_the_hosts(pipeline: Block) -> None:
    assert list(stages(pipeline)) == ["Checks", "Emulated lab", "Physical hosts", "Run"]


def test_everything_has_a_limit_of_time(pipeline: Block) -> None:
    assert any(block.name == "timeout" for block in pipeline.get("options"))
    for name in ("Checks", "Emulated lab", "Run"):
        assert list(stages(pipeline)[name].all("timeout")), name


def test_a_host_is_locked_while_it_is_used_and_reached_from_its_own_agent(pipeline: Block) -> None:
    matrix = stages(pipeline)["Physical hosts"].get("matrix")
    assert matrix.get("agent").get("label").text == 'label"hil&&hil-${HOST}"'.replace("&&", " && ")
    (lock,) = matrix.all("lock")
    assert lock.text == 'lock(resource:"hil-${env.HOST}")'
    inside = {block.words[0] for block in lock.all("sh")}
    runs = {block.words[0] for block in matrix.all("sh") if block.words[0].startswith("./dev run")}
    assert runs
    assert runs <= inside


def test_results_are_published_whatever_happened(pipeline: Block) -> None:
    for name in ("Emulated lab", "Run"):
        always = stages(pipeline)[name].get("post").get("always")
        names = [block.name for block in always]
        # A report that cannot be made keeps nothing from being published.
        assert names == ["catchError", "archiveArtifacts", "junit", "stash"]
    assert list(pipeline.get("post").get("always").all("allure"))
    axis = next(pipeline.all("axis")).get("values").words
    loop = next(pipeline.get("post").all("for"))
    assert loop.words == ("emulated", *axis)


# ---- its shell steps, run --------------------------------------------------------------------


def steps(pipeline: Block) -> list[str]:
    """All shell steps, in order."""
    found = [block.words for block in pipeline.all("sh")]
    # Single quotes: the shell expands what a person typed into a parameter, Groovy never does.
    assert all(len(words) == 1 for words in found)
    return [words[0] for words in found]


def test_each_is_one_command_of_dev(pipeline: Block) -> None:
    for step in steps(pipeline):
        assert re.fullmatch(r"\./dev (test|run|hil (report|recover))( [^;&|<>`()]*)?", step), step


#: Stands in for ./dev, which would install what is missing first; one lab is enough here.
DEV = f"""#!/bin/sh
command=$1; shift
case $command in
test) echo "checked, $PYTEST_ADDOPTS" ;;
run) exec {sys.executable} -m hil.cli run --labs 1 "$@" ;;
hil) exec {sys.executable} -m hil.cli "$@" ;;
*) exit 99 ;;
esac
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "dev").write_text(DEV)
    (tmp_path / "dev").chmod(0o755)
    (tmp_path / "labs").mkdir()
    # A physical host's place is taken by a simulated one.
    simulated = (ROOT / "hil" / "lab" / "simulated.toml").read_text("utf-8")
    (tmp_path / "labs" / "alpha.toml").write_text(simulated)
    return tmp_path


PARAMETERS = {
    "SUITES": "preflight assignment",
    "LABS": "labs",
    "HOST": "alpha",
    "DANGER": "1",
    "REPEAT": "3",
    "BUILD_NUMBER": "17",
}


def environment(**more: str) -> dict[str, str]:
    # Without Allure: other tests make pages.
    own = {"PYTHONPATH": str(ROOT), "HIL_ALLURE": "/missing"}
    return {**os.environ, **own, **PARAMETERS, **more}


def run(step: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-xe", "-c", step],  # as Jenkins does
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


def test_dev_knows_the_commands() -> None:
    words = (ROOT / "dev").read_text("utf-8")
    for command in ("run)", "test)", "hil)"):
        assert f"\n{command}\n" in words


@pytest.mark.parametrize("suites", ["preflight", "preflight reset", ""])
def test_every_run_starts_with_any_parameters(
    pipeline: Block, workspace: Path, suites: str
) -> None:
    for step in steps(pipeline):
        if step.startswith("./dev run"):
            ended = run(step, workspace, SUITES=suites, PYTEST_ADDOPTS="--collect-only -q")
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert "preflight/test_preflight.py::" in ended.stdout


def test_what_is_no_parameter_is_told_and_not_run(pipeline: Block, workspace: Path) -> None:
    step = next(step for step in steps(pipeline) if "--lab" in step and "run" in step)
    ended = run(step, workspace, SUITES="; touch taken", PYTEST_ADDOPTS="--collect-only -q")
    assert ended.returncode == 5
    assert "there is no suite ';'" in ended.stderr
    assert not (workspace / "taken").exists()


def reports(folder: Path) -> list[Path]:
    return sorted((folder / "reports").glob("*-build-17"))


def test_a_night_leaves_what_the_post_steps_publish(pipeline: Block, workspace: Path) -> None:
    commands = steps(stages(pipeline)["Run"])
    assert [command.split()[1] for command in commands] == ["run", "hil", "hil"]
    night, recover, report = commands
    ended = run(night, workspace, SUITES="preflight", PYTEST_ADDOPTS="-k message")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (folder,) = reports(workspace)
    assert folder.name.endswith("-alpha-build-17")
    assert (folder / "junit.xml").is_file()
    assert list((folder / "allure-results").glob("*-result.json"))
    # Its host is simulated: there is nothing to recover, which is the inventory's fault.
    ended = run(recover, workspace)
    assert ended.returncode == 5, ended.stderr
    (folder / "junit.xml").unlink()
    assert "HIL_ALLURE=/missing" in run(report, workspace).stderr
    assert (folder / "junit.xml").is_file(), "found by its tag, and made anew"


def test_a_build_that_is_aborted_leaves_a_report_that_says_so(
    pipeline: Block, workspace: Path
) -> None:
    night, _, report = steps(stages(pipeline)["Run"])
    process = subprocess.Popen(
        ["sh", "-xe", "-c", night],
        cwd=workspace,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def begun() -> Path | None:
        found = reports(workspace)
        return found[0] if found and (found[0] / "outcomes.jsonl").is_file() else None

    folder = poll(begun, Deadline(1800, "the first result"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=1800)
    assert json.loads((folder / "run.json").read_text())["state"] == "running"
    assert not (folder / "junit.xml").exists()
    ended = run(report, workspace)
    names = {case.get("name") for case in ET.parse(folder / "junit.xml").iter("testcase")}
    assert "the run came to its end" in names, ended.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert not summary["complete"]


def test_steps_find_a_report_by_its_tag(pipeline: Block) -> None:
    tags = [re.findall(r'"(build-\$BUILD_NUMBER)"', step) for step in steps(pipeline)]
    assert sum(map(len, tags)) == 4
    for block in (*pipeline.all("archiveArtifacts"), *pipeline.all("stash")):
        assert "*-build-${env.BUILD_NUMBER}/" in block.text
