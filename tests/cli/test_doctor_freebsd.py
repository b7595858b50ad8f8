"""The doctor on FreeBSD hosts, as recorded and as users get them wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hil.deadline import Deadline
from hil.doctor.check import Check, State
from hil.doctor.freebsd import COMMANDS, freebsd_host, read
from hil.doctor.freebsd_rows import judge
from hil.errors import LabError
from hil.lab.models import Device, Host, Lab, LabKind
from hil.pci.address import Address
from hil.platforms.contract import Function
from hil.platforms.freebsd_pci import Survey, functions, parse_pciconf
from hil.transport.base import Result
from hil.transport.local import LocalTransport
from tests.fakes import FLR, MSI, MSIX, config
from tests.recorded import recorded

MORE = """\
hw.model: AMD EPYC Processor (with IBPB)
kern.securelevel: -1
security.jail.jailed: 0
vm.max_user_wired: 522240
vm.stats.vm.v_user_wire_count: 1024
"""
EM0, IGB0, NVME0 = Address(0, 0, 5, 0), Address(0, 0, 6, 0), Address(0, 0, 7, 0)

Answers = dict[str, str | None]


def amd_host() -> Answers:
    """The recorded host: vmm loaded, AMD-Vi enabled, no device passed since boot."""
    return {
        "user": "0\n",
        "release": recorded("1-host-setup/002").text,
        "sysctl": recorded("1-host-setup/053").text + recorded("1-host-setup/056").text + MORE,
        "kenv": recorded("1-host-setup/010").text,
        "modules": recorded("1-host-setup/050").text,
        "acpi": recorded("1-host-setup/031").text,
        "dmesg": recorded("1-host-setup/052").text,
        "boot": recorded("1-host-setup/036").text,
        "vms": "",
        "processes": "1 /sbin/init\n",
        "loader": 'vmm_load="YES"\nhw.vmm.amdvi.enable="1"\n',
        "firmware": "BHYVE_UEFI.fd\n",
        "grub": "/usr/local/sbin/grub-bhyve\n",
    }


def listed(text: str = "", **driver: str) -> tuple[Function, ...]:
    """The recorded host's functions; ``nvme0="ppt0"`` renames one."""
    listing = text or recorded("1-host-setup/018").text
    tree = recorded("1-host-setup/027").text
    for old, new in driver.items():
        listing, tree = listing.replace(f"{old}@", f"{new}@"), tree.replace(old, new)
    spaces = {
        entry.address: config(
            vendor=entry.vendor,
            device=entry.device,
            header_type=entry.header_type,
            capabilities=[
                body
                for number, body in ((5, MSI), (0x11, MSIX), (0x10, FLR))
                if any(c.identity == number for c in entry.capabilities)
            ],
        ).data
        for entry in parse_pciconf(listing)
    }
    return functions(Survey(listing, spaces, devinfo=tree))


def rows(
    answers: Answers | None = None,
    found: tuple[Function, ...] | None = None,
    lab: Lab | None = None,
    **changed: str | None,
) -> dict[str, Check]:
    given = {**(amd_host() if answers is None else answers), **changed}
    checks = judge(read("beastie", given, listed() if found is None else found), lab)
    assert all(check.where == "beastie" for check in checks)
    by_name = {check.name: check for check in checks}
    assert len(by_name) == len(checks)
    return by_name


def test_the_recorded_host_is_fit_for_passthrough() -> None:
    found = rows()
    assert not any(check.bad for check in found.values())
    unknown = {name for name, check in found.items() if check.state is State.UNKNOWN}
    assert unknown == {"IOMMU in use by bhyve"}
    assert {name for name, check in found.items() if check.state is State.MISSING} == set()
    assert found["CPU virtualization"].evidence == "kldstat: module vmm is loaded"
    assert found["IOMMU in the firmware"].evidence == "ACPI table IVRS"
    assert found["AMD-Vi enabled"].evidence == "hw.vmm.amdvi.enable: 1, hw.vmm.amdvi.count: 1"


def test_a_host_on_which_nothing_can_be_asked_is_told_as_unknown() -> None:
    nothing: Answers = dict.fromkeys(COMMANDS)
    checks = judge(read("beastie", nothing, None, "no pciconf"))
    told = {check.name: check for check in checks if check.state is not State.UNKNOWN}
    assert set(told) == {"boot ROM for UEFI guests", "loader for Linux guests"}
    assert not any(check.bad for check in checks)
    assert {check.evidence for check in checks if check.name == "functions"} == {"no pciconf"}


def test_a_text_that_cannot_be_read_is_told_with_its_line() -> None:
    check = rows(kenv="nonsense of tomorrow\n")["pptdevs"]
    assert check.state is State.UNKNOWN
    assert "nonsense of tomorrow" in check.evidence


def sysctl(**values: str) -> str:
    """The recorded values with some changed: ``hw__vmm__iommu__enable="0"``."""
    text = amd_host()["sysctl"] or ""
    for key, value in values.items():
        name = key.replace("__", ".")
        text = re.sub(rf"^{re.escape(name)}: .*\n", "", text, flags=re.MULTILINE)
        text += f"{name}: {value}\n"
    return text


@pytest.mark.parametrize(
    ("name", "changed", "evidence", "remedy"),
    [
        ("root's rights", {"user": "1001\n"}, "user id 1001", "user = 'root'"),
        (
            "outside of a jail",
            {"sysctl": sysctl(security__jail__jailed="1")},
            "jailed: 1",
            "allow.vmm_ppt",
        ),
        (
            "securelevel",
            {"sysctl": sysctl(kern__securelevel="2")},
            "kern.securelevel: 2",
            "kern_securelevel_enable=NO",
        ),
        (
            "IOMMU in the firmware",
            {"acpi": recorded("8-vtd-machine/003").text},
            "no IVRS among the ACPI tables",
            "firmware's setup",
        ),
        (
            "AMD-Vi enabled",
            {"sysctl": sysctl(hw__vmm__amdvi__enable="0")},
            "hw.vmm.amdvi.enable: 0, hw.vmm.amdvi.count: 1",
            "echo 'hw.vmm.amdvi.enable=\"1\"' >> /boot/loader.conf",
        ),
        (
            "IOMMU allowed to bhyve",
            {"sysctl": sysctl(hw__vmm__iommu__enable="0")},
            "hw.vmm.iommu.enable: 0",
            "echo 'hw.vmm.iommu.enable=\"1\"' >> /boot/loader.conf",
        ),
        (
            "IOMMU in use by bhyve",
            {"dmesg": recorded("6-iommu-disabled/008").text},
            "bhyve: Found 1 AMD-Vi/IOMMU device(s), use hw.vmm.amdvi.enable=1",
            "loader.conf",
        ),
        (
            "host's own IOMMU driver off",
            {"kenv": 'hw.dmar.enable="1"\n'},
            "hw.dmar.enable=1: hosts were seen to freeze",
            "take hw.dmar.enable=1 out of /boot/loader.conf",
        ),
        (
            "no stale virtual machines",
            {"vms": "g1\ng2\n", "processes": recorded("4-in-use/002").text},
            "/dev/vmm has g2 without a bhyve",
            "bhyvectl --vm=g2 --destroy",
        ),
        (
            "memory that may be wired",
            {"sysctl": sysctl(vm__max_user_wired="2048")},
            "4 MiB of 8 MiB",
            "sysctl vm.max_user_wired=132096",
        ),
    ],
)
def test_each_lack_is_seen_with_its_evidence_and_its_remedy(
    name: str, changed: Mapping[str, str], evidence: str, remedy: str
) -> None:
    check = rows({**amd_host(), **changed})[name]
    assert check.state is State.MISSING
    assert check.bad
    assert evidence in check.evidence
    assert remedy in check.remedy


def test_a_working_iommu_is_found_in_use() -> None:
    values = (amd_host()["sysctl"] or "") + recorded("4-in-use/007").text
    assert rows(sysctl=values)["IOMMU in use by bhyve"].state is State.FOUND


def before_vmm() -> Answers:
    return amd_host() | {
        "sysctl": MORE,
        "modules": recorded("1-host-setup/004").text,
        "dmesg": recorded("1-host-setup/036").text,
    }


def test_before_vmm_is_loaded_the_kernels_log_and_environment_are_asked() -> None:
    found = rows(before_vmm())
    assert found["CPU virtualization"].evidence == "SVM: NP,NRIP,NAsids=16"
    assert found["vmm"].state is State.MISSING
    assert not found["vmm"].bad
    assert found["AMD-Vi enabled"].evidence == 'kenv: hw.vmm.amdvi.enable="1"'
    assert found["IOMMU allowed to bhyve"].state is State.FOUND
    default = rows(before_vmm() | {"kenv": 'a="1"\n'})["AMD-Vi enabled"]
    assert default.bad
    assert "0 is its default" in default.evidence


def vtd_host() -> Answers:
    return amd_host() | {
        "sysctl": recorded("8-vtd-machine/019").text + MORE.replace("AMD EPYC", "Intel Xeon"),
        "modules": recorded("8-vtd-machine/016").text,
        "acpi": recorded("8-vtd-machine/003").text,
        "dmesg": recorded("8-vtd-machine/018").text,
        "boot": recorded("8-vtd-machine/002").text,
    }


def test_a_cpu_without_vmx_is_told_with_the_kernels_words() -> None:
    found = rows(vtd_host())
    check = found["CPU virtualization"]
    assert check.bad
    assert check.evidence == "vmx_modinit: processor does not support VMX operation"
    assert "nesting" in check.remedy
    assert "AMD-Vi enabled" not in found
    assert found["IOMMU in the firmware"].evidence == "ACPI table DMAR"
    # Before vmm is loaded the log of the boot tells.
    unloaded = rows(vtd_host() | {"modules": recorded("1-host-setup/004").text})
    assert "neither VT-x nor SVM" in unloaded["CPU virtualization"].evidence


def test_svm_switched_off_in_the_firmware_is_told() -> None:
    log = "SVM: disabled by BIOS.\nmodule_register_init: MOD_LOAD (vmm, 0x1, 0) error 6\n"
    modules = recorded("8-vtd-machine/016").text
    check = rows(amd_host() | {"dmesg": log, "modules": modules})["CPU virtualization"]
    assert (check.state, check.evidence) == (State.MISSING, "SVM: disabled by BIOS.")
    assert "firmware" in check.remedy
    # Unloaded again, what vmm said is no line of the CPU's features.
    unloaded = {"dmesg": "CPU: A\nSVM: not available.\n", "boot": None}
    check = rows(before_vmm() | unloaded)["CPU virtualization"]
    assert check.state is State.MISSING


def test_14_3_on_intel_is_told_of_its_bug() -> None:
    intel = vtd_host() | {"release": "14.3-RELEASE-p1\n"}
    assert "290155" in rows(intel)["IOMMU in use by bhyve"].evidence
    assert (
        "290155"
        not in rows(amd_host() | {"release": "14.3-RELEASE"})["IOMMU in use by bhyve"].evidence
    )


RMRR = """
	Type=RMRR
	Length=32
	Segment=0
	BaseAddress=0x7d000000
	LimitAddress=0x7f7fffff
	Device Scope:
		Type=PCI Endpoint Device
		Length=8
		EnumerationId=0
		StartBusNumber=0
		Path={2:0}

"""


def test_units_and_reserved_memory_of_intel() -> None:
    dmar = vtd_host()["acpi"] or ""
    found = rows(vtd_host())
    assert found["several remapping units"].evidence == "1 DRHD"
    assert "no memory reserved for devices (RMRR)" not in found
    more = dmar.replace("\tType=DRHD", "\tType=DRHD\n\tType=DRHD", 1)
    more = re.sub(r"(\*/\n/\*\n  WAET)", RMRR.replace("\\", "") + r" \1", more)
    found = rows(vtd_host() | {"acpi": more, "release": "12.0-RELEASE"})
    assert found["several remapping units"].state is State.MISSING
    assert "r349184" in found["several remapping units"].evidence
    reserved = found["no memory reserved for devices (RMRR)"]
    assert "1 RMRR, for bus 0 path 2:0" in reserved.evidence
    assert rows(vtd_host() | {"acpi": more})["several remapping units"].state is State.FOUND


# ---- pptdevs ---------------------------------------------------------------------


def reserved_at_boot(*, kenv: str = "", loader: str = "", **driver: str) -> Check:
    found = listed(**(driver or {"em0": "ppt0", "igb0": "ppt1"}))
    lines = kenv or recorded("7-pptdevs-at-boot/029").text
    return rows(found=found, kenv=lines, loader=loader or recorded("7-pptdevs-at-boot/028").text)[
        "pptdevs"
    ]


def test_pptdevs_that_work() -> None:
    check = reserved_at_boot()
    assert (check.state, check.evidence) == (State.FOUND, 'pptdevs="0/5/0 0/6/0"')
    assert "at run time" in rows()["pptdevs"].evidence


def test_pptdevs_whose_function_another_driver_has() -> None:
    check = reserved_at_boot(em0="ppt0")
    assert check.evidence == "0/6/0 has igb instead of ppt"
    assert check.remedy.startswith("devctl set driver -f pci0:0:6:0 ppt  #")
    assert "devmatch_blocklist" in check.remedy
    assert not check.bad


def test_pptdevs_of_a_slot_that_is_empty_now() -> None:
    kenv = 'pptdevs="0/5/0 7/0/0"\n'
    check = reserved_at_boot(kenv=kenv, loader=kenv + 'vmm_load="YES"\n')
    assert "no function at 7/0/0: a card moved?" in check.evidence


def test_pptdevs_that_the_kernel_cannot_read() -> None:
    kenv = 'pptdevs="pci0:0:5:0"\npptdevs4="0/6/0"\n'
    check = reserved_at_boot(kenv=kenv, loader=kenv + 'vmm_load="YES"\n')
    assert 'pci0:0:5:0, pptdevs4="0/6/0"' in check.evidence
    assert "decimal" in check.remedy


def test_pptdevs_without_vmm_from_the_loader() -> None:
    check = reserved_at_boot(loader='pptdevs="0/5/0 0/6/0"\n')
    assert "not loaded by the loader" in check.evidence
    assert "vmm_load" in check.remedy


def test_pptdevs_too_long() -> None:
    many = " ".join(f"{bus}/0/0" for bus in range(10, 60))
    loader = f'vmm_load="YES"\npptdevs="{many}"\n'
    dropped = reserved_at_boot(kenv='a="1"\n', loader=loader)
    assert "and the kernel takes 258" in dropped.evidence
    assert "split the line" in dropped.remedy
    log = "WARNING: too long kenv string, ignoring pptdevs=10/0/0 11/0/0\n"
    assert "dropped a line: WARNING" in rows(boot=log)["pptdevs"].evidence
    some = " ".join(f"{bus}/0/0" for bus in range(10, 33))
    longer = f'pptdevs="{some}"\n'
    check = reserved_at_boot(kenv=longer, loader='vmm_load="YES"\n' + longer)
    assert "128 are documented" in check.evidence


def test_pptdevs_changed_since_boot() -> None:
    check = reserved_at_boot(loader='vmm_load="YES"\npptdevs="0/5/0"\n')
    assert "changed since boot" in check.evidence


# ---- devices ---------------------------------------------------------------------


def lab(**devices: tuple[Address, ...]) -> Lab:
    host = Host(platform="freebsd-bhyve", address="beastie.example.org")
    made = {
        name: Device.model_validate(
            {"kind": "other", "host": "beastie", "functions": [a.selector for a in functions]}
        )
        for name, functions in devices.items()
    }
    return Lab("x", LabKind.PHYSICAL, {"beastie": host}, made, {}, Path("x.toml"))


def test_devices_of_the_inventory_are_looked_at() -> None:
    found = rows(lab=lab(nic=(IGB0,), disk=(NVME0,)))
    assert found["0/6/0 can be passed"].state is State.FOUND
    assert "8086:10c9, igb, MSI-X, reset by flr" in found["0/6/0 can be passed"].evidence
    assert "0/7/0 can be passed" in found
    assert found["BARs fit into a guest"].state is State.FOUND


def test_without_an_inventory_what_is_reserved_is_looked_at() -> None:
    found = rows(found=listed(em0="ppt0"))
    assert "0/5/0 can be passed" in found
    assert "0/6/0 can be passed" not in found
    assert found["vmm may be unloaded, the host suspended"].remedy == (
        "devctl clear driver -f pci0:0:5:0"
    )


def test_a_device_that_is_not_there_is_told() -> None:
    check = rows(lab=lab(gone=(Address(0, 9, 0, 0),)))["the inventory's devices"]
    assert check.bad
    assert "no function at 0000:09:00.0" in check.evidence


def test_a_function_that_cannot_be_passed_says_why() -> None:
    smbus = Address(0, 0, 31, 3)
    check = rows(lab=lab(smbus=(smbus,)))["0/31/3 can be passed"]
    assert check.bad
    assert "neither MSI nor MSI-X" in check.evidence
    text = recorded("1-host-setup/018").text.replace("size 1048576", "size 512")
    check = rows(found=listed(text), lab=lab(edu=(Address(0, 0, 9, 0),)))["0/9/0 can be passed"]
    assert "BAR0 is not whole pages: 0xc0200000, size 0x200" in check.evidence


def test_a_device_that_the_host_needs_is_no_device_to_pass() -> None:
    found = tuple(
        replace(one, in_use_as="root disk") if one.address == NVME0 else one for one in listed()
    )
    complaint = rows(found=found, lab=lab(disk=(NVME0,)))
    assert complaint["the inventory's devices"].bad
    check = complaint["0/7/0 can be passed"]
    assert check.bad
    assert "the host needs it: root disk" in check.evidence
    assert "another device" in check.remedy


def test_a_device_in_another_pci_domain_cannot_be_passed() -> None:
    far = replace(listed()[5], address=Address(1, 0, 6, 0))
    check = rows(found=(far,), lab=lab(nic=(far.address,)))["0/6/0 can be passed"]
    assert "PCI domain 1" in check.evidence


def test_what_makes_a_device_worse_is_no_obstacle() -> None:
    edu = rows(lab=lab(edu=(Address(0, 0, 9, 0),)))["0/9/0 can be passed"]
    assert edu.state is State.MISSING
    assert not edu.bad
    assert "no reset of its own" in edu.evidence
    text = recorded("1-host-setup/018").text.replace("pci0:0:7:0", "pci0:0:6:1")
    nic = rows(found=listed(text), lab=lab(nic=(IGB0,)))["0/6/0 can be passed"]
    assert nic.evidence == "of the same card, and with a driver of the host: 0/6/1 (nvme)"


def test_bars_that_do_not_fit_into_a_guest() -> None:
    text = recorded("1-host-setup/018").text
    large = text.replace(
        "range 64, base 0xe020048000, size 16384", "range 64, base 0x0, size 68719476736"
    )
    check = rows(found=listed(large), lab=lab(gpu=(NVME0,)))["BARs fit into a guest"]
    assert check.state is State.MISSING
    assert check.evidence == (
        "bhyve has no room, even alone, for BAR0 of 0000:00:07.0 (64 GiB): a guest will not see it"
    )
    assert not check.bad


def test_dma_faults_are_told() -> None:
    line = (
        "ivhd0: EVT INTR 1 Status:0x1\n\t[IO_PAGE_FAULT EVT: devId:0x28 DomId:0x3 Addr:0x1 0x0]\n"
    )
    check = rows(dmesg=line)["no DMA faults"]
    assert check.state is State.MISSING
    assert "1 in the kernel's log" in check.evidence
    counted = rows(sysctl=sysctl(dev__ivhd__0__event_intr_count="7"))["no DMA faults"]
    assert "event_intr_count: 7" in counted.evidence


# ---- asking ----------------------------------------------------------------------


class Host132(LocalTransport):
    """Answers as the recorded host, to the doctor's own commands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, ...]] = []
        self.texts = {command: amd_host()[name] or "" for name, command in COMMANDS.items()}

    def run(self, command: Sequence[str], **_: object) -> Result:
        words = tuple(command)
        self.asked.append(words)
        return Result(words, 0, self.texts[words].encode(), b"", 0.0)


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's functions, which its platform's adapter tells."""
    name = "hil.platforms.freebsd.FreebsdBhyve.functions"
    monkeypatch.setattr(name, lambda *_: listed())


@pytest.mark.usefixtures("adapter")
def test_a_host_is_asked_and_judged() -> None:
    host = Host132()
    checks = freebsd_host("beastie", host, Deadline(60, "the checks"), lab(nic=(IGB0,)))
    by_name = {check.name: check for check in checks}
    assert by_name["AMD-Vi enabled"].state is State.FOUND
    assert by_name["0/6/0 can be passed"].where == "beastie"
    assert set(host.asked) == set(COMMANDS.values())


def test_the_doctor_changes_nothing() -> None:
    readers = {"id", "freebsd-version", "kldstat", "acpidump", "dmesg", "cat", "ls", "ps"}
    for words in COMMANDS.values():
        plain = words[0] in readers or words[:2] in {("sysctl", "-i"), ("kenv", "-q")}
        script = words[:2] == ("sh", "-c") and re.fullmatch(r"cat [\w./* ]+", words[2])
        assert plain or script, words
        assert not any("=" in word for word in words if words[0] == "sysctl")


class Broken(LocalTransport):
    def run(self, *_: object, **__: object) -> Result:
        raise LabError("the connection is gone", hint="look at the cable")


def test_a_host_that_does_not_answer_is_a_row_not_an_error() -> None:
    (check,) = freebsd_host("beastie", Broken(), Deadline(60, "the checks"))
    assert check.bad
    assert (check.evidence, check.remedy) == ("the connection is gone", "look at the cable")


def test_functions_that_cannot_be_read_leave_the_other_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def functions(*_: object) -> None:
        raise LabError("cannot read a line that pciconf printed", seen="nonsense of tomorrow")

    monkeypatch.setattr("hil.platforms.freebsd.FreebsdBhyve.functions", functions)
    checks = {c.name: c for c in freebsd_host("beastie", Host132(), Deadline(60, "the checks"))}
    assert checks["functions"].state is State.UNKNOWN
    assert "nonsense of tomorrow" in checks["functions"].evidence
    assert checks["AMD-Vi enabled"].state is State.FOUND
