"""Every test that docs/reliability.md names is there, and every promise names one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
TESTS = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


def test_every_test_on_the_page_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert sorted(name for name in named if f"def {name}(" not in TESTS) == []


def test_every_promise_names_a_test() -> None:
    promises_only = PAGE.partition("## Promises")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in promises_only.splitlines() if line.startswith("| ")]
    promises = [(what, shown) for what, shown in rows[1:] if not what.strip().startswith("**")]
    assert len(promises) > 20
    assert [what for what, shown in promises if "`test_" not in shown] == []
