"""Checks of a FreeBSD host with bhyve: asking it.

Only commands that change nothing are run; what they print is judged by
:mod:`hil.doctor.freebsd_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from hil.deadline import Deadline
from hil.doctor.check import Check, State
from hil.doctor.devices import memory_rows
from hil.doctor.freebsd_rows import Seen, judge
from hil.doctor.freebsd_traffic import held
from hil.errors import HilError
from hil.lab.models import Lab
from hil.platforms.contract import Function
from hil.platforms.freebsd import FreebsdBhyve
from hil.platforms.freebsd_state import HostState
from hil.platforms.freebsd_text import (
    parse_acpi_tables,
    parse_kenv,
    parse_kldstat,
    parse_names,
    parse_ps,
    parse_release,
    parse_sysctl,
)
from hil.transport.base import Transport

T = TypeVar("T")

_SYSCTLS = (
    *("hw.model", "hw.physmem", "hw.ncpu", "hw.vmm", "hw.dmar", "hw.amdiommu", "hw.iommu"),
    *("dev.ivhd", "kern.securelevel", "security.jail.jailed"),
    *("vm.max_user_wired", "vm.stats.vm.v_user_wire_count"),
)

#: What is asked besides the survey of functions.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "user": ("id", "-u"),
    "release": ("freebsd-version", "-k"),
    "sysctl": ("sysctl", "-i", *_SYSCTLS),
    "kenv": ("kenv", "-q"),
    "modules": ("kldstat", "-v"),
    "acpi": ("acpidump", "-t"),
    "dmesg": ("dmesg",),
    "boot": ("cat", "/var/run/dmesg.boot"),
    "vms": ("ls", "/dev/vmm"),
    "processes": ("ps", "-axww", "-o", "pid=", "-o", "command="),
    "loader": (
        "sh",
        "-c",
        "cat /boot/loader.conf /boot/loader.conf.local /boot/loader.conf.d/*.conf",
    ),
    "firmware": ("ls", "/usr/local/share/uefi-firmware"),
    "grub": ("ls", "/usr/local/sbin/grub-bhyve"),
}


def freebsd_host(
    host: str, transport: Transport, deadline: Deadline, lab: Lab | None = None
) -> list[Check]:
    """Checks of a host with the platform ``freebsd-bhyve``, and of the lab's devices in it."""
    answers: dict[str, str | None] = {}

    def ask(command: Sequence[str]) -> str:
        result = transport.run(command, deadline=deadline)
        # cat and ls print what there is, and fail for what there is not.
        return result.stdout if result.status == 0 or result.stdout else ""

    try:
        answers |= {name: ask(command) or None for name, command in COMMANDS.items()}
        answers["vms"] = answers["vms"] or ""
        platform = FreebsdBhyve(host, transport)
        functions = platform.functions(deadline)
        guests = held(platform, functions, deadline)
        memory = memory_rows(host, lab, lambda: platform.pinning(deadline)) if lab else []
    except HilError as error:
        if "release" not in answers:
            return [Check(host, "answers", State.MISSING, error.message, error.hint)]
        return judge(read(host, answers, None, error.explain()), lab)
    return judge(replace(read(host, answers, functions), held=guests), lab) + memory


def read(
    host: str,
    answers: Mapping[str, str | None],
    found: tuple[Function, ...] | None,
    why_not: str = "",
) -> Seen:
    """What the commands of :data:`COMMANDS` printed, as facts.

    Args:
        host: its name.
        answers: by the command's name; ``None`` where it failed.
        found: the host's functions, if they could be read.
        why_not: otherwise why.
    """
    unread = {"functions": why_not} if why_not else {}

    def take(name: str, parse: Callable[[str], T]) -> T | None:
        text = answers.get(name)
        if text is None:
            return None
        try:
            return parse(text)
        except HilError as error:
            unread[name] = f"{error.message}: {error.seen}"
            return None

    files = take("modules", parse_kldstat)
    tables = take("acpi", parse_acpi_tables)
    state = HostState(
        release=take("release", parse_release),
        sysctl=take("sysctl", parse_sysctl),
        kenv=take("kenv", parse_kenv),
        modules=None if files is None else frozenset(m for f in files for m in f.modules),
        tables=None if tables is None else frozenset(tables),
        dmesg=answers.get("dmesg"),
        drivers=None if found is None else {one.address: one.driver for one in found},
        vms=take("vms", parse_names),
        processes=take("processes", parse_ps),
    )
    return Seen(
        host=host,
        state=state,
        user=(answers.get("user") or "").strip() or None,
        loader=answers.get("loader"),
        acpi=answers.get("acpi"),
        boot=answers.get("boot"),
        firmware=take("firmware", parse_names),
        grub=bool(answers.get("grub")),
        functions=found,
        unread=unread,
    )
