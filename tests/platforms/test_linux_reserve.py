"""Reserve and return, on a host whose sysfs is a dictionary."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

import pytest

from hil.errors import InventoryError, LabError, LabRefusalError, ProductError
from hil.pci.address import Address
from hil.platforms import linux, linux_survey, linux_undo
from hil.platforms.contract import GuestSpec
from hil.platforms.linux import LinuxVfio
from tests.fakes import Answer, FakeTransport, config, soon
from tests.platforms.survey import Written, survey

BRIDGE, PORT, NIC, SIBLING, DISK, ALONE = map(
    Address.parse, ("00:10.0", "00:11.0", "01:00.0", "01:00.1", "02:00.0", "03:00.0")
)


class Sysfs:
    """What the platform's scripts would find and do on a host."""

    def __init__(self) -> None:
        self.functions = {
            name: Written(name, config(header_type=header), driver=driver, group=group)
            for name, header, driver, group in (
                (str(BRIDGE), 1, "pcieport", "1"),
                (str(PORT), 1, "pcieport", "14"),
                (str(NIC), 0, "igb", "14"),
                (str(SIBLING), 0, "igb", "14"),
                (str(DISK), 0, "nvme", "15"),
                (str(ALONE), 0, "", "16"),
            )
        }
        self.natural = {name: f.driver for name, f in self.functions.items()}
        self.stubborn: set[tuple[str, str]] = set()
        """(function, driver) pairs that do not come together."""
        self.held: set[str] = set()
        self.binds: list[tuple[str, str]] = []
        self.more: list[str] = []
        self.vf_limit = 7

    def answer(self, command: tuple[str, ...], _stdin: bytes) -> Answer:
        if command[:2] != ("sh", "-c"):
            return 0, "[    1.0] the kernel's log", ""
        script, arguments = command[2], list(command[4:])
        scripts: dict[str, Callable[..., Answer]] = {
            linux_survey.SURVEY: self.survey,
            linux._BIND: self.bind,
            linux_undo.HELD: lambda name: (0 if name in self.held else 1, "", ""),
        }
        if script in scripts:
            return scripts[script](*arguments)
        if "sriov_numvfs" in script:
            return self.vfs(*arguments)
        return 0, "", ""

    def survey(self, pattern: str) -> Answer:
        found = [f for n, f in self.functions.items() if fnmatch.fnmatch(n, pattern)]
        return 0, survey(found, self.more), ""

    def bind(self, name: str, override: str) -> Answer:
        driver = override or self.natural[name]
        self.binds.append((name, driver))
        if (name, driver) in self.stubborn:
            self.functions[name].driver = ""
            return 0, "", ""
        self.functions[name].driver = driver
        return 0, f"../../../bus/pci/drivers/{driver}\n" if driver else "", ""

    def vfs(self, name: str, count: str = "0") -> Answer:
        if int(count) > self.vf_limit:
            return 1, "", "sh: write error: Numerical result out of range"
        self.functions[name].links = {f"virtfn{n}": f"../0000:01:10.{n}" for n in range(int(count))}
        for n in range(int(count)):
            vf = f"0000:01:10.{n}"
            self.functions[vf] = Written(vf, links={"physfn": f"../{name}"})
        return 0, "", ""


@pytest.fixture
def sysfs() -> Sysfs:
    return Sysfs()


@pytest.fixture
def host(sysfs: Sysfs) -> LinuxVfio:
    return LinuxVfio("lab1", FakeTransport(sysfs.answer), python=False)


def drivers(sysfs: Sysfs) -> dict[str, str]:
    return {name: f.driver for name, f in sysfs.functions.items()}


def test_reserve_and_return(host: LinuxVfio, sysfs: Sysfs) -> None:
    before = drivers(sysfs)
    reservation = host.reserve([NIC, SIBLING], soon())
    assert reservation.previous_drivers == {NIC: "igb", SIBLING: "igb"}
    assert drivers(sysfs) == before | {str(NIC): "vfio-pci", str(SIBLING): "vfio-pci"}
    host.give_back(reservation, soon())
    assert drivers(sysfs) == before
    host.give_back(reservation, soon())
    assert drivers(sysfs) == before


def test_each_function_taken_stands_in_the_journal_until_it_is_returned(
    host: LinuxVfio, sysfs: Sysfs
) -> None:
    reservation = host.reserve([NIC, SIBLING], soon())
    found = [(e.undo.kind, e.undo.arguments, e.guard) for e in host.journal.outstanding]
    assert found == [
        ("driver", (str(NIC), "igb"), "0000:01:00"),
        ("driver", (str(SIBLING), "igb"), "0000:01:00"),
    ]
    sysfs.stubborn.add((str(NIC), "igb"))
    with pytest.raises(ProductError):
        host.give_back(reservation, soon())
    assert [e.undo.arguments[0] for e in host.journal.outstanding] == [str(NIC)]
    sysfs.stubborn.clear()
    host.give_back(reservation, soon())
    assert host.journal.outstanding == ()


def test_who_had_a_function_before_a_run_that_left_no_journal_is_not_made_up(
    host: LinuxVfio, sysfs: Sysfs
) -> None:
    sysfs.functions[str(DISK)].driver = "vfio-pci"
    host.reserve([DISK], soon())
    assert host.journal.outstanding == ()


def test_vfs_stand_in_the_journal_and_their_drivers_go_with_the_card_of_their_pf(
    host: LinuxVfio, sysfs: Sysfs
) -> None:
    vfs = host.create_vfs(NIC, 2, soon())
    sysfs.functions[str(vfs[0])].group = "20"
    sysfs.natural[str(vfs[0])] = sysfs.functions[str(vfs[0])].driver
    reservation = host.reserve([vfs[0]], soon())
    found = [(e.undo.kind, e.undo.arguments[0], e.guard) for e in host.journal.outstanding]
    assert found == [("vfs", str(NIC), "0000:01:00"), ("driver", str(vfs[0]), "0000:01:00")]
    host.give_back(reservation, soon())
    host.remove_vfs(NIC, soon())
    assert host.journal.outstanding == ()


def test_vfs_that_were_not_all_made_are_taken_away_again(host: LinuxVfio, sysfs: Sysfs) -> None:
    sysfs.vf_limit = 1
    with pytest.raises(ProductError, match="did not make 2 VFs"):
        host.create_vfs(NIC, 2, soon())
    assert host.journal.outstanding == ()


def test_a_function_without_a_driver_is_returned_to_none(host: LinuxVfio, sysfs: Sysfs) -> None:
    reservation = host.reserve([ALONE], soon())
    assert reservation.previous_drivers == {ALONE: None}
    host.give_back(reservation, soon())
    assert drivers(sysfs)[str(ALONE)] == ""


def test_what_was_reserved_already_goes_to_whom_the_kernel_chooses(
    host: LinuxVfio, sysfs: Sysfs
) -> None:
    sysfs.functions[str(DISK)].driver = "vfio-pci"
    reservation = host.reserve([DISK], soon())
    assert reservation.previous_drivers == {}
    host.give_back(reservation, soon())
    assert drivers(sysfs)[str(DISK)] == "nvme"


@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        ([BRIDGE], "is a bridge"),
        ([DISK, BRIDGE], "is a bridge"),
        ([Address.parse("09:00.0")], "has no PCI function 0000:09:00.0"),
        ([NIC], r"shares IOMMU group 14 with 0000:01:00.1 \(igb\)"),
    ],
)
def test_what_cannot_be_passed_is_refused_untouched(
    host: LinuxVfio, sysfs: Sysfs, addresses: list[Address], words: str
) -> None:
    with pytest.raises(InventoryError, match=words):
        host.reserve(addresses, soon())
    assert sysfs.binds == []


@pytest.mark.parametrize(
    ("line", "use"),
    [
        ("mount /dev/nvme0n1p1 / ext4 rw 0 0", "root disk"),
        ("part /sys/class/block/dm-0/slaves/nvme0n1p1", "disk below dm-0"),
        ("default nvme0n1p1", "management NIC"),
    ],
)
def test_what_the_host_needs_is_refused_untouched(
    host: LinuxVfio, sysfs: Sysfs, line: str, use: str
) -> None:
    sysfs.functions[str(DISK)].interfaces = ["nvme0n1", "nvme0n1p1"]
    sysfs.more = [line]
    with pytest.raises(InventoryError, match=use):
        host.reserve([DISK], soon())
    assert sysfs.binds == []


def test_without_an_iommu_nothing_is_reserved(host: LinuxVfio, sysfs: Sysfs) -> None:
    sysfs.functions[str(DISK)].group = ""
    with pytest.raises(LabRefusalError, match="no IOMMU group") as caught:
        host.reserve([DISK], soon())
    assert "intel_iommu=on" in caught.value.hint
    assert sysfs.binds == []


def test_a_sibling_that_nobody_drives_may_stay(host: LinuxVfio, sysfs: Sysfs) -> None:
    sysfs.functions[str(SIBLING)].driver = ""
    assert host.reserve([NIC], soon()).addresses == (NIC,)


def test_a_failure_half_way_puts_all_back(host: LinuxVfio, sysfs: Sysfs) -> None:
    before = drivers(sysfs)
    sysfs.stubborn.add((str(SIBLING), "vfio-pci"))
    with pytest.raises(ProductError, match=r"0000:01:00.1 should be bound to vfio-pci"):
        host.reserve([NIC, SIBLING], soon())
    assert drivers(sysfs) == before


def test_every_function_is_returned_whatever_the_others_do(host: LinuxVfio, sysfs: Sysfs) -> None:
    reservation = host.reserve([NIC, SIBLING], soon())
    sysfs.stubborn.add((str(SIBLING), "igb"))
    with pytest.raises(ProductError, match="is bound to no driver"):
        host.give_back(reservation, soon())
    assert drivers(sysfs)[str(NIC)] == "igb"
    sysfs.stubborn.add((str(NIC), "igb"))
    with pytest.raises(ProductError, match="2 functions could not be returned") as caught:
        host.give_back(reservation, soon())
    assert str(NIC) in caught.value.seen


def test_what_a_guest_holds_is_not_returned(host: LinuxVfio, sysfs: Sysfs) -> None:
    reservation = host.reserve([NIC, SIBLING], soon())
    sysfs.held.add(str(SIBLING))
    done = list(sysfs.binds)
    with pytest.raises(LabRefusalError, match="held by a guest"):
        host.give_back(reservation, soon())
    assert sysfs.binds == done


def test_vfs_are_made_and_removed(host: LinuxVfio, sysfs: Sysfs) -> None:
    made = host.create_vfs(NIC, 2, soon())
    assert made == (Address.parse("01:10.0"), Address.parse("01:10.1"))
    sysfs.held.add(str(made[1]))
    with pytest.raises(
        LabRefusalError, match=r"VF 0000:01:10.1 of 0000:01:00.0 is held by a guest"
    ):
        host.remove_vfs(NIC, soon())
    assert len(host.function(NIC, soon()).virtual_functions) == 2
    sysfs.held.clear()
    host.remove_vfs(NIC, soon())
    assert host.function(NIC, soon()).virtual_functions == ()


def test_a_function_whose_vf_a_guest_holds_is_not_taken(host: LinuxVfio, sysfs: Sysfs) -> None:
    first, second = host.create_vfs(NIC, 2, soon())
    sysfs.held.add(str(second))
    with pytest.raises(
        LabRefusalError, match=rf"VF {second} of {NIC} is held by a guest; its driver stays"
    ):
        host.reserve([NIC, SIBLING], soon())
    assert not sysfs.binds, "its driver would wait for that guest for ever"
    sysfs.held = {str(DISK)}
    host.reserve([NIC, SIBLING], soon())
    assert first != second


def test_too_many_vfs_are_refused_with_the_kernel_s_words(host: LinuxVfio) -> None:
    with pytest.raises(ProductError, match="did not make 9 VFs") as caught:
        host.create_vfs(NIC, 9, soon())
    assert "out of range" in caught.value.seen


def test_fewer_vfs_than_asked_for_are_told(host: LinuxVfio, sysfs: Sysfs) -> None:
    sysfs.vfs = lambda name, count="0": (0, "", "")  # type: ignore[method-assign]
    with pytest.raises(ProductError, match="was to make 2 VFs and has 0"):
        host.create_vfs(NIC, 2, soon())


def test_a_guest_of_an_unknown_image_is_the_user_s_mistake(host: LinuxVfio) -> None:
    with pytest.raises(InventoryError, match="no guest image 'plan9'"):
        host.create_guest(GuestSpec("g", "plan9"), soon())


def test_a_reset_that_fails_is_the_product_s(sysfs: Sysfs) -> None:
    transport = FakeTransport(lambda _command, _stdin: (1, "", "no reset method\n"))
    host = LinuxVfio("lab1", transport, python=False)
    with pytest.raises(ProductError, match=r"could not reset 0000:01:00.0") as caught:
        host.reset(NIC, soon(), method="pm")
    assert "no reset method" in caught.value.seen
    assert transport.commands[-1][-2:] == (str(NIC), "pm")


def test_a_host_that_cannot_be_asked_is_the_lab_s(sysfs: Sysfs) -> None:
    host = LinuxVfio("lab1", FakeTransport(lambda _c, _s: (127, "", "sh: not found")), python=False)
    with pytest.raises(LabError, match="status 127"):
        host.reserve([NIC], soon())
