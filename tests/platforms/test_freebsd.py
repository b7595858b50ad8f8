"""The adapter for FreeBSD with bhyve, among recorded answers."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from hil.deadline import Deadline
from hil.errors import (
    CommandError,
    InventoryError,
    LabError,
    LabRefusalError,
    ProductError,
    RefusalError,
)
from hil.guests.images import GuestImage
from hil.journal import FREEBSD, Journal
from hil.pci.address import Address
from hil.platforms.contract import Feature, Function, GuestSpec, Owner, Phase, Reservation
from hil.platforms.freebsd import FreebsdBhyve
from hil.platforms.freebsd_memory import (
    DevMemory,
    MdCanary,
    ReadAhead,
    acpi_table,
    device_registers,
)
from hil.platforms.freebsd_undo import DRIVER, KINDS
from tests.fakes import Answer, FakeTransport
from tests.platforms.freebsd_host import EDU, EM, FAR, IGB, PORT, FreebsdHost
from tests.recorded import recorded

BUSY = recorded("1-host-setup/060").errors


def soon() -> Deadline:
    return Deadline(60, "a test's step")


# ---- facts -------------------------------------------------------------------------


def test_facts_are_those_of_the_recorded_host() -> None:
    facts = FreebsdHost().platform().facts(soon())
    assert facts.os == "FreeBSD 13.2-RELEASE"
    assert facts.cpu == "AMD EPYC Processor (with IBPB)"
    assert facts.memory == 6419927040
    assert (facts.iommu, facts.iommu_enabled) == ("amd-vi", True)
    assert facts.extra["hw.vmm.iommu.initialized"] == "0"
    assert facts.extra["kenv hw.vmm.amdvi.enable"] == "1"


@pytest.mark.parametrize(
    ("sysctl", "enabled"),
    [
        ("hw.vmm.amdvi.enable: 1\nhw.vmm.iommu.enable: 1\n", True),
        ("hw.vmm.amdvi.enable: 0\nhw.vmm.iommu.enable: 1\n", False),
        ("hw.vmm.amdvi.enable: 1\nhw.vmm.iommu.enable: 0\n", False),
        ("hw.ncpu: 2\n", True),  # vmm is not loaded: the tunable counts
    ],
)
def test_the_iommu_is_on_if_both_of_its_switches_are(sysctl: str, enabled: bool) -> None:
    host = FreebsdHost()
    host.sysctls = sysctl
    assert host.platform().facts(soon()).iommu_enabled is enabled


def test_intel_s_needs_its_table_only() -> None:
    host = FreebsdHost()
    host.texts["acpidump -t"] = recorded("8-vtd-machine/003").text
    facts = host.platform().facts(soon())
    assert (facts.iommu, facts.iommu_enabled) == ("vt-d", True)


def test_facts_change_nothing() -> None:
    host = FreebsdHost()
    host.platform().facts(soon())
    assert host.changes == []


@pytest.mark.parametrize(
    ("release", "idle"),
    [
        ("10.4-RELEASE", Owner.HOST),
        ("11.1-RELEASE-p15", Owner.HOST),
        ("11.2-RELEASE", Owner.NOBODY),
        ("13.2-RELEASE", Owner.NOBODY),
        ("16.0-CURRENT", Owner.NOBODY),
    ],
)
def test_whose_an_idle_function_s_dma_is_depends_on_the_release(release: str, idle: Owner) -> None:
    host = FreebsdHost()
    host.texts["uname -r"] = f"{release}\n"
    domains = host.platform().domains
    assert domains[Phase.IDLE] is domains[Phase.DESTROYED] is idle
    assert domains[Phase.ASSIGNED] is Owner.GUEST
    assert domains[Phase.BOOT] is domains[Phase.RETURNED] is Owner.HOST


def test_without_dev_mem_there_are_no_tables_and_no_guest_memory() -> None:
    host = FreebsdHost()
    ask = host.answer
    host.answer = lambda command, stdin: (
        (1, "", "dd: /dev/mem: Operation not permitted\n")
        if command[0] == "dd"
        else ask(command, stdin)
    )
    features = host.platform().features
    assert features >= {Feature.IOMMU, Feature.NMI, Feature.SRIOV, Feature.FAULTS}
    assert not features & {Feature.TABLES, Feature.GUEST_MEMORY, Feature.PHYSICAL_MEMORY}


# ---- functions ---------------------------------------------------------------------


def test_functions_have_driver_and_configuration() -> None:
    found = {f.address: f for f in FreebsdHost().platform().functions(soon())}
    assert found[EM].driver == "em"
    assert found[EM].config.vendor == 0x8086
    assert found[EDU].driver is None
    assert found[PORT].config.header_type == 1
    assert not any(f.reserved for f in found.values())


def test_all_is_asked_in_one_round_trip() -> None:
    host = FreebsdHost()
    host.platform().functions(soon())
    assert len(host.commands) == 1


def test_one_function_s_configuration_is_read_unless_others_tell_of_it() -> None:
    host = FreebsdHost()
    platform = host.platform()
    assert platform.function(EM, soon()).driver == "em"
    (command,) = host.commands
    assert f"hil {EM.selector}; printf" in command[2]
    # Where there are virtual functions, only the physical ones' tell whose they are.
    host.iov = "IOV enabled"
    platform.function(EM, soon())
    assert len(host.commands) == 3
    assert host.commands[2][4:] == (IGB.selector,)
    # Next time they are asked for with the rest.
    platform.function(EM, soon())
    assert len(host.commands) == 4


def test_an_answer_that_is_cut_off_is_an_error() -> None:
    host = FreebsdHost()
    whole = host.answer

    def cut(command: tuple[str, ...], stdin: bytes) -> Answer:
        status, out, err = whole(command, stdin)
        return status, out[:-40], err

    host.answer = cut
    with pytest.raises(LabError, match="was asked 12 things and answered 9"):
        host.platform().functions(soon())


def test_what_the_host_needs_must_be_known() -> None:
    host = FreebsdHost()
    host.answers["mount -p"] = (1, "", "mount: failed\n")
    with pytest.raises(CommandError, match="mount ended with status 1"):
        host.platform().functions(soon())


def test_an_absent_function_is_an_error() -> None:
    with pytest.raises(LabError, match=r"has no PCI function 0000:1d:00\.0"):
        FreebsdHost().platform().function(Address.parse("0000:1d:00.0"), soon())


def test_configuration_space_is_read_and_written_in_aligned_words() -> None:
    host = FreebsdHost()
    platform = host.platform()
    assert platform.read_config(EM, soon()) == host.configs[EM]
    platform.write_config(EM, 0x06, bytes.fromhex("34127856ab"), soon())
    assert host.commands[-3:] == [
        ("pciconf", "-w", "-h", "pci0:0:5:0", "0x6", "0x1234"),
        ("pciconf", "-w", "-h", "pci0:0:5:0", "0x8", "0x5678"),
        ("pciconf", "-w", "-b", "pci0:0:5:0", "0xa", "0xab"),
    ]


# ---- reset -------------------------------------------------------------------------


def test_a_reset_takes_another_driver_out_of_the_way_but_not_ppt() -> None:
    host = FreebsdHost()
    host.platform().reset(EM, soon())
    host.drivers[IGB] = ("ppt0", True)
    host.platform().reset(IGB, soon(), "flr")
    assert host.changes == ["devctl reset -d pci0:0:5:0", "devctl reset pci0:0:6:0"]


def test_another_method_than_freebsd_s_own_is_refused() -> None:
    host = FreebsdHost()
    with pytest.raises(LabError, match="by flr, and takes no other"):
        host.platform().reset(EM, soon(), "pm")
    assert host.changes == []


def test_a_function_without_reset_is_not_reset() -> None:
    with pytest.raises(ProductError, match="neither FLR nor a reset by D3"):
        FreebsdHost().platform().reset(EDU, soon())


def test_transactions_pending_after_a_reset_are_told() -> None:
    host = FreebsdHost()
    line = "pci0:0:5:0: Transactions pending after FLR!\n"
    logs = iter([host.texts["dmesg"], host.texts["dmesg"] + line])
    platform = host.platform()
    platform.kernel_log = lambda deadline: next(logs)  # type: ignore[method-assign]
    with pytest.raises(ProductError, match="was not reset") as raised:
        platform.reset(EM, soon())
    assert "Transactions pending after FLR" in raised.value.seen


# ---- reserve and return ------------------------------------------------------------


def test_reserve_and_return_are_devctl_s() -> None:
    host = FreebsdHost()
    platform = host.platform()
    reservation = platform.reserve([EM, EDU], soon())
    assert host.changes == [
        "kldload -n vmm",
        "devctl set driver -f pci0:0:5:0 ppt",
        "devctl set driver pci0:0:9:0 ppt",
    ]
    assert reservation.previous_drivers == {EM: "em", EDU: None}
    assert platform.function(EM, soon()).reserved
    assert len(platform.journal.outstanding) == 2
    platform.give_back(reservation, soon())
    assert host.drivers[EM] == ("em0", True)
    assert host.drivers[EDU] == ("none0", False)
    assert not platform.journal.outstanding
    scripts = [command for command in host.commands if DRIVER.script in command]
    assert [command[4:] for command in scripts] == [("pci0:0:9:0", "none"), ("pci0:0:5:0", "em")]


def test_what_journals_keep_of_drivers_is_accepted_again() -> None:
    host = FreebsdHost()
    platform = host.platform()
    platform.reserve([EM, EDU], soon())
    assert all(DRIVER.fits(entry.undo) for entry in platform.journal.outstanding)


@pytest.mark.parametrize(
    ("address", "words"),
    [(PORT, "is a bridge"), (Address.parse("0000:1d:00.0"), "no PCI function")],
)
def test_bridges_and_what_is_not_there_are_refused_untouched(address: Address, words: str) -> None:
    host = FreebsdHost()
    with pytest.raises(InventoryError, match=words):
        host.platform().reserve([EM, address], soon())
    assert host.changes == []


def survey_with(platform: FreebsdBhyve, **changes: Any) -> None:
    """All that the platform finds is changed so."""
    whole = platform._view.survey

    def survey(chosen: Sequence[Address], deadline: Deadline) -> tuple[Function, ...]:
        return tuple(dataclasses.replace(f, **changes) for f in whole([EM], deadline))

    platform._view.survey = survey  # type: ignore[method-assign]


def test_what_the_host_needs_is_refused_untouched() -> None:
    host = FreebsdHost()
    platform = host.platform()
    survey_with(platform, in_use_as="root disk")
    with pytest.raises(InventoryError, match="is the host's root disk"):
        platform.reserve([EM], soon())
    assert host.changes == []


def test_another_pci_domain_is_refused_for_bhyve_would_take_another_function() -> None:
    platform = FreebsdHost().platform()
    far = Address.parse("0001:00:05.0")
    survey_with(platform, address=far)
    with pytest.raises(InventoryError, match="bhyve passes functions of domain 0"):
        platform.reserve([far], soon())


def test_a_failure_on_the_way_gives_back_what_was_taken() -> None:
    host = FreebsdHost()
    host.answers["devctl set driver -f pci0:0:6:0 ppt"] = (
        1,
        "",
        BUSY.replace("pci0:0:5:0", "pci0:0:6:0"),
    )
    platform = host.platform()
    with pytest.raises(LabRefusalError, match=r"0000:00:06\.0 was not attached to ppt"):
        platform.reserve([EM, IGB], soon())
    assert host.drivers[EM] == ("em0", True)
    assert host.drivers[IGB] == ("igb0", True)
    assert not platform.journal.outstanding


def test_ppt_s_name_alone_does_not_prove_that_it_is_attached() -> None:
    host = FreebsdHost()
    ask = host.answer

    def answer(command: tuple[str, ...], stdin: bytes) -> Answer:
        found = ask(command, stdin)
        if command[:3] == ("devctl", "set", "driver") and command[-1] == "ppt":
            host.drivers[EM] = ("ppt0", False)
        return found

    host.answer = answer
    with pytest.raises(ProductError, match="was not attached to ppt"):
        host.platform().reserve([EM], soon())


def test_vmm_that_loads_and_is_not_there_is_told_before_anything_is_taken() -> None:
    host = FreebsdHost()
    host.answers["kldstat -q -m vmm"] = (1, "", "")
    with pytest.raises(LabRefusalError, match=r"vmm cannot be loaded .* did not start"):
        host.platform().reserve([EM], soon())
    assert host.changes == ["kldload -n vmm"]


def test_what_pptdevs_reserved_stays_reserved() -> None:
    host = FreebsdHost()
    host.drivers[EM] = ("ppt0", True)
    host.pptdevs.add(EM)
    host.texts["kenv -q"] = recorded("7-pptdevs-at-boot/029").text
    platform = host.platform()
    reservation = platform.reserve([EM], soon())
    assert reservation.previous_drivers == {}
    platform.give_back(reservation, soon())
    assert host.changes == ["kldload -n vmm"]


def test_what_a_dead_run_left_reserved_goes_back_to_the_kernel_s_choice() -> None:
    host = FreebsdHost()
    host.drivers[EM] = ("ppt0", True)
    platform = host.platform()
    platform.give_back(platform.reserve([EM], soon()), soon())
    assert host.changes[-1] == "devctl clear driver -f pci0:0:5:0"
    assert host.drivers[EM] == ("em0", True)


def test_a_held_function_cannot_be_returned_and_the_others_are() -> None:
    host = FreebsdHost()
    platform = host.platform()
    reservation = platform.reserve([EM, IGB], soon())
    host.held.add(EM)
    with pytest.raises(RefusalError, match=r"0000:00:05\.0 is held by a guest") as raised:
        platform.give_back(reservation, soon())
    assert raised.value.command == ("devctl", "clear", "driver", "-f", "pci0:0:5:0")
    assert host.drivers[IGB] == ("igb0", True)
    assert len(platform.journal.outstanding) == 1, "the journal tries again"


def test_a_driver_that_does_not_come_back_is_told() -> None:
    host = FreebsdHost()
    host.native[EM] = ("none5", False)
    host.drivers[EM] = ("ppt0", True)
    ask = host.answer
    host.answer = lambda command, stdin: (
        (0, "", "") if DRIVER.script in command else ask(command, stdin)
    )
    with pytest.raises(ProductError, match="should be with em and is with ppt"):
        host.platform().give_back(Reservation((EM,), {EM: "em"}), soon())


# ---- VFs ---------------------------------------------------------------------------


def with_vfs(host: FreebsdHost, count: int) -> None:
    """The PF has made them, as far as its functions tell."""
    platform_functions = FreebsdHost.platform(host).functions(soon())
    vfs = tuple(Address(0, 2, 0x10, n) for n in range(count))
    host.found = tuple(  # type: ignore[attr-defined]
        dataclasses.replace(f, virtual_functions=vfs) if f.address == IGB else f
        for f in platform_functions
    )


@pytest.mark.parametrize(("schema", "macs"), [("mac-addr : unicast-mac (optional)", 2), ("", 0)])
def test_vfs_are_made_from_a_written_configuration(schema: str, macs: int) -> None:
    host = FreebsdHost()
    platform = host.platform()
    folder = f"/var/run/hil/{platform.journal.run}"
    path = f"{folder}/iov-igb0.conf"
    host.texts |= {
        "iovctl -S -d igb0": schema,
        f"mkdir -p -m 711 {folder}": "",
        f"iovctl -C -f {path}": "",
        f"rm -f {path}": "",
    }
    with_vfs(host, 2)
    platform._view.survey = lambda chosen, deadline: host.found  # type: ignore[attr-defined, method-assign]
    assert len(platform.create_vfs(IGB, 2, soon())) == 2
    text = host.files[path].decode()
    assert 'device : "igb0";\n    num_vfs : 2;' in text
    assert "passthrough : false;" in text
    assert text.count("mac-addr") == macs
    assert [entry.undo.arguments for entry in platform.journal.outstanding] == [("igb0",)]


def test_vfs_that_are_not_made_are_taken_back() -> None:
    host = FreebsdHost()
    platform = host.platform()
    folder = f"/var/run/hil/{platform.journal.run}"
    path = f"{folder}/iov-igb0.conf"
    host.texts |= {
        "iovctl -S -d igb0": "",
        f"mkdir -p -m 711 {folder}": "",
        f"rm -f {path}": "",
    }
    host.answers[f"iovctl -C -f {path}"] = (1, "", "iovctl: Failed to configure SR-IOV: No space\n")
    undone: list[Sequence[str]] = []
    ask = host.answer

    def answer(command: tuple[str, ...], stdin: bytes) -> Answer:
        if any("iovctl -D" in word for word in command):
            undone.append(command)
            return 0, "", ""
        return ask(command, stdin)

    host.answer = answer
    with pytest.raises(ProductError, match="was to make 2 VFs and has made 0") as raised:
        platform.create_vfs(IGB, 2, soon())
    assert "No space" in raised.value.seen
    assert len(undone) == 1
    assert not platform.journal.outstanding


def test_vfs_that_a_guest_holds_stay() -> None:
    host = FreebsdHost()
    host.answers["iovctl -D -d igb0"] = (1, "", "iovctl: Failed to delete VFs: Device busy\n")
    with pytest.raises(LabRefusalError, match="stay: a guest holds one") as raised:
        host.platform().remove_vfs(IGB, soon())
    assert "Device busy" in raised.value.seen
    host.answers["iovctl -D -d igb0"] = (0, "", "")
    host.platform().remove_vfs(IGB, soon())


# ---- guests ------------------------------------------------------------------------

IMAGE = GuestImage("freebsd", "freebsd", "/vm/guest.img")


@pytest.mark.parametrize(
    ("release", "form"),
    [("13.2-RELEASE", "ppt5"), ("15.0-RELEASE", "ppt5"), ("13.1-RELEASE", "0/5/0"),
     ("12.1-RELEASE", "0/5/0")],
)  # fmt: skip
def test_a_function_is_named_as_the_release_s_bhyve_takes_it(release: str, form: str) -> None:
    host = FreebsdHost()
    host.texts["uname -r"] = f"{release}\n"
    host.drivers[EM] = ("ppt5", True)
    platform = host.platform()
    platform.images = {"freebsd": IMAGE}
    with pytest.raises(LabError, match="no stream here"):
        platform.create_guest(GuestSpec("nic0-1", "freebsd", devices=(EM,)), soon())
    script = host.commands[-1][2]
    assert f"passthru,{form} " in script
    assert ("-G w127.0.0.1:" in script) == (form == "ppt5")
    assert "kldload -n nmdm" in host.changes


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("name", "-s 8,passthru,ppt5 "),
        ("slashes", "-s 8,passthru,0/5/0 "),
        ("selector", "-s 8,passthru,pci0:0:5:0 "),
        ("variables", "-o pci.0.8.0.device=passthru -o pci.0.8.0.pptdev=ppt5 "),
    ],
)
def test_a_guest_may_choose_the_form(form: str, words: str) -> None:
    host = FreebsdHost()
    host.drivers[EM] = ("ppt5", True)
    platform = host.platform()
    platform.images = {"freebsd": IMAGE}
    assert form in platform.address_forms
    with pytest.raises(LabError, match="no stream here"):
        platform.create_guest(GuestSpec("nic0-1", "freebsd", devices=(EM,), form=form), soon())
    assert words in host.commands[-1][2]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("slashes", "-s 8,passthru,0/5/0,rom=/roms/card.rom "),
        ("variables", "-o pci.0.8.0.pptdev=ppt5 -o pci.0.8.0.rom=/roms/card.rom "),
    ],
)
def test_a_guest_is_given_an_option_rom(form: str, words: str) -> None:
    host = FreebsdHost()
    host.drivers[EM] = ("ppt5", True)
    platform = host.platform()
    platform.images = {"freebsd": IMAGE}
    spec = GuestSpec("nic0-1", "freebsd", devices=(EM,), form=form, roms={EM: "/roms/card.rom"})
    with pytest.raises(LabError, match="no stream here"):
        platform.create_guest(spec, soon())
    assert words in host.commands[-1][2]


def test_its_windows_for_bars_are_bhyve_s() -> None:
    assert FreebsdHost().platform().bar_windows(soon()).high(4 << 30) == (32 << 30, 64 << 30)


def test_an_image_that_the_host_lacks_is_told() -> None:
    host = FreebsdHost()
    with pytest.raises(InventoryError, match="has no guest image 'linux'"):
        host.platform().create_guest(GuestSpec("a", "linux"), soon())
    assert host.changes == []


def test_a_refusal_is_decoded_with_the_host_s_facts_and_stale_guests() -> None:
    host = FreebsdHost()
    host.missing.clear()
    host.texts["ls /dev/vmm"] = "hil-old-1-0001\nhil-live-0002\nother\n"
    host.texts["ps -axww -o pid= -o command="] = " 77 bhyve: hil-live-0002 (bhyve)\n"
    platform = host.platform()
    platform.images = {"freebsd": IMAGE}
    machine = None
    created: list[object] = []

    def note(self: object, deadline: Deadline) -> None:
        created.append(self)

    from hil.platforms.freebsd_guest import BhyveMachine

    original = BhyveMachine.create
    BhyveMachine.create = note  # type: ignore[method-assign]
    try:
        machine = platform.create_guest(GuestSpec("nic0-1", "freebsd", devices=(EM,)), soon())
    finally:
        BhyveMachine.create = original  # type: ignore[method-assign]
    assert isinstance(machine, BhyveMachine)
    refused = machine.explain("bhyve", 4, recorded("4-in-use/011").errors)
    assert "bhyvectl --vm=hil-old-1-0001 --destroy" in refused.hint
    assert "hil-live-0002" not in refused.hint.partition("left by a run")[2]
    assert "other" not in refused.hint.partition("left by a run")[2]


def test_guests_are_those_of_dev_vmm() -> None:
    host = FreebsdHost()
    assert host.platform().guests(soon()) == ()
    host.answers["ls /dev/vmm"] = (0, "g2\ng1\n", "")
    assert host.platform().guests(soon()) == ("g1", "g2")


# ---- interrupts, footprint ---------------------------------------------------------


def test_interrupts_are_found_by_name_and_by_number() -> None:
    host = FreebsdHost()
    host.drivers[EM] = ("ppt0", True)
    host.texts["devinfo -rv"] = recorded("2-failures-then-guest/056").text
    host.texts["vmstat -ia"] = recorded("3-each-failure-from-fresh/029").text
    platform = host.platform()
    assert platform.interrupts(EM, soon()) == {"irq29 ppt0": 19, "irq30 ppt0": 17}
    host.texts["vmstat -ia"] = host.texts["vmstat -ia"].replace("irq29: ppt0", "irq29:     ")
    assert platform.interrupts(EM, soon()) == {"irq29": 19, "irq30 ppt0": 17}


def test_the_footprint_counts_what_guests_make() -> None:
    host = FreebsdHost()
    host.answers["ls /dev/vmm"] = (0, "g1\n", "")
    host.texts["ps -axww -o pid= -o command="] = " 77 bhyve: g1 (bhyve)\n"
    host.texts["ifconfig -l"] = "em0 lo0 tap1018 bridge1018\n"
    host.texts["mdconfig -l"] = "md12345\n"
    platform = host.platform()
    host.texts[f"find /var/run/hil/{platform.journal.run} -mindepth 1"] = "/var/run/hil/x/a\n"
    platform.features = frozenset()
    counts = platform.footprint(soon())
    assert counts["guests"] == counts["processes"] == counts["files"] == 1
    assert counts["interfaces"] == 2
    assert counts["memory disks"] == 1
    assert counts["reserved"] == 0


# ---- memory ------------------------------------------------------------------------


class Disks:
    """``/dev/mem`` and memory disks: dd(1), mdconfig(8), sha256(1)."""

    def __init__(self, memory: bytes = b"") -> None:
        self.files = {"/dev/mem": bytearray(memory)}
        self.commands: list[tuple[str, ...]] = []

    def __call__(self, command: tuple[str, ...], stdin: bytes) -> Answer:
        self.commands.append(command)
        words = dict(word.split("=", 1) for word in command if "=" in word)
        if command[0] == "mdconfig" and "-a" in command:
            size = int(command[command.index("-s") + 1].removesuffix("k")) << 10
            self.files[f"/dev/{command[-1]}"] = bytearray(size)
        elif command[0] == "mdconfig":
            del self.files[f"/dev/{command[-1]}"]
        elif command[0] == "sh":
            return 0, hashlib.sha256(self.files[command[4]]).hexdigest() + "\n", ""
        elif "of" in words:
            at = int(words["oseek"]) * int(words["obs"])
            assert len(stdin) % 512 == 0, "disks take whole sectors"
            self.files[words["of"]][at : at + len(stdin)] = stdin
        else:
            size = int(words["bs"])
            start = int(words["skip"]) * size
            data = self.files[words["if"]][start : start + int(words["count"]) * size]
            return 0, bytes(data), ""
        return 0, "", ""


def test_memory_is_read_by_the_page_and_registers_by_8_bytes() -> None:
    disks = Disks(bytes(range(256)) * 64)
    transport = FakeTransport(disks)
    assert DevMemory(transport, soon()).read(0x1FFE, 4) == bytes([0xFE, 0xFF, 0, 1])
    assert device_registers(transport, soon()).read(0x1C, 4) == bytes([0x1C, 0x1D, 0x1E, 0x1F])
    assert disks.commands == [
        ("dd", "if=/dev/mem", "bs=4096", "skip=1", "count=2", "status=none"),
        ("dd", "if=/dev/mem", "bs=8", "skip=3", "count=1", "status=none"),
    ]


def test_a_walk_reads_each_64_kib_once() -> None:
    disks = Disks(b"".join(struct.pack("<Q", at) for at in range(3 * 8192)))
    memory = ReadAhead(FakeTransport(disks), soon())
    assert memory.read(0xFFF8, 16) == struct.pack("<QQ", 0x1FFF, 0x2000)
    assert memory.read(0x1000, 8) == struct.pack("<Q", 0x200)
    assert memory.read(0x1FFF8, 16) == struct.pack("<QQ", 0x3FFF, 0x4000)
    assert [command[2:5] for command in disks.commands] == [
        ("bs=65536", "skip=0", "count=2"),
        ("bs=65536", "skip=2", "count=1"),
    ]


def test_memory_that_the_kernel_refuses_is_told_with_what_mends_it() -> None:
    transport = FakeTransport(lambda _c, _s: (1, "", "dd: /dev/mem: Operation not permitted\n"))
    with pytest.raises(LabError, match="cannot be read") as raised:
        DevMemory(transport, soon()).read(0, 8)
    assert "securelevel" in raised.value.hint
    half = FakeTransport(lambda _c, _s: (1, b"\0" * 4096, "dd: /dev/mem: Bad address\n"))
    with pytest.raises(LabError, match="physical memory 0x5000\\+0x8 cannot be read"):
        DevMemory(half, soon()).read_many([(0, 8), (0x5000, 8)])
    short = FakeTransport(lambda _c, _s: (0, b"\0" * 7, ""))
    with pytest.raises(LabError, match="cannot be read"):
        DevMemory(short, soon()).read(0, 8)


def acpi(extended: bool = True) -> bytes:
    """Root pointer at 0x100, its table at 0x1000, FACP at 0x2000, DMAR at 0x3000."""
    memory = bytearray(0x4000)
    root = b"RSD PTR " + bytes(7) + bytes([2 if extended else 0]) + struct.pack("<I", 0x1000)
    memory[0x100 : 0x100 + 20] = root
    width, signature = ("Q", b"XSDT") if extended else ("I", b"RSDT")
    if extended:
        struct.pack_into("<IQ", memory, 0x100 + 20, 36, 0x1000)
    pointers = struct.pack(f"<2{width}", 0x2000, 0x3000)
    memory[0x1000:0x1008] = signature + struct.pack("<I", 36 + len(pointers))
    memory[0x1000 + 36 : 0x1000 + 36 + len(pointers)] = pointers
    memory[0x2000:0x2008] = b"FACP" + struct.pack("<I", 244)
    memory[0x3000:0x3008] = b"DMAR" + struct.pack("<I", 64)
    return bytes(memory)


@pytest.mark.parametrize("extended", [True, False])
def test_acpi_tables_are_found_in_memory(extended: bool) -> None:
    memory = DevMemory(FakeTransport(Disks(acpi(extended))), soon())
    table = acpi_table(memory, 0x100, "DMAR")
    assert table is not None
    assert (table[:4], len(table)) == (b"DMAR", 64)
    assert acpi_table(memory, 0x100, "IVRS") is None


def test_no_acpi_tables_and_mad_ones_are_errors() -> None:
    with pytest.raises(LabError, match="no ACPI tables"):
        acpi_table(DevMemory(FakeTransport(Disks(bytes(4096))), soon()), 0x100, "DMAR")
    mad = bytearray(acpi())
    struct.pack_into("<I", mad, 0x1004, 0xFFFFFFFF)
    with pytest.raises(LabError, match="says that it has"):
        acpi_table(DevMemory(FakeTransport(Disks(bytes(mad))), soon()), 0x100, "DMAR")


def test_a_canary_sees_a_single_byte_and_is_freed() -> None:
    disks = Disks()
    transport = FakeTransport(disks)
    journal = Journal(transport, FREEBSD, KINDS)
    canary = MdCanary.fill(transport, journal, 200_000, soon())
    (name,) = [name for name in disks.files if name.startswith("/dev/md")]
    assert len(disks.files[name]) == 4 * 65536
    assert canary.changes(soon()) == ()
    was = disks.files[name][70_001]
    canary.spoil(70_001, bytes([was ^ 0xFF]), soon())
    (change,) = canary.changes(soon())
    assert change == f"page 17: byte {70_001:#x} was {was:#04x} and is {was ^ 0xFF:#04x}"
    assert len(journal.outstanding) == 1
    canary.close(soon())
    assert list(disks.files) == ["/dev/mem"]
    assert not journal.outstanding


def test_a_canary_that_cannot_be_filled_is_freed() -> None:
    disks = Disks()

    def refuse(command: tuple[str, ...], stdin: bytes) -> Answer:
        if command[0] == "dd":
            return 1, "", "dd: /dev/md1: No space left on device\n"
        return disks(command, stdin)

    transport = FakeTransport(refuse)
    with pytest.raises(CommandError):
        MdCanary.fill(transport, Journal(transport, FREEBSD, KINDS), 65536, soon())
    assert list(disks.files) == ["/dev/mem"]
    full = FakeTransport(lambda _c, _s: (1, "", "mdconfig: ioctl: Cannot allocate memory\n"))
    with pytest.raises(CommandError, match="mdconfig"):
        MdCanary.fill(full, Journal(full, FREEBSD, KINDS), 65536, soon())


def test_the_kernel_s_log_is_dmesg() -> None:
    host = FreebsdHost()
    assert "ivhd0" in host.platform().kernel_log(soon())


def test_a_function_that_has_gone_meanwhile_is_left_out() -> None:
    host = FreebsdHost()
    dump = host._dump
    host._dump = lambda selector: "" if selector == FAR.selector else dump(selector)  # type: ignore[method-assign]
    assert FAR not in {function.address for function in host.platform().functions(soon())}
