"""The program that draws in a guest, and capture devices, as far as they go without one."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from hil.deadline import Deadline
from hil.errors import DeadlineExceeded, GuestError, LabError
from hil.guests.guest import Guest
from hil.oracles.picture import read_image
from hil.probes import display
from hil.probes.capture import V4l2Screen
from hil.probes.remote import on_display as program
from hil.transport.local import LocalTransport
from tests.fakes import bench_device
from tests.probes.test_agent import guest_over


def limit() -> Deadline:
    return Deadline(60, "a test")


@pytest.mark.parametrize(
    ("number", "form", "value"),
    [  # as the macros of include/uapi/drm/drm.h come out
        (0xA0, program.RESOURCES, 0xC04064A0),
        (0xA2, program.CRTC, 0xC06864A2),
        (0xA6, program.ENCODER, 0xC01464A6),
        (0xA7, program.CONNECTOR, 0xC05064A7),
        (0xAE, program.FB, 0xC01C64AE),
        (0xB1, program.DIRTY, 0xC01864B1),
        (0xB2, program.CREATE, 0xC02064B2),
        (0xB3, program.MAP, 0xC01064B3),
    ],
)
def test_requests_have_the_kernels_numbers(number: int, form: str, value: int) -> None:
    assert program.request(number, struct.calcsize(form)) == value


def test_the_size_of_a_mode() -> None:
    mode = struct.pack(
        "=I10H3I32s", 25175, 640, 656, 752, 800, 0, 480, 490, 492, 525, 0, 60, 0, 0, b""
    )
    assert len(mode) == program.MODE
    assert program.size_of(mode) == (640, 480)


def test_rows_go_where_the_pitch_says() -> None:
    memory = bytearray(b"." * 32)
    program.put_rows(memory, 4, 8, b"aaaabbbbcccc", 4)
    assert bytes(memory) == b"....aaaa....bbbb....cccc........"
    program.put_rows(memory, 0, 4, b"12345678", 4)
    assert memory.startswith(b"12345678....")


@pytest.mark.parametrize(
    ("modes", "chosen"),
    [
        ([(1280, 800), (640, 480), (320, 200), (1024, 768)], (640, 480)),
        ([(1920, 1080), (1280, 720)], (1280, 720)),
        ([(320, 200), (400, 300)], (400, 300)),
    ],
)
def test_the_smallest_mode_that_will_do(
    modes: list[tuple[int, int]], chosen: tuple[int, int]
) -> None:
    assert display.choose(modes) == chosen


def test_a_display_without_modes() -> None:
    with pytest.raises(GuestError, match="no mode"):
        display.choose([])


def test_a_function_that_is_not_there_is_told_by_the_program_itself() -> None:
    guest: Guest = guest_over(LocalTransport("g1"))
    device, _ = bench_device("gpu0")
    try:
        with pytest.raises(GuestError, match="guest g1 cannot draw") as caught:
            display.Display(guest, device)
    finally:
        guest.destroy()
    assert "there is no PCI function 0000:00:10.0" in caught.value.seen
    assert "last words" in "\n".join(caught.value.console)


# ---- capture devices -------------------------------------------------------------------

Stand = Callable[[str], None]


@pytest.fixture
def v4l2_ctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Puts a script in the place of v4l2-ctl; its arguments are in ``$*``."""

    def put(script: str) -> None:
        path = tmp_path / "v4l2-ctl"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


def test_a_captured_picture(v4l2_ctl: Stand, tmp_path: Path) -> None:
    v4l2_ctl(f'echo "$*" >{tmp_path}/arguments; printf "abcdefghijkl"')
    found = read_image(V4l2Screen("/dev/video9").capture(2, 2, limit()))
    assert (found.width, found.height, found.rgb) == (2, 2, b"abcdefghijkl")
    asked = (tmp_path / "arguments").read_text().split()
    assert "--device=/dev/video9" in asked
    assert "--set-fmt-video=width=2,height=2,pixelformat=RGB3" in asked
    assert "--stream-to=-" in asked


def test_a_capture_of_another_size(v4l2_ctl: Stand) -> None:
    v4l2_ctl('printf "abc"')
    with pytest.raises(LabError, match="gave 3 bytes, not the 12 of 2 × 2 pixels") as caught:
        V4l2Screen("/dev/video9").capture(2, 2, limit())
    assert "--list-formats-ext" in caught.value.hint


def test_a_capture_that_fails(v4l2_ctl: Stand) -> None:
    v4l2_ctl('echo "Cannot open device /dev/video9" >&2; exit 1')
    with pytest.raises(LabError, match="/dev/video9 gave no picture") as caught:
        V4l2Screen("/dev/video9").capture(2, 2, limit())
    assert "Cannot open device" in caught.value.seen


def test_a_capture_without_a_signal(v4l2_ctl: Stand) -> None:
    v4l2_ctl("exec sleep 600")
    with pytest.raises(DeadlineExceeded) as caught:
        V4l2Screen("/dev/video9").capture(2, 2, Deadline(0.3, "a capture"))
    assert "query-dv-timings" in caught.value.hint


def test_no_v4l2_ctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="v4l2-ctl is not installed"):
        V4l2Screen("/dev/video9").capture(2, 2, limit())
