"""The undo scripts of a Linux host: right whatever had happened, and safe to run twice.

They run for real, on a sysfs that is a directory; what the kernel does when something is written
there is done by a shell function that stands in for readlink(1), before the script looks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hil.deadline import poll
from hil.journal import Kind, Undo, new_run
from hil.platforms import linux_undo
from tests.fakes import soon

PF, VF = "0000:01:00.0", "0000:01:10.0"
RUN = new_run()

# Takes what was written to unbind, drivers_probe and sriov_numvfs, and does it.
KERNEL = r"""
kernel() {
    for f in "$SYS"/bus/pci/devices/*; do
        u=$f/driver/unbind
        if [ -s "$u" ]; then : > "$u"; rm "$f/driver"; fi
    done
    p=$SYS/bus/pci/drivers_probe
    if [ -s "$p" ]; then
        f=$SYS/bus/pci/devices/$(cat "$p"); : > "$p"
        o=$(cat "$f/driver_override")
        [ -n "$o" ] || o=$(cat "$f/natural")
        [ -z "$o" ] || ln -sfn "$SYS/drivers/$o" "$f/driver"
    fi
}
readlink() { kernel; command readlink "$@"; }
"""


class Sysfs:
    """One PF, one VF of it, and what a script makes of them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "sys"
        (self.root / "bus/pci").mkdir(parents=True)
        (self.root / "bus/pci/drivers_probe").write_text("")
        self.vfio = folder / "dev/vfio"
        self.vfio.mkdir(parents=True)
        for name in ("igb", "vfio-pci"):
            (self.root / "drivers" / name).mkdir(parents=True)
        for group, name in enumerate((PF, VF)):
            device = self.root / "bus/pci/devices" / name
            device.mkdir(parents=True)
            (device / "driver_override").write_text("(null)\n")
            (device / "natural").write_text("igb")
            (device / "iommu_group").symlink_to(f"../groups/{group}")
            self.bind(name, "igb")
        pf = self.root / "bus/pci/devices" / PF
        (pf / "sriov_numvfs").write_text("0\n")

    def bind(self, name: str, driver: str, override: str = "") -> None:
        device = self.root / "bus/pci/devices" / name
        (device / "driver").unlink(missing_ok=True)
        if driver:
            (device / "driver").symlink_to(self.root / "drivers" / driver)
            (self.root / "drivers" / driver / "unbind").write_text("")
        if override:
            (device / "driver_override").write_text(override + "\n")

    def make_vf(self) -> None:
        pf = self.root / "bus/pci/devices" / PF
        (pf / "sriov_numvfs").write_text("1\n")
        (pf / "virtfn0").symlink_to(f"../{VF}")

    def hold(self, name: str) -> None:
        """As a guest's hold on a group: it cannot be opened.  A directory cannot, for writing."""
        group = (self.root / "bus/pci/devices" / name / "iommu_group").readlink().name
        (self.vfio / group).mkdir()

    def driver(self, name: str) -> str:
        link = self.root / "bus/pci/devices" / name / "driver"
        return link.readlink().name if link.is_symlink() else ""

    def override(self, name: str) -> str:
        return (self.root / "bus/pci/devices" / name / "driver_override").read_text().strip()

    def run(self, kind: Kind, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert kind.fits(Undo(kind.name, arguments))
        script = kind.script.replace("/sys/", f"{self.root}/").replace("/dev/vfio", str(self.vfio))
        return subprocess.run(
            ["sh", "-c", f"SYS={self.root}\n{KERNEL}\n{script}", "hil", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


#: Where a reservation of a function that had igb may have been cut off: its driver, the override.
@pytest.mark.parametrize(
    ("driver", "override"),
    [
        ("igb", ""),  # before anything
        ("igb", "vfio-pci"),
        ("", "vfio-pci"),  # unbound, not yet probed
        ("vfio-pci", "vfio-pci"),  # done
        ("vfio-pci", ""),  # on its way back
    ],
)
def test_a_driver_comes_back_wherever_its_reservation_was_cut_off(
    sysfs: Sysfs, driver: str, override: str
) -> None:
    sysfs.bind(PF, driver, override)
    for _ in range(2):
        done = sysfs.run(linux_undo.DRIVER, PF, "igb")
        assert (done.returncode, done.stderr) == (0, "")
        assert (sysfs.driver(PF), sysfs.override(PF)) in (("igb", ""), ("igb", "(null)"))


@pytest.mark.parametrize("driver", ["", "vfio-pci"])
def test_a_function_that_had_no_driver_gets_none(sysfs: Sysfs, driver: str) -> None:
    sysfs.bind(PF, driver, "vfio-pci")
    for _ in range(2):
        assert sysfs.run(linux_undo.DRIVER, PF, "none").returncode == 0
        assert sysfs.run(linux_undo.DRIVER, PF, "none").stderr == ""
    assert sysfs.override(PF) == ""


def test_what_somebody_bound_since_is_left_to_them(sysfs: Sysfs) -> None:
    sysfs.bind(PF, "")
    assert sysfs.run(linux_undo.DRIVER, PF, "igb").returncode == 0
    assert sysfs.driver(PF) == ""


def test_a_function_that_is_gone_needs_nothing(sysfs: Sysfs) -> None:
    for kind, arguments in ((linux_undo.DRIVER, ("igb",)), (linux_undo.VFS, ())):
        assert sysfs.run(kind, "0000:ff:00.0", *arguments).returncode == 0


def test_a_function_that_a_guest_holds_stays_and_is_told(sysfs: Sysfs) -> None:
    sysfs.bind(PF, "vfio-pci", "vfio-pci")
    sysfs.hold(PF)
    done = sysfs.run(linux_undo.DRIVER, PF, "igb")
    assert (done.returncode, done.stderr) == (1, f"a guest holds {PF}\n")
    assert (sysfs.driver(PF), sysfs.override(PF)) == ("vfio-pci", "vfio-pci")


def test_another_driver_than_before_is_told(sysfs: Sysfs) -> None:
    sysfs.bind(PF, "vfio-pci", "vfio-pci")
    done = sysfs.run(linux_undo.DRIVER, PF, "e1000e")
    assert (done.returncode, done.stderr) == (1, "bound to igb, not to e1000e\n")


def test_vfs_are_taken_away_once(sysfs: Sysfs) -> None:
    sysfs.make_vf()
    numvfs = sysfs.root / "bus/pci/devices" / PF / "sriov_numvfs"
    assert sysfs.run(linux_undo.VFS, PF).returncode == 0
    assert numvfs.read_text() == "0\n"
    numvfs.chmod(0o444)
    assert sysfs.run(linux_undo.VFS, PF).returncode == 0


def test_vfs_of_which_a_guest_holds_one_stay(sysfs: Sysfs) -> None:
    sysfs.make_vf()
    sysfs.hold(VF)
    done = sysfs.run(linux_undo.VFS, PF)
    assert (done.returncode, done.stderr) == (1, f"a guest holds {VF}\n")
    assert (sysfs.root / "bus/pci/devices" / PF / "sriov_numvfs").read_text() == "1\n"


def test_a_guest_is_killed_by_its_folder_and_no_other_is(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu-system-x86_64"
    shutil.copy(Path(sys.executable).resolve(), qemu)
    sleep = "import time; print('up', flush=True); time.sleep(600)"
    folders = [tmp_path / RUN / name for name in ("g1", "g10")]
    guests = []
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "monitor").write_text("")
        command = [str(qemu), "-c", sleep, f"socket,id=console,path={folder}/console,server=on"]
        guests.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    try:
        for guest in guests:
            assert guest.stdout is not None
            assert guest.stdout.readline() == "up\n"
        for _ in range(2):
            undo = Undo("guest", (str(folders[0]),))
            assert linux_undo.GUEST.fits(undo)
            words = ["sh", "-c", linux_undo.GUEST.script, "hil", *undo.arguments]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
        poll(lambda: guests[0].poll() is not None, soon(60), interval=0.01)
        assert guests[0].returncode == -9
        assert guests[1].poll() is None
        assert [folder.exists() for folder in folders] == [False, True]
    finally:
        for guest in guests:
            guest.kill()
            guest.communicate()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (linux_undo.DRIVER, ("0000:01:00.0; reboot", "igb")),
        (linux_undo.DRIVER, ("../../../etc", "igb")),
        (linux_undo.DRIVER, (PF, "$(reboot)")),
        (linux_undo.VFS, ("",)),
        (linux_undo.GUEST, ("/etc",)),
        (linux_undo.GUEST, (f"/run/hil/{RUN}",)),
        (linux_undo.GUEST, (f"/run/../etc/{RUN}/g1",)),
        (linux_undo.GUEST, (f"/run/hil/{RUN}/..",)),
        (linux_undo.FOLDER, ("/",)),
        (linux_undo.FOLDER, ("/dev/shm/hil-canary.",)),
        (linux_undo.FOLDER, (f"/dev/shm/../{RUN}-templates/..",)),
        (linux_undo.ADDRESS, ("eth0 up", "198.18.0.1/24")),
        (linux_undo.ADDRESS, ("../x", "198.18.0.1/24")),
        (linux_undo.ADDRESS, ("eth0", "198.18.0.1")),
    ],
)
def test_what_hil_never_writes_is_never_run(kind: Kind, arguments: tuple[str, ...]) -> None:
    assert not kind.fits(Undo(kind.name, arguments))


@pytest.mark.parametrize("kind", linux_undo.KINDS, ids=lambda kind: kind.name)
def test_a_person_is_told_what_was_done_and_what_to_type(kind: Kind) -> None:
    words = tuple(f"<{number}>" for number in range(len(kind.accepts)))
    undo = Undo(kind.name, words)
    assert words[0] in kind.words(undo)
    assert f"'{words[0]}'" in kind.command(undo)
