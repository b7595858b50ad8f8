"""The examples for cron, GitHub and GitLab: by their schemas, and their commands are hil's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "ci"
SCHEMAS = {"github.yml": "vendor.github-workflows", "gitlab.yml": "vendor.gitlab-ci"}


def check(path: Path, schema: str) -> subprocess.CompletedProcess[str]:
    """By the schema that comes with check-jsonschema: no network is asked."""
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


@pytest.mark.parametrize(("name", "schema"), SCHEMAS.items())
def test_each_is_what_its_server_takes(name: str, schema: str) -> None:
    ended = check(EXAMPLES / name, schema)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("github.yml", "runs-on: ubuntu-24.04", "run-on: ubuntu-24.04"),
        ("github.yml", "fail-fast: false", "fail-fast: [1]"),
        ("gitlab.yml", "timeout: 2 hours", "timeout: [2]"),
        ("gitlab.yml", "resource_group: hil-$HOST", "resource_group: [x]"),
    ],
)
def test_control_what_is_wrong_is_refused(
    tmp_path: Path, name: str, right: str, wrong: str
) -> None:
    text = (EXAMPLES / name).read_text("utf-8")
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong))
    assert check(tmp_path / name, SCHEMAS[name]).returncode == 1


def commands(found: Any) -> Iterator[str]:
    """Every command of ./dev in a file."""
    if isinstance(found, dict):
        for value in found.values():
            yield from commands(value)
    elif isinstance(found, list):
        for value in found:
            yield from commands(value)
    elif isinstance(found, str) and found.startswith("./dev "):
        yield found


def cron_line() -> str:
    guide = (ROOT / "docs" / "ci.md").read_text("utf-8")
    (line,) = re.findall(r"^(?:\S+ ){5} cd \$HOME/hil && (\./dev .*?) >>", guide, re.MULTILINE)
    return str(line)


ALL = {name: list(commands(YAML(typ="safe").load(EXAMPLES / name))) for name in SCHEMAS}
ALL["cron"] = [cron_line()]


def test_all_commands_were_found() -> None:
    assert {name: len(found) for name, found in ALL.items()} == {
        "github.yml": 5,
        "gitlab.yml": 3,
        "cron": 1,
    }


@pytest.mark.parametrize("command", sorted({line for lines in ALL.values() for line in lines}))
def test_each_command_starts(command: str, tmp_path: Path) -> None:
    words = shlex.split(command.replace("$SUITES", "preflight").replace("labs/$HOST", "labs/alpha"))
    words = words[1:] if words[1] == "run" else words[2:]
    (tmp_path / "labs").mkdir()
    simulated = (ROOT / "hil" / "lab" / "simulated.toml").read_text("utf-8")
    (tmp_path / "labs" / "alpha.toml").write_text(simulated)
    ended = subprocess.run(
        [sys.executable, "-m", "hil.cli", *words],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTEST_ADDOPTS": "--collect-only -q -n0",
        },
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    # 5: there is no run to report on, and nothing to recover in a simulated lab.
    assert ended.returncode == (0 if words[0] == "run" else 5), ended.stdout + ended.stderr
    assert words[0] != "run" or "preflight/test_preflight.py::" in ended.stdout
