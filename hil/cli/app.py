"""What all commands share: the application, its exit codes, options, and words for a person."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

import hil
from hil.errors import HilError

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
            # Whoever read our output has seen enough; Python must not try to flush more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except Exception as error:
            if invocation.debug:
                raise
            text = f"hil: internal error: {type(error).__name__}: {error}"
            stderr().print(text, style="bold red", markup=False)
            stderr().print("  next:    hil --debug …, and report the traceback that it shows")
            code = INTERNAL
        raise typer.Exit(code)

    return command


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
