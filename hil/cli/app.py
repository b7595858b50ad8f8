"""What all commands share: the application, its exit codes, options, and words for a person."""

from __future__ import annotations

import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

import hil
from hil.errors import HilError, InventoryError, LabError

if TYPE_CHECKING:
    from rich.console import Console

    from hil.lab.lease import Holder

P = ParamSpec("P")

USAGE, INTERNAL, INTERRUPTED = 2, 70, 130

#: Seconds for a lab to come up; the first time its images are built too.
UP = 1800
#: Seconds to switch a host off and on; it then boots for as long as it takes.
POWER = 180
#: Seconds for a question to a host that is up.
ASK = 60

app = typer.Typer(
    help="Hardware-in-the-loop tests for PCI passthrough.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LabOption = Annotated[
    str, typer.Option("--lab", "-l", metavar="NAME|FILE", help="Lab name or inventory file.")
]
WaitOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for a lab in use.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass
class Invocation:
    """What holds for the whole command line."""

    debug: bool = False
    """Show tracebacks."""
    after_dashes: tuple[str, ...] = ()
    """What followed ``--``: for pytest or ssh, not for us."""


invocation = Invocation()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (by default the process's); return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    invocation.after_dashes = ()
    if "--" in words:
        # An option parser would mix these with the words before.
        dashes = words.index("--")
        invocation.after_dashes = tuple(words[dashes + 1 :])
        words = words[:dashes]
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows no ✓ shows a question mark.
        sys.stdout.reconfigure(errors="replace")
    try:
        app(words, prog_name="hil")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option(help="Show the Python traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    invocation.debug = debug
    if version:
        typer.echo(f"hil {hil.__version__}")
        raise typer.Exit


def command(function: Callable[P, int | None]) -> Callable[P, None]:
    """Turn what a command returns or raises into an exit code and words on stderr."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            # As Ctrl-C: what was begun is undone.
            signal.signal(number, signal.default_int_handler)
        try:
            code = function(*args, **kwargs) or 0
        except HilError as error:
            if invocation.debug:
                raise
            complain(error)
            code = error.exit_code
        except KeyboardInterrupt:
            if invocation.debug:
                raise
            stderr().print("hil: interrupted", style="yellow")
            code = INTERRUPTED
        except BrokenPipeError:
            # Whoever read our output has seen enough.
            _end_output()
            code = 0
        except Exception as error:
            if invocation.debug:
                raise
            if (told := _of_this_machine(error)) is not None:
                complain(told)
                try:
                    sys.stdout.flush()
                except OSError:
                    _end_output()
                raise typer.Exit(told.exit_code) from None
            text = f"hil: internal error: {type(error).__name__}: {error}"
            stderr().print(text, style="bold red", markup=False)
            stderr().print("  next:    hil --debug …, and report the traceback that it shows")
            code = INTERNAL
        raise typer.Exit(code)

    return command


def _end_output() -> None:
    """Nothing takes our output any more, so Python must not try to flush the rest of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


#: What this machine may deny, and what a person can do about it.
_DENIED = {
    errno.ENOSPC: "make room there, or name another place",
    errno.EDQUOT: "make room there, or name another place",
    errno.EROFS: "name another place",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EIO: "look at the disk: dmesg tells what it lacks",
    errno.EMFILE: "allow more open files: ulimit -n",
    errno.ENFILE: "end what has so many files open",
    errno.ENAMETOOLONG: "give a shorter name",
}


def _of_this_machine(error: Exception) -> HilError | None:
    """``error`` as what it is if this machine denied something: no fault of hil's own."""
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        # Of pathlib, for ~ and ~USER; the cache and the user's labs are below ~.
        return InventoryError(
            "there is no home directory for this user, or for one whose ~NAME a path begins with",
            hint="set HOME, and write paths in full",
        )
    if not isinstance(error, OSError) or error.errno not in _DENIED:
        return None
    what = str(error.filename or "the output, or a file")
    what = what if len(what) <= 200 else f"{what[:200]}…"
    return LabError(f"{what}: {error.strerror}", hint=_DENIED[error.errno])


def complain(error: HilError) -> None:
    """Print ``error`` on stderr, its first line in red."""
    from rich.text import Text

    from hil.reporting.text import clean, redact

    first, _, rest = redact(clean(error.explain())).partition("\n")
    text = Text(f"hil: {first}", style="bold red")
    if rest:
        text.append(f"\n{rest}", style="not bold default")
    stderr().print(text)


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def say(text: str) -> None:
    """One line of progress, on stderr."""
    stderr().print(f"hil: {text}", style="dim", markup=False)


def say_waiting(name: str, holder: Holder | None, waited: float) -> None:
    who = str(holder) if holder else "a process that left no record"
    say(f"waiting for {name} since {waited:.0f} s; held by {who}")
