r"""What a Linux guest prints on its console, from the firmware to its end.

No bhyve host's Linux guest was recorded: the lines are those of Debian 13 elsewhere, and of the
sources that print them (drivers/pci/probe.c, kernel/panic.c, kernel/reboot.c, agetty(8)).

Text here has ``\n`` line ends, which the console's terminal makes ``\r\n``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from hil.simulated.guest_image import GuestImage
from hil.simulated.guest_text import Line, Voice

_OK = "[\x1b[0;32m  OK  \x1b[0m]"

#: What bhyve's firmware says as it finds the disk (edk2, BdsDxe), and the disk's own GRUB.
FIRMWARE = """\
BdsDxe: loading Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x4,0x0)
BdsDxe: starting Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x4,0x0)
  Booting `Debian GNU/Linux'

Loading Linux {release} ...
Loading initial ramdisk ...
"""


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What of a boot log depends on the guest: lines of the kernel, without their stamps."""

    image: GuestImage
    memory: int
    """Bytes."""
    cpus: int
    found: Sequence[str]
    """What the PCI core says."""
    drivers: Sequence[str]
    """What the drivers say."""


def root_found(image: GuestImage) -> bool:
    """Whether the kernel is told where its root file system is."""
    return bool(image.root) and f"root={image.root}" in image.arguments.split()


def boot_log(facts: BootFacts) -> Iterator[Line]:
    """The lines up to the one before agetty's; without a root file system up to the panic."""
    total = facts.memory >> 10
    values = {
        "release": facts.image.release,
        "version": facts.image.kernel,
        "hostname": facts.image.hostname,
        "arguments": facts.image.arguments,
        "end": f"{min(facts.memory, 3 << 30) - 1:#018x}",
        "available": f"{total - 70000}K",
        "total": total,
        "cpus": facts.cpus,
        "plural": "s" if facts.cpus > 1 else "",
        "ok": _OK,
    }
    text = files("hil.simulated.linux").joinpath("boot.txt").read_text("utf-8")
    seconds = 0.0

    def stamped(line: str, step: float = 0.0) -> Line:
        nonlocal seconds
        seconds += step
        return Line(Voice.KERNEL, f"[{seconds:12.6f}] {line}")

    for line in text.splitlines():
        if line == "@found@":
            yield from (stamped(each, 0.000731) for each in facts.found)
        elif line == "@drivers@":
            yield from (stamped(each, 0.011804) for each in facts.drivers)
        elif line == "@root@":
            if not root_found(facts.image):
                yield from (stamped(each, 0.000019) for each in _no_root(facts.image))
                return
        elif line.startswith("> "):
            yield Line(Voice.PROCESS, Template(line[2:]).substitute(values))
        else:
            stamp, _, rest = line.partition("|")
            seconds = max(seconds, float(stamp))
            yield stamped(Template(rest).substitute(values))


def _no_root(image: GuestImage) -> tuple[str, ...]:
    told = [word for word in image.arguments.split() if word.startswith("root=")]
    where = told[-1].removeprefix("root=") if told else ""
    return (
        f'VFS: Cannot open root device "{where}" or unknown-block(0,0): error -6',
        'Please append a correct "root=" boot option; here are the available partitions:',
        *panic_lines("VFS: Unable to mount root fs on unknown-block(0,0)", "swapper/0", 1, image),
    )


_OFFSET = (
    "Kernel Offset: 0x1c000000 from 0xffffffff81000000 "
    "(relocation range: 0xffffffff80000000-0xffffffffbfffffff)"
)


def panic_lines(reason: str, command: str, pid: int, image: GuestImage) -> tuple[str, ...]:
    """A panic; nothing comes after it."""
    return (
        f"Kernel panic - not syncing: {reason}",
        f"CPU: 0 UID: 0 PID: {pid} Comm: {command} Not tainted {image.release} #1  Debian",
        "Hardware name:  BHYVE, BIOS 14.0 10/17/2021",
        "Call Trace:",
        " <TASK>",
        " dump_stack_lvl+0x27/0x90",
        " panic+0x335/0x350",
        " </TASK>",
        _OFFSET,
        f"---[ end Kernel panic - not syncing: {reason} ]---",
    )


#: ``bhyvectl --inject-nmi``; unknown_nmi_panic is 0 by default (arch/x86/kernel/nmi.c).
NMI = (
    "Uhhuh. NMI received for unknown reason 00 on CPU 0.",
    "Dazed and confused, but trying to continue",
)


def issue(hostname: str) -> str:
    """What agetty(8) prints before its prompt."""
    return f"\n\nDebian GNU/Linux 13 {hostname} ttyS0\n\n"


def logged_in(image: GuestImage) -> str:
    """What login(1) shows: uname, and the message of the day."""
    return (
        f"Linux {image.hostname} {image.release} {image.kernel} x86_64\n\n"
        "The programs included with the Debian GNU/Linux system are free software;\n"
        "the exact distribution terms for each program are described in the\n"
        "individual files in /usr/share/doc/*/copyright.\n\n"
        "Debian GNU/Linux comes with ABSOLUTELY NO WARRANTY, to the extent\n"
        "permitted by applicable law.\n"
    )


def prompt(hostname: str) -> str:
    """Root's bash prompt; readline tells the terminal to mark what is pasted."""
    return f"\x1b[?2004hroot@{hostname}:~# "


def shutdown(how: str) -> str:
    """What systemd prints as the system goes down; ``how``: ``poweroff``, ``reboot``, ``halt``."""
    last = {"poweroff": "System Power Off", "reboot": "System Reboot", "halt": "System Halt"}[how]
    return (
        f"{_OK} Stopped serial-getty@ttyS0.service - Serial Getty on ttyS0.\n"
        f"{_OK} Unmounted boot-efi.mount - /boot/efi.\n"
        f"{_OK} Reached target {how}.target - {last}.\n"
    )


#: The kernel's last words (kernel/reboot.c).
LAST = {
    "poweroff": "reboot: Power down",
    "reboot": "reboot: Restarting system",
    "halt": "reboot: System halted",
}
