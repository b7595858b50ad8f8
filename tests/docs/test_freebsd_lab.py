"""The guide to a FreeBSD lab says what was recorded, and what hil does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from hil import cli
from hil.guests.images import GuestImage, Loader
from hil.lab.load import load
from hil.pci.address import Address
from hil.platforms.contract import GuestSpec
from hil.platforms.freebsd_errors import decode
from hil.platforms.freebsd_guest import BhyveMachine, Passed
from tests.recorded import recorded

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "freebsd-lab.md").read_text("utf-8")
EXAMPLE = ROOT / "labs" / "example-freebsd.toml"

RECORDED = re.findall(r"^```text recorded=(\S+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
DECODED = re.findall(
    r"^\| (`[^|]+`) \| ([^|]+) \| .+ \|$",
    GUIDE.partition("| printed | hil says |")[2].partition("\n\n")[0],
    re.MULTILINE,
)
MENTIONED = sorted(
    set(re.findall(r"`(hil (?!-)[a-z][^`]*)`", GUIDE)) - {"hil cannot work through csh"}
)


def plain(line: str) -> str:
    return " ".join(line.split())


def missing(block: str, printed: str) -> list[str]:
    """Lines of a block that were not printed in this order; ``…`` stands for any lines."""
    rest = iter([plain(line) for line in printed.splitlines()])
    return [line for line in block.splitlines() if line != "…" and plain(line) not in rest]


@pytest.mark.parametrize(("name", "block"), RECORDED, ids=[name for name, _ in RECORDED])
def test_what_it_calls_recorded_was_recorded(name: str, block: str) -> None:
    one = recorded(name)
    command, _, printed = block.partition("\n")
    assert command == f"# {one.command}"
    assert missing(printed, one.text + "\n" + one.errors) == []
    if "…" not in printed:
        assert len(printed.splitlines()) == len((one.text + one.errors).splitlines())


def test_another_line_or_order_would_be_seen() -> None:
    assert len(RECORDED) > 15
    assert missing("a\n…\nc  d\n", "a\nb\nc\td\n") == []
    assert missing("a\nx\n", "a\nb\n") == ["x"]
    assert missing("b\na\n", "a\nb\n") == ["a"]


@pytest.mark.parametrize(("words", "meaning"), DECODED, ids=[m[:40] for _, m in DECODED])
def test_errors_mean_there_what_hil_makes_of_them(words: str, meaning: str) -> None:
    found = decode("\n".join(re.findall(r"`([^`]+)`", words)))
    assert found.known
    assert found.meaning == meaning


def test_the_table_of_errors_is_found() -> None:
    assert len(DECODED) > 15


@pytest.mark.parametrize("command", MENTIONED)
def test_commands_within_its_sentences_exist(command: str) -> None:
    words = command.split()[1:]
    depth = 2 if words[0] in ("lab", "image") else 1
    told = CliRunner().invoke(cli.app.app, [*words[:depth], "--help"], env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.output
    for word in words[depth:]:
        if word.startswith("--"):
            assert word in told.output


def test_its_inventory_is_the_example_and_loads() -> None:
    assert f"```toml\n{EXAMPLE.read_text('utf-8')}```" in GUIDE
    assert load(str(EXAMPLE)).hosts["beastie"].platform == "freebsd-bhyve"


def test_guests_are_started_as_it_shows() -> None:
    lab = load(str(EXAMPLE))
    entry = lab.images["freebsd"]
    (nic,) = lab.devices["nic0"].functions
    machine = bhyve(GuestImage("freebsd", entry.os, snapshot=entry.snapshot or ""), nic)
    commands = [
        *(step.do for step in machine.steps()),
        ("bhyvectl", f"--vm={machine.vm}", "--destroy"),
        machine.loader_command(),
        machine.command(waiting=True),
    ]
    shown = GUIDE.partition("## 17.")[2].partition("```text\n")[2].partition("```")[0]
    lines = shown.replace("\\\n", " ").splitlines()
    assert [shlex.split(line) for line in lines] == [list(command) for command in commands]


def bhyve(image: GuestImage, device: Address) -> BhyveMachine:
    nobody = cast("Any", None)
    assert image.loader is Loader.BHYVELOAD
    return BhyveMachine(
        host="beastie",
        transport=nobody,
        spec=GuestSpec("nic0", image.name, devices=(device,)),
        image=image,
        passed=[Passed(device, "ppt0")],
        directory="/var/run/hil/RUN",
        explain=nobody,
        tables=nobody,
        journal=nobody,
        number=1,
    )
