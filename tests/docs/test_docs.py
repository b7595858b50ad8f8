"""The documents say what is so: inventories load, links lead somewhere, tables are whole."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from fixtures.needs import Needs
from hil import cli
from hil.errors import HilError, ProductError
from hil.lab.load import parse
from hil.lab.models import (
    Capture,
    Cluster,
    Device,
    Host,
    ImageEntry,
    LabSection,
    Match,
    Peer,
    PowerSwitch,
)
from hil.pci.config import ConfigSpace
from hil.qualify.policy import parse as parse_policy

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
OWNERS = (DOCS / "lab-owners.md").read_text("utf-8")
WRITERS = (DOCS / "writing-tests.md").read_text("utf-8")


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(found, id=f"{page.name}-{number}")
        for page in PAGES
        for number, found in enumerate(
            re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
        )
    ]


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found  # dataclasses look there
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("text", blocks("toml"))
def test_inventories_and_policies_in_the_documents_load(text: str) -> None:
    if "[policy]" in text:
        assert parse_policy(text, Path("policy.toml")).requirements
    else:
        assert parse(text, Path("example.toml")).devices


@pytest.mark.parametrize("path", sorted((ROOT / "labs").glob("*.toml")), ids=lambda p: p.name)
def test_example_inventories_load(path: Path) -> None:
    assert parse(path.read_text("utf-8"), path).devices


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:)([^)\s]+)\)", text)
    for link in links:
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if heading:
            assert heading in headings(target.read_text("utf-8")), link


def headings(text: str) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    ("model", "prefix"),
    [(LabSection, ""), (Host, ""), (PowerSwitch, "power."), (Device, ""), (Match, "match."),
     (Peer, "peer."), (Capture, "capture."), (Cluster, ""), (ImageEntry, "")],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_every_key_of_the_inventory_is_in_the_owners_guide(model: Any, prefix: str) -> None:
    for name in model.model_fields:
        assert f"| `{prefix}{name}` |" in OWNERS, name


def test_every_argument_of_needs_and_every_fixture_is_in_the_writers_guide() -> None:
    for name in Needs.__slots__:
        assert f"| `{name}` |" in WRITERS, name
    source = (ROOT / "fixtures" / "labs.py").read_text("utf-8")
    for name in re.findall(r"@pytest\.fixture\ndef (\w+)", source):
        assert re.search(rf"^\| .*`{name}`", WRITERS, re.MULTILINE), name


def commands() -> Iterator[Any]:
    for parameter in blocks("sh"):
        (text,) = parameter.values
        joined = text.replace("\\\n", " ")
        for line in joined.splitlines():
            for part in line.partition("#")[0].split("&&"):
                words = part.split()
                if words[:2] == ["./dev", "hil"]:
                    words = words[1:]
                elif words[:2] == ["./dev", "run"]:
                    words = ["hil", *words[1:]]
                if words and words[0] == "hil":
                    yield pytest.param(words[1:], id=" ".join(words))


@pytest.mark.parametrize("words", [*commands()])
def test_commands_in_the_documents_have_options_that_exist(words: list[str]) -> None:
    before = words[: words.index("--")] if "--" in words else words
    depth = 2 if before[0] in ("lab", "bisect") else 1
    told = CliRunner().invoke(cli.app.app, [*before[:depth], "--help"], env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.output
    for word in before[depth:]:
        if word.startswith("--"):
            assert word in told.output


def test_the_catalogue_is_as_the_suites_are() -> None:
    catalogue = module(DOCS / "catalogue.py")
    # Controls that the framework's own tests have come and go more often.
    made, kept = (
        re.sub(r"(<br>)?\*tests/\*", "", text).replace(" — |", "  |")
        for text in (catalogue.page(), catalogue.PAGE.read_text("utf-8"))
    )
    assert made == kept, "run: python docs/catalogue.py"


def test_the_example_is_shown_whole() -> None:
    assert (DOCS / "examples" / "test_kept_by_reset.py").read_text("utf-8") in WRITERS


def test_the_oracle_of_the_example_lets_equal_headers_pass_and_no_others() -> None:
    check = module(DOCS / "examples" / "test_kept_by_reset.py").check_header_kept
    plain = bytearray(64)
    plain[0:4] = b"\x86\x80\xc9\x10"
    check(ConfigSpace(bytes(plain)), ConfigSpace(bytes(plain)))
    for offset in (5, 0x13):  # COMMAND, BAR0
        other = bytearray(plain)
        other[offset] = 1
        with pytest.raises(ProductError, match="COMMAND or a BAR"):
            check(ConfigSpace(bytes(plain)), ConfigSpace(bytes(other)))


def test_the_example_becomes_six_tests_in_the_emulated_lab(pytester: pytest.Pytester) -> None:
    example = DOCS / "examples" / "test_kept_by_reset.py"
    ran = pytester.runpytest_subprocess(
        "--collect-only", "-q", "--hil-lab=emulated", str(example), f"--rootdir={DOCS}"
    )
    ran.stdout.fnmatch_lines(["6 tests collected*"])


def test_a_wrong_inventory_would_not_pass() -> None:
    with pytest.raises(HilError):
        parse('[lab]\nname = "x"\nkind = "physical"\n', Path("example.toml"))
