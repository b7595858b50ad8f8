"""The doctor's rows of devices, and of GPUs above all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hil.deadline import Deadline
from hil.doctor.check import Check, State
from hil.doctor.devices import device_rows, memory_rows
from hil.doctor.linux import LINUX_SURVEY, linux_host
from hil.lab.load import load, parse
from hil.pci.address import Address
from hil.pci.budget import Windows
from hil.platforms.bar_windows import BHYVE, address_bits, q35
from hil.platforms.contract import Bar, Function
from hil.platforms.pinning import Pinning
from tests.fakes import FLR, MSI, PM_KEEPS, Answer, FakeTransport, config, function
from tests.inventories import WITH_GPU
from tests.platforms.survey import Written, survey

GIB, MIB = 1 << 30, 1 << 20
CARD, AUDIO, OTHER = Address(0, 3, 0, 0), Address(0, 3, 0, 1), Address(0, 4, 0, 0)


def of_class(found: Function, code: int) -> Function:
    data = bytearray(found.config.data)
    data[9:12] = code.to_bytes(3, "little")
    return replace(found, config=replace(found.config, data=bytes(data)))


def gpu(
    address: Address = CARD, *sizes: int, ids: tuple[int, int] = (0x10DE, 0x1B39), **more: object
) -> Function:
    found = function(
        address,
        config=config(vendor=ids[0], device=ids[1], capabilities=[MSI, FLR]),
        bars=[Bar(2 * i, 0, size, True, True, True) for i, size in enumerate(sizes)],
        driver="vfio-pci",
    )
    return of_class(replace(found, **more), 0x030000)  # type: ignore[arg-type]


def audio() -> Function:
    return of_class(function(AUDIO, driver="snd_hda_intel"), 0x040300)


def rows(
    devices: Mapping[str, Sequence[Function]],
    *more: Function,
    windows: Windows = BHYVE,
    memory: int = GIB,
) -> dict[str, Check]:
    everything = [one for found in devices.values() for one in found]
    checks = device_rows("alpha", devices, [*everything, *more], windows, memory)
    assert not any(check.bad for check in checks), "a host can be used in spite of these"
    return {check.name: check for check in checks}


def test_cards_that_fit_are_told_with_how_much_they_take() -> None:
    check = rows({"gpu0": [gpu(CARD, 16 * GIB, 32 * MIB)]})["BARs fit into a guest"]
    assert check.state is State.FOUND
    assert check.evidence == "all together: 32 MiB below 4 GiB, 16 GiB above (bhyve)"


def test_cards_that_fit_one_by_one_only_are_told_with_a_way_out() -> None:
    devices = {"p10": [gpu(CARD, 32 * GIB)], "mi50": [gpu(OTHER, 16 * GIB)]}
    check = rows(devices)["BARs fit into a guest"]
    assert check.state is State.MISSING
    assert check.evidence == (
        "bhyve has no room, all together, for BAR0 of 0000:04:00.0 (16 GiB): "
        "a guest will not see it"
    )
    assert check.remedy == "[they fit into separate guests: p10; mi50]"
    assert rows(devices, windows=q35(46))["BARs fit into a guest"].state is State.FOUND


def test_the_guest_s_memory_counts() -> None:
    devices = {"a": [gpu(CARD, 128 * GIB)], "b": [gpu(OTHER, 128 * GIB)]}
    assert rows(devices, windows=q35(39))["BARs fit into a guest"].state is State.FOUND
    check = rows(devices, windows=q35(39), memory=300 * GIB)["BARs fit into a guest"]
    assert check.remedy == "[they fit into a guest with at most 254 GiB of memory]"


def test_without_bars_nothing_is_told_of_them() -> None:
    assert rows({"nic0": [function()]}) == {}


def test_a_function_of_a_gpu_that_is_left_on_the_host_is_named() -> None:
    check = rows({"gpu0": [gpu()]}, audio())["GPU 0000:03:00.0 is whole"]
    assert check.state is State.MISSING
    assert check.evidence == ("left on the host: its audio device 0000:03:00.1 (snd_hda_intel)")
    assert check.remedy == '[devices.gpu0: functions = ["0000:03:00.0", "0000:03:00.1"]]'


def test_a_gpu_with_all_its_functions_is_whole() -> None:
    check = rows({"gpu0": [gpu(), audio()]})["GPU 0000:03:00.0 is whole"]
    assert (check.state, check.evidence) == (State.FOUND, "goes with audio device 0000:03:00.1")
    alone = rows({"gpu0": [gpu()]}, gpu(OTHER))["GPU 0000:03:00.0 is whole"]
    assert (alone.state, alone.evidence) == (State.FOUND, "has one function")


def test_what_a_gpu_is_between_two_guests() -> None:
    check = rows({"gpu0": [gpu(ids=(0xBEEF, 0x0001))]})["GPU 0000:03:00.0 between guests"]
    assert check.state is State.FOUND
    assert check.evidence.startswith(
        "a vendor not known: has FLR; the platform resets it by flr; registers and DMA are cleared"
    )


def test_a_gpu_that_nothing_resets_is_told() -> None:
    keeps = config(vendor=0x10DE, capabilities=[MSI, PM_KEEPS])
    found = of_class(function(CARD, config=keeps, reset_methods=()), 0x030000)
    check = rows({"gpu0": [found]})["GPU 0000:03:00.0 between guests"]
    assert check.state is State.MISSING
    assert "a D3hot that resets nothing (NoSoftRst); the platform resets it by nothing" in (
        check.evidence
    )


def test_what_is_known_of_this_very_card_is_a_row_of_its_own() -> None:
    found = rows({"gpu0": [gpu(ids=(0x1002, 0x66A1))]})
    assert found["GPU 0000:03:00.0 between guests"].state is State.FOUND
    known = found["GPU 0000:03:00.0, as known"]
    assert known.state is State.UNKNOWN
    assert "work once" in known.evidence
    assert "vendor-reset" in known.evidence
    assert "GPU 0000:03:00.0, as known" not in rows({"gpu0": [gpu()]})


def test_a_processor_s_address_bits_are_read() -> None:
    assert address_bits(" 46 48 ") == 46
    assert address_bits("") == 39


# ---- asking a Linux host -------------------------------------------------------------------

MORE = 'functions = ["0000:03:00.0"]\nguest_memory = 8192\n'


def linux(address: str = "0000:03:00.0") -> list[Check]:
    wide = 0x140204
    found = gpu()
    written = [
        Written(
            address,
            found.config,
            driver="vfio-pci",
            group="1",
            resources=[(1 << 40, (1 << 40) + (1 << 38) - 1, wide)],
            texts={"reset_method": "flr bus"},
        )
    ]

    def answer(command: tuple[str, ...], _stdin: bytes) -> Answer:
        return 0, "user=0\nbits= 39 48 \n" if command[2] == LINUX_SURVEY else survey(written), ""

    lab = parse(WITH_GPU + MORE, Path("x.toml"))
    return linux_host("alpha", FakeTransport(answer), Deadline(60, "the survey"), lab)


def test_a_linux_host_is_asked_for_the_lab_s_devices() -> None:
    found = {check.name: check for check in linux()}
    assert found["root's rights"].state is State.FOUND
    assert found["BARs fit into a guest"].evidence == (
        "all together: 0 bytes below 4 GiB, 256 GiB above (QEMU's q35)"
    )
    assert "the platform resets it by flr" in found["GPU 0000:03:00.0 between guests"].evidence


def test_an_inventory_that_is_wrong_is_a_row() -> None:
    check = {check.name: check for check in linux("0000:04:00.0")}["the inventory's devices"]
    assert check.bad
    assert "alpha has no function at 0000:03:00.0" in check.evidence


# ---- memory for clusters -----------------------------------------------------------------


def test_memory_for_each_topology_of_a_host() -> None:
    lab = load("simulated-pair")
    host = Pinning(600 * MIB, "vm.max_user_wired", 0)
    alpha = {check.name: check for check in memory_rows("alpha", lab, lambda: host)}
    assert list(alpha) == [
        "memory for desk-together",
        "memory for both-by-host",
        "memory for both-apart",
    ]
    assert {check.evidence for check in alpha.values()} == {
        "1 guest(s) with 256 MiB of 600 MiB (vm.max_user_wired)",
        "2 guest(s) with 512 MiB of 600 MiB (vm.max_user_wired)",
    }
    # What is of no use to this host is not told of it.
    assert len(memory_rows("beta", lab, lambda: host)) == 2


def test_the_guest_of_a_topology_that_has_no_memory() -> None:
    lab = load("simulated-pair")
    host = Pinning(300 * MIB + 1, "vm.max_user_wired", 0)
    together, by_host, apart = memory_rows("alpha", lab, lambda: host)
    assert {together.state, by_host.state} == {State.FOUND}
    assert apart.state is State.MISSING
    assert not apart.bad
    assert "edu1, 256 MiB: NO MEMORY, 212 MiB too few; the host has 300 MiB left" in apart.evidence
    assert apart.remedy == "[all of them fit with 150 MiB each; as they are, only edu0 together]"


def test_a_lab_without_clusters_asks_nothing_of_a_host() -> None:
    def never() -> Pinning | None:
        raise AssertionError("asked")

    assert memory_rows("host", load("freebsd-15-intel"), never) == []
    assert memory_rows("alpha", load("simulated-pair"), lambda: None) == []
