"""The page on release qualification says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from hil.cli import qualify
from hil.qualify import signing
from hil.qualify.policy import Card, PolicySection, Requirement, System, Waiver, load

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "qualification.md").read_text("utf-8")
EXAMPLE = DOCS / "examples" / "release-policy.toml"


def test_the_example_is_shown_whole_and_is_right() -> None:
    policy, text = load(EXAMPLE)
    assert f"```toml\n{text}```" in PAGE
    for waiver in policy.waivers.values():
        file, _, test = waiver.test.partition("::")
        assert f"def {test}(" in (DOCS.parent / file).read_text("utf-8")
    for requirement in policy.requirements.values():
        for suite in requirement.suites:
            assert (DOCS.parent / "suites" / suite).is_dir()


@pytest.mark.parametrize("model", [PolicySection, Requirement, Waiver, Card, System])
def test_every_key_is_explained(model: type[BaseModel]) -> None:
    keys = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    explained = {key for row in keys for key in re.findall(r"\w+", row)}
    assert set(model.model_fields) <= explained


def test_statuses_and_namespace_are_as_the_program_has_them() -> None:
    for status in (qualify.NOT_QUALIFIED, qualify.NOT_ENOUGH, qualify.NOT_INTACT):
        assert re.search(rf"^\| {status} \|", PAGE, re.MULTILINE)
    assert PAGE.count(signing.NAMESPACE) == 3
