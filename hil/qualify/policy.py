"""The policy: what must be shown before a release, as frozen models.

A policy is a TOML file::

    [policy]                # name, max_age_days, provenance
    [requirements.nics]     # suites × devices × guests × platforms that must pass
    [waivers.e1000e-reset]  # a known failure that is accepted until a day
    [devices.nic0]          # which card the name stands for
    [platforms.linux-vfio]  # which system must have been tested
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hil.lab import document
from hil.lab.document import InvalidFileError, Problem, bounded, key_of, nearest
from hil.lab.models import Ids, LabKind, Name, PlatformName, SerialNumber

Item = TypeVar("Item")


def _link(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s<>\"']+", value):
        raise ValueError("should be an address that begins with https:// or http://")
    return value


def _test(value: str) -> str:
    if "::" not in value:
        raise ValueError(
            "should be a test as pytest names it, with or without its parameters: "
            "'suites/reset/test_reset.py::test_x'"
        )
    return value


def _some(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if not values:
        raise ValueError("should not be empty")
    return values


Provenance = Annotated[tuple[LabKind, ...], AfterValidator(_some)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicySection(_Model):
    """The ``[policy]`` table."""

    name: str = Field(min_length=1, max_length=100)
    """What is qualified, as the verdict calls it."""
    max_age_days: int = Field(ge=1, le=3650)
    """Results of runs that started earlier say nothing any more."""
    provenance: Provenance = (LabKind.PHYSICAL,)
    """The kinds of lab whose results count; all others do not."""


class Requirement(_Model):
    """Suites that must pass, on each device, with each guest, on each platform."""

    title: str = Field(default="", max_length=100)
    suites: Annotated[tuple[Name, ...], AfterValidator(_some)]
    devices: tuple[Name, ...] = ()
    """By their inventory names; empty: only tests that use no device.  What a suite has of those
    must pass in any case."""
    guests: tuple[Name, ...] = ()
    """Names of the images that guests boot; empty: whichever."""
    platforms: tuple[PlatformName, ...] = ()
    """Empty: whichever."""
    passes: int = Field(default=1, ge=1, le=100000)
    """How often each test must have passed."""
    cycles: int = Field(default=1, ge=1, le=100000)
    """How often tests of repetition must have repeated in a run (``hil run --cycles``)."""
    allow_skips: bool = False
    """Whether a test that was skipped is passed over, instead of lacking."""
    provenance: Provenance | None = None
    """In place of the policy's."""
    max_age_days: int | None = Field(default=None, ge=1, le=3650)
    """In place of the policy's."""


class Waiver(_Model):
    """A known failure that is accepted for a while."""

    test: Annotated[str, AfterValidator(_test)]
    """As pytest names it; without ``[parameters]`` all of them are meant."""
    device: Name | None = None
    """Empty: on any."""
    reason: str = Field(min_length=1, max_length=500)
    link: Annotated[str, AfterValidator(_link)]
    """Where it is being worked on."""
    expires: dt.date
    """The last day, in UTC, on which it is accepted."""


class Card(_Model):
    """The card that a device's name stands for."""

    id: Ids
    """``vendor:device`` in hexadecimal."""
    subsystem: Ids | None = None
    serial: SerialNumber | None = None


class System(_Model):
    """The system under test of a platform: each is part of what the host said of itself."""

    system: str = Field(default="", max_length=200)
    """``15.0-RELEASE``; empty: whichever, but only one."""
    hypervisor: str = Field(default="", max_length=200)
    """``QEMU 10.0.2``; empty: whichever, but only one."""


class Policy(_Model):
    """A whole policy file."""

    policy: PolicySection
    requirements: Mapping[Name, Requirement] = Field(min_length=1)
    waivers: Mapping[Name, Waiver] = Field(default_factory=dict)
    devices: Mapping[Name, Card] = Field(default_factory=dict)
    platforms: Mapping[PlatformName, System] = Field(default_factory=dict)

    def provenance(self, requirement: Requirement) -> tuple[LabKind, ...]:
        """The kinds of lab whose results count for ``requirement``."""
        return requirement.provenance or self.policy.provenance

    def max_age_days(self, requirement: Requirement) -> int:
        """How old results may be that count for ``requirement``."""
        return requirement.max_age_days or self.policy.max_age_days

    def system(self, platform: str) -> System | None:
        """The system that must have been tested on ``platform``, if that is said."""
        return next((s for name, s in self.platforms.items() if name == platform), None)


def load(path: Path) -> tuple[Policy, str]:
    """The policy in the file ``path``, and the file's text.

    Raises:
        InventoryError: the file is missing, unreadable or not TOML.
        InvalidFileError: it is TOML, but not a right policy; with lines and keys.
    """
    text = document.read(path, "the policy")
    return parse(text, path), text


def parse(text: str, source: Path) -> Policy:
    """The policy that the TOML ``text`` describes; ``source`` is its file, for messages."""
    policy = document.parse(Policy, text, source)
    if problems := _contradictions(policy):
        raise InvalidFileError(source, problems, text=text)
    return policy


def _contradictions(policy: Policy) -> list[Problem]:
    """Mistakes that no single key shows."""
    problems = []
    asked: dict[str, set[str]] = {"devices": set(), "platforms": set()}
    for name, requirement in policy.requirements.items():
        for key in ("suites", "devices", "guests", "platforms", "provenance"):
            values = getattr(requirement, key) or ()
            for index, value in enumerate(values):
                if value in values[:index]:
                    where = f"{key_of(('requirements', name, key))}[{index}]"
                    problems.append(Problem(where, "listed twice", bounded(value)))
            if key in asked:
                asked[key] |= set(values)
    for name in policy.devices:
        if name not in asked["devices"]:
            text = f"no requirement names this device{nearest(name, asked['devices'])}"
            problems.append(Problem(key_of(("devices", name)), text))
    everywhere = any(not requirement.platforms for requirement in policy.requirements.values())
    for platform in policy.platforms:
        if platform not in asked["platforms"] and not everywhere:
            text = f"no requirement names this platform{nearest(platform, asked['platforms'])}"
            problems.append(Problem(key_of(("platforms", platform)), text))
    return problems
