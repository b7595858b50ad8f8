"""What tests of simulated guests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hil.simulated.guest_image import GuestImage
from hil.simulated.machine import Machine
from tests.simulated.guests import Bhyve, Boot


@pytest.fixture
def image() -> GuestImage:
    """What a guest boots that is given nothing else."""
    return GuestImage()


@pytest.fixture
def boot(image: GuestImage) -> Iterator[Boot]:
    """Boots guests, and ends them with the test."""
    made: list[Bhyve] = []

    def make(machine: Machine, image: GuestImage = image, **options: Any) -> Bhyve:
        made.append(Bhyve(machine, options.pop("devices", {}), image=image, **options))
        return made[-1]

    yield make
    for each in made:
        each.kill()
