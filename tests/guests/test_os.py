"""What guest systems print, read."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import GuestError, HilError
from hil.guests.linux import LinuxGuest, parse_interrupts
from hil.guests.os import SeenFunction, guest_os
from hil.pci.address import Address

LINUX = LinuxGuest()

# In the form of proc(5) and of Linux 6.1's kernel/irq/proc.c, show_interrupts.
INTERRUPTS = """\
irqs 24 25 40  0
           CPU0       CPU1       
  0:         41          0   IO-APIC   2-edge      timer
 24:          7      12000   PCI-MSI 524288-edge      eth1
 25:          0          3   PCI-MSI 524289-edge      eth1-TxRx-0
 26:        900        900   PCI-MSI 1048576-edge      nvme0q0
NMI:          0          0   Non-maskable interrupts
LOC:      25134      25135   Local timer interrupts
ERR:          0
"""  # noqa: W291 - the kernel writes it so


def test_counts_are_of_the_function_s_own_interrupts_and_of_all_cpus() -> None:
    assert parse_interrupts(INTERRUPTS) == {
        "0 IO-APIC 2-edge timer": 41,
        "24 PCI-MSI 524288-edge eth1": 12007,
        "25 PCI-MSI 524289-edge eth1-TxRx-0": 3,
    }


def test_an_interrupt_that_nobody_requested_has_no_row() -> None:
    assert parse_interrupts("irqs 99 \n" + INTERRUPTS.partition("\n")[2]) == {}
    assert parse_interrupts("") == {}
    assert parse_interrupts("irqs \n") == {}


@given(st.text())
def test_any_text_gives_counts(text: str) -> None:
    assert all(count >= 0 for count in parse_interrupts(text).values())


@given(
    st.dictionaries(
        st.integers(1, 500),
        st.tuples(st.lists(st.integers(0, 2**63), min_size=1, max_size=4), st.booleans()),
        max_size=8,
    )
)
def test_counts_come_back_as_they_were_written(rows: dict[int, tuple[list[int], bool]]) -> None:
    wanted = [number for number, (_, ours) in rows.items() if ours]
    text = f"irqs {' '.join(map(str, wanted))}\n   CPU0\n"
    for number, (counts, _) in rows.items():
        text += f"{number:4}: {' '.join(f'{count:10}' for count in counts)}  PCI-MSI x\n"
    assert parse_interrupts(text) == {f"{n} PCI-MSI x": sum(rows[n][0]) for n in wanted}


def test_functions_are_read_with_and_without_a_driver() -> None:
    text = "0000:00:00.0 0x8086 0x29c0 \n\n0000:00:10.0 0x8086 0x10c9 igb\n"
    assert LINUX.parse_functions(text) == (
        SeenFunction(Address.parse("00:00.0"), 0x8086, 0x29C0, None),
        SeenFunction(Address.parse("00:10.0"), 0x8086, 0x10C9, "igb"),
    )


@pytest.mark.parametrize("line", ["sh: cd: can't cd", "0000:00:10.0 8086 10c9", "x 0x8086 0x10c9 "])
def test_a_strange_line_is_an_error_that_shows_it(line: str) -> None:
    with pytest.raises(HilError) as caught:
        LINUX.parse_functions(line)
    assert line.split()[0] in str(caught.value)


@given(st.text())
def test_any_list_gives_functions_or_an_error(text: str) -> None:
    with contextlib.suppress(HilError):
        LINUX.parse_functions(text)


@given(st.binary(max_size=40), st.integers(0, 1472))
def test_a_pattern_is_at_most_what_ping_takes(pattern: bytes, size: int) -> None:
    command = LINUX.ping("198.18.0.1", size=size, pattern=pattern)
    assert command[0] == "ping"
    assert command[-1] == "198.18.0.1"
    assert command[command.index("-s") + 1] == str(size)
    if pattern:
        given_pattern = bytes.fromhex(command[command.index("-p") + 1])
        assert given_pattern == pattern[:16]
    else:
        assert "-p" not in command


def test_arguments_never_become_part_of_a_script() -> None:
    address = Address.parse("0000:01:00.0")
    hostile = '"; touch /tmp/x; "'
    for command in (
        LINUX.interfaces(address),
        LINUX.disks(address),
        LINUX.work(address),
        LINUX.list_interrupts(address),
        LINUX.reset_function(address),
        LINUX.configure_interface(hostile, hostile),
    ):
        script, arguments = command[2], command[3:]
        assert command[:2] == ["sh", "-c"]
        assert str(address) not in script
        assert hostile not in script
        assert {str(address), hostile} & set(arguments)


def test_only_known_systems_are_spoken() -> None:
    assert isinstance(guest_os("linux"), LinuxGuest)
    with pytest.raises(KeyError):
        guest_os("plan9")


def test_a_guest_error_names_the_guest_s_fault() -> None:
    with pytest.raises(GuestError):
        LINUX.parse_functions("no such thing")


def test_a_continued_guest_is_told_its_name_and_key_by_what_its_image_has(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in ("proc/sys/kernel", "root/.ssh", "sys/bus/pci", "bin"):
        (root / folder).mkdir(parents=True)
    date = root / "bin/date"  # of coreutils; hostname is in a package that the image has not
    date.write_text("#!/bin/sh\n")
    date.chmod(0o755)
    text = LINUX.after_continuing("g 1", 0.0, "ssh-ed25519 AAAA")
    inside = re.sub(r"(?<= )/(?=proc/|root/|sys/)", f"{root}/", text)
    done = subprocess.run(
        ["/bin/sh", "-c", inside], env={"PATH": str(root / "bin")}, capture_output=True, check=True
    )
    assert done.stderr == b""
    assert (root / "proc/sys/kernel/hostname").read_text() == "g 1\n"
    assert (root / "root/.ssh/authorized_keys").read_text() == "ssh-ed25519 AAAA\n"
    assert (root / "sys/bus/pci/rescan").read_text() == "1\n"
