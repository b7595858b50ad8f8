from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hil.deadline import Deadline
from hil.doctor import machine
from hil.doctor.check import Check, State
from hil.doctor.linux import judge_linux, linux_host, parse_survey
from hil.errors import LabError
from hil.lab.load import load, parse
from hil.transport.base import Result
from hil.transport.local import LocalTransport

#: As a host printed it (kernel 6.1, Intel), shortened.
GOOD = """\
user=0
kernel=6.1.0-25-amd64
iommus=dmar0 dmar1
tables=APIC DMAR DSDT FACP
groups=17
cmdline=BOOT_IMAGE=/vmlinuz intel_iommu=on
cpu= GenuineIntel
vfio=loadable
kvm=yes
qemu=QEMU emulator version 7.2.9 (Debian 1:7.2+dfsg-7+deb12u7)
MemAvailable=31654320 kB
"""


def judged(*changes: tuple[str, str]) -> dict[str, Check]:
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return {check.name: check for check in judge_linux("alpha", parse_survey(text))}


def test_a_good_host_has_everything() -> None:
    checks = judged()
    assert {check.state for check in checks.values()} == {State.FOUND}
    assert checks["IOMMU on"].evidence == "/sys/class/iommu: dmar0 dmar1"
    assert checks["isolation groups"].evidence == "17 groups"


@pytest.mark.parametrize(
    ("change", "name", "remedy"),
    [
        (("user=0", "user=1000"), "root's rights", "user = 'root'"),
        (("DMAR ", ""), "IOMMU in the firmware", "VT-d"),
        (("iommus=dmar0 dmar1", "iommus="), "IOMMU on", "intel_iommu=on"),
        (("groups=17", "groups=0"), "isolation groups", "update-grub"),
        (("vfio=loadable", "vfio=none"), "vfio-pci", "linux-modules-extra"),
        (("qemu=QEMU emulator version 7.2.9", "qemu="), "QEMU", "apt-get install"),
    ],
)
def test_each_lack_is_seen_and_has_a_remedy(
    change: tuple[str, str], name: str, remedy: str
) -> None:
    if name == "QEMU":
        change = ("qemu=QEMU emulator version 7.2.9 (Debian 1:7.2+dfsg-7+deb12u7)", "qemu=")
    check = judged(change)[name]
    assert check.state is State.MISSING
    assert check.bad
    assert remedy in check.remedy


def test_without_kvm_a_host_still_works() -> None:
    check = judged(("kvm=yes", "kvm=no"))["KVM"]
    assert (check.state, check.bad, check.remedy) == (State.MISSING, False, "modprobe kvm_intel")


def test_on_amd_the_words_are_amds() -> None:
    change = [("GenuineIntel", "AuthenticAMD"), ("iommus=dmar0 dmar1", "iommus="), ("DMAR", "IVRS")]
    checks = judged(*change)
    assert "amd_iommu=on" in checks["IOMMU on"].remedy
    assert checks["KVM"].remedy == "modprobe kvm_amd"
    assert checks["IOMMU in the firmware"].state is State.FOUND


def test_no_kernel_option_is_advised_where_the_firmware_has_no_iommu() -> None:
    checks = judged(("DMAR ", ""), ("iommus=dmar0 dmar1", "iommus="))
    assert checks["IOMMU on"].remedy == "[switch VT-d on in the firmware's set-up]"


def test_what_a_host_does_not_show_is_told_as_such() -> None:
    checks = {check.name: check for check in judge_linux("alpha", {})}
    assert {check.state for check in checks.values()} == {State.UNKNOWN}
    assert not any(check.bad for check in checks.values())


def test_the_survey_runs_on_this_machine_and_can_be_judged() -> None:
    checks = linux_host("here", LocalTransport(), Deadline(30, "the survey"))
    assert [check.name for check in checks] == list(judged())


class Broken(LocalTransport):
    def run(self, *args: object, **kwargs: object) -> Result:
        raise LabError("the connection is gone", hint="look at the cable")


def test_a_host_that_does_not_answer_is_a_row_not_an_error() -> None:
    (check,) = linux_host("alpha", Broken(), Deadline(1, "the survey"))
    assert check.bad
    assert (check.evidence, check.remedy) == ("the connection is gone", "look at the cable")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "_which", shutil.which)
    monkeypatch.setenv("HIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HIL_ALLURE", raising=False)
    return tmp_path


def put(path: Path, name: str, script: str) -> None:
    (path / name).write_text(f"#!/bin/sh\n{script}\n")
    (path / name).chmod(0o755)


def here(*, emulated: bool = True) -> dict[str, Check]:
    deadline = Deadline(30, "the checks")
    return {c.name: c for c in machine.controller(LocalTransport(), deadline, emulated=emulated)}


def test_a_bare_machine_lacks_what_the_emulated_lab_needs(path: Path) -> None:
    checks = here()
    assert {name for name, check in checks.items() if check.bad} >= {
        "QEMU for x86",
        "mmdebstrap",
        "sqfstar",
    }
    assert checks["QEMU for x86"].remedy == "apt-get install qemu-system-x86"
    assert "QEMU for x86" not in here(emulated=False)


def test_an_old_qemu_is_found_but_its_lack_of_igb_is_told(path: Path) -> None:
    put(
        path,
        "qemu-system-x86_64",
        'if [ "$1" = --version ]; then echo "QEMU emulator version 7.2.9 (Debian)"; '
        "else echo no igb >&2; exit 1; fi",
    )
    checks = here()
    assert checks["QEMU for x86"].evidence.startswith("7.2.9, ")
    assert checks["QEMU's igb"].state is State.MISSING
    assert not checks["QEMU's igb"].bad


def test_a_new_qemu_has_igb(path: Path) -> None:
    put(path, "qemu-system-x86_64", 'echo "QEMU emulator version 10.0.2"')
    assert here()["QEMU's igb"].state is State.FOUND


def test_a_qemu_that_does_not_start_cannot_be_told(path: Path) -> None:
    put(path, "qemu-system-x86_64", "echo 'libfoo.so: cannot open' >&2; exit 127")
    check = here()["QEMU for x86"]
    assert check.state is State.UNKNOWN
    assert "libfoo.so" in check.evidence


def test_too_little_disk_and_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DISK_NEEDED", 1 << 62)
    monkeypatch.setattr(machine, "MEMORY_NEEDED", 1 << 62)
    checks = here()
    assert checks["disk for images"].bad
    assert str(path / "cache") in checks["disk for images"].evidence
    assert checks["memory for the emulated host"].bad


def test_memory_that_cannot_be_seen(tmp_path: Path) -> None:
    assert machine._memory(tmp_path / "none").state is State.UNKNOWN
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    assert machine._memory(tmp_path / "meminfo").state is State.UNKNOWN


def test_kvm_that_opens_proves_nothing(tmp_path: Path) -> None:
    assert machine._kvm(tmp_path / "kvm").state is State.MISSING
    (tmp_path / "kvm").touch()
    assert machine._kvm(tmp_path / "kvm").state is State.UNKNOWN
    assert not machine._kvm(tmp_path / "none").bad


DISPLAYS = """
[lab]
name = "bench"
kind = "physical"
[hosts.alpha]
platform = "linux-vfio"
address = "192.0.2.1"
[devices.gpu0]
kind = "gpu"
host = "alpha"
functions = ["0000:03:00.0"]
[devices.gpu1]
kind = "gpu"
host = "alpha"
functions = ["0000:04:00.0"]
capture = { by = "v4l2", device = "/dev/video0" }
"""


def test_a_capture_device_needs_its_tool(path: Path) -> None:
    lab = parse(DISPLAYS, Path("bench.toml"))
    (row,) = machine.capture(lab)
    assert (row.state, row.needed) == (State.MISSING, True)
    assert row.evidence == "no v4l2-ctl on PATH; it captures what gpu1 shows"
    assert row.remedy == "apt-get install v4l-utils"
    put(path, "v4l2-ctl", "exit 0")
    (row,) = machine.capture(lab)
    assert (row.state, row.evidence) == (State.FOUND, str(path / "v4l2-ctl"))


def test_where_nothing_is_captured_by_it_the_tool_is_not_asked_for(path: Path) -> None:
    blind = DISPLAYS.replace("capture =", "# capture =")
    assert machine.capture(parse(blind, Path("bench.toml"))) == []
    assert machine.capture(load("emulated")) == [], "its screens are QEMU's to show"


def test_nothing_is_changed(path: Path) -> None:
    before = sorted(path.rglob("*"))
    here()
    assert sorted(path.rglob("*")) == before
