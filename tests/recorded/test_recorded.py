"""The recordings are whole: their sizes are what their heads say."""

from __future__ import annotations

import pytest

from tests.recorded import DEFAULT, HERE, all_recorded, console_log, recorded


def test_every_recording_can_be_read_and_is_as_long_as_it_says() -> None:
    count = 0
    for one in all_recorded():
        path = HERE / DEFAULT / f"{one.name}.txt"
        streams = b"--- stdout (%d bytes) ---\n%b--- stderr (%d bytes) ---\n%b"
        sizes = len(one.stdout), one.stdout, len(one.stderr), one.stderr
        assert path.read_bytes().endswith(streams % sizes), path
        count += 1
    assert count == 372


def test_a_recording_is_found_by_its_number() -> None:
    one = recorded("1-host-setup/017")
    assert one == recorded("1-host-setup/017-pciconf-lvbc")
    assert (one.command, one.status) == ("pciconf -lvbc", 0)
    with pytest.raises(FileNotFoundError, match="no-such"):
        recorded("no-such/017")


def test_consoles_are_kept_to_the_byte() -> None:
    assert b"\r\n" in console_log("6-iommu-disabled/host-console")
