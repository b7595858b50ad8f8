"""Each error, as a host printed it, is told by its meaning; what is not known is shown."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import (
    Fault,
    InventoryError,
    InventoryRefusalError,
    LabRefusalError,
    ProductError,
    ProductRefusalError,
    RefusalError,
)
from hil.pci.address import Address
from hil.platforms.freebsd_errors import Ending, decode, decode_bhyve, ending
from hil.platforms.freebsd_rules import RULES
from hil.platforms.freebsd_state import HostState, Verdict
from hil.platforms.freebsd_text import (
    Process,
    parse_acpi_tables,
    parse_kldstat,
    parse_ps,
    parse_sysctl,
)
from tests.recorded import Recorded, all_recorded, recorded

EM0 = Address(0, 0, 5, 0)

#: What came of a command that is no failure, or is one of the shell's own tools.
NOT_FAILURES = re.compile(
    r"ls: |usage: devctl|Usage: bhyvectl|kenv: unable to get|guest-|umount|newfs", re.IGNORECASE
)


def is_bhyve(one: Recorded) -> bool:
    return re.match(r"(timeout (-s KILL )?\d+ )?bhyve( |$)", one.command) is not None


def failures() -> list[Recorded]:
    return [
        one
        for one in all_recorded()
        if one.errors.strip() and not NOT_FAILURES.match(one.errors) and one.status != 124
    ]


@pytest.mark.parametrize("one", failures(), ids=lambda one: one.name)
def test_every_recorded_failure_is_known(one: Recorded) -> None:
    found = decode_bhyve(one.status, one.errors) if is_bhyve(one) else decode(one.errors)
    assert found.known
    assert found.text == one.errors
    assert found.meaning
    assert "{" not in found.meaning + found.remedy


def test_there_are_as_many_recorded_failures_as_was_thought() -> None:
    assert len(failures()) > 90
    assert sum(map(is_bhyve, failures())) > 40


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("2-failures-then-guest/016", "no loader ran before bhyve"),
        ("2-failures-then-guest/020", "started without -S"),
        ("2-failures-then-guest/022", "mapped already, in another way"),
        ("2-failures-then-guest/034", 'cannot read the function "abc"'),
        ("2-failures-then-guest/038", 'no device "passthrough" (slot 0:7:0)'),
        ("2-failures-then-guest/040", "slot 0:7:0"),
        ("2-failures-then-guest/041", "more CPUs"),
        ("2-failures-then-guest/042", "512X"),
        ("2-failures-then-guest/045", "/vm/none.img"),
        ("2-failures-then-guest/047", "cannot wire that much memory"),
        ("3-each-failure-from-fresh/008", "was given none (bus)"),
        ("3-each-failure-from-fresh/010", "no ppt9"),
        ("3-each-failure-from-fresh/011", "0/31/3 cannot be passed: it has neither MSI nor MSI-X"),
        ("3-each-failure-from-fresh/013", "disk /vm/none.img cannot be opened"),
        ("3-each-failure-from-fresh/014", "com1 cannot be opened: /dev/nosuch"),
        ("3-each-failure-from-fresh/015", "another amount of memory"),
        ("3-each-failure-from-fresh/018", "BHYVE_UEFI.fd cannot be opened"),
        ("4-in-use/014", "the virtual machine runs"),
        ("4-in-use/036", "has memory already"),
        ("4-in-use/015", "a virtual machine holds ppt0"),
        ("1-host-setup/060", "has a driver that is attached"),
        ("1-host-setup/071", "nvme does not take pci0:0:9:0: every driver"),
        ("1-host-setup/073", "ppt does not take pci0:0:8:0: it is a bridge"),
        ("1-host-setup/092", "no driver attached"),
        ("1-host-setup/095", "has a driver already"),
        ("9-host-panics/027", "may panic it"),
        ("6-iommu-disabled/011", "read when its module is loaded"),
        ("8-vtd-machine/026", "cannot run virtual machines"),
    ],
)
def test_what_recorded_failures_mean(name: str, meaning: str) -> None:
    one = recorded(name)
    found = decode_bhyve(one.status, one.errors) if is_bhyve(one) else decode(one.errors)
    assert meaning in found.meaning


def test_a_clear_that_found_no_driver_has_succeeded_so_far() -> None:
    (first, _) = recorded("3-each-failure-from-fresh/034").errors.splitlines()
    assert "was given up" in decode(first).meaning


# ---- "is not using the ppt(4) driver" --------------------------------------------

RESERVED = {EM0: "ppt", Address(0, 0, 7, 0): "nvme"}
NO_IOMMU = recorded("6-iommu-disabled/007")
IN_USE = recorded("4-in-use/011")


def state(*sysctls: str, **facts: object) -> HostState:
    """A host of which all is known, with a working IOMMU."""
    values = parse_sysctl(recorded("4-in-use/007").text)
    for text in sysctls:
        values |= parse_sysctl(recorded(text).text)
    base = HostState(
        sysctl=values | {"hw.model": "AMD EPYC Processor (with IBPB)"},
        kenv={},
        modules=frozenset(parse_kldstat(recorded("1-host-setup/050").text)[0].modules),
        tables=frozenset(parse_acpi_tables(recorded("1-host-setup/031").text)),
        drivers=RESERVED,
        vms=("g2",),
        processes=(),
        vm="g2",
        devices=(EM0,),
    )
    return replace(base, **facts)  # type: ignore[arg-type]


def holding(one: Recorded, known: HostState) -> str:
    found = decode_bhyve(one.status, one.errors, known)
    assert found.cause, found.explain()
    assert found.cause.text in found.meaning
    return f"{found.cause.text} | {found.cause.why} | {found.remedy}"


def test_amdvi_left_at_its_default_is_told() -> None:
    found = holding(NO_IOMMU, state("6-iommu-disabled/004", "6-iommu-disabled/009"))
    assert found.startswith("AMD-Vi is not enabled, which is its default | hw.vmm.amdvi.enable: 0")
    assert "echo 'hw.vmm.amdvi.enable=\"1\"' >> /boot/loader.conf" in found


def test_the_kernels_own_words_on_amdvi_are_the_evidence_where_there_are_any() -> None:
    log = recorded("6-iommu-disabled/008").text
    found = holding(NO_IOMMU, state("6-iommu-disabled/004", dmesg=log))
    assert "bhyve: Found 1 AMD-Vi/IOMMU device(s), use hw.vmm.amdvi.enable=1" in found


def test_the_iommu_switched_off_is_told_from_amdvi() -> None:
    found = holding(NO_IOMMU, state("6-iommu-disabled/019"))
    assert found.startswith("the administrator has switched bhyve's use of the IOMMU off")
    assert "hw.vmm.iommu.enable: 0" in found


def test_an_iommu_off_in_the_firmware_is_told() -> None:
    known = state("6-iommu-disabled/023", tables=frozenset({"FACP", "APIC"}))
    assert "the firmware shows no IOMMU" in decode_bhyve(4, NO_IOMMU.errors, known).explain()
    known = state(tables=frozenset({"FACP"}))
    known = replace(known, sysctl={**(known.sysctl or {}), "hw.vmm.iommu.initialized": "0"})
    assert holding(NO_IOMMU, known).startswith("the firmware shows no IOMMU")


def test_an_iommu_that_failed_for_no_known_reason_is_told_too() -> None:
    known = state()
    known = replace(known, sysctl={**(known.sysctl or {}), "hw.vmm.iommu.initialized": "0"})
    found = holding(NO_IOMMU, known)
    assert "could not be initialized" in found
    assert "290155" in found


def test_another_machine_that_holds_the_function_is_told() -> None:
    known = state(vms=("g1", "g2"))
    found = decode_bhyve(4, IN_USE.errors, known)
    assert "another virtual machine holds the function" in found.meaning
    assert found.remedy == "bhyvectl --vm=g1 --destroy"
    ruled_out = {one.text for one in found.causes if one.verdict is Verdict.RULED_OUT}
    assert "the host's IOMMU is not in use" in ruled_out


def test_of_several_machines_the_one_whose_arguments_name_the_function_holds_it() -> None:
    running = parse_ps("9 bhyve -s 7,passthru,0/5/0 g3\n8 bhyve -s 7,passthru,0/6/0 g1\n")
    known = state(vms=("g1", "g2", "g3"), processes=running)
    assert "/dev/vmm: g3 | bhyvectl --vm=g3" in holding(IN_USE, known)


def test_a_function_passed_twice_is_told() -> None:
    one = recorded("3-each-failure-from-fresh/012")
    assert "given twice" in holding(one, state(devices=(EM0, EM0)))


def test_a_function_not_reserved_or_absent_is_told() -> None:
    one = recorded("3-each-failure-from-fresh/003")
    behind = Address(0, 1, 0, 0)
    known = state(drivers={**RESERVED, behind: "em"}, devices=(behind,))
    found = holding(one, known)
    assert "pci0:1:0:0 has em | devctl set driver -f pci0:1:0:0 ppt" in found
    absent = recorded("3-each-failure-from-fresh/001")
    assert "the host has no such function" in holding(absent, state())


def test_with_no_facts_the_causes_are_all_told_and_none_is_claimed() -> None:
    found = decode_bhyve(4, IN_USE.errors)
    assert found.cause is None
    assert "causes, which bhyve does not tell apart" in found.meaning
    assert found.explain().count("- possible:") > 4
    # ENOENT is bhyve's own answer, and needs no facts.
    found = decode_bhyve(4, recorded("3-each-failure-from-fresh/001").errors)
    assert found.cause is not None
    assert "not attached to it" in found.meaning


def test_a_busy_function_that_nobody_holds_is_the_products_fault() -> None:
    found = decode_bhyve(4, IN_USE.errors, state())
    assert "no known cause is left" in found.meaning
    assert isinstance(found.error("cannot start g2"), ProductError)


def uninitialized(found: HostState) -> HostState:
    return replace(found, sysctl={**(found.sysctl or {}), "hw.vmm.iommu.initialized": "0"})


@pytest.mark.parametrize(
    ("text", "facts", "kind"),
    [
        (NO_IOMMU.errors, uninitialized(state(tables=frozenset({"FACP"}))), LabRefusalError),
        (NO_IOMMU.errors, state("6-iommu-disabled/019"), LabRefusalError),
        (NO_IOMMU.errors, uninitialized(state()), ProductRefusalError),
        (IN_USE.errors, state(vms=("g1", "g2")), LabRefusalError),
        (IN_USE.errors, state(drivers={EM0: "em"}), LabRefusalError),
        (IN_USE.errors, state(drivers={}), InventoryRefusalError),
        (IN_USE.errors, state(devices=(EM0, EM0)), InventoryRefusalError),
        ("bhyve: passthru requires guest memory to be wired\n", state(), LabRefusalError),
        ('Error opening bootrom "/x": No such file\n', state(), LabRefusalError),
        ("Could not open backing file: /x: Device busy\n", state(), LabRefusalError),
        ("cannot create 'p/x': out of space\n", state(), LabRefusalError),
        ("bhyve: failed to initialize MSI for PCI 0/5/0\n", state(), InventoryRefusalError),
    ],
)
def test_a_refusal_is_the_fault_of_its_cause(
    text: str, facts: HostState, kind: type[RefusalError]
) -> None:
    assert type(decode_bhyve(4, text, facts).error("cannot start g1")) is kind


NEWER_ABSENT = "PCI device at 0/5/0 is not using the ppt driver\n"
NEWER = "vm_assign_pptdev: {}\nDevice emulation initialization error: {}\n"


def test_an_address_that_is_none_is_no_obstacle() -> None:
    for wrong in ("999/0/0", "1" * 5000 + "/0/0", "0/99/9"):
        found = decode(f"PCI device at {wrong} is not using the ppt(4) driver")
        assert found.meaning.startswith("the device cannot be passed")


def test_the_words_of_newer_releases() -> None:
    absent = decode_bhyve(4, NEWER_ABSENT, state(drivers={EM0: "em"}))
    assert "not reserved" in absent.meaning
    busy = NEWER.format("Device busy", "Device busy")
    assert "another virtual machine" in decode_bhyve(4, busy, state(vms=("g1", "g2"))).meaning
    off = NEWER.format("Device not configured", "Device not configured")
    found = decode_bhyve(4, off, state("6-iommu-disabled/019"))
    assert "switched bhyve's use of the IOMMU off" in found.meaning
    assert all("another virtual" not in one.text for one in found.causes if one is found.cause)


# ---- other words, of other releases ----------------------------------------------


OTHERS = [
    ("PCI device at 6 is not using the ppt driver", "file descriptor 6", Fault.LAB),
    ("vm_assign_pptdev: Device busy", "cannot be passed", Fault.LAB),
    (
        "bhyve: failed to initialize MSI-X table for PCI 0/5/0: 22",
        "0/5/0's MSI-X table cannot be set up, errno 22",
        Fault.PRODUCT,
    ),
    ("bhyve: failed to initialize BARs for PCI 1/0/0", "room for 1/0/0", Fault.INVENTORY),
    ("Passthru device name x is too long", "x is no name", Fault.INVENTORY),
    ("Invalid passthru device name ppt", "ppt is no name", Fault.INVENTORY),
    ("ROM boot failed: unrestricted guest capability not available", "boot ROM", Fault.LAB),
    ("bhyve: invalid cpu topology '9x'", "cannot read 9x", Fault.INVENTORY),
    ("Assertion failed: (0), function f, file g.c, line 1.", "(0), function f", Fault.PRODUCT),
    (
        "Failed to emulate instruction sequence [ 0f ] at 0x1",
        "sequence [ 0f ] at 0x1",
        Fault.PRODUCT,
    ),
    ("Could not create VM linux", "virtual machine linux", Fault.LAB),
    ('Shared object "/boot/userboot.so" not found', "/boot/userboot.so", Fault.LAB),
    ("iovctl: Failed to configure SR-IOV: Device busy", "Device busy", Fault.LAB),
    (
        "bhyve: gdb socket bind: Address already in use",
        "port cannot be opened: Address already in use",
        Fault.LAB,
    ),
    ("cannot destroy 'p/x': dataset is busy", "zfs cannot destroy p/x: dataset is", Fault.LAB),
    ("bhyve: failed to open /dev/io: Device busy", "/dev/io cannot be opened", Fault.LAB),
    ("vm_create: Too many open files", "could not be made: Too many", Fault.LAB),
    ("vm_open: g1 could not be opened: Device busy", "g1 cannot be opened: Device", Fault.LAB),
    ("kldload: can't load vmm: Operation not permitted", "needs root", Fault.LAB),
    ("devctl: Failed to set em0 driver to ppt: Operation not permitted", "root", Fault.LAB),
    ("anything: Permission denied", "needs root", Fault.LAB),
    ("invalid passthru options", "cannot read the function", Fault.INVENTORY),
    (
        "bhyve: passthru device 2/0/0 BAR 0: base 0xfe000800 or size 0x100 not page aligned",
        "BAR 0 (base 0xfe000800, size 0x100) is not whole pages",
        Fault.INVENTORY,
    ),
    (
        "bhyve: Failed to map MSI-X table BAR on 0/5/0: Device busy",
        "PR 260148",
        Fault.PRODUCT,
    ),
    ("Passthru device ppt0 on unsupported domain", "other than 0", Fault.INVENTORY),
    ("bhyve: failed to open /dev/mem: Operation not permitted", "securelevel", Fault.LAB),
    ("vm_create: Operation not permitted", "allow.vmm_ppt", Fault.LAB),
    ('passthru_init_rom: can\'t open romfile "/x"', "/x cannot be read", Fault.INVENTORY),
    ("kldload: can't load vmm: Exec format error", "does not fit this kernel", Fault.LAB),
    ("iovctl: Failed to delete VFs: Device busy", "one is held", Fault.LAB),
    ("iovctl: Could not open device '/dev/iov/em0': No such file", "no VFs", Fault.LAB),
    ("open of tap device /dev/tap9 failed", "/dev/tap9", Fault.LAB),
    ("Could not setup memory for VM linux", "cannot wire", Fault.LAB),
    ("error: file `/vmlinuz' not found.", "finds no kernel", Fault.INVENTORY),
    ("cannot create 'p/x': out of space", "is full", Fault.LAB),
    ("cp: /x: No space left on device", "is full", Fault.LAB),
    ("device emulation initialization error: Device busy", "may be stale", Fault.PRODUCT),
]


@pytest.mark.parametrize(("line", "meaning", "fault"), OTHERS)
def test_other_words(line: str, meaning: str, fault: Fault) -> None:
    found = decode(line + "\n")
    assert meaning in found.meaning + found.remedy
    assert found.fault is fault


def test_the_line_that_tells_most_decides_wherever_it_stands() -> None:
    text = "some noise\ndevice emulation initialization error: x\npci slot 0:7:0 already occupied!"
    assert "slot 0:7:0" in decode(text).meaning


def test_what_is_not_known_is_kept_and_shown() -> None:
    found = decode_bhyve(4, "nonsense of tomorrow\nsecond line\n")
    assert not found.known
    assert found.meaning == "bhyve ended with status 4: not known to hil: 'nonsense of tomorrow'"
    error = found.error("cannot start g1", host="lab1", command=["bhyve", "g1"])
    # Until somebody has looked at it, it counts as a failure of the product.
    assert isinstance(error, ProductRefusalError)
    assert "second line" in error.explain()
    assert "bhyve g1" in error.explain()


def test_an_error_tells_causes_text_and_remedy() -> None:
    found = decode_bhyve(4, NO_IOMMU.errors, state("6-iommu-disabled/019"))
    shown = found.error("cannot start g1").explain()
    assert "- this is it: the administrator has switched" in shown
    assert "- ruled out: the function is not reserved" in shown
    assert "bhyve: PCI device at 0/5/0 is not using the ppt(4) driver" in shown
    assert "loader.conf" in shown
    assert isinstance(decode("pci slot 1 already occupied!").error("no"), InventoryError)


def test_driver_not_loaded_is_told_from_function_absent() -> None:
    one = recorded("1-host-setup/037").errors
    assert "vmm is not loaded" in decode(one, HostState(modules=frozenset())).meaning
    assert "no device" in decode(one, HostState(modules=frozenset({"pci/ppt"}))).meaning


def test_a_busy_function_held_by_a_machine_names_it() -> None:
    one = recorded("4-in-use/018").errors
    known = HostState(drivers={EM0: "ppt"}, vms=("g1",))
    found = decode(one, known)
    assert "a virtual machine (g1) holds pci0:0:5:0" in found.meaning
    assert found.remedy == "bhyvectl --vm=g1 --destroy"


def test_wiring_that_failed_shows_the_hosts_limit() -> None:
    known = HostState(
        sysctl={"vm.max_user_wired": "500000", "vm.stats.vm.v_user_wire_count": "499000"}
    )
    assert "of 500000 pages" in decode("Unable to setup memory (12)", known).meaning
    assert "errno 5" in decode("Unable to setup memory (5)", known).meaning


def test_a_cpu_without_virtualization_shows_the_kernels_words() -> None:
    known = HostState(
        modules=frozenset(parse_kldstat(recorded("8-vtd-machine/016").text)[0].modules),
        dmesg=recorded("8-vtd-machine/018").text,
        sysctl={"hw.model": "Intel Xeon"},
    )
    found = decode_bhyve(4, recorded("8-vtd-machine/026").errors, known)
    assert found.causes[0].why == "vmx_modinit: processor does not support VMX operation"


# ---- endings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text", "how"),
    [
        (0, "", Ending.REBOOT),
        (1, "", Ending.POWEROFF),
        (1, "fbuf frame buffer base: 0x1 [sz 16777216]\n", Ending.POWEROFF),
        (1, "vm_run error -1, errno 6\n", Ending.DESTROYED),
        (1, "Unable to setup memory (17)\n", Ending.FAILED),
        (1, "bhyve: something else\n", Ending.FAILED),
        (2, "", Ending.HALT),
        (3, "", Ending.TRIPLE_FAULT),
        (4, "\n", Ending.DESTROYED),
        (4, "anything\n", Ending.FAILED),
        (5, "", Ending.SUSPENDED),
        (64, "bhyve: invalid memsize '1'\n", Ending.FAILED),
        (71, "bhyve: vm_set_topology\n", Ending.FAILED),
        (100, "vmexit_suspend: invalid reason 9\n", Ending.FAILED),
        (134, "Assertion failed: (x), function f, file g.c, line 1.\n", Ending.CRASHED),
        (137, "", Ending.KILLED),
        (139, "", Ending.CRASHED),
        (143, "", Ending.KILLED),
    ],
)
def test_how_bhyve_ended(status: int, text: str, how: Ending) -> None:
    assert ending(status, text) is how


def test_the_recorded_endings() -> None:
    """Recorded as what bhyve printed, then ``exit status N``."""
    want = {
        "001": Ending.REBOOT,
        "006": Ending.POWEROFF,
        "008": Ending.DESTROYED,
        "009": Ending.HALT,
        "012": Ending.POWEROFF,
        "014": Ending.KILLED,
        "017": Ending.REBOOT,
        "019": Ending.POWEROFF,
    }
    for number, how in want.items():
        text, _, rest = recorded(f"5-exits-and-kills/{number}").text.partition("exit status ")
        status = int(rest.split()[0])
        assert ending(status, text.removeprefix("0\n")) is how, number


def test_an_assertion_is_told_with_its_text_and_is_bhyves_fault() -> None:
    text = "Assertion failed: (error == 0), function passthru_write, file p.c, line 9.\n"
    found = decode_bhyve(134, text)
    assert found.meaning.startswith("bhyve crashed (SIGABRT): Assertion failed: (error == 0)")
    assert isinstance(found.error("g1"), ProductError)
    assert "said nothing" in decode_bhyve(139, "").meaning


def test_a_killed_bhyve_leaves_its_devices_assigned() -> None:
    found = decode_bhyve(137, "", HostState(vm="g1"))
    assert "stay assigned" in found.meaning
    assert found.remedy == "bhyvectl --vm=g1 --destroy"
    assert "signal 72" in decode_bhyve(200, "").meaning


def test_every_rule_is_the_first_for_something_that_is_printed() -> None:
    texts = [one.errors for one in failures()] + [line for line, _, _ in OTHERS]
    first = [next((rule.pattern for rule in RULES if rule.search(text)), "") for text in texts]
    assert {rule.pattern for rule in RULES} - set(first) == set()


LINES = [line for one in failures() for line in one.errors.splitlines()]


@given(
    st.integers(0, 255),
    st.lists(st.sampled_from(LINES) | st.text(max_size=60), max_size=4).map("\n".join),
    st.booleans(),
)
def test_any_text_and_status_are_decoded(status: int, text: str, knows: bool) -> None:
    known = state(processes=(Process(1, "bhyve g1"),)) if knows else None
    found = decode_bhyve(status, text, known)
    assert found.text == text
    assert found.meaning
    found.error("x").explain()
