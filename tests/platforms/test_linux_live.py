"""The scripts of the Linux platform, run on this very machine where it has PCI functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.errors import LabError
from hil.guests.linux import LinuxGuest
from hil.pci.address import Address
from hil.platforms.linux import LinuxVfio
from hil.platforms.linux_survey import parse_survey
from hil.transport.local import LocalTransport
from tests.fakes import soon

DEVICES = Path("/sys/bus/pci/devices")

pytestmark = pytest.mark.skipif(
    not DEVICES.is_dir() or not any(DEVICES.iterdir()), reason="this machine has no PCI function"
)


@pytest.fixture
def host() -> LinuxVfio:
    return LinuxVfio("here", LocalTransport("here"), python=False)


def test_the_script_and_the_lasting_program_say_the_same(host: LinuxVfio) -> None:
    lasting = LinuxVfio("here", LocalTransport("here"))
    functions = host.functions(soon())
    assert functions == lasting.functions(soon())
    assert [str(f.address) for f in functions] == sorted(d.name for d in DEVICES.iterdir())
    for function in functions:
        assert function.config.vendor not in (0, 0xFFFF)


def test_one_function_is_as_in_the_whole_list(host: LinuxVfio) -> None:
    first = host.functions(soon())[0]
    assert host.function(first.address, soon()) == first


@pytest.mark.parametrize("python", [True, False])
def test_an_address_without_a_function_is_said(python: bool) -> None:
    host = LinuxVfio("here", LocalTransport("here"), python=python)
    with pytest.raises(LabError, match="here has no PCI function 0000:ff:1f"):
        host.function(Address.parse("0000:ff:1f.7"), soon())


def test_facts_are_this_machine_s(host: LinuxVfio) -> None:
    facts = host.facts(soon())
    assert facts.kernel.startswith("Linux ")
    assert facts.memory > 1 << 26
    assert facts.iommu in ("vt-d", "amd-vi", "none")


def test_the_list_in_a_guest_is_read(host: LinuxVfio) -> None:
    system = LinuxGuest()
    text = LocalTransport().run(system.list_functions(), deadline=soon()).check().stdout
    seen = {f.address: f.driver for f in system.parse_functions(text)}
    assert seen == {f.address: f.driver for f in host.functions(soon())}


def test_interrupts_can_be_asked_of_every_function(host: LinuxVfio) -> None:
    for function in host.functions(soon()):
        counts = host.interrupts(function.address, soon())
        assert all(count >= 0 for count in counts.values())


@pytest.mark.parametrize("python", [True, False])
def test_the_footprint_counts_a_guest_s_files(tmp_path: Path, python: bool) -> None:
    host = LinuxVfio("here", LocalTransport("here"), directory=str(tmp_path), python=python)
    before = host.footprint(soon())
    folder = tmp_path / host.journal.run / "guest"
    folder.mkdir(parents=True)
    (folder / "monitor").write_text("")
    (tmp_path / "another run").mkdir()
    after = host.footprint(soon())
    assert set(before) == {"guests", "files", "groups", "canaries", "locked_kib", "huge_pages"}
    assert (before["files"], after["files"]) == (0, 2)


def test_the_survey_s_lines_are_of_known_kinds(host: LinuxVfio) -> None:
    text = host._survey("*", soon())
    kinds = {line.partition(" ")[0] for line in text.splitlines()}
    assert {"size", "configs", "text"} <= kinds
    assert parse_survey(text)
