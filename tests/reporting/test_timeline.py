"""The picture of boots is a well-formed SVG with each phase in its place."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from hil.events import PhaseReached
from hil.reporting.timeline import timeline

SVG = "{http://www.w3.org/2000/svg}"


def bars(text: str) -> list[tuple[str, float, float]]:
    """Title, left edge and width of each bar."""
    root = ET.fromstring(text)
    return [
        (str(title.text), float(rect.get("x", "")), float(rect.get("width", "")))
        for rect in root.iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None
    ]


def test_each_phase_is_a_bar_that_ends_where_the_next_begins() -> None:
    phases = [PhaseReached("g", "ready", at=5.0), PhaseReached("g", "booting", at=1.0)]
    (first, first_x, first_w), (second, second_x, _) = bars(timeline(phases, 0.0, 10.0))
    assert first == "g: booting at 1.000 s"
    assert second == "g: ready at 5.000 s"
    assert abs(first_x + first_w - second_x) < 0.2
    assert second_x > first_x


def test_nothing_to_show_is_no_picture() -> None:
    assert timeline([], 0, 1) == ""
    assert timeline([PhaseReached("g", "late", at=5)], 0, 1) == ""


@given(
    st.lists(
        st.builds(
            PhaseReached, st.text(max_size=40), st.text(max_size=40), at=st.floats(-100, 1000)
        ),
        max_size=60,
    ),
    st.floats(0.0001, 2000),
)
def test_any_names_and_times_give_well_formed_xml(phases: list[PhaseReached], end: float) -> None:
    text = timeline(phases, 0.0, end)
    if text:
        for _, left, width in bars(text):
            assert 0 <= left <= 960
            assert 0 < width <= 960
