"""Imports run one way: suites, fixtures, hil; and within hil from high to low."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: From low to high; parts of one row may know one another, and every row knows those above it.
LAYERS = (
    ("errors", "deadline", "events", "secrets", "transient"),
    ("pci", "iommu", "transport", "console", "qmp", "journal", "power"),
    ("guests", "platforms", "emulated", "simulated", "gpu"),
    ("bench", "lab.models"),
    ("probes", "oracles"),
    ("lab", "reporting", "compare", "qualify", "repeat", "bisect", "doctor", "prove", "cli"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
#: What reporting hears, it hears from events: it knows no driver.
REPORTING = {"errors", "deadline", "events", "secrets", "transient", "reporting", "version"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, as far as its text tells."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "hil":
                yield from (f"hil.{name.name.strip('_')}" for name in node.names)
            else:
                yield node.module


def files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in str(path))


def part(module: str) -> str:
    """The row's name of a module below hil: ``hil.pci.config`` is of ``pci``."""
    words = module.split(".")[1:]
    return ".".join(words[:2]) if ".".join(words[:2]) in RANK else words[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


HIL = [path for path in files("hil") if path.relative_to(ROOT / "hil").parts != ("__init__.py",)]


@pytest.mark.parametrize("path", HIL, ids=module_of)
def test_low_modules_know_nothing_of_high_ones(path: Path) -> None:
    own = part(module_of(path))
    assert own in RANK, f"{own} stands in no layer"
    for module in imports(path):
        if module.split(".")[0] in ("fixtures", "suites", "tests"):
            pytest.fail(f"imports {module}")
        if module.startswith("hil.") and part(module) != "version":
            assert RANK[part(module)] <= RANK[own], f"imports {module}"


@pytest.mark.parametrize("path", HIL, ids=module_of)
def test_only_reporting_knows_of_pytest_and_allure(path: Path) -> None:
    own = part(module_of(path))
    for module in imports(path):
        assert not (
            module.split(".")[0] in ("allure", "allure_commons", "allure_pytest")
            and own != "reporting"
        )
        # The command line starts pytest; nothing else may need it.
        assert not (module.split(".")[0] in ("pytest", "_pytest") and own != "cli")


@pytest.mark.parametrize("path", files("hil/reporting"), ids=module_of)
def test_reporting_hears_events_and_asks_nobody(path: Path) -> None:
    for module in imports(path):
        if module.startswith("hil."):
            assert part(module) in REPORTING, f"imports {module}"


@pytest.mark.parametrize("path", files("suites"), ids=module_of)
def test_suites_hold_tests_only(path: Path) -> None:
    text = path.read_text("utf-8")
    for module in imports(path):
        assert module.split(".")[0] not in ("subprocess", "paramiko", "pexpect", "re"), module
        assert not module.startswith(("hil.transport", "hil.emulated", "hil.reporting")), module
    assert "time.sleep" not in text


SENT = [
    path
    for folder in ("hil/probes/remote", "hil/platforms/remote", "hil/transport/remote")
    for path in files(folder)
]


@pytest.mark.parametrize("path", SENT, ids=module_of)
def test_what_is_sent_as_text_stands_alone(path: Path) -> None:
    for module in imports(path):
        assert module.split(".")[0] in sys.stdlib_module_names, module
    # Python 3.9 is what the oldest supported guests have: no match, no X | Y at run time.
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 9))
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))
    postponed = any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body
    )
    annotated = any(isinstance(node, ast.FunctionDef) and node.args.args for node in ast.walk(tree))
    assert postponed or not annotated


def test_importing_hil_is_light() -> None:
    code = "import sys; before = set(sys.modules); import hil; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["hil"]


@pytest.mark.parametrize(
    "module",
    ["hil.errors", "hil.pci.config", "hil.iommu.vtd", "hil.platforms.linux", "hil.bench"],
)
def test_heavy_libraries_are_not_imported_before_they_are_needed(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"paramiko", "cryptography", "rich", "typer", "pytest", "allure", "qemu"}


TEXTS = [
    path
    for pattern in ("*.py", "*.md", "*.toml", "*.sh")
    for path in ROOT.rglob(pattern)
    if not {".venv", ".git", "reports", "node_modules", "__pycache__"} & set(path.parts)
]


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?<![\w.])/work/",
        r"/root/\.pyenv",
        r"(?i)\bas requested\b|\bin this session\b",
    ],
)
def test_nothing_tells_of_the_machine_it_was_written_on(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:80]}"
        for path in TEXTS
        if path != Path(__file__)
        for line in path.read_text("utf-8", "replace").splitlines()
        if re.search(pattern, line)
    ]
    assert found == []
