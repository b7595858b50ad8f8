r"""Talk to a console: expect text, log in, run commands with exact output.

``expect`` and ``login`` are pexpect over the log.  ``run`` works through a small
loop that the console starts in a POSIX shell on the machine: it reads one line at
a time from the terminal, with echo and output processing off, evaluates it, and
prints a marker before and after.  That gives

* exact output: no echo, no prompt, no line editor, ``\n`` left as ``\n``;
* kernel messages told apart: the kernel ends its lines with ``\r\n`` whatever the
  terminal's modes are, and a command's own lines end as the command wrote them;
* no typed command that matches the marker: its first half, a random word, is typed
  in two parts once, its second half is new for each command.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pexpect.exceptions import EOF, TIMEOUT
from pexpect.spawnbase import SpawnBase

from hil import events
from hil.console.log import MEMORY_LIMIT, ConsoleLog, Cursor
from hil.console.patterns import TIME_STAMP, Panic
from hil.console.text import clean
from hil.deadline import Deadline
from hil.errors import CommandError, GuestError, HilError, InventoryError, LabError
from hil.transport.base import OUTPUT_LIMIT, ByteStream
from hil.transport.quoting import quote

LOGIN = rb"(?<!Last )login: ?"
"""A getty's prompt, on Linux, FreeBSD and illumos."""
PASSWORD = rb"[Pp]assword(?: for [^:\r\n]*)?: ?"
REFUSED = rb"Login incorrect|Login timed out|Authentication failure"
# Any number of whole lines of Linux's kernel.
_GAP = rb"(?:" + TIME_STAMP.encode() + rb"[^\n]*\n)*+"
PROMPT = rb"[#$%>] ?(?:\x1b\[[0-9;?]*[A-Za-z])*" + _GAP + rb"$"
"""A shell's prompt, as the last thing on the console but for the kernel's messages."""

Pattern = str | bytes | re.Pattern[bytes]

_MAXREAD = 65536
#: How far back a match may begin.  pexpect looks for patterns in the last so many
#: bytes; less than one read would make it miss what it has read.
_WINDOW = _MAXREAD + 8192
#: Bytes kept of what went by before a match.
_BEFORE_LIMIT = 32 * 1024 * 1024
#: Longest line typed: half of the 1,920 bytes that a FreeBSD tty takes at 9,600 baud.
_LINE_LIMIT = 900
#: Most bytes of a command in one line where they are not printable, five letters each.
_PIECE = 150
#: Seconds of silence after which a marker that a kernel message may have cut is looked for.
_QUIET = 0.05
_TAIL = 16 * 1024
_LAST_LINES = 30
#: Most bytes of command and of output that an event carries.
_SHOWN = 64 * 1024


@dataclass(frozen=True, slots=True)
class Expected:
    """What :meth:`Console.expect` met."""

    index: int
    """Of the pattern that matched, in the order given."""
    before: bytes
    """What the console printed before it, at most 32 MiB."""
    match: re.Match[bytes]


@dataclass(frozen=True, slots=True)
class ConsoleResult:
    """How a command on a console ended."""

    command: str
    status: int
    out: bytes
    """Exactly what the command printed, both outputs together."""
    kernel: tuple[str, ...] = ()
    """The kernel's lines that came in between, taken out of ``out``."""
    seconds: float = 0.0
    host: str = ""
    truncated: bool = False

    @property
    def output(self) -> str:
        """``out`` as text; what is not UTF-8 becomes U+FFFD."""
        return self.out.decode("utf-8", "replace")

    def check(self, hint: str = "") -> ConsoleResult:
        """This result, if the status is 0.

        Raises:
            CommandError: otherwise, with the output.
        """
        if self.status != 0:
            raise CommandError(
                [self.command], self.status, host=self.host, stdout=self.output, hint=hint
            )
        return self


class Console:
    """A machine's console.  One thread at a time talks to it; the log serves all.

    Args:
        name: whose console it is.
        stream: its bytes; nobody else may read them.
        log_path: file for the log with time stamps, see :class:`ConsoleLog`.
        limit: bytes of the log kept in memory.

    Every wait ends at once with :class:`~hil.errors.GuestError` when the kernel panics,
    also the waits after it, until :meth:`forget_panic`.
    """

    def __init__(
        self,
        name: str,
        stream: ByteStream,
        *,
        log_path: str | Path | None = None,
        limit: int = MEMORY_LIMIT,
    ) -> None:
        self.name = name
        self.log = ConsoleLog(name, stream, path=log_path, limit=limit)
        self._stream = stream
        self._lock = threading.RLock()
        self._cursor = self.log.follow(0)
        self._spawn = _Spawn(self, self._cursor)
        self._nonce = ""
        self._raw = False
        self._told: Panic | None = None

    def close(self) -> None:
        """Close the stream and the log's file.  Safe to call twice."""
        self.log.close()

    # text

    def expect(self, patterns: Pattern | Sequence[Pattern], deadline: Deadline) -> Expected:
        """Wait for the first of ``patterns`` (regular expressions on bytes).

        What was printed since the last match or command counts.  A match is at most
        8 KiB long.

        Raises:
            DeadlineExceeded: with the console's last lines.
            GuestError: the kernel panicked.
            LabError: the console ended.
        """
        given = [patterns] if isinstance(patterns, str | bytes | re.Pattern) else list(patterns)
        compiled: list[Any] = [_compile(pattern) for pattern in given]
        with self._lock:
            self._raise_panic()
            try:
                index = self._spawn.expect_list(compiled, timeout=min(deadline.remaining, 1e6))
            except TIMEOUT:
                raise self._late(deadline) from None
            except EOF:
                raise self._over() from None
            match = self._spawn.match
            assert isinstance(match, re.Match)
            return Expected(index, self._spawn.before or b"", match)

    def send(self, data: bytes | str) -> None:
        """Type ``data`` as it is."""
        self._stream.write(data.encode() if isinstance(data, str) else data)

    def send_line(self, text: bytes | str = b"") -> None:
        """Type ``text`` and Enter."""
        self.send((text.encode() if isinstance(text, str) else text) + b"\n")

    def interrupt(self) -> None:
        """Type Ctrl-C.  It ends a command and the shell that :meth:`run` works through."""
        self._nonce = ""
        self.send(b"\x03")

    def forget_panic(self) -> None:
        """The machine was started anew: waits no longer end for its last panic."""
        self.log.forget_panic()
        self._told = None

    # log-in

    def login(
        self,
        user: str,
        password: str | None,
        deadline: Deadline,
        *,
        login: Pattern = LOGIN,
        ask: Pattern = PASSWORD,
        prompt: Pattern = PROMPT,
        rescue: Pattern = b"",
    ) -> None:
        """Log in by prompts, and get a shell ready for :meth:`run`.

        A console that shows a shell's prompt already (automatic log-in) is taken as it is.

        Args:
            user: who logs in.
            password: ``None`` if none should be asked for.
            deadline: for all of it.
            login: the prompt for the user's name.
            ask: the prompt for the password.
            prompt: a shell's.
            rescue: what shows that the system did not come up; empty: nothing does.

        Raises:
            InventoryError: user or password were refused.
            GuestError: the kernel panicked, or ``rescue`` was shown.
            DeadlineExceeded: with the console's last lines.
        """
        with self._lock:
            self._nonce = ""
            self.log.kernel_ends_with_cr = False
            patterns = [login, ask, REFUSED, prompt, *([rescue] if rescue else [])]
            typed_user = typed_password = False
            shown = b""
            self.send_line()
            while True:
                try:
                    # A kernel message after a prompt hides it: ask for another one.
                    found = self.expect(patterns, deadline.within(5.0, "a log-in prompt"))
                except LabError:
                    if deadline.expired or self.log.ended:
                        raise
                    self.send_line()
                    continue
                met = found.index
                if met == 4:
                    words = found.match[0].decode("ascii", "replace").strip()
                    raise GuestError(
                        f"{self.name} did not come up: its console shows {words!r}",
                        console=self.log.tail(_LAST_LINES),
                        hint="the lines before tell what it could not do",
                    )
                if met == 3 and not typed_user:
                    # Half a line of a boot log may look like one ("flags=8843<UP,BROADCAST>");
                    # a shell shows it again.
                    line = (found.before + found.match[0]).rpartition(b"\n")[2]
                    if line == shown:
                        break
                    shown = line
                    self.send_line()
                    continue
                shown = b""
                if met == 2 or (met == 0 and typed_password):
                    raise InventoryError(
                        f"{self.name} does not let {user} log in",
                        host=self.name,
                        console=self.log.tail(_LAST_LINES),
                        hint="check user and password",
                    )
                if met == 0 and not typed_user:
                    self.send_line(user)
                    typed_user = True
                elif met == 1:
                    if password is None:
                        raise InventoryError(
                            f"{self.name} asks {user} for a password and none was given",
                            host=self.name,
                            console=self.log.tail(_LAST_LINES),
                        )
                    self.send_line(password)
                    typed_password = True
                elif met == 3:
                    break
                else:
                    typed_user = False  # the getty began anew
            self._prepare(deadline)

    # commands

    def run(
        self,
        command: str | Sequence[str],
        deadline: Deadline,
        *,
        limit: int = OUTPUT_LIMIT,
    ) -> ConsoleResult:
        """Run ``command`` in the shell on the console, and wait for its end.

        A string is a POSIX shell's text, of any length, lines and characters but NUL; it
        runs in one shell, which keeps directory and variables from command to command.
        A sequence is a program and its arguments.  The terminal is its standard input.

        Raises:
            DeadlineExceeded: the command was then sent Ctrl-C.
            GuestError: the kernel panicked.
            LabError: the console ended.
        """
        text = command if isinstance(command, str) else quote(command)
        if "\0" in text:
            raise InventoryError("a command cannot hold a NUL", seen=repr(text)[:200])
        with self._lock:
            begin = time.monotonic()
            self._raise_panic()
            if not self._nonce:
                self._prepare(deadline)
            line = text.encode("utf-8", "surrogateescape")
            if len(line) <= _LINE_LIMIT and re.fullmatch(rb"[ -~]*", line):
                typed = line
            else:
                self._transfer(line, deadline)
                typed = b'HIL_L=$HIL_C; HIL_C=; eval "$HIL_L"'
            status, out, kernel, lost = self._transact(typed, deadline, limit)
            seconds = time.monotonic() - begin
            result = ConsoleResult(text, status, out, kernel, seconds, self.name, lost)
            events.emit(
                events.CommandRun(
                    where=self.name,
                    command=text[:_SHOWN],
                    status=status,
                    seconds=seconds,
                    stdout=out[:_SHOWN].decode("utf-8", "replace"),
                )
            )
            return result

    @property
    def shell(self) -> str:
        """The mark of the shell that waits for commands; empty if :meth:`run` has none there.

        A console of the same machine, or of a copy of it, can go on with that shell.
        """
        return self._nonce if self._raw else ""

    def go_on(self, shell: str) -> None:
        """Use a shell that waits already, rather than log in: that of :attr:`shell`."""
        with self._lock:
            self._nonce = shell
            self._raw = self.log.kernel_ends_with_cr = True

    def release(self, deadline: Deadline) -> None:
        """Give the terminal back to the log-in shell, for a person to type at."""
        with self._lock:
            if self._nonce:
                self._transact(b"exit", deadline, 0)
                self.log.kernel_ends_with_cr = False

    def _prepare(self, deadline: Deadline) -> None:
        """Start the loop that evaluates lines in a POSIX shell on the machine."""
        first, second = secrets.token_hex(4), secrets.token_hex(4)
        # Short, and fit for csh too; the rest is typed with echo off.
        start = (
            f"stty -echo -opost; "
            f'sh -c \'printf "%s%s\\n" {first} {second}; IFS= read -r a; eval "$a"\'; '
            f"stty echo opost"
        )
        ready = re.compile(f"{first}{second}(\r?)\n".encode())
        patience = 2.0
        self._skip()
        while True:
            self.send_line(start)
            try:
                met = self.expect(
                    [ready, REFUSED, LOGIN], deadline.within(patience, "a shell on the console")
                )
            except LabError as error:
                if deadline.expired or self.log.ended:
                    error.hint = error.hint or "the console shows no POSIX shell's prompt"
                    raise
                # Typed while something flushed its input, or under a flood: again.
                patience = min(patience * 2, 30.0)
                continue
            if met.index != 0:
                raise GuestError(
                    f"{self.name}'s console asks for a log-in where a shell was expected",
                    host=self.name,
                    console=self.log.tail(_LAST_LINES),
                )
            break
        self._raw = not met.match.group(1)
        self._nonce = first + second
        self.send_line(loop(first, second))
        self._transact(b":", deadline, 0)
        self.log.kernel_ends_with_cr = self._raw

    def _transfer(self, command: bytes, deadline: Deadline) -> None:
        """Bring a command that cannot be typed as one line into the variable HIL_C.

        Piece by piece, each waited for: a terminal drops what it has no room for.
        """
        for line in _typed(command):
            self._transact(line, deadline, 0)

    def _transact(
        self, line: bytes, deadline: Deadline, limit: int
    ) -> tuple[int, bytes, tuple[str, ...], bool]:
        """Have the loop evaluate ``line``: status, output, kernel's lines, output cut."""
        token = f"%{secrets.token_hex(4)}"
        marker = (self._nonce + token).encode()
        self._skip()
        lost_before = self._cursor.lost
        self.send(token.encode() + b" " + line + b"\n")
        data = bytearray()
        lost = scan = 0
        ending = _Marker(marker + b"=")
        searched = False
        while True:
            found = ending.find(data, scan)
            if found is None:
                scan = max(0, len(data) - len(marker) - 16)
                chunk = self._receive(_QUIET if not searched else 3600.0, deadline, data, marker)
                if chunk:
                    data += chunk
                    searched = False
                    surplus = len(data) - limit - 4 * _TAIL
                    if surplus > 16 * _TAIL:
                        # Keep the head, which is the result, and the tail, where the end will be.
                        cut = len(data) - _TAIL
                        del data[limit + _TAIL : cut]
                        lost += cut - limit - _TAIL
                        scan = limit + _TAIL
                    continue
                searched = True
                found = ending.find_cut(data, self._raw)
                if found is None:
                    continue
            break
        end_begin, end_end, status, kernel_tail = found
        if status.startswith(b"x"):
            # The command ended the shell; the next one gets a new one.
            self._nonce = ""
            self.log.kernel_ends_with_cr = False
            status = status[1:]
        self._spawn.reset(bytes(data[end_end:]))
        body, kernel_head = _after(data[:end_begin], marker + b":", self._raw)
        kernel = list(kernel_head)
        if self._raw:
            kernel += [clean(line) for line in _KERNEL_LINE.findall(body)]
            body = _KERNEL_LINE.sub(b"", body)
        else:
            body = body.replace(b"\r\n", b"\n")
        body = body.removeprefix(b"\n")
        lost += self._cursor.lost - lost_before
        cut_short = bool(lost) or len(body) > limit
        return int(status), body[:limit], (*kernel, *kernel_tail), cut_short

    # waiting

    def _skip(self) -> None:
        """What was printed so far answers nothing that is typed from now on."""
        self._cursor.position = self.log.end
        self._spawn.reset(b"")

    def _receive(
        self, timeout: float, deadline: Deadline, seen: bytearray, marker: bytes
    ) -> bytes | None:
        """The next bytes; ``None`` if none came within ``timeout``."""
        chunk = self._cursor.read(min(timeout, deadline.remaining), _MAXREAD)
        self._raise_panic()
        if chunk == b"":
            raise self._over()
        if chunk is None and deadline.expired:
            printed = bytes(seen[-4 * _TAIL :]).partition(marker + b":")[2] or bytes(seen[-_TAIL:])
            self.interrupt()
            raise self._late(deadline, printed.decode("utf-8", "replace"))
        return chunk

    def _raise_panic(self) -> None:
        panic = self.log.panic
        if panic is None:
            return
        if panic is not self._told:
            # The trace after the first line is what a person needs; it comes at once.
            self.log.settle(0.1, Deadline(0.6, "the end of a panic's messages"))
        self._told = panic
        self._nonce = ""
        raise GuestError(
            f"{self.name}'s kernel reported a {panic.kind}: {panic.line}",
            host=self.name,
            console=self.log.tail(_LAST_LINES),
        )

    def _late(self, deadline: Deadline, seen: str = "") -> HilError:
        error = deadline.exceeded(seen, host=self.name)
        error.console = self.log.tail(_LAST_LINES)
        return error

    def _over(self) -> HilError:
        return LabError(
            f"{self.name}'s console ended",
            seen=self.log.failure,
            host=self.name,
            console=self.log.tail(_LAST_LINES),
            hint="did the machine stop, or the connection to its console break?",
        )


if TYPE_CHECKING:
    _Base = SpawnBase[bytes]
else:  # generic in the type stubs only
    _Base = SpawnBase


class _Spawn(_Base):
    """pexpect over a log: its buffers and searches, our bytes."""

    def __init__(self, console: Console, cursor: Cursor) -> None:
        super().__init__(timeout=None, maxread=_MAXREAD, searchwindowsize=_WINDOW)
        self.delayafterread = None
        self._console = console
        self._cursor = cursor

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> bytes:
        buffers: Any = self
        if buffers._before.tell() > _BEFORE_LIMIT:  # noqa: SLF001
            kept = buffers._before.getvalue()[-_WINDOW:]  # noqa: SLF001
            buffers._before = buffers.buffer_type()  # noqa: SLF001
            buffers._before.write(kept)  # noqa: SLF001
        chunk = self._cursor.read(3600.0 if timeout is None else timeout, size)
        self._console._raise_panic()  # noqa: SLF001
        if chunk is None:
            raise TIMEOUT("nothing came in time")
        if not chunk:
            raise EOF("the console ended")
        return chunk

    def reset(self, data: bytes) -> None:
        """Forget what was read and not matched; begin with ``data``."""
        buffers: Any = self
        for name in ("_buffer", "_before"):
            fresh = buffers.buffer_type()
            fresh.write(data)
            setattr(self, name, fresh)


def loop(first: str, second: str) -> str:
    """The loop that evaluates lines, as one line for a POSIX shell; its marks begin so."""
    # Each marker ends a line, for those who read the log.
    marker = f'printf "%s%s%s%s\\n" {first} {second} "$HIL_T"'
    return (
        f"HIL_T=; HIL_E=$(printf '\\n_'); HIL_E=${{HIL_E%_}}; trap 'exit 130' INT; "
        f'trap \'HIL_S=$?; test -z "$HIL_T" || {marker} "=x$HIL_S;"\' EXIT; '
        f"while IFS= read -r HIL_L; do case $HIL_L in "
        f"%*) HIL_T=${{HIL_L%% *}}; HIL_L=${{HIL_L#* }}; {marker} :; "
        f'eval "$HIL_L"; HIL_S=$?; {marker} "=$HIL_S;"; HIL_T= ;; '
        f'*) eval "$HIL_L";; esac; done'
    )


# Runs that are spelled alike: printable text, quotes, newlines; and what begins with any
# other byte, with some of what follows it.
_RUNS = re.compile(rb"([ -&(-~]{1,400})|('{1,50})|(\n{1,20})|.{1,%d}" % _PIECE, re.DOTALL)


def _typed(command: bytes) -> Iterator[bytes]:
    """Lines of a POSIX shell, of printable characters only, that set HIL_C to ``command``."""
    line = b"HIL_C="
    for run in _RUNS.finditer(command):
        text, quotes, newlines = run.groups()
        if text or quotes:
            word = b"'" + text + b"'" if text else b'"' + quotes + b'"'
        elif newlines:
            word = b'"' + b"$HIL_E" * len(newlines) + b'"'
        else:
            # The underscore saves newlines at the end, which a substitution drops.
            octal = "".join(map(_spelled, run.group())).encode()
            word = b"$(printf '%b_' '" + octal + b"'); HIL_C=${HIL_C%_}"
        if len(line) + len(word) > _LINE_LIMIT:
            yield line
            line = b"HIL_C=$HIL_C"
        line += word
        if word.endswith(b"_}"):
            yield line
            line = b"HIL_C=$HIL_C"
    yield line


def _spelled(byte: int) -> str:
    """A byte as printf's %b takes it, in characters that no terminal treats specially."""
    letter = chr(byte)
    return letter if letter == " " or (letter.isascii() and letter.isalnum()) else f"\\0{byte:03o}"


def _compile(pattern: Pattern) -> re.Pattern[bytes]:
    if isinstance(pattern, re.Pattern):
        return pattern
    return re.compile(pattern.encode() if isinstance(pattern, str) else pattern)


# A whole line of Linux's kernel, wherever it begins: it may cut a command's own line.
_KERNEL_LINE = re.compile(TIME_STAMP.encode() + rb"[^\n]*\r\n")


class _Marker:
    """Finds ``fixed``, a status and ``;``, also where a kernel's line cuts through it."""

    def __init__(self, fixed: bytes) -> None:
        self._fixed = fixed
        self._whole = re.compile(re.escape(fixed) + rb"(x?\d{1,3});")

    def find(self, data: bytearray, start: int) -> tuple[int, int, bytes, tuple[str, ...]] | None:
        position = data.find(self._fixed, start)
        match = self._whole.match(data, position) if position >= 0 else None
        return (match.start(), match.end(), match.group(1), ()) if match else None

    def find_cut(
        self, data: bytearray, raw: bool
    ) -> tuple[int, int, bytes, tuple[str, ...]] | None:
        start = max(0, len(data) - _TAIL)
        letters = [re.escape(bytes([byte])) for byte in self._fixed]
        stamped = _GAP.join(letters) + rb"((?:" + _GAP + rb"[x\d]){1,4})" + _GAP + b";"
        patterns = [stamped]
        if raw:
            # No time stamp to go by (FreeBSD): one cut, whose kernel line ends as only a
            # kernel's does.
            patterns += [
                re.escape(self._fixed[:cut])
                + rb"[^\n]*\r\n(?:[^\n]*\r\n)*?"
                + re.escape(self._fixed[cut:])
                + rb"(x?\d{1,3});"
                for cut in range(1, len(self._fixed))
            ]
        for pattern in patterns:
            match = re.compile(pattern).search(data, start)
            if match:
                kernel = tuple(clean(line) for line in _KERNEL_LINE.findall(match.group()))
                status = re.sub(TIME_STAMP.encode() + rb"[^\n]*\n", b"", match.group(1))
                return match.start(), match.end(), status, kernel
        return None


def _after(data: bytearray, marker: bytes, raw: bool) -> tuple[bytes, tuple[str, ...]]:
    """What follows the first ``marker``, and the kernel's lines that cut through that."""
    position = data.find(marker)
    if position >= 0:
        return bytes(data[position + len(marker) :]), ()
    patterns = [_GAP.join(re.escape(bytes([byte])) for byte in marker)]
    if raw:
        patterns += [
            re.escape(marker[:cut]) + rb"[^\n]*\r\n(?:[^\n]*\r\n)*?" + re.escape(marker[cut:])
            for cut in range(1, len(marker))
        ]
    for pattern in patterns:
        match = re.compile(pattern).search(data, 0, _TAIL)
        if match:
            kernel = tuple(clean(line) for line in _KERNEL_LINE.findall(match.group()))
            return bytes(data[match.end() :]), kernel
    return bytes(data), ()
