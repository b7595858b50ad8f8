"""Shows how a run goes on: a live line on a terminal, one line a test elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Self

from hil.events import Event, StepStarted
from hil.reporting.outcome import Outcome, Status
from hil.reporting.text import one_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live
    from rich.text import Text

MARKS = {
    Status.PASSED: ("✓", "green"),
    Status.FAILED: ("✗", "bold red"),
    Status.BROKEN: ("!", "bold magenta"),
    Status.SKIPPED: ("-", "yellow"),
    Status.BLOCKED: ("x", "yellow"),
}
#: For an attempt at a test that is repeated.
REPEATED = ("↻", "yellow")


class Progress:
    """Progress of a run; a context manager, and a subscriber of :mod:`hil.events`.

    Args:
        total: tests to run.
        lab: the lab and its kind, as shown.
        step: title of the operation now under way.
        stream: where to write; by default the standard output as it is now, which
            later redirection (pytest's capture) does not change.
    """

    def __init__(
        self, *, total: int, lab: str, step: Callable[[], str], stream: IO[str] | None = None
    ) -> None:
        self._total, self._lab, self._step = total, lab, step
        self._stream = stream
        self._own = stream is None
        self._counts: Counter[Status] = Counter()
        self._test = ""
        self._began = self._test_began = time.monotonic()
        self._console: Console | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        if self._stream is None:
            try:
                self._stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
            except (OSError, ValueError):  # not a real file: under a test
                self._stream, self._own = sys.stdout, False
        self._console = Console(file=self._stream, highlight=False)
        if self._console.is_terminal:
            self._live = Live(
                self,
                console=self._console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._own and self._stream is not None:
            self._stream.close()
            self._stream = None
        self._console = None

    def __call__(self, event: Event) -> None:
        # Without a live line, the first operations (the lab comes up) would be silent.
        if isinstance(event, StepStarted) and self._live is None and not self._counts.total():
            self._print(f"  {time.monotonic() - self._began:6.1f} s  {one_line(event.title, 100)}")

    def test_started(self, title: str) -> None:
        self._test, self._test_began = title, time.monotonic()

    def test_ended(self, outcome: Outcome) -> None:
        """A test ended, or an attempt at one that is repeated."""
        from rich.text import Text

        if outcome.repeated:
            status, mark, style = "repeated", *REPEATED
        else:
            self._counts[outcome.status] += 1
            status, (mark, style) = outcome.status, MARKS[outcome.status]
        width = len(str(self._total))
        number = " " if outcome.repeated else self._counts.total()
        line = Text.assemble((f"{number:>{width}}/{self._total} ", "dim"))
        line.append(f"{mark} {status:<8}", style=style)
        line.append(f"{outcome.seconds:7.1f} s  {outcome.area}: {one_line(outcome.title, 120)}")
        if outcome.words:
            line.append(f"  {outcome.words}", style="dim")
        self._test = ""
        self._print(line)

    def _print(self, line: object) -> None:
        if self._console is not None:
            self._console.print(line, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The live line, as :mod:`rich` asks for it."""
        from rich.text import Text

        done = self._counts.total()
        width = 20
        full = width * done // max(self._total, 1)
        line = Text.assemble(("━" * full, "green"))
        line.append("━" * (width - full), style="dim")
        line.append(f" {done}/{self._total} ")
        for status, count in self._counts.items():
            mark, style = MARKS[status]
            line.append(f" {mark}{count}", style=style)
        line.append(f"  {_clock(time.monotonic() - self._began)}  {self._lab}", style="dim")
        yield _fit(line, options.max_width)
        if self._test:
            second = Text.assemble(("▸ ", "cyan"))
            second.append(one_line(self._test, 100))
            second.append(f"  {time.monotonic() - self._test_began:.0f} s", style="dim")
            if step := self._step():
                second.append(f"  {one_line(step, 100)}", style="cyan")
            yield _fit(second, options.max_width)


def _fit(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
