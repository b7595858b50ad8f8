"""Pictures on displays: what differs is told, and shown."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hil import events
from hil.bench import BenchDevice
from hil.deadline import Deadline
from hil.errors import LabError, ProductError
from hil.oracles import picture
from hil.oracles.picture import Picture, compare, known, read_image
from tests.fakes import bench_device

SMALL = known(96, 64, 0xABCDEF)
BLACK = Picture(96, 64, bytes(96 * 64 * 3))


def changed(picture: Picture, places: list[tuple[int, int]], by: int = 1) -> Picture:
    """With the blue of these pixels changed."""
    rgb = bytearray(picture.rgb)
    for x, y in places:
        at = 3 * (y * picture.width + x) + 2
        rgb[at] = rgb[at] + by if rgb[at] + by < 256 else rgb[at] - by
    return Picture(picture.width, picture.height, bytes(rgb))


def moved(picture: Picture) -> Picture:
    """By one pixel to the right."""
    image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
    return Picture(
        picture.width,
        picture.height,
        image.transform(image.size, Image.Transform.AFFINE, (1, 0, -1, 0, 1, 0)).tobytes(),
    )


def test_a_picture_survives_its_file() -> None:
    assert read_image(SMALL.png()) == SMALL
    raw = zlib.decompress(SMALL.packed)
    assert len(raw) == 96 * 64 * 4
    blue, green, red = raw[400], raw[401], raw[402]
    assert bytes([red, green, blue]) == SMALL.rgb[300:303]


def test_each_tag_has_a_picture_of_its_own() -> None:
    other = known(96, 64, 0xABCDEE)
    assert known(96, 64, 0xABCDEF) == SMALL
    difference = compare(SMALL, other)
    assert difference is not None
    assert difference.count > 96 * 64 * 0.9


@pytest.mark.parametrize("wrong", [moved(SMALL), picture.flip_a_pixel(SMALL), BLACK])
def test_what_is_not_the_same_differs(wrong: Picture) -> None:
    assert compare(SMALL, wrong) is not None
    assert compare(SMALL, SMALL) is None


@given(
    places=st.lists(
        st.tuples(st.integers(0, 95), st.integers(0, 63)), min_size=1, max_size=9, unique=True
    )
)
def test_how_many_pixels_differ_and_where(places: list[tuple[int, int]]) -> None:
    difference = compare(SMALL, changed(SMALL, places))
    assert difference is not None
    assert difference.count == len(places)
    assert difference.first == min(places, key=lambda place: (place[1], place[0]))
    xs, ys = [x for x, _ in places], [y for _, y in places]
    assert difference.box == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
    assert abs(difference.expected[2] - difference.got[2]) == 1


def test_the_worst_square() -> None:
    places = [(3, 3), *((x, 40) for x in range(70, 80))]
    difference = compare(SMALL, changed(SMALL, places))
    assert difference is not None
    assert difference.worst == (64, 32)
    assert "11 of 6144 pixels differ, the first at (3, 3): #" in str(difference)


def test_a_tolerance_is_for_each_channel() -> None:
    wrong = changed(SMALL, [(5, 5)], by=7)
    assert compare(SMALL, wrong, tolerance=7) is None
    assert compare(SMALL, wrong, tolerance=6) is not None


def test_the_report_gets_all_three_pictures() -> None:
    heard: list[events.Event] = []
    wrong = changed(SMALL, [(9, 4)]).png()
    with (
        events.subscribed(heard.append),
        pytest.raises(ProductError, match="gpu0 does not show what was drawn") as caught,
    ):
        picture.check_same(SMALL, wrong, what="gpu0")
    assert "1 of 6144 pixels differ, the first at (9, 4)" in caught.value.seen
    found = [event for event in heard if isinstance(event, events.Evidence)]
    assert [event.name for event in found] == [
        "gpu0: expected", "gpu0: captured", "gpu0: where they differ (red)",
    ]  # fmt: skip
    assert {event.kind for event in found} == {"image/png"}
    marked = Image.open(io.BytesIO(found[2].data))
    assert marked.getpixel((9, 4)) == (255, 0, 0)


def test_another_size_is_told() -> None:
    with pytest.raises(ProductError, match="shows 80 × 64 pixels, where 96 × 64 were drawn"):
        picture.check_same(SMALL, known(80, 64, 1).png())


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", SMALL.png()[:900], b"P6 9 9 255\n"])
def test_what_is_no_image_is_the_labs_fault(data: bytes) -> None:
    with pytest.raises(LabError, match="no image"):
        read_image(data)


def test_an_image_of_no_end_is_not_unpacked() -> None:
    with pytest.raises(LabError, match="no image") as caught:
        read_image(b"P6 60000 60000 255\n")
    assert "3600000000 pixels" in caught.value.seen


@given(st.binary(max_size=200))
def test_any_bytes_are_an_image_or_an_error(data: bytes) -> None:
    for start in (b"", b"P6 2 2 255\n", SMALL.png()[:60]):
        try:
            read_image(start + data)
        except LabError:
            continue


# ---- a guest that draws ---------------------------------------------------------------


@dataclass
class FakeDisplay:
    """Shows at once what it is given, or whatever ``also`` makes of it."""

    mode: tuple[int, int] = (96, 64)
    shown: list[Picture] = field(default_factory=list)

    def show(self, width: int, height: int, packed: bytes) -> None:
        raw = zlib.decompress(packed)
        image = Image.frombytes("RGB", (width, height), raw, "raw", "BGRX")
        self.shown.append(Picture(width, height, image.tobytes()))


@dataclass
class FakeScreen:
    display: FakeDisplay
    late: int = 0
    """Captures that still show nothing."""
    tolerance: int = 0
    captures: int = 0

    def capture(self, width: int, height: int, deadline: Deadline) -> bytes:
        assert (width, height) == self.display.mode
        assert deadline.remaining > 0
        self.captures += 1
        if self.captures <= self.late:
            return BLACK.png()
        return self.display.shown[-1].png()


def display_of(**options: int) -> tuple[FakeDisplay, BenchDevice]:
    device, _ = bench_device("gpu0")
    display = FakeDisplay()
    device.screen = FakeScreen(display, **options)
    return display, device


@pytest.mark.parametrize("late", [0, 3])
def test_what_a_guest_draws_is_seen_when_it_comes(late: int) -> None:
    display, device = display_of(late=late)
    drawn = picture.check_draws(display, device)  # type: ignore[arg-type]
    assert display.shown == [drawn]
    assert picture.check_draws(display, device) != drawn, "never the same"  # type: ignore[arg-type]


def test_a_pixel_that_was_drawn_otherwise_is_seen() -> None:
    display, device = display_of()
    with pytest.raises(ProductError, match="does not show what was drawn"):
        picture.check_draws(display, device, spoil=picture.flip_a_pixel)  # type: ignore[arg-type]


def test_a_screen_that_stays_black_is_seen() -> None:
    display, device = display_of(late=1 << 30)
    with pytest.raises(ProductError, match="does not show what was drawn") as caught:
        picture.check_draws(display, device)  # type: ignore[arg-type]
    assert "pixels differ" in caught.value.seen


def test_a_picture_that_stays_after_its_guest_is_a_finding() -> None:
    display, device = display_of()
    drawn = picture.check_draws(display, device)  # type: ignore[arg-type]
    with pytest.raises(ProductError, match="still shows what the guest before drew"):
        picture.check_gone(device, drawn)
    display.shown.append(BLACK)
    picture.check_gone(device, drawn)
    # A corner of it that is left on a screen of another size.
    display.shown.append(Picture(96, 32, drawn.rgb[: 96 * 32 * 3]))
    with pytest.raises(ProductError, match="still shows"):
        picture.check_gone(device, drawn)


def test_a_display_that_nobody_sees() -> None:
    device, _ = bench_device("gpu0")
    with pytest.raises(LabError, match="cannot be seen") as caught:
        picture.screen_of(device)
    assert "capture" in caught.value.hint
