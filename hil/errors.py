"""Whose fault an error is, what was seen, and what to do next.

Every error that hil raises on purpose is a :class:`HilError`.  Its class says
whose fault it was; that choice becomes the exit code of ``hil`` and the Allure
category of a test:

=====================  =========  ==========================================
class                  exit code  whose fault
=====================  =========  ==========================================
:class:`ProductError`  1          the hypervisor or device under test
:class:`GuestError`    3          the guest: panic, hang, never booted
:class:`LabError`      4          the lab: host, network, emulation, tools
:class:`InventoryError` 5         what the user wrote: inventory, options
=====================  =========  ==========================================

A host that understood what it was asked and said no raises one of these that is a
:class:`RefusalError` too.

Exit code 2 is left to the command line's own usage errors, as everywhere.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence


class Fault(enum.Enum):
    """Whose fault an error is."""

    PRODUCT = "product"
    GUEST = "guest"
    LAB = "lab"
    INVENTORY = "inventory"


class HilError(Exception):
    """An error with a cause that a person can act on.

    Args:
        message: one sentence, which names the thing concerned.
        seen: what was observed (a command's output, a line of a log); it may
            be long and of any content, and is bounded when shown.
        hint: what to do next, one sentence or one command.
        host: the host concerned, by its inventory name.
        command: the command concerned, as an argument list.
        console: the last lines of the console concerned, oldest first.
    """

    fault: Fault = Fault.LAB
    exit_code: int = 4

    #: Longest ``seen`` text that :meth:`explain` shows, in characters.
    SEEN_LIMIT = 2000

    def __init__(
        self,
        message: str,
        *,
        seen: str = "",
        hint: str = "",
        host: str = "",
        command: Sequence[str] = (),
        console: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.seen = seen
        self.hint = hint
        self.host = host
        self.command = tuple(command)
        self.console = tuple(console)

    def explain(self) -> str:
        """The whole error as text of several lines, for a terminal or a report."""
        lines = [self.message]
        if self.host:
            lines.append(f"  host:    {self.host}")
        if self.command:
            import shlex

            lines.append(f"  command: {shlex.join(self.command)}")
        if self.seen.strip():
            lines.append(_block("seen", _bounded(self.seen.strip(), self.SEEN_LIMIT)))
        if self.console:
            lines.append(_block("console", "\n".join(self.console[-30:])))
        if self.hint:
            lines.append(f"  next:    {self.hint}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.explain()


class ProductError(HilError):
    """The product under test did something wrong: a check failed."""

    fault = Fault.PRODUCT
    exit_code = 1


class GuestError(HilError):
    """The guest failed by itself: it panicked, hung, or never came up."""

    fault = Fault.GUEST
    exit_code = 3


class LabError(HilError):
    """The lab failed: a host, its network, the emulation, or a tool on it."""

    fault = Fault.LAB
    exit_code = 4


class InventoryError(HilError):
    """What the user wrote is wrong: the inventory, an option, a name."""

    fault = Fault.INVENTORY
    exit_code = 5


class RefusalError(HilError):
    """A host understood what it was asked to do, and said no.

    Raised as one of :data:`REFUSALS`, by whose fault that is.  Who wants to be refused, to see
    that it is so, expects this class: the refusal is right then, whatever its cause.
    """


class ProductRefusalError(RefusalError, ProductError):
    """Refused without a good reason, as far as the host's facts tell."""


class LabRefusalError(RefusalError, LabError):
    """Refused for what the host is, or what is left on it."""


class InventoryRefusalError(RefusalError, InventoryError):
    """Refused for what the user asked."""


#: The error for a refusal, by whose fault it is.  A guest refuses nothing: it fails.
REFUSALS: Mapping[Fault, type[HilError]] = {
    Fault.PRODUCT: ProductRefusalError,
    Fault.GUEST: GuestError,
    Fault.LAB: LabRefusalError,
    Fault.INVENTORY: InventoryRefusalError,
}


class CommandError(LabError):
    """A command on a host ended with a status that its caller did not expect."""

    def __init__(
        self,
        command: Sequence[str],
        status: int,
        *,
        host: str = "",
        stdout: str = "",
        stderr: str = "",
        hint: str = "",
    ) -> None:
        seen = "\n".join(part for part in (stderr.strip(), stdout.strip()) if part)
        super().__init__(
            f"{command[0] if command else 'command'} ended with status {status}",
            seen=seen,
            hint=hint,
            host=host,
            command=command,
        )
        self.status = status
        self.stdout = stdout
        self.stderr = stderr


class DeadlineExceeded(LabError):  # noqa: N818 - reads as what happened
    """An operation did not finish in time; says what it waited for and last saw."""


def _bounded(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - limit} characters left out …\n{text[-half:]}"


def _block(title: str, text: str) -> str:
    first, *rest = text.splitlines() or [""]
    head = f"  {title + ':':<8} {first}"
    return "\n".join([head, *(f"           {line}" for line in rest)])
