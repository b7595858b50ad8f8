"""What is known of a FreeBSD host that tells one cause of a failure from another.

:class:`HostState` is made of parsed facts; what was not asked is ``None``, and no conclusion
is drawn from it.  :func:`iommu_causes` is the reasoning that error messages and the doctor
share: why bhyve could not use the IOMMU.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hil.errors import REFUSALS, Fault, HilError
from hil.pci.address import Address
from hil.platforms.freebsd_text import Process, Release


class Verdict(enum.StrEnum):
    """What the facts say of a possible cause."""

    HOLDS = "this is it"
    POSSIBLE = "possible"
    RULED_OUT = "ruled out"


@dataclass(frozen=True, slots=True)
class Cause:
    """A possible cause of a failure, and what speaks for or against it."""

    text: str
    verdict: Verdict
    why: str = ""
    """The evidence: a line that a command printed."""
    remedy: str = ""
    """The command or line of loader.conf that mends it."""
    fault: Fault = Fault.LAB
    """Whose fault the failure is, where this is its cause."""


@dataclass(frozen=True, slots=True)
class HostState:
    """Facts of a host at one moment; ``None`` where they were not asked."""

    release: Release | None = None
    sysctl: Mapping[str, str] | None = None
    """Of ``hw``, ``dev.ivhd``, ``kern``, ``security.jail`` and ``vm`` whatever was asked."""
    kenv: Mapping[str, str] | None = None
    modules: frozenset[str] | None = None
    """Modules inside the kernel's files, ``kldstat -v``: ``vmm``, ``pci/ppt``."""
    tables: frozenset[str] | None = None
    """Signatures of the ACPI tables: ``DMAR``, ``IVRS``."""
    dmesg: str | None = None
    drivers: Mapping[Address, str | None] | None = None
    """The driver attached to each PCI function of the host."""
    vms: tuple[str, ...] | None = None
    """Entries of ``/dev/vmm``."""
    processes: tuple[Process, ...] | None = None
    vm: str = ""
    """The virtual machine that is concerned."""
    devices: tuple[Address, ...] = ()
    """What was to be passed to it, in order."""

    def value(self, name: str) -> str | None:
        """A sysctl's value; ``None`` where it was not asked or does not exist."""
        return None if self.sysctl is None else self.sysctl.get(name)

    @property
    def amd(self) -> bool | None:
        """Whether the CPU is AMD's; ``None`` where that is not known."""
        model = self.value("hw.model")
        if model is not None and re.search(r"\bAMD\b|Intel", model):
            return "AMD" in model
        if self.tables is not None and self.tables & {"DMAR", "IVRS"}:
            return "IVRS" in self.tables
        return None

    def logged(self, pattern: str) -> str:
        """The last line of the kernel's log that ``pattern`` is found in; empty if none."""
        found = [line for line in (self.dmesg or "").splitlines() if re.search(pattern, line)]
        return found[-1].strip()[:300] if found else ""

    def others(self) -> tuple[str, ...] | None:
        """Virtual machines other than the one concerned."""
        return None if self.vms is None else tuple(name for name in self.vms if name != self.vm)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What an error means here."""

    meaning: str
    """One sentence."""
    remedy: str = ""
    """What to do: a command, or in brackets what no command does."""
    causes: tuple[Cause, ...] = ()
    """What was considered, where several causes have the same words."""
    fault: Fault = Fault.LAB
    text: str = ""
    """What was printed, all of it."""
    known: bool = True
    """Whether any of the text was recognised."""

    @property
    def cause(self) -> Cause | None:
        """The cause that holds; ``None`` where the facts do not tell."""
        return next((one for one in self.causes if one.verdict is Verdict.HOLDS), None)

    def explain(self) -> str:
        """Meaning and causes, a line each."""
        told = (
            f"- {one.verdict}: {one.text}" + (f" ({one.why})" if one.why else "")
            for one in self.causes
        )
        return "\n".join([self.meaning, *told])

    def error(self, message: str, *, host: str = "", command: Sequence[str] = ()) -> HilError:
        """The refusal to raise: ``message`` says what was tried, the rest is told here."""
        return REFUSALS[self.fault](
            f"{message}: {self.meaning}",
            seen="\n".join(part for part in (*self.explain().split("\n")[1:], self.text) if part),
            hint=self.remedy,
            host=host,
            command=command,
        )


def tunable(setting: str) -> str:
    """The command that sets one of vmm's tunables for good: ``hw.vmm.iommu.enable=1``.

    vmm reads them when it is loaded; sysctl(8) cannot change them afterwards.
    """
    name, _, value = setting.partition("=")
    return f"echo '{name}=\"{value}\"' >> /boot/loader.conf  # then reboot"


def iommu_causes(state: HostState, attempted: bool = True) -> tuple[Cause, ...]:
    """Why bhyve has no IOMMU to use, cause by cause; the first that holds is the reason.

    bhyve's own words do not tell: without an IOMMU a start ends as if the device were busy
    (sys/amd64/vmm/io/iommu.c, iommu_init; recorded in ``6-iommu-disabled``).

    Args:
        state: what is known.
        attempted: a device was to be assigned since vmm was loaded, so that
            ``hw.vmm.iommu.initialized`` would be 1 if it could.
    """
    initialized = state.value("hw.vmm.iommu.initialized")
    if initialized == "1":
        # 24 of the bug catalogue: releases exist that set it although iommu_init failed.
        return (
            Cause(
                "the host's IOMMU is not in use",
                Verdict.RULED_OUT,
                "hw.vmm.iommu.initialized: 1",
            ),
        )
    causes = [
        switched_off(state),
        *([amdvi(state)] if state.amd is not False else []),
        no_table(state),
        host_driver(state),
        no_virtualization(state),
    ]
    if initialized == "0" and attempted:
        holds = any(cause.verdict is Verdict.HOLDS for cause in causes)
        if not holds:
            causes.append(
                Cause(
                    "the IOMMU could not be initialized, for a reason not told",
                    Verdict.HOLDS,
                    "hw.vmm.iommu.initialized: 0, after an attempt to assign a device",
                    "dmesg | grep -iE 'dmar|vtd|ivhd|iommu|AMD-Vi'"
                    "  (on 14.3 with Intel see FreeBSD's PR 290155)",
                    Fault.PRODUCT,
                )
            )
    return tuple(causes)


def switched_off(state: HostState) -> Cause:
    """``hw.vmm.iommu.enable`` is 0."""
    text = "the administrator has switched bhyve's use of the IOMMU off"
    value = state.value("hw.vmm.iommu.enable")
    if value is None:
        return Cause(text, Verdict.POSSIBLE, remedy="sysctl hw.vmm.iommu.enable")
    verdict = Verdict.HOLDS if value == "0" else Verdict.RULED_OUT
    return Cause(text, verdict, f"hw.vmm.iommu.enable: {value}", tunable("hw.vmm.iommu.enable=1"))


def amdvi(state: HostState) -> Cause:
    """``hw.vmm.amdvi.enable`` is 0, its default."""
    text = "AMD-Vi is not enabled, which is its default"
    refusal = state.logged(r"use hw\.vmm\.amdvi\.enable=1")
    value = state.value("hw.vmm.amdvi.enable")
    count = state.value("hw.vmm.amdvi.count")
    remedy = tunable("hw.vmm.amdvi.enable=1")
    if value == "0" and (count not in (None, "0") or refusal):
        why = f"hw.vmm.amdvi.enable: 0, hw.vmm.amdvi.count: {count or '?'}"
        return Cause(text, Verdict.HOLDS, refusal or why, remedy)
    if value is None and refusal:
        return Cause(text, Verdict.POSSIBLE, refusal, remedy)
    if value is None:
        return Cause(text, Verdict.POSSIBLE, remedy="sysctl hw.vmm.amdvi")
    return Cause(text, Verdict.RULED_OUT, f"hw.vmm.amdvi.enable: {value}, count: {count or '?'}")


def no_table(state: HostState) -> Cause:
    """The firmware has neither a DMAR nor an IVRS table."""
    text = "the firmware shows no IOMMU: it is switched off there, or there is none"
    remedy = "[switch VT-d or AMD-Vi (IOMMU) on in the firmware's setup]"
    if state.tables is None:
        return Cause(text, Verdict.POSSIBLE, remedy="acpidump -t | grep -E 'DMAR|IVRS'")
    found = sorted(state.tables & {"DMAR", "IVRS"})
    wanted = {True: "IVRS", False: "DMAR", None: ""}[state.amd]
    if not found or (wanted and wanted not in found):
        why = f"no {wanted or 'DMAR or IVRS'} among the ACPI tables"
        return Cause(text, Verdict.HOLDS, why, remedy)
    return Cause(text, Verdict.RULED_OUT, f"ACPI table {', '.join(found)}")


def host_driver(state: HostState) -> Cause:
    """FreeBSD's own driver of the IOMMU is on."""
    text = "the host uses the IOMMU itself, with which bhyve's driver does not get along"
    named = ("hw.dmar.enable", "hw.amdiommu.enable", "hw.iommu.dma")
    if state.sysctl is None and state.kenv is None:
        return Cause(text, Verdict.POSSIBLE, remedy=f"sysctl {' '.join(named)}")
    values = {name: (state.kenv or {}).get(name) or state.value(name) for name in named}
    on = [f"{name}={value}" for name, value in values.items() if value not in (None, "0")]
    if on:
        return Cause(
            text,
            Verdict.POSSIBLE,
            ", ".join(on),
            "[take " + " and ".join(on) + " out of /boot/loader.conf, then reboot]",
        )
    return Cause(text, Verdict.RULED_OUT, "hw.dmar.enable and hw.amdiommu.enable are not set")


def no_virtualization(state: HostState) -> Cause:
    """The module vmm is not loaded, or did not start."""
    text = "the CPU's virtualization is not usable, so that vmm did not start"
    if state.modules is None:
        return Cause(text, Verdict.POSSIBLE, remedy="kldstat -q -m vmm; dmesg | grep -i vmm")
    if "vmm" in state.modules:
        return Cause(text, Verdict.RULED_OUT, "kldstat: module vmm is loaded")
    why = state.logged(r"vmx_modinit: |vmx_init: |SVM:? (?:not available|disabled)|svm_init: ")
    why = why or state.logged(r"module_register_init: MOD_LOAD \(vmm")
    if not why:
        return Cause(text, Verdict.HOLDS, "kldstat -v shows no module vmm", "kldload -n vmm")
    remedy = "[switch VT-x or SVM on in the firmware's setup]"
    if re.search(r"not support|not available", why):
        remedy = "[use a CPU with VT-x or SVM; in a virtual machine, let it have them (nesting)]"
    return Cause(text, Verdict.HOLDS, why, remedy)
