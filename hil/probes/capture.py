"""Capture devices for displays: Video4Linux, by v4l2-ctl on the machine that runs hil.

Tested against a stand-in for v4l2-ctl only; no capture hardware has been tried.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from hil.deadline import Deadline
from hil.errors import LabError

_PROGRAM = "v4l2-ctl"
#: Pictures that are thrown away first: many devices begin with an old or half a picture.
SKIPPED = 3


@dataclass(frozen=True, slots=True)
class V4l2Screen:
    """A display whose cable ends in a capture device of this machine.

    ``device``: ``/dev/video0``.  libv4l (v4l2-ctl's ``--wrapper``) turns whatever the device
    gives into 3 bytes a pixel.
    """

    device: str
    tolerance: int = 0

    def capture(self, width: int, height: int, deadline: Deadline) -> bytes:
        """One picture of this size as a PPM file.

        Raises:
            LabError: v4l2-ctl is missing or failed, or the device gave another size.
        """
        form = f"--set-fmt-video=width={width},height={height},pixelformat=RGB3"
        command = [_PROGRAM, f"--device={self.device}", "--wrapper", form]
        command += ["--stream-mmap", f"--stream-skip={SKIPPED}", "--stream-count=1"]
        command += ["--stream-to=-"]
        try:
            done = subprocess.run(
                command, capture_output=True, check=False, timeout=max(deadline.remaining, 0.1)
            )
        except FileNotFoundError:
            raise LabError(
                f"{_PROGRAM} is not installed", hint="apt-get install v4l-utils"
            ) from None
        except subprocess.TimeoutExpired:
            hint = "does anything come in? v4l2-ctl --query-dv-timings"
            raise deadline.exceeded(f"no picture from {self.device}", hint=hint) from None
        said = done.stderr.decode("utf-8", "replace")
        if done.returncode != 0:
            raise LabError(f"{self.device} gave no picture", seen=said, command=command)
        wanted = width * height * 3
        if len(done.stdout) != wanted:
            raise LabError(
                f"{self.device} gave {len(done.stdout)} bytes, not the {wanted} of "
                f"{width} × {height} pixels",
                seen=said,
                command=command,
                hint="which sizes and formats has it? v4l2-ctl --list-formats-ext",
            )
        return b"P6 %d %d 255\n" % (width, height) + done.stdout
