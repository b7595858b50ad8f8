"""What a kernel prints when it dies, or nearly does.

A line counts only where the kernel would have written it: from the line's start,
after an optional time stamp.  A typed command's echo has a prompt before it, and a
user's text that quotes such words rarely begins a line with the kernel's exact
form.  Sources: Linux ``kernel/panic.c``, ``arch/x86/mm/fault.c``,
``arch/x86/kernel/{dumpstack,traps}.c``, ``kernel/watchdog.c``,
``kernel/rcu/tree_stall.h``; FreeBSD ``sys/kern/kern_shutdown.c``,
``sys/kern/subr_kdb.c``, ``sys/amd64/amd64/trap.c``; illumos ``uts/common/os/panic.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Panic:
    """A kernel's own report of trouble.

    ``fatal``: nothing the guest says or does after it can be relied on.
    """

    kind: str
    """``panic``, ``oops``, ``bug``, ``trap``, ``debugger``, ``lockup`` or ``stall``."""
    line: str
    fatal: bool = True


#: Linux's printk prefix, with the optional caller column (CONFIG_PRINTK_CALLER).
TIME_STAMP = r"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? "

# A getty's or shell's prompt ends no line: what the kernel prints next stands behind it.
# A stamp tells where that begins; a syslog line's stamp, after "kernel: ", is a quotation.
_PREFIX = re.compile(
    rf"(?:<\d+>)?(?:{TIME_STAMP}|.{{0,200}}?(?<!kernel: ){TIME_STAMP}|\S{{0,64}} ?login: )?"
)

_FORMS: tuple[tuple[str, bool, re.Pattern[str]], ...] = tuple(
    (kind, fatal, re.compile(form))
    for kind, fatal, form in (
        # Linux
        ("panic", True, r"(?:---\[ end )?Kernel panic - not syncing"),
        ("lockup", True, r"(?:NMI )?[Ww]atchdog: .*hard LOCKUP"),
        # Both of these come and go on a slow machine, an emulated one above all.
        ("lockup", False, r"(?:[Ww]atchdog: )?BUG: soft lockup"),
        ("stall", False, r"(?:rcu: )?INFO: rcu\w* (?:self-)?detected .*stall"),
        (
            "bug",
            True,
            r"BUG: (?:unable to handle|kernel NULL|KASAN: |Bad page |stack guard|spinlock )",
        ),
        ("bug", True, r"kernel BUG at \S+:\d+!"),
        ("bug", True, r"Unable to handle kernel "),
        # "Oops: 0002 [#1] SMP", "general protection fault, probably for …: 0000 [#1]",
        # "invalid opcode: 0000 [#1]", "Internal error: Oops: 96000004 [#1]"
        ("oops", True, r"(?:Internal error: )?Oops\b.*\[#\d+\]"),
        ("oops", True, r"general protection fault[,:].*\[#\d+\]"),
        ("oops", True, r"[a-z][\w ,/-]*: [0-9a-f]{4,} \[#\d+\]"),
        # FreeBSD
        ("panic", True, r"panic: (?!runtime error)\S"),  # Go's runtime says that of itself
        ("trap", True, r"Fatal trap \d+: "),
        ("trap", True, r"Fatal double fault"),
        ("debugger", True, r"KDB: enter: "),
        ("debugger", True, r"db> ?$"),
        # illumos
        ("panic", True, r"panic\[cpu\d+\]/thread="),
    )
)

#: A line that matches none of these words matches no form: a quick first look.
KEYWORDS: tuple[bytes, ...] = (
    b"anic",
    b"BUG",
    b"[#",
    b"Unable to handle kernel",
    b"LOCKUP",
    b"detected",
    b"Fatal ",
    b"KDB: ",
    b"db>",
)


def classify(line: str) -> Panic | None:
    """What trouble of the kernel this line of a console reports, if any."""
    prefix = _PREFIX.match(line)
    rest = line[prefix.end() :] if prefix else line
    for kind, fatal, form in _FORMS:
        if form.match(rest):
            return Panic(kind, line, fatal)
    return None
