"""What bhyve asks of a processor under KVM, told from text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.emulated import host_cpu

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD Ryzen 7 PRO 5850U with Radeon Graphics
flags\t\t: fpu vme svm lbrv svm_lock nrip_save tsc_scale npt decodeassists
bugs\t\t: sysret_ss_attrs
"""
INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: 11th Gen Intel(R) Core(TM) i7-1185G7 @ 3.00GHz
flags\t\t: fpu vme vmx smx est tpr_shadow flexpriority ept vpid ept_ad
vmx flags\t: vnmi preemption_timer invvpid ept_x_only ept_ad ept vpid unrestricted_guest
bugs\t\t: spectre_v1
"""
#: Before Linux 5.9.
OLD_INTEL = "\n".join(line for line in INTEL.splitlines() if not line.startswith("vmx flags"))

AMD_ON = {"kvm_amd/nested": "1\n", "kvm_amd/npt": "Y\n"}
INTEL_ON = {
    "kvm_intel/nested": "Y\n",
    "kvm_intel/ept": "Y\n",
    "kvm_intel/unrestricted_guest": "Y\n",
}


@pytest.mark.parametrize(
    ("cpuinfo", "parameters"),
    [
        (AMD, AMD_ON),
        (INTEL, INTEL_ON),
        (OLD_INTEL, INTEL_ON),
        (AMD, {}),
        (AMD.replace("AuthenticAMD", "HygonGenuine"), AMD_ON),
    ],
)
def test_what_will_do(cpuinfo: str, parameters: dict[str, str]) -> None:
    assert host_cpu.obstacle(cpuinfo, parameters) is None


@pytest.mark.parametrize(
    ("cpuinfo", "parameters", "message", "hint"),
    [
        (AMD.replace(" svm ", " "), AMD_ON, "needs SVM", "firmware"),
        (AMD.replace(" svm ", " hypervisor "), AMD_ON, "needs SVM", "nested virtualization"),
        (AMD.replace("nrip_save ", ""), AMD_ON, "NRIP save", ""),
        (AMD.replace("npt ", ""), AMD_ON, "NPT", ""),
        (INTEL.replace(" vmx ", " "), INTEL_ON, "needs VMX", "firmware"),
        (INTEL.replace(" unrestricted_guest", ""), INTEL_ON, "unrestricted guests", ""),
        (
            INTEL.replace(" ept ", " "),
            INTEL_ON,
            "EPT",
            "",
        ),
        (
            AMD,
            {"kvm_amd/nested": "0\n"},
            "does not give its machines virtualization",
            "modprobe kvm_amd nested=1",
        ),
        (
            INTEL,
            {"kvm_intel/nested": "N"},
            "does not give its machines virtualization",
            "modprobe kvm_intel nested=1",
        ),
        (
            INTEL,
            {**INTEL_ON, "kvm_intel/unrestricted_guest": "N"},
            "does not use unrestricted_guest",
            "unrestricted_guest=1",
        ),
        ("processor : 0\nCPU implementer : 0x41\n", {}, "Intel or AMD", ""),
        ("", {}, "Intel or AMD", ""),
    ],
)
def test_what_will_not(cpuinfo: str, parameters: dict[str, str], message: str, hint: str) -> None:
    error = host_cpu.obstacle(cpuinfo, parameters)
    assert error is not None
    assert message in error.message
    assert hint in error.hint


def test_the_parameter_is_shown() -> None:
    error = host_cpu.obstacle(AMD, {"kvm_amd/nested": "0\n"})
    assert error is not None
    assert error.seen == "/sys/module/kvm_amd/parameters/nested: 0"


def test_the_other_module_does_not_count() -> None:
    assert host_cpu.obstacle(AMD, {**AMD_ON, "kvm_intel/nested": "N"}) is None


def test_vendors() -> None:
    assert host_cpu.vendor(AMD) == host_cpu.AMD
    assert host_cpu.vendor(INTEL) == host_cpu.INTEL


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_any_text_gets_an_answer(cpuinfo: str, parameters: dict[str, str]) -> None:
    error = host_cpu.obstacle(cpuinfo, parameters)
    assert error is None or error.message
