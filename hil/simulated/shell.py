"""FreeBSD's sh(1) for the simulated machines: runs what :mod:`hil.simulated.grammar` parses.

In the extent that hil, its users at a console, and the programs on a host need it: all of
POSIX's grammar and expansions, redirections of every kind, functions, traps, background
commands; no editing, no aliases, no job control.  A command that stands last is run in the
shell's place, as sh does, so that process numbers and signals reach it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from hil.simulated import expansion
from hil.simulated.console import terminal
from hil.simulated.errno import Errno, SimError
from hil.simulated.expansion import ExpansionError
from hil.simulated.files import Files, Regular, RegularStream
from hil.simulated.grammar import (
    AndOr,
    Case,
    Command,
    For,
    Function,
    Group,
    If,
    List,
    Loop,
    Pipeline,
    Redirection,
    ShellSyntaxError,
    Simple,
    parse,
)
from hil.simulated.process import (
    SIGINT,
    SIGNAL_TEXTS,
    SIGQUIT,
    Exit,
    Killed,
    OpenFile,
    Pipe,
    Process,
)
from hil.simulated.process import Command as Body

PATH = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/root/bin"
_FOLDERS = frozenset(PATH.split(":"))


class Break(Exception):  # noqa: N818 - control flow
    """``break`` or ``continue`` out of so many loops."""

    def __init__(self, levels: int, *, again: bool) -> None:
        super().__init__()
        self.levels = levels
        self.again = again


class Return(Exception):  # noqa: N818 - control flow
    """``return`` from a function or a sourced file."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class ShellError(Exception):
    """What makes a script end with status 2, with sh's message."""


#: A builtin: arguments without its name; its exit status.
Builtin = Callable[["Shell", list[str]], int]


class Collector:
    """What a command substitution's commands write."""

    def __init__(self) -> None:
        self.data = bytearray()

    def read(self, process: Process, limit: int) -> bytes:
        raise SimError(Errno.EBADF)

    def write(self, process: Process, data: bytes) -> None:
        process.check()
        self.data += data

    def close(self) -> None:
        return


class Shell:
    """The state of one shell, which runs as ``process``."""

    def __init__(self, process: Process, name: str = "sh", parameters: Sequence[str] = ()) -> None:
        self.process = process
        self.name = name
        self.parameters = list(parameters)
        self.variables: dict[str, str] = dict(process.environment)
        self.exported: set[str] = set(process.environment)
        self.read_only: set[str] = set()
        self.functions: dict[str, Command] = {}
        self.options: set[str] = set()
        self.traps: dict[str, str] = {}
        self.pending_traps: list[str] = []
        self.status = 0
        self.last_background: int | None = None
        self.jobs: dict[int, Process] = {}
        self.locals: list[dict[str, str | None]] = []
        self.interactive_mode = False
        self._tested = 0
        self._substituted = 0
        self._depth = 0
        self._trapping = False
        self.variables.setdefault("IFS", " \t\n")
        self.variables.setdefault("PATH", PATH)
        self.variables.setdefault("PWD", process.directory)

    # What expansions ask (expansion.Environment)

    @property
    def directory(self) -> str:
        return self.process.directory

    @directory.setter
    def directory(self, value: str) -> None:
        self.process.directory = value

    @property
    def files(self) -> Files:
        return self.process.system.files

    @files.setter
    def files(self, value: Files) -> None:
        raise AttributeError("a shell's files are its system's")

    def value(self, name: str) -> str | None:
        if name == "?":
            return str(self.status)
        if name == "#":
            return str(len(self.parameters))
        if name == "$":
            return str(self._root_pid)
        if name == "!":
            return None if self.last_background is None else str(self.last_background)
        if name == "-":
            return "".join(sorted(option for option in self.options if len(option) == 1))
        if name in ("@", "*"):
            return " ".join(self.parameters)
        if name == "0":
            return self.name
        if name.isdigit():
            index = int(name) - 1
            return self.parameters[index] if index < len(self.parameters) else None
        return self.variables.get(name)

    def assign(self, name: str, value: str) -> None:
        if name in self.read_only:
            raise ShellError(f"{name}: is read only")
        self.variables[name] = value
        if "a" in self.options:
            self.exported.add(name)

    def unset_is_error(self) -> bool:
        return "u" in self.options

    def paths_are_expanded(self) -> bool:
        return "f" not in self.options

    def substitute(self, body: List) -> str:
        output = Collector()
        child = self.process.child(
            self.process.arguments, {**self.process.files, 1: OpenFile(output)}
        )
        copy = self.subshell(child)
        self._substituted = self.process.run_here(
            child, lambda _: copy.inner(lambda: copy.run_list(body, final=True))
        )
        text = bytes(output.data).replace(b"\0", b"").decode("utf-8", "surrogateescape")
        return text.rstrip("\n")

    _root_pid_value: int | None = None

    @property
    def _root_pid(self) -> int:
        """``$$``: the pid of the shell that was started, in its subshells too."""
        return self.process.pid if self._root_pid_value is None else self._root_pid_value

    # Entering

    def run(self, text: str) -> int:
        """Run a whole script or ``-c`` string, then the EXIT trap; the exit status."""
        try:
            self._guarded(lambda: self.run_list(parse(text), final=True))
        except Exit as end:
            self.status = end.status
        return self.leave()

    def leave(self) -> int:
        """The shell ends: run its EXIT trap; the exit status."""
        action = self.traps.pop("EXIT", "")
        status = self.status
        if action:
            try:
                self._guarded(lambda: self.run_list(parse(action)))
            except Exit as end:
                return end.status
        return status

    def interactive(self, prompt: str | None = "# ", continuation: str = "> ") -> int:
        """Read commands from standard input to its end, or ``exit``; the exit status.

        With ``prompt`` ``None`` it is a script on standard input: an error ends it.
        """
        self.interactive_mode = prompt is not None
        text = ""
        try:
            while True:
                if prompt is not None:
                    self.process.err(continuation if text else prompt)
                line = self.read_line()
                if not line:
                    if text:
                        self._run_text(text)
                    break
                text += line
                if not self._whole(text):
                    continue
                whole, text = text, ""
                self._run_text(whole)
                if self.status and prompt is None and "e" in self.options:
                    break
        except Exit as end:
            self.status = end.status
        return self.leave()

    def _run_text(self, text: str) -> None:
        self._guarded(lambda: self.run_list(parse(text)))

    @staticmethod
    def _whole(text: str) -> bool:
        if text.endswith("\\\n"):
            return False
        try:
            parse(text)
        except ShellSyntaxError as error:
            return not error.incomplete
        return True

    def _guarded(self, action: Callable[[], object]) -> None:
        """Run ``action``; what ends a script becomes words on stderr and status 2."""
        try:
            action()
        except ShellSyntaxError as error:
            self._fail(str(error))
        except (ShellError, ExpansionError) as error:
            self._fail(str(error))
        except Return as end:
            self.status = end.status
        except Break:
            pass

    def _fail(self, message: str) -> None:
        prefix = "" if self.interactive_mode else f"{self.name}: "
        self.process.err(f"{prefix}{message}\n")
        self.status = 2
        if not self.interactive_mode:
            raise Exit(2)

    def read_line(self) -> str:
        """The next line of standard input with its newline, and not a byte more."""
        line = bytearray()
        while (c := self.process.read(1)) and c != b"\n":
            line += c
        return (line + c).decode("utf-8", "surrogateescape")

    def subshell(self, process: Process) -> Shell:
        """A copy of this shell, that runs as ``process``."""
        copy = Shell(process, self.name, self.parameters)
        copy.variables = dict(self.variables)
        copy.exported = set(self.exported)
        copy.read_only = set(self.read_only)
        copy.functions = dict(self.functions)
        copy.options = set(self.options)
        copy.traps = {name: "" for name, action in self.traps.items() if not action}
        copy.status = self.status
        copy.last_background = self.last_background
        copy._root_pid_value = self._root_pid
        return copy

    # Lists and pipelines

    def run_list(self, commands: List, *, final: bool = False) -> int:
        """Run commands; with ``final`` the last may take the shell's process over."""
        for index, item in enumerate(commands.items):
            self._run_and_or(item, final=final and index == len(commands.items) - 1)
            self.run_traps()
        return self.status

    def _run_and_or(self, item: AndOr, *, final: bool) -> None:
        if item.background:
            self._start_beside(item)
            return
        last = len(item.rest)
        self._run_pipeline(item.first, final=final and not last, tested=bool(item.rest))
        for index, (operator, pipeline) in enumerate(item.rest, 1):
            if (self.status == 0) is (operator == "&&"):
                at_end = index == last
                self._run_pipeline(pipeline, final=final and at_end, tested=not at_end)

    def _start_beside(self, item: AndOr) -> None:
        foreground = AndOr(item.first, item.rest, background=False)
        files: Mapping[int, OpenFile] = self.process.files
        if not self.interactive_mode and not _redirects_input(item):
            null = self.files.open(self.process, "/dev/null", "r")
            files = {**files, 0: null}
        child = self.process.child(self.process.arguments, files)
        child.ignored |= {SIGINT, SIGQUIT}
        copy = self.subshell(child)
        self.process.run_beside(
            child, lambda _: copy.inner(lambda: copy.run_list(List((foreground,)), final=True))
        )
        self.last_background = child.pid
        self.jobs[child.pid] = child
        self.status = 0

    def inner(self, action: Callable[[], object]) -> int:
        """Run ``action`` as the whole life of a subshell; its exit status."""
        try:
            self._guarded(action)
        except Exit as end:
            self.status = end.status
        return self.leave()

    def _run_pipeline(self, pipeline: Pipeline, *, final: bool, tested: bool) -> None:
        tested = tested or pipeline.negated
        self._tested += tested
        try:
            if len(pipeline.commands) == 1:
                self.run_command(pipeline.commands[0], final=final and not pipeline.negated)
            else:
                self._run_piped(pipeline)
        finally:
            self._tested -= tested
        if pipeline.negated:
            self.status = int(self.status == 0)
        elif self.status and "e" in self.options and not self._tested and not tested:
            raise Exit(self.status)

    def _run_piped(self, pipeline: Pipeline) -> None:
        # All processes are there before any of them runs: ps(1) may see the others.
        *children, child = self._piped_children(len(pipeline.commands))
        *others, last = pipeline.commands
        for each, command in zip(children, others, strict=True):
            self._beside(each, command)
        copy = self.subshell(child)
        with self._in_foreground(child):
            self.status = self.process.run_here(
                child, lambda _: copy.inner(lambda: copy.run_command(last, final=True))
            )
        statuses = [self._ended(each) for each in children]
        if "pipefail" in self.options:
            failed = [status for status in [*statuses, self.status] if status]
            self.status = failed[-1] if failed else 0

    def _piped_children(self, count: int) -> list[Process]:
        """So many subshells, each with the output of the one before as its input."""
        children = []
        incoming: OpenFile | None = None
        for number in range(count):
            files = dict(self.process.files)
            if incoming is not None:
                files[0] = incoming
            pipe = Pipe() if number < count - 1 else None
            if pipe is not None:
                files[1] = pipe.writer
            children.append(self.process.child(self.process.arguments, files))
            # The child has its own hold of it now.
            if incoming is not None:
                incoming.release()
            incoming = pipe.reader.reference() if pipe is not None else None
        return children

    @contextlib.contextmanager
    def _in_foreground(self, child: Process) -> Iterator[None]:
        """Have the terminal's interrupt character reach ``child`` while the block runs."""
        file = self.process.files.get(0) if self.interactive_mode else None
        tty = terminal(file.stream) if file is not None else None
        if tty is None:
            yield
            return
        tty.foreground = child
        try:
            yield
        finally:
            tty.foreground = None

    def _tell_of(self, child: Process) -> None:
        """Say which signal ended a command that was waited for."""
        if text := SIGNAL_TEXTS.get(child.killed_by):
            self.process.err(f"{text}\n")

    def _beside(self, child: Process, command: Command) -> None:
        copy = self.subshell(child)
        self.process.run_beside(
            child, lambda _: copy.inner(lambda: copy.run_command(command, final=True))
        )

    def _ended(self, child: Process) -> int:
        status = self.process.wait_for(child)
        return 255 if status is None else status

    # Commands

    def run_command(self, command: Command, *, final: bool = False) -> int:
        if isinstance(command, Simple):
            self._simple(command, final=final)
            return self.status
        if isinstance(command, Function):
            self.functions[command.name] = command.body
            self.status = 0
            return 0
        try:
            with self.redirected(command.redirections):
                # Redirections of a compound command end with it: so does the shell's life.
                self._compound(command, final=final)
        except _RedirectionError as error:
            self.process.err(f"{error}\n")
            self.status = 2
        return self.status

    def _compound(self, command: Command, *, final: bool) -> None:
        if isinstance(command, Group):
            self._group(command, final=final)
        elif isinstance(command, If):
            self.status = self._if(command, final=final)
        elif isinstance(command, Loop):
            self._while(command)
        elif isinstance(command, For):
            self._for(command)
        elif isinstance(command, Case):
            self._case(command, final=final)

    def _group(self, command: Group, *, final: bool) -> None:
        if not command.subshell:
            self.run_list(command.body, final=final)
            return
        child = self.process.child(self.process.arguments)
        copy = self.subshell(child)
        self.status = self.process.run_here(
            child, lambda _: copy.inner(lambda: copy.run_list(command.body, final=True))
        )

    def _condition(self, commands: List) -> bool:
        self._tested += 1
        try:
            return self.run_list(commands) == 0
        finally:
            self._tested -= 1

    def _if(self, command: If, *, final: bool) -> int:
        for condition, body in command.branches:
            if self._condition(condition):
                return self.run_list(body, final=final)
        return self.run_list(command.otherwise, final=final) if command.otherwise else 0

    def _while(self, command: Loop) -> None:
        def turn() -> bool:
            if self._condition(command.condition) is command.until:
                return False
            self.process.check()
            status[0] = 0  # after break and continue
            status[0] = self.run_list(command.body)
            return True

        status = [0]
        self._loop(turn)
        self.status = status[0]

    def _for(self, command: For) -> None:
        values = (
            list(self.parameters)
            if command.words is None
            else expansion.fields(command.words, self)
        )
        pending = iter(values)

        def turn() -> bool:
            for value in pending:
                self.assign(command.name, value)
                self.run_list(command.body)
                return True
            return False

        self.status = 0
        self._loop(turn)

    def _loop(self, turn: Callable[[], bool]) -> None:
        while True:
            try:
                if not turn():
                    return
            except Break as request:
                if request.levels > 1:
                    raise Break(request.levels - 1, again=request.again) from None
                if not request.again:
                    return

    def _case(self, command: Case, *, final: bool) -> None:
        subject = expansion.one(command.subject, self)
        self.status = 0
        for patterns, body in command.branches:
            if any(expansion.pattern(each, self).fullmatch(subject) for each in patterns):
                self.run_list(body, final=final)
                return

    # Simple commands

    def _simple(self, command: Simple, *, final: bool) -> None:
        # The status of a command without a name: that of its last command substitution.
        self._substituted = 0
        words = expansion.fields(command.words, self)
        if not words:
            for name, word in command.assignments:
                self.assign(name, expansion.one(word, self))
            self.status = self._substituted
            with self._reporting_redirections(), self.redirected(command.redirections):
                pass
            return
        settings = {name: expansion.one(word, self) for name, word in command.assignments}
        if "x" in self.options:
            shown = [f"{name}={value}" for name, value in settings.items()]
            self.process.err(f"+ {' '.join([*shown, *words])}\n")
        with self._reporting_redirections():
            self._dispatch(words, settings, command.redirections, final=final)

    @contextlib.contextmanager
    def _reporting_redirections(self) -> Iterator[None]:
        try:
            yield
        except _RedirectionError as error:
            self.process.err(f"{error}\n")
            self.status = 2

    def _dispatch(
        self,
        words: list[str],
        settings: dict[str, str],
        redirections: tuple[Redirection, ...],
        *,
        final: bool,
    ) -> None:
        from hil.simulated.builtins import BUILTINS, SPECIAL

        name, *arguments = words
        if name == "exec":
            self._exec(arguments, settings, redirections)
            return
        if name == "command" and arguments and not arguments[0].startswith("-"):
            name, *arguments = words = arguments
        elif name in self.functions:
            with self.redirected(redirections), self._set_for_now(settings):
                self.status = self.call(name, arguments)
            return
        builtin = BUILTINS.get(name)
        if builtin is not None:
            keeps = name in SPECIAL
            with self.redirected(redirections), self._set_for_now({} if keeps else settings):
                if keeps:
                    for variable, value in settings.items():
                        self.assign(variable, value)
                self.status = builtin(self, arguments)
            return
        body = self.find(name)
        if final and "EXIT" not in self.traps:
            with self.redirected(redirections, permanently=True):
                self._become(words, settings, body)
            return
        files, opened = self._child_files(redirections)
        try:
            child = self.process.child(words, files)
            child.environment = self.environment(settings)
        finally:
            for file in opened:
                file.release()
        with self._in_foreground(child):
            self.status = self.process.run_here(child, body)
        self._tell_of(child)

    def _become(self, words: list[str], settings: dict[str, str], body: Body) -> None:
        """Run a command in this shell's place."""
        process = self.process
        process.arguments = words
        process.environment = self.environment(settings)
        process.handlers.clear()
        for name, action in self.traps.items():
            if action:
                process.ignored.discard(_number(name))
        self.traps.clear()
        raise Exit(body(process))

    def _exec(
        self,
        arguments: list[str],
        settings: dict[str, str],
        redirections: tuple[Redirection, ...],
    ) -> None:
        with self.redirected(redirections, permanently=True):
            for name, value in settings.items():
                self.assign(name, value)
        self.status = 0
        if arguments:
            self._become(arguments, settings, self.find(arguments[0]))

    def call(self, name: str, arguments: list[str]) -> int:
        """Call a function."""
        if self._depth > 200:
            raise ShellError("maximum function recursion depth exceeded")
        saved, self.parameters = self.parameters, arguments
        self.locals.append({})
        self._depth += 1
        try:
            return self.run_command(self.functions[name])
        except Return as end:
            self.status = end.status
            return end.status
        finally:
            self._depth -= 1
            self.parameters = saved
            for variable, value in self.locals.pop().items():
                if value is None:
                    self.variables.pop(variable, None)
                else:
                    self.variables[variable] = value

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """What a command is given."""
        known = {n: self.variables[n] for n in sorted(self.exported) if n in self.variables}
        return {**known, **settings}

    def find(self, name: str) -> Body:
        """The command of that name; one that says that there is none."""
        commands = self.process.system.commands
        folder, slash, base = name.rpartition("/")
        if not slash or folder in _FOLDERS:
            found = commands.get(base)
            if found is not None:
                return found
        if slash:
            path = self.process.path(name)
            try:
                node = self.files.find(path)
            except SimError as error:
                return _failing(f"{name}: {_exec_text(error.number)}", 127)
            if not isinstance(node, Regular) or not node.mode & 0o111:
                return _failing(f"{name}: Permission denied", 126)
            return lambda process: _script(process, path)
        return _failing(f"{name}: not found", 127)

    @contextlib.contextmanager
    def _set_for_now(self, settings: Mapping[str, str]) -> Iterator[None]:
        saved = {name: self.variables.get(name) for name in settings}
        was_exported = {name for name in settings if name in self.exported}
        for name, value in settings.items():
            self.assign(name, value)
            self.exported.add(name)
        try:
            yield
        finally:
            for name, before in saved.items():
                if name not in was_exported:
                    self.exported.discard(name)
                if before is None:
                    self.variables.pop(name, None)
                else:
                    self.variables[name] = before

    # Redirections

    @contextlib.contextmanager
    def redirected(
        self, redirections: Sequence[Redirection], *, permanently: bool = False
    ) -> Iterator[None]:
        """Have the shell's own descriptors redirected while the block runs, or for good."""
        process = self.process
        saved: list[tuple[int, OpenFile | None]] = []
        try:
            for redirection in redirections:
                old = process.files.get(redirection.descriptor)
                target = self._open(redirection, process.files)
                if not permanently:
                    saved.append((redirection.descriptor, old.reference() if old else None))
                if target is None:
                    process.close(redirection.descriptor)
                else:
                    process.install(redirection.descriptor, target)
            yield
        finally:
            for descriptor, old in reversed(saved):
                if old is None:
                    process.close(descriptor)
                else:
                    process.install(descriptor, old)
                    old.release()

    def _child_files(
        self, redirections: Sequence[Redirection]
    ) -> tuple[dict[int, OpenFile], list[OpenFile]]:
        """A child's descriptors, and what was opened for it and is to be let go here."""
        files = dict(self.process.files)
        opened: list[OpenFile] = []
        try:
            for redirection in redirections:
                target = self._open(redirection, files)
                if target is None:
                    files.pop(redirection.descriptor, None)
                else:
                    opened.append(target.reference())
                    files[redirection.descriptor] = target
        except BaseException:
            for file in opened:
                file.release()
            raise
        return files, opened

    def _open(self, redirection: Redirection, files: Mapping[int, OpenFile]) -> OpenFile | None:
        operator = redirection.operator
        if operator == "<<":
            text = expansion.one(redirection.target, self)
            return OpenFile(RegularStream(Regular(text.encode("utf-8", "surrogateescape"))))
        name = expansion.one(redirection.target, self)
        if operator in ("<&", ">&"):
            if name == "-":
                return None
            if not name.isdigit():
                raise ShellError("Syntax error: Bad fd number")
            if int(name) not in files:
                raise _RedirectionError(f"{self.name}: {name}: {Errno.EBADF.text}")
            return files[int(name)]
        mode = {"<": "r", ">": "w", ">|": "w", ">>": "a", "<>": "rw"}[operator]
        try:
            return self.files.open(self.process, self.process.path(name), mode)
        except SimError as error:
            verb = "open" if operator == "<" else "create"
            raise _RedirectionError(
                f"{self.name}: cannot {verb} {name}: {_open_text(error)}"
            ) from None

    # Traps

    def trap(self, name: str, action: str | None) -> None:
        """Set what a signal (or ``EXIT``) does; ``None``: what it does by default."""
        number = _number(name)
        if action is None:
            self.traps.pop(name, None)
            if number:
                self.process.ignored.discard(number)
                self.process.handlers.pop(number, None)
            return
        self.traps[name] = action
        if not number:
            return
        self.process.handlers.pop(number, None)
        if action:
            self.process.ignored.discard(number)
            self.process.handlers[number] = lambda _: self.pending_traps.append(name)
        else:
            self.process.ignored.add(number)

    def run_traps(self) -> None:
        """Run the actions of signals that have come."""
        self.process.check()
        if self._trapping:
            return
        while self.pending_traps:
            name = self.pending_traps.pop(0)
            status, self._trapping = self.status, True
            try:
                self.run_list(parse(self.traps.get(name, "")))
            finally:
                self._trapping = False
            self.status = status


class _RedirectionError(Exception):
    """The command is not run; the script goes on."""


def _redirects_input(item: AndOr) -> bool:
    command = item.first.commands[0]
    if isinstance(command, Function):
        return False
    return any(redirection.descriptor == 0 for redirection in command.redirections)


def _open_text(error: SimError) -> str:
    return error.text


def _exec_text(number: Errno) -> str:
    return "not found" if number in (Errno.ENOENT, Errno.ENOTDIR) else number.text


def _failing(message: str, status: int) -> Body:
    def body(process: Process) -> int:
        process.err(f"{message}\n")
        return status

    return body


def _number(name: str) -> int:
    from hil.simulated.process import SIGNALS

    return SIGNALS.get(name, 0)


def _script(process: Process, path: str) -> int:
    text = process.system.files.read(path).decode("utf-8", "surrogateescape")
    return Shell(process, process.arguments[0], process.arguments[1:]).run(text)


def sh(process: Process) -> int:
    """``sh [-eufx] [-c string | -s | file] [name-or-argument ...]``."""
    arguments = process.arguments[1:]
    options: set[str] = set()
    string = from_input = False
    while arguments and arguments[0][:1] in ("-", "+") and len(arguments[0]) > 1:
        word = arguments.pop(0)
        if word == "--":
            break
        string |= "c" in word
        from_input |= "s" in word
        if "o" in word and arguments:
            options.add(arguments.pop(0))
        options |= {c for c in word[1:] if c in "aefux"}
    if string:
        if not arguments:
            process.err("sh: -c requires an argument\n")
            return 2
        text, *arguments = arguments
        name = arguments.pop(0) if arguments else "sh"
        shell = Shell(process, name, arguments)
        shell.options |= options
        return shell.run(text)
    if arguments and not from_input:
        path, *arguments = arguments
        shell = Shell(process, path, arguments)
        shell.options |= options
        try:
            text = process.system.files.read(process.path(path)).decode("utf-8", "surrogateescape")
        except SimError as error:
            process.err(f"sh: cannot open {path}: {error.text}\n")
            return 2
        return shell.run(text)
    shell = Shell(process, "sh", arguments)
    shell.options |= options
    return shell.interactive(prompt=None)


__all__ = ["Break", "Builtin", "Killed", "Return", "Shell", "ShellError", "sh"]
