from __future__ import annotations

import pytest

from hil.console.patterns import KEYWORDS, classify
from hil.console.text import clean

FATAL = {
    "[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs": "panic",
    "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009": "panic",
    "[  412.000001] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---": "panic",
    "[   10.100000] BUG: kernel NULL pointer dereference, address: 0000000000000000": "bug",
    "[   10.100000][  T123] BUG: unable to handle page fault for address: ffff": "bug",
    "[   10.100001] Oops: 0002 [#1] PREEMPT SMP NOPTI": "oops",
    "[   10.100001] Oops: general protection fault: 0000 [#1] SMP NOPTI": "oops",
    "[    3.000000] general protection fault, probably for non-canonical address "
    "0xdead000000000100: 0000 [#1] SMP": "oops",
    "[    3.000000] invalid opcode: 0000 [#1] SMP": "oops",
    "[    3.000000] kernel BUG at mm/slub.c:442!": "bug",
    "[    3.000000] watchdog: Watchdog detected hard LOCKUP on cpu 1": "lockup",
    "[    3.000000] NMI watchdog: Watchdog detected hard LOCKUP on cpu 1": "lockup",
    "[    3.000000] Internal error: Oops: 96000004 [#1] SMP": "oops",
    "host login: [   99.000000] Kernel panic - not syncing: Fatal exception": "panic",
    "# [   99.000000] BUG: kernel NULL pointer dereference, address: 0": "bug",
    "panic: page fault": "panic",
    "login: panic: page fault": "panic",
    "panic: vm_fault_lookup: fault on nofault entry, addr: 0xfffffe0000000000": "panic",
    "Fatal trap 12: page fault while in kernel mode": "trap",
    "Fatal double fault": "trap",
    "KDB: enter: panic": "debugger",
    "db> ": "debugger",
    "panic[cpu0]/thread=fffffe0008": "panic",
}

NOT_FATAL = {
    "[   60.000000] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [qemu:123]": "lockup",
    "[   60.000000] rcu: INFO: rcu_sched self-detected stall on CPU": "stall",
    "[   60.000000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:": "stall",
}

NOTHING = [
    "",
    "# echo 'Kernel panic - not syncing'",
    "root@host:~# dmesg | grep -c 'BUG: unable to handle'",
    "Nov 21 12:00:00 host kernel: [   12.000000] Kernel panic - not syncing: old",
    "grep: panic: No such file or directory",
    "vm.panic_on_oom = 0",
    "kernel.panic: 0",
    "panic: runtime error: index out of range [5]",
    "[    0.000000] Command line: panic=1 console=ttyS0 oops=panic",
    "[    4.000000] traps: prog[123] general protection fault ip:4005 sp:7ffc error:0",
    "[    4.000000] prog[123]: segfault at 0 ip 0000 sp 0000 error 4 in prog",
    "the text 'Fatal trap 12: page fault' appears in the manual",
    "db> is the debugger's prompt",
    "[    5.000000] WARNING: CPU: 0 PID: 1 at kernel/foo.c:12 bar+0x1/0x2",
    "BUGS: see the manual",
]


@pytest.mark.parametrize(("line", "kind"), (FATAL | NOT_FATAL).items())
def test_a_kernels_report_is_known(line: str, kind: str) -> None:
    panic = classify(line)
    assert panic is not None
    assert (panic.kind, panic.line, panic.fatal) == (kind, line, line in FATAL)
    # The reader looks closer only at chunks that hold one of these.
    assert any(word in line.encode() for word in KEYWORDS)


@pytest.mark.parametrize("line", NOTHING)
def test_what_only_talks_of_panics_is_none(line: str) -> None:
    assert classify(line) is None


def test_clean_shows_any_bytes_harmlessly() -> None:
    assert clean(b"\x1b[1;31mred\x1b[0m\x07 \xff\x1b]0;title\x07end\r") == "red \ufffdend"
    assert len(clean(b"x" * 100_000)) < 3000
