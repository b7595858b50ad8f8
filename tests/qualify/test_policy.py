"""Policies are read strictly, and mistakes are told with line and key."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from hil.errors import InventoryError
from hil.lab.document import InvalidFileError
from hil.lab.models import LabKind
from hil.qualify.policy import load, parse
from tests.qualify.runs import POLICY

FILE = Path("policy.toml")
WAIVER = """
[waivers.known]
test = "suites/reset/test_reset.py::test_a"
reason = "the model lies"
link = "https://example.org/1"
expires = 2026-12-31
"""


def test_a_policy_with_all_it_may_have() -> None:
    text = POLICY + (
        'guests = ["linux"]\nplatforms = ["freebsd-bhyve"]\npasses = 3\ncycles = 100\n'
        'allow_skips = true\nprovenance = ["emulated"]\nmax_age_days = 3\n'
    )
    text += WAIVER + '[devices.nic0]\nid = "8086:10C9"\n[platforms.freebsd-bhyve]\nsystem = "15"\n'
    policy = parse(text, FILE)
    (requirement,) = policy.requirements.values()
    assert policy.provenance(requirement) == (LabKind.EMULATED,)
    assert policy.max_age_days(requirement) == 3
    assert policy.waivers["known"].expires == dt.date(2026, 12, 31)
    assert policy.devices["nic0"].id == "8086:10c9"


def test_only_physical_results_count_unless_said_otherwise() -> None:
    policy = parse(POLICY, FILE)
    assert policy.provenance(policy.requirements["nics"]) == (LabKind.PHYSICAL,)


# Each: a text, then what the error must say.  Line 1 of POLICY is empty.
MISTAKES = {
    "unknown key": (
        POLICY.replace("devices =", "device ="),
        ["policy.toml:8: requirements.nics.device: unknown key; did you mean 'devices'?"],
    ),
    "no age": (
        POLICY.replace("max_age_days = 14\n", ""),
        ["policy.toml:2: policy.max_age_days: missing"],
    ),
    "a provenance that there is not": (
        POLICY.replace("max_age_days", 'provenance = ["fysical"]\nmax_age_days'),
        ["policy.toml:4: policy.provenance[0]", "did you mean 'physical'?"],
    ),
    "no provenance at all": (
        POLICY.replace("max_age_days", "provenance = []\nmax_age_days"),
        ["policy.toml:4: policy.provenance: should not be empty"],
    ),
    "a number as text": (
        POLICY.replace("14", '"14"'),
        ["policy.toml:4: policy.max_age_days: should be a valid integer"],
    ),
    "listed twice": (
        POLICY.replace('["nic0"]', '["nic0", "nic0"]'),
        ["policy.toml:8: requirements.nics.devices[1]: listed twice"],
    ),
    "a waiver without an end": (
        POLICY + WAIVER.replace("expires = 2026-12-31\n", ""),
        ["policy.toml:10: waivers.known.expires: missing"],
    ),
    "a waiver with an odd end": (
        POLICY + WAIVER.replace("2026-12-31", '"soon"'),
        ["policy.toml:14: waivers.known.expires: should be a valid date"],
    ),
    "a link that is none": (
        POLICY + WAIVER.replace("https://", "javascript:"),
        ["policy.toml:13: waivers.known.link: should be an address"],
    ),
    "no test": (
        POLICY + WAIVER.replace("::test_a", ""),
        ["policy.toml:11: waivers.known.test: should be a test as pytest names it"],
    ),
    "a card that nobody asks for": (
        POLICY + '[devices.nico]\nid = "8086:10c9"\n',
        ["policy.toml:9: devices.nico: no requirement names this device; did you mean 'nic0'?"],
    ),
    "a platform that nobody asks for": (
        POLICY + 'platforms = ["linux-vfio"]\n[platforms.freebsd-bhyve]\n',
        ["policy.toml:10: platforms.freebsd-bhyve: no requirement names this platform"],
    ),
    "nothing asked": ('[policy]\nname = "x"\nmax_age_days = 1\nrequirements = {}\n', ["mistakes"]),
    "not TOML": (POLICY + "nics = [", ["policy.toml:9:9: not TOML"]),
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_line_and_key(text: str, words: list[str]) -> None:
    with pytest.raises(InventoryError) as caught:
        parse(text, FILE)
    for word in words:
        assert word in caught.value.explain()


def test_all_mistakes_at_once() -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse(POLICY.replace("max_age_days = 14", "days = 14") + "passes = 0\n", FILE)
    assert [problem.key for problem in caught.value.problems] == [
        "policy.max_age_days",
        "policy.days",
        "requirements.nics.passes",
    ]


def test_a_missing_file_is_called_a_policy(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"the policy .* does not exist"):
        load(tmp_path / "none.toml")
