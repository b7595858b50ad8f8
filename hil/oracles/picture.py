"""Does a display show what its guest drew, pixel by pixel, and nobody else's picture?

A captured image is compared with the picture that was drawn.  All of it goes to the report:
what was expected, what was captured, and where the two differ.
"""

from __future__ import annotations

import contextlib
import io
import random
import secrets
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

from hil import events
from hil.bench import BenchDevice, Screen
from hil.deadline import poll
from hil.errors import DeadlineExceeded, LabError, ProductError
from hil.probes.display import Display

#: Side of the squares of which the worst is told, pixels.
SQUARE = 32
#: Seconds in which a display shows what was drawn.
SHOWN = 5.0


@dataclass(frozen=True, slots=True)
class Picture:
    """``width`` × ``height`` pixels, 3 bytes each (red, green, blue), row by row from the top."""

    width: int
    height: int
    rgb: bytes

    @property
    def packed(self) -> bytes:
        """4 bytes a pixel (blue, green, red, unused), as DRM's XRGB8888 has them, by zlib."""
        return zlib.compress(_image(self).tobytes("raw", "BGRX"), 1)

    def png(self) -> bytes:
        """As an image file."""
        return _png(_image(self))


def known(width: int, height: int, tag: int) -> Picture:
    """A picture that tells from each part of it where it belongs, and whose it is.

    Red grows from left to right and green from the top down, so that what is moved shows; blue
    is a smooth field of its own for each ``tag``, as are the words in the middle.  It has no
    hard edges but theirs: a capture device may halve the resolution of colours.
    """
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    down = Image.linear_gradient("L").resize((width, height))
    field = Image.frombytes("L", (8, 6), random.Random(tag).randbytes(48))
    picture = Image.merge("RGB", (across, down, field.resize((width, height))))
    words = f"hil {tag:06x}  {width} x {height}"
    ImageDraw.Draw(picture).text((width // 2, height // 2), words, fill="white", anchor="mm")
    return Picture(width, height, picture.tobytes())


def read_image(data: bytes) -> Picture:
    """The picture in an image file, PNG or PPM.

    Raises:
        LabError: it is none, is damaged, or claims more pixels than any display has.
    """
    try:
        whole = Image.open(io.BytesIO(data), formats=("PNG", "PPM")).convert("RGB")
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise LabError(
            "what was captured is no image", seen=f"{error}\nit begins: {data[:32].hex(' ')}"
        ) from None
    return Picture(whole.width, whole.height, whole.tobytes())


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a captured picture is not what was expected.

    Places are ``(x, y)`` in pixels from the upper left corner.
    """

    count: int
    """Pixels that differ."""
    first: tuple[int, int]
    """The first of them, row by row from the top."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom of all of them; the last two are beyond."""
    worst: tuple[int, int]
    """Upper left corner of the square of :data:`SQUARE` pixels a side with most of them."""
    expected: tuple[int, int, int]
    got: tuple[int, int, int]
    """Red, green and blue of the first."""
    total: int
    """Pixels of the picture."""

    def __str__(self) -> str:
        left, top, right, bottom = self.box
        return (
            f"{self.count} of {self.total} pixels differ, the first at {self.first}: "
            f"{_colour(self.got)} instead of {_colour(self.expected)}\n"
            f"all within ({left}, {top}) to ({right - 1}, {bottom - 1}), "
            f"most in the {SQUARE} pixels from {self.worst} on"
        )


def compare(expected: Picture, got: Picture, tolerance: int = 0) -> Difference | None:
    """Where ``got`` differs by more than ``tolerance`` in a channel; ``None`` if nowhere.

    Both have the same size.
    """
    if expected.rgb == got.rgb:
        return None
    mask = _mask(expected, got, tolerance)
    box = mask.getbbox()
    if box is None:
        return None
    row = mask.crop((0, box[1], mask.width, box[1] + 1)).getbbox()
    first = (row[0] if row else box[0], box[1])
    squares = mask.reduce(SQUARE)  # the mean of each square
    shares = squares.tobytes()
    worst = shares.index(max(shares))
    at = 3 * (first[1] * expected.width + first[0])
    return Difference(
        count=mask.histogram()[255],
        first=first,
        box=box,
        worst=(worst % squares.width * SQUARE, worst // squares.width * SQUARE),
        expected=_pixel(expected, at),
        got=_pixel(got, at),
        total=expected.width * expected.height,
    )


def check_same(expected: Picture, captured: bytes, tolerance: int = 0, what: str = "it") -> None:
    """The captured image is the expected picture; if not, the report gets all three.

    Raises:
        ProductError: its size differs, or pixels do: how many, and where.
        LabError: it is no image.
    """
    got = read_image(captured)
    if (got.width, got.height) != (expected.width, expected.height):
        _show(expected, got, what)
        raise ProductError(
            f"{what} shows {got.width} × {got.height} pixels, "
            f"where {expected.width} × {expected.height} were drawn"
        )
    difference = compare(expected, got, tolerance)
    if difference is not None:
        _show(expected, got, what)
        image = _png(_marked(expected, _mask(expected, got, tolerance), difference))
        events.emit(events.Evidence(f"{what}: where they differ (red)", image, "image/png"))
        raise ProductError(f"{what} does not show what was drawn", seen=str(difference))
    events.emit(events.Evidence(f"{what}: captured, as drawn", got.png(), "image/png"))


#: Changes a picture before it is drawn: a control.
Spoil = Callable[[Picture], Picture]


def flip_a_pixel(picture: Picture) -> Picture:
    """Control: the lowest bit of one pixel's green."""
    at = 3 * (picture.height // 3 * picture.width + picture.width // 5) + 1
    spoiled = bytearray(picture.rgb)
    spoiled[at] ^= 1
    return Picture(picture.width, picture.height, bytes(spoiled))


def check_draws(
    display: Display, device: BenchDevice, *, spoil: Spoil = lambda picture: picture
) -> Picture:
    """The guest draws a picture that nobody has drawn before, and the screen shows exactly it.

    ``spoil`` changes what the guest is given to draw.  Returns the picture.

    Raises:
        ProductError: it does not show it within :data:`SHOWN` seconds.
    """
    screen = screen_of(device)
    width, height = display.mode
    expected = known(width, height, secrets.randbits(24))
    drawn = spoil(expected)
    display.show(drawn.width, drawn.height, drawn.packed)
    latest = b""

    def shown() -> bool:
        # What a display shows follows what was drawn by a moment.
        nonlocal latest
        latest = _capture(screen, device, expected)
        return _is(drawn, latest, screen.tolerance)

    with contextlib.suppress(DeadlineExceeded):  # check_same says what it shows instead
        poll(shown, device.host.limit(SHOWN, f"the picture on {device}"))
    check_same(expected, latest, screen.tolerance, device.name)
    return expected


def check_gone(device: BenchDevice, picture: Picture) -> None:
    """The screen no longer shows a guest's picture, or a part of it, after the guest's end.

    Raises:
        ProductError: it does: whoever has the device next can read it.
    """
    screen = screen_of(device)
    captured = _capture(screen, device, picture)
    got = read_image(captured)
    events.emit(events.Evidence(f"{device.name}: after its guest's end", got.png(), "image/png"))
    share = _common(picture, got, screen.tolerance)
    if share > KEPT:
        raise ProductError(
            f"the screen of {device} still shows what the guest before drew",
            seen=f"{share:.0%} of its pixels, {got.width} × {got.height}",
            hint="the device's memory has outlived its guest: does its reset clear it?",
        )


#: Share of pixels that may be as another picture's by chance.
KEPT = 0.05


def screen_of(device: BenchDevice) -> Screen:
    """How its display is seen.

    Raises:
        LabError: it is not.
    """
    if device.screen is None:
        raise LabError(
            f"the display of {device} cannot be seen",
            hint="give it the key capture in the inventory",
        )
    return device.screen


def _capture(screen: Screen, device: BenchDevice, size: Picture) -> bytes:
    return screen.capture(size.width, size.height, device.host.limit(20, f"a capture of {device}"))


def _is(picture: Picture, captured: bytes, tolerance: int) -> bool:
    got = read_image(captured)
    same_size = (got.width, got.height) == (picture.width, picture.height)
    return same_size and compare(picture, got, tolerance) is None


def _common(one: Picture, other: Picture, tolerance: int) -> float:
    """Share of the pixels of both, from the upper left corner on, that are the same."""
    width, height = min(one.width, other.width), min(one.height, other.height)
    corner = (0, 0, width, height)
    parts = [
        Picture(width, height, _image(picture).crop(corner).tobytes()) for picture in (one, other)
    ]
    difference = compare(parts[0], parts[1], tolerance)
    return 1 - (difference.count if difference else 0) / (width * height)


def _mask(expected: Picture, got: Picture, tolerance: int) -> Image.Image:
    """255 where a channel differs by more than ``tolerance``, 0 elsewhere."""
    channels = ImageChops.difference(_image(expected), _image(got)).split()
    most = ImageChops.lighter(ImageChops.lighter(channels[0], channels[1]), channels[2])
    return most.point([0 if value <= tolerance else 255 for value in range(256)])


def _marked(expected: Picture, mask: Image.Image, difference: Difference) -> Image.Image:
    """The expected picture, faint; in red the pixels that differ, and a frame around them."""
    faint = _image(expected).convert("L").point(lambda value: value // 4).convert("RGB")
    red = Image.new("RGB", faint.size, "red")
    marked = Image.composite(red, faint, mask)
    left, top, right, bottom = difference.box
    ImageDraw.Draw(marked).rectangle((left - 8, top - 8, right + 7, bottom + 7), outline="white")
    return marked


def _show(expected: Picture, got: Picture, what: str) -> None:
    for title, picture in (("expected", expected), ("captured", got)):
        events.emit(events.Evidence(f"{what}: {title}", picture.png(), "image/png"))


def _image(picture: Picture) -> Image.Image:
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def _pixel(picture: Picture, at: int) -> tuple[int, int, int]:
    red, green, blue = picture.rgb[at : at + 3]
    return red, green, blue


def _colour(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
