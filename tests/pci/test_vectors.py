"""Interrupt vectors for several cards: who gets them, and who is told that there are none."""

from __future__ import annotations

import struct

import pytest

from hil.pci.vectors import GUEST_VECTORS, VectorLimits, WantedVectors, plan, wanted_vectors
from tests.fakes import MSI, config

HOST = VectorLimits("a host", total=400, used=40, whole_table=False)
BHYVE = VectorLimits("a host", total=400, used=40, whole_table=True)


def msix(entries: int) -> tuple[int, bytes]:
    return 0x11, struct.pack("<HII", entries - 1, 0, 0x2000)


@pytest.mark.parametrize(
    ("capabilities", "known", "least", "most"),
    [
        ([msix(8), MSI], 1, 1, 8),
        ([msix(2)], 3, 2, 2),
        ([MSI], 1, 1, 1),
        ([], 3, 0, 0),
    ],
)
def test_what_a_driver_may_ask_for(
    capabilities: list[tuple[int, bytes]], known: int, least: int, most: int
) -> None:
    wanted = wanted_vectors("x", config(capabilities=capabilities), known)
    assert (wanted.least, wanted.most) == (least, most)


def test_all_cards_fit() -> None:
    planned = plan({"a": [WantedVectors("x", 3, 3)], "b": [WantedVectors("y", 64)]}, HOST)
    assert planned.fits
    assert planned.describe().splitlines() == [
        "guest a: 160 vectors, at most 3 are asked for",
        "  x: 3",
        "guest b: 160 vectors, at most 64 are asked for",
        "  y: 1 to 64, as its driver asks",
        "host: 360 of 400 vectors are free (a host)",
    ]


def test_a_host_that_gives_whole_tables_runs_out_of_vectors() -> None:
    cards = {name: [WantedVectors(name, 150)] for name in "abc"}
    assert plan(cards, HOST).fits
    short = plan(cards, BHYVE)
    assert dict(short.without) == {"c": "NO VECTORS: the host has 60 left, it takes 150"}
    assert "  c: 1 to 150, as its driver asks; NO VECTORS" in short.describe()


def test_a_function_that_is_left_out_takes_none_from_the_next() -> None:
    cards = {"a": [WantedVectors("big", 400), WantedVectors("small", 300)]}
    assert list(plan(cards, BHYVE).without) == ["big"]


def test_a_guest_runs_out_of_vectors_and_more_processors_have_more() -> None:
    cards = [WantedVectors(f"f{n}", 90, 90) for n in range(2)]
    assert GUEST_VECTORS < 180
    short = plan({"a": cards}, HOST)
    assert dict(short.without) == {"f1": "NO VECTORS: its guest has 70 left"}
    assert plan({"a": cards}, HOST, cpus=2).fits
    assert plan({"a": cards[:1], "b": cards[1:]}, HOST).fits


def test_what_is_asked_for_at_most_is_only_told() -> None:
    planned = plan({"a": [WantedVectors("x", 2048)]}, HOST)
    assert planned.fits
    assert "too few if the drivers ask for all" in planned.describe()


def test_a_function_without_messages() -> None:
    planned = plan({"a": [WantedVectors("x", 0, 0)]}, VectorLimits("full", 10, 20, True))
    assert planned.fits
    assert "x: none, it has neither MSI nor MSI-X" in planned.describe()
    assert "host: 0 of 10" in planned.describe()
