"""Write and read back, on a file in a disk's place, by the very dd and sha256sum."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.errors import GuestError, ProductError
from hil.guests.guest import Guest
from hil.platforms.contract import GuestSpec
from hil.probes.nvme import SECTOR, Transfer, default_transfers, write_and_read_back
from hil.transport.local import LocalTransport
from tests.fakes import Answer, FakeMachine, FakeOS, FakeTransport, silent, soon


class Disk:
    """Runs what the guest would run; ``fault`` errs in its place.

    File systems of test machines may not take O_DIRECT, so that word is left out.
    """

    def __init__(self, path: Path, fault: str = "") -> None:
        self.path = path
        self.fault = fault
        self.reads = 0
        path.write_bytes(bytes(8 << 20))
        machine = FakeMachine(GuestSpec("g1", "linux"), silent(), FakeTransport(self.answer))
        self.guest = Guest(machine, FakeOS())

    def answer(self, command: tuple[str, ...], stdin: bytes) -> Answer:
        words = [word.replace("direct,", "") for word in command]
        if stdin and self.fault == "writes nothing":
            return 0, "", ""
        if stdin and self.fault == "writes one sector less":
            stdin = stdin[:-SECTOR]
        if stdin and self.fault == "a bit":
            stdin = stdin[:-1] + bytes([stdin[-1] ^ 1])
        done = LocalTransport().run(words, stdin=stdin, deadline=soon())
        if not stdin:
            self.reads += 1
            if self.fault == "hashes wrong once" and self.reads == 1:
                return 0, "0" * 64 + "  -\n", ""
        return done.status, done.out, done.err


TRANSFERS = [t for t in default_transfers() if t.length <= 8192]


def test_a_good_disk_reads_back(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk")
    written = write_and_read_back(disk.guest, str(disk.path), TRANSFERS)
    assert written == sum(transfer.length for transfer in TRANSFERS)


@pytest.mark.parametrize("fault", ["writes nothing", "writes one sector less", "a bit"])
@pytest.mark.parametrize("transfer", TRANSFERS, ids=lambda t: str(t.block))
def test_a_bad_disk_is_told_with_its_bytes(tmp_path: Path, fault: str, transfer: Transfer) -> None:
    disk = Disk(tmp_path / "disk", fault)
    with pytest.raises(ProductError, match="bytes differ") as caught:
        write_and_read_back(disk.guest, str(disk.path), [transfer])
    assert "wrong bytes at" in caught.value.seen


def test_the_control_fails(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk")
    with pytest.raises(ProductError):
        write_and_read_back(disk.guest, str(disk.path), TRANSFERS[:1], spoil=True)


def test_a_hash_that_is_wrong_once_is_not_forgiven(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk", "hashes wrong once")
    with pytest.raises(GuestError, match="hashed wrong and then read right"):
        write_and_read_back(disk.guest, str(disk.path), TRANSFERS[:1])


def test_transfers_are_of_whole_sectors_and_apart() -> None:
    end = 0
    for transfer in default_transfers():
        assert not (transfer.offset | transfer.length | transfer.block) % SECTOR
        assert transfer.length % transfer.block == 0
        assert transfer.offset > end
        end = transfer.offset + transfer.length
