"""What can be said of the emulated lab without starting it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil.deadline import Deadline
from hil.emulated import machine
from hil.emulated.accel import Accelerator
from hil.emulated.images import Image
from hil.errors import DeadlineExceeded, LabError

Fake = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    machine.find_qemu.cache_clear()
    yield
    machine.find_qemu.cache_clear()


def test_no_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="QEMU is not installed") as error:
        machine.find_qemu()
    assert "apt-get install qemu-system-x86" in error.value.hint


@pytest.mark.parametrize(
    ("version", "igb", "saves"),
    [
        ("7.2.19", False, False),
        ("8.1.0", True, False),
        ("8.2.2", True, True),
        ("10.0.2", True, True),
    ],
)
def test_what_a_version_can_do(version: str, igb: bool, saves: bool, fake: Fake) -> None:
    fake("qemu-system-x86_64", f"echo 'QEMU emulator version {version} (Debian 1:{version})'")
    qemu = machine.find_qemu()
    assert (qemu.has_igb, qemu.saves_to_file) == (igb, saves)
    assert version in qemu.words


def test_qemu_too_old(fake: Fake) -> None:
    fake("qemu-system-x86_64", "echo 'QEMU emulator version 5.2.0'")
    with pytest.raises(LabError, match=r"QEMU 5\.2 is too old") as error:
        machine.find_qemu()
    assert "backports" in error.value.hint


def test_qemu_that_does_not_run(fake: Fake) -> None:
    fake("qemu-system-x86_64", "echo 'cannot open shared object file' >&2; exit 127")
    with pytest.raises(LabError, match="does not tell its version") as error:
        machine.find_qemu()
    assert "shared object" in error.value.seen


def plan(
    *, version: tuple[int, int] = (10, 0), accelerator: str = "tcg", iommu: bool = True
) -> machine._Plan:
    image = Image("host", Path("/c/kernel"), Path("/c/initrd"), Path("/c/root"), "key")
    qemu = machine.Qemu("/usr/bin/qemu-system-x86_64", version, "QEMU 10.0")
    return machine._Plan(qemu, Accelerator(accelerator, ""), image, Path("/c/guests"), iommu)


def words(**options: object) -> str:
    return " ".join(plan(**options).command("console", "monitor", Path("/run/x")))  # type: ignore[arg-type]


def test_devices_are_behind_the_ports_that_the_inventory_names() -> None:
    text = words()
    for index, name in enumerate(machine.PORTS):
        place = f"{0x10 + index // 8:#x}.{index % 8}"
        assert f"pcie-root-port,id=port-{name},chassis={index + 1},addr={place}," in text
    assert "igb,id=nic0,bus=port-nic0" in text
    assert "igb,id=peer0,bus=port-peer0" in text


def test_without_igb_the_rest_stays() -> None:
    text = words(version=(7, 2))
    assert " igb," not in text
    assert "e1000e,id=nic1,bus=port-nic1" in text
    assert "pcie-root-port,id=port-gpu0,chassis=6" in text, "addresses stay the same"


def test_with_and_without_an_iommu() -> None:
    assert "intel-iommu,intremap=on,caching-mode=off" in words()
    assert "intel-iommu" not in words(iommu=False)


def test_a_comma_in_a_path_is_no_separator() -> None:
    assert "file=/run/a,,b/host" in " ".join(plan().command("c", "m", Path("/run/a,b")))


def test_whatever_shapes_the_machine_is_in_its_states_name() -> None:
    plans = [
        plan(),
        plan(version=(7, 2)),
        plan(accelerator="kvm"),
        plan(iommu=False),
    ]
    assert len({each.key() for each in plans}) == len(plans)
    assert plan().key() == plan().key()


def read(address: int, length: int) -> bytes:
    memory = machine._PhysicalMemory(lambda a, n: f"{a:#x}+{n}".encode())
    return memory.read(address, length)


@pytest.mark.parametrize("address", [0, 0x1234, machine.MEMORY - 16])
def test_ram_is_read(address: int) -> None:
    assert read(address, 16) == f"{address:#x}+16".encode()


@pytest.mark.parametrize("address", [-1, machine.MEMORY - 15, 0xFED90000, 1 << 40])
def test_what_is_no_ram_is_not(address: int) -> None:
    with pytest.raises(LabError, match="has no memory at"):
        read(address, 16)


def test_all_ram_is_below_4_gib() -> None:
    """Where q35 keeps it: from 2816 MiB on, it would move a part above."""
    assert machine.MEMORY < 0xB000_0000


def test_not_enough_memory() -> None:
    with pytest.raises(LabError, match=r"needs 1048576\.0 GiB of memory, [0-9.]+ GiB are"):
        machine.require_memory(1 << 50)


def test_memory_is_copied_without_its_zeros(tmp_path: Path) -> None:
    source, target = tmp_path / "memory", tmp_path / "copy"
    with source.open("wb") as file:
        for at in (0, 5 << 20):
            file.seek(at)
            file.write(b"page" * 1024 + bytes(1 << 20))
        file.truncate(64 << 20)
    machine._copy_sparsely(source, target)
    machine._read_ahead(target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20


def test_memory_that_cannot_be_copied(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="memory cannot be saved") as error:
        machine._copy_sparsely(tmp_path / "none", tmp_path / "copy")
    assert "No such file" in error.value.seen
    machine._read_ahead(tmp_path / "none")  # no more than a hint: whoever maps it tells


def test_a_lab_changes_a_copy_of_its_saved_memory() -> None:
    (_, backend, *_) = machine._memory(Path("/a,b"), copied=True)
    assert "mem-path=/a,,b,share=off,readonly=on,rom=off" in backend


class TestASavedState:
    """What becomes of it, with stand-ins for the machine."""

    @pytest.fixture
    def state(self, tmp_path: Path) -> Path:
        (tmp_path / "state").mkdir()
        return tmp_path / "state"

    def up(self, state: Path, failure: Exception, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        told: list[str] = []

        def fail(*_: object) -> None:
            raise failure

        monkeypatch.setattr(machine.EmulatedLab, "_restore", fail)
        monkeypatch.setattr(machine.EmulatedLab, "_boot", lambda *_: told.append("booted"))
        deadline = Deadline(5, "a test")
        machine.EmulatedLab._restore_or_boot(plan(), state, told.append, deadline)
        return told

    def test_one_that_is_damaged_is_removed_and_the_lab_booted(
        self, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = self.up(state, LabError("not a migration stream"), monkeypatch)
        assert told == ["the saved state is of no use (not a migration stream)", "booted"]
        assert not state.exists()

    def test_one_that_takes_too_long_is_kept(
        self, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(DeadlineExceeded):
            self.up(state, Deadline(0, "the state").exceeded(), monkeypatch)
        assert state.exists()
