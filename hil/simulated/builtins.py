"""What the simulated shell does itself: sh(1)'s builtins, test(1), printf(1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from hil.simulated.errno import Errno, SimError
from hil.simulated.files import Device, Directory, Link, Node, Regular
from hil.simulated.grammar import parse
from hil.simulated.process import SIGNALS, Exit, Process
from hil.simulated.process import Command as Body
from hil.simulated.shell import Break, Builtin, Return, Shell, ShellError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _colon(shell: Shell, arguments: list[str]) -> int:
    return 0


def _false(shell: Shell, arguments: list[str]) -> int:
    return 1


def _break(shell: Shell, arguments: list[str]) -> int:
    shell.status = 0
    raise Break(int(arguments[0]) if arguments else 1, again=False)


def _continue(shell: Shell, arguments: list[str]) -> int:
    shell.status = 0
    raise Break(int(arguments[0]) if arguments else 1, again=True)


def _return(shell: Shell, arguments: list[str]) -> int:
    raise Return(int(arguments[0]) if arguments else shell.status)


def _exit(shell: Shell, arguments: list[str]) -> int:
    raise Exit(int(arguments[0]) & 0xFF if arguments else shell.status)


def _eval(shell: Shell, arguments: list[str]) -> int:
    return shell.run_list(parse(" ".join(arguments)))


def _source(shell: Shell, arguments: list[str]) -> int:
    if not arguments:
        raise ShellError("missing dot argument")
    try:
        file = shell.files.open(shell.process, shell.process.path(arguments[0]), "r").reference()
        pieces = []
        while piece := file.stream.read(shell.process, 65536):
            pieces.append(piece)
        file.release()
        text = b"".join(pieces)
    except SimError as error:
        raise ShellError(f"cannot open {arguments[0]}: {error.text}") from None
    try:
        return shell.run_list(parse(text.decode("utf-8", "surrogateescape")))
    except Return as end:
        return end.status


def _cd(shell: Shell, arguments: list[str]) -> int:
    words = [word for word in arguments if word not in ("-P", "-L", "--")]
    target = words[0] if words else shell.value("HOME") or "/"
    if target == "-":
        target = shell.value("OLDPWD") or "/"
    path = _normal(shell.process.path(target))
    try:
        shell.files.directory(path)
    except SimError as error:
        shell.process.err(f"cd: {target}: {error.text}\n")
        return 2
    shell.assign("OLDPWD", shell.directory)
    shell.directory = path
    shell.assign("PWD", path)
    return 0


def _normal(path: str) -> str:
    kept: list[str] = []
    for word in path.split("/"):
        if word == "..":
            kept[-1:] = []
        elif word not in ("", "."):
            kept.append(word)
    return "/" + "/".join(kept)


def _pwd(shell: Shell, arguments: list[str]) -> int:
    shell.process.out(f"{shell.directory}\n")
    return 0


def _export(shell: Shell, arguments: list[str]) -> int:
    if not arguments or arguments == ["-p"]:
        for name in sorted(shell.exported):
            if name in shell.variables:
                shell.process.out(f"export {name}={_quoted(shell.variables[name])}\n")
        return 0
    for word in arguments:
        name, equals, value = word.partition("=")
        if equals:
            shell.assign(name, value)
        shell.exported.add(name)
    return 0


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else "'" + text.replace("'", "'\\''") + "'"


def _readonly(shell: Shell, arguments: list[str]) -> int:
    for word in arguments:
        name, equals, value = word.partition("=")
        if equals:
            shell.assign(name, value)
        shell.read_only.add(name)
    return 0


def _local(shell: Shell, arguments: list[str]) -> int:
    if not shell.locals:
        raise ShellError("Not in a function")
    for word in arguments:
        name, equals, value = word.partition("=")
        shell.locals[-1].setdefault(name, shell.variables.get(name))
        if equals:
            shell.assign(name, value)
    return 0


def _unset(shell: Shell, arguments: list[str]) -> int:
    functions = "-f" in arguments
    for name in arguments:
        if name in ("-f", "-v"):
            continue
        if functions:
            shell.functions.pop(name, None)
        else:
            shell.variables.pop(name, None)
            shell.exported.discard(name)
    return 0


def _set(shell: Shell, arguments: list[str]) -> int:
    if not arguments:
        for name in sorted(shell.variables):
            shell.process.out(f"{name}={_quoted(shell.variables[name])}\n")
        return 0
    words = list(arguments)
    while words and words[0][:1] in ("-", "+") and words[0] not in ("-", "+"):
        word = words.pop(0)
        if word == "--":
            shell.parameters = words
            return 0
        change = shell.options.add if word[0] == "-" else shell.options.discard
        for letter in word[1:]:
            if letter == "o":
                name = words.pop(0) if words else ""
                change(
                    {"errexit": "e", "nounset": "u", "xtrace": "x", "noglob": "f"}.get(name, name)
                )
            else:
                change(letter)
        if not words:
            return 0
    shell.parameters = words
    return 0


def _shift(shell: Shell, arguments: list[str]) -> int:
    count = int(arguments[0]) if arguments else 1
    if count > len(shell.parameters):
        raise ShellError("can't shift that many")
    del shell.parameters[:count]
    return 0


def _trap(shell: Shell, arguments: list[str]) -> int:
    words = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not words:
        for name, action in shell.traps.items():
            shell.process.out(f"trap -- {_quoted(action)} {name}\n")
        return 0
    first, *names = words
    chosen: str | None = first
    if first == "-" or first.isdigit() or (not names and _signal_name(first)):
        chosen = None
        names = names if first == "-" else words
    for word in names:
        name = _signal_name(word)
        if not name:
            shell.process.err(f"trap: bad signal {word}\n")
            return 1
        shell.trap(name, chosen)
    return 0


_NUMBERS = {number: name for name, number in SIGNALS.items()}


def _signal_name(word: str) -> str:
    if word in ("0", "EXIT"):
        return "EXIT"
    if word.isdigit():
        return _NUMBERS.get(int(word), "")
    name = word.upper().removeprefix("SIG")
    return name if name in SIGNALS else ""


def _kill(shell: Shell, arguments: list[str]) -> int:
    words = list(arguments)
    name = "TERM"
    if words and words[0] == "-l":
        shell.process.out(" ".join(_NUMBERS[n] for n in sorted(_NUMBERS)) + "\n")
        return 0
    if words and words[0] == "-s":
        words.pop(0)
        name = words.pop(0) if words else ""
    elif words and words[0].startswith("-") and words[0] != "--":
        name = words.pop(0)[1:]
    if words and words[0] == "--":
        words.pop(0)
    if name == "0":
        number = 0
    elif (known := _signal_name(name)) and known != "EXIT":
        number = SIGNALS[known]
    else:
        shell.process.err(f"kill: unknown signal {name}; valid signals:\n")
        shell.process.err(" ".join(_NUMBERS[n] for n in sorted(_NUMBERS)).lower() + "\n")
        return 2
    if not words:
        shell.process.err(_KILL_USAGE)
        return 2
    status = 0
    for word in words:
        target = _target(shell, word)
        if isinstance(target, str):
            shell.process.err(f"kill: {target}\n")
            status = 1
        elif number:
            target.signal(number)
    return status


_KILL_USAGE = """\
usage: kill [-s signal_name] pid ...
       kill -l [exit_status]
       kill -signal_name pid ...
       kill -signal_number pid ...
"""


def _target(shell: Shell, word: str) -> Process | str:
    if word.startswith("%"):
        jobs = list(shell.jobs.values())
        index = int(word[1:]) if word[1:].isdigit() else len(jobs)
        return jobs[index - 1] if 0 < index <= len(jobs) else f"{word}: No such job"
    if not re.fullmatch(r"-?[0-9]+", word):
        return f"illegal process id: {word}"
    found = shell.process.system.processes.get(abs(int(word)))
    return found or f"{word}: No such process"


def _wait(shell: Shell, arguments: list[str]) -> int:
    def interrupted() -> bool:
        return bool(shell.pending_traps)

    if arguments:
        status = 127
        for word in arguments:
            child = shell.jobs.get(int(word)) if word.isdigit() else None
            if word.startswith("%"):
                found = _target(shell, word)
                child = found if isinstance(found, Process) else None
            if child is None:
                continue
            ended = shell.process.wait_for(child, interrupted)
            if ended is None:
                return 128 + SIGNALS[shell.pending_traps[0]]
            shell.jobs.pop(child.pid, None)
            status = ended
        return status
    for child in list(shell.jobs.values()):
        if shell.process.wait_for(child, interrupted) is None:
            return 128 + SIGNALS[shell.pending_traps[0]]
        shell.jobs.pop(child.pid, None)
    return 0


def _jobs(shell: Shell, arguments: list[str]) -> int:
    for number, child in enumerate(shell.jobs.values(), 1):
        state = "Running" if child.status is None else "Done"
        shell.process.out(f"[{number}]   {state:<17} {' '.join(child.arguments)}\n")
    return 0


def _read(shell: Shell, arguments: list[str]) -> int:
    words = list(arguments)
    raw = False
    timeout: float | None = None
    while words and words[0].startswith("-") and len(words[0]) > 1:
        option = words.pop(0)
        if option == "--":
            break
        raw |= "r" in option
        if option.endswith("p") and words:
            shell.process.err(words.pop(0))
        elif option.endswith("t") and words:
            timeout = float(words.pop(0).rstrip("s"))
    del timeout  # reads on a simulated machine wait for their signal only
    line, ended = _logical_line(shell, raw=raw)
    names = words or ["REPLY"]
    separators = shell.value("IFS")
    _divide(shell, names, line, " \t\n" if separators is None else separators)
    return int(ended)


def _logical_line(shell: Shell, *, raw: bool) -> tuple[list[tuple[str, bool]], bool]:
    """Characters, each with whether a backslash quotes it; and whether the input ended."""
    text = shell.read_line()
    line: list[tuple[str, bool]] = []
    while True:
        ended = not text.endswith("\n")
        body = text.removesuffix("\n")
        if raw:
            return [(c, False) for c in body], ended
        at = 0
        while at < len(body):
            if body[at] == "\\" and at + 1 < len(body):
                line.append((body[at + 1], True))
                at += 2
            elif body[at] == "\\":
                break
            else:
                line.append((body[at], False))
                at += 1
        if at < len(body) and not ended:
            text = shell.read_line()
            continue
        return line, ended


def _divide(shell: Shell, names: list[str], line: list[tuple[str, bool]], separators: str) -> None:
    def separates(index: int, among: str) -> bool:
        return not line[index][1] and line[index][0] in among

    blanks = "".join(c for c in separators if c in " \t\n")
    at = 0
    while at < len(line) and separates(at, blanks):
        at += 1
    for name in names[:-1]:
        start = at
        while at < len(line) and not separates(at, separators):
            at += 1
        shell.assign(name, "".join(c for c, _ in line[start:at]))
        while at < len(line) and separates(at, blanks):
            at += 1
        if at < len(line) and at > start and separates(at, separators):
            at += 1
            while at < len(line) and separates(at, blanks):
                at += 1
    end = len(line)
    while end > at and separates(end - 1, blanks):
        end -= 1
    shell.assign(names[-1], "".join(c for c, _ in line[at:end]))


def _type(shell: Shell, arguments: list[str]) -> int:
    status = 0
    for name in arguments:
        if name in shell.functions:
            shell.process.out(f"{name} is a shell function\n")
        elif name in BUILTINS:
            kind = "special shell" if name in SPECIAL else "shell"
            shell.process.out(f"{name} is a {kind} builtin\n")
        elif path := where(shell.process, name):
            shell.process.out(f"{name} is {path}\n")
        else:
            shell.process.err(f"{name}: not found\n")
            status = 127
    return status


def _command(shell: Shell, arguments: list[str]) -> int:
    """``command -v``; without an option the shell itself runs what follows."""
    if arguments[:1] == ["-v"]:
        for name in arguments[1:]:
            if name in shell.functions or name in BUILTINS:
                shell.process.out(f"{name}\n")
            elif path := where(shell.process, name):
                shell.process.out(f"{path}\n")
            else:
                return 127
        return 0
    return _type(shell, arguments[1:])


#: Where FreeBSD has the commands that are not in /usr/bin.
PLACES: Mapping[str, str] = {
    name: folder
    for folder, names in {
        "/bin": "cat chmod cp date dd df echo ed expr hostname kenv kill ln ls mkdir mv pgrep pkill"
        " ps pwd realpath rm rmdir sh sleep stty sync test [ uuidgen",
        "/sbin": "camcontrol devfs devmatch dmesg gpart geom ifconfig kldload kldstat kldunload"
        " mdconfig mount newfs ping reboot shutdown swapinfo sysctl umount zfs zpool sha256",
        "/usr/sbin": "acpidump bhyve bhyvectl bhyveload devctl devinfo gstat iovctl jls pciconf"
        " zonectl arp chown daemon",
        "/usr/local/sbin": "grub-bhyve",
        "/usr/local/bin": "python3",
    }.items()
    for name in names.split()
}


def where(process: Process, name: str) -> str:
    """The path of a command; empty if there is none."""
    base = name.rpartition("/")[2]
    if base not in process.system.commands:
        return ""
    path = f"{PLACES.get(base, '/usr/bin')}/{base}"
    return path if "/" not in name or name == path else ""


def _umask(shell: Shell, arguments: list[str]) -> int:
    if arguments:
        shell.variables["_umask"] = arguments[0]
    else:
        shell.process.out(f"{int(shell.variables.get('_umask', '022'), 8):04o}\n")
    return 0


def _times(shell: Shell, arguments: list[str]) -> int:
    shell.process.out("0m0.00s 0m0.00s\n0m0.00s 0m0.00s\n")
    return 0


def _ulimit(shell: Shell, arguments: list[str]) -> int:
    if not arguments or (arguments[0].startswith("-") and len(arguments) == 1):
        shell.process.out("unlimited\n")
    return 0


def _echo(shell: Shell, arguments: list[str]) -> int:
    newline = "\n"
    words = list(arguments)
    if words[:1] == ["-n"]:
        newline, words = "", words[1:]
    elif words[:1] == ["-e"]:
        words = [_escaped(word) for word in words[1:]]
    shell.process.out(" ".join(words) + newline)
    return 0


_ESCAPES = {
    "\\": "\\", "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "e": "\033", '"': '"', "'": "'",
}  # fmt: skip


def _escaped(text: str, *, octal_needs_zero: bool = False) -> str:
    prefix = "0" if octal_needs_zero else ""

    def character(found: re.Match[str]) -> str:
        what = found.group(1)
        if what[0] == "x":
            return _byte(int(what[1:], 16))
        if what[0] in "01234567":
            return _byte(int(what, 8) & 0xFF)
        return _ESCAPES.get(what, found.group())

    return re.sub(rf"\\({prefix}[0-7]{{1,3}}|x[0-9a-fA-F]{{1,2}}|.)", character, text)


def _byte(value: int) -> str:
    return bytes([value]).decode("utf-8", "surrogateescape")


_CONVERSION = re.compile(r"%([-+ #0]*)(\*|[0-9]+)?(?:\.(\*|[0-9]*))?([a-zA-Z%])")


def _printf(shell: Shell, arguments: list[str]) -> int:
    words = arguments[1:] if arguments[:1] == ["--"] else list(arguments)
    if not words:
        shell.process.err("usage: printf format [arguments ...]\n")
        return 1
    template, values = _escaped(words[0]), words[1:]
    status = 0

    def value(default: str) -> str:
        return values.pop(0) if values else default

    def number(text: str) -> int:
        nonlocal status
        if text[:1] in ("'", '"'):
            return ord(text[1:2] or "\0")
        try:
            return int(text or "0", 8 if re.fullmatch(r"-?0[0-7]+", text) else 0)
        except ValueError:
            shell.process.err(f"printf: {text}: expected numeric value\n")
            status = 1
            return 0

    def conversion(found: re.Match[str]) -> str:
        flags, width, precision, letter = found.groups()
        if letter == "%":
            return "%"
        width = value("0") if width == "*" else width or ""
        if precision == "*":
            precision = value("0")
        dot = "" if precision is None else f".{precision}"
        if letter in "diouxX":
            return f"%{flags}{width}{dot}{'d' if letter in 'iu' else letter}" % number(value("0"))
        if letter in "eEfgG":
            return f"%{flags}{width}{dot}{letter}" % float(value("0") or 0)
        text = value("")
        if letter == "b":
            text = _escaped(text, octal_needs_zero=True)
        elif letter == "c":
            text = text[:1]
        return f"%{flags}{width}{dot}s" % text

    while True:
        before = len(values)
        shell.process.out(_CONVERSION.sub(conversion, template))
        if not values or len(values) == before:
            return status


# test(1)


def _bracket(shell: Shell, arguments: list[str]) -> int:
    if arguments[-1:] != ["]"]:
        shell.process.err("[: missing ]\n")
        return 2
    return _test(shell, arguments[:-1])


def _test(shell: Shell, arguments: list[str]) -> int:
    try:
        return int(not _Test(shell, arguments).result())
    except _TestError as error:
        shell.process.err(f"test: {error}\n" if str(error) else "test: syntax error\n")
        return 2


class _TestError(Exception):
    pass


class _Test:
    def __init__(self, shell: Shell, words: list[str]) -> None:
        self._shell = shell
        self._words = list(words)

    def result(self) -> bool:
        words = self._words
        if not words:
            return False
        # POSIX decides up to four arguments by their number.
        if len(words) == 1:
            return bool(words[0])
        if len(words) == 2 and words[0] == "!":
            return not words[1]
        if len(words) == 3 and words[1] in _COMPARISONS:
            return self._compare(*words)
        value = self._either()
        if self._words:
            raise _TestError(f"{self._words[0]}: unexpected operator")
        return value

    def _either(self) -> bool:
        value = self._both()
        while self._words[:1] == ["-o"]:
            self._words.pop(0)
            value = self._both() or value
        return value

    def _both(self) -> bool:
        value = self._primary()
        while self._words[:1] == ["-a"]:
            self._words.pop(0)
            value = self._primary() and value
        return value

    def _primary(self) -> bool:
        if not self._words:
            raise _TestError("argument expected")
        if len(self._words) >= 3 and self._words[1] in _COMPARISONS:
            left, operator, right = (self._words.pop(0) for _ in range(3))
            return self._compare(left, operator, right)
        word = self._words.pop(0)
        if word == "!":
            return not self._primary()
        if word == "(":
            value = self._either()
            if self._words[:1] != [")"]:
                raise _TestError("closing paren expected")
            self._words.pop(0)
            return value
        if word in _UNARY and self._words:
            return self._unary(word[1], self._words.pop(0))
        return bool(word)

    def _compare(self, left: str, operator: str, right: str) -> bool:
        if operator in ("=", "=="):
            return left == right
        if operator == "!=":
            return left != right
        if operator in ("<", ">"):
            return left < right if operator == "<" else left > right
        if operator in ("-nt", "-ot", "-ef"):
            return self._compare_files(left, operator, right)
        a, b = self._number(left), self._number(right)
        return _NUMERIC[operator](a, b)

    def _compare_files(self, left: str, operator: str, right: str) -> bool:
        a, b = self._node(left), self._node(right)
        if a is None or b is None:
            return False
        if operator == "-ef":
            return a is b
        return a.changed > b.changed if operator == "-nt" else a.changed < b.changed

    @staticmethod
    def _number(text: str) -> int:
        try:
            return int(text.strip())
        except ValueError:
            raise _TestError(f"{text}: bad number") from None

    def _node(self, path: str, *, follow: bool = True) -> Node | None:
        try:
            return self._shell.files.find(self._shell.process.path(path), follow=follow)
        except SimError:
            return None

    def _unary(self, letter: str, text: str) -> bool:
        if letter == "n":
            return bool(text)
        if letter == "z":
            return not text
        if letter == "t":
            return self._shell.process.tty != "-"
        node = self._node(text, follow=letter not in "Lh") if text else None
        if node is None:
            return False
        checks: dict[str, Callable[[], bool]] = {
            "d": lambda: isinstance(node, Directory),
            "f": lambda: isinstance(node, Regular),
            "c": lambda: isinstance(node, Device),
            "b": lambda: False,
            "L": lambda: isinstance(node, Link),
            "h": lambda: isinstance(node, Link),
            "s": lambda: isinstance(node, Regular) and node.size > 0,
            "x": lambda: bool(node.mode & 0o111) or isinstance(node, Directory),
        }
        return checks.get(letter, lambda: True)()


_UNARY = frozenset({f"-{letter}" for letter in "bcdefghkLnprsStuwxzOG"})
_NUMERIC: Mapping[str, Callable[[int, int], bool]] = {
    "-eq": lambda a, b: a == b,
    "-ne": lambda a, b: a != b,
    "-lt": lambda a, b: a < b,
    "-le": lambda a, b: a <= b,
    "-gt": lambda a, b: a > b,
    "-ge": lambda a, b: a >= b,
}
_COMPARISONS = frozenset({"=", "==", "!=", "<", ">", "-nt", "-ot", "-ef", *_NUMERIC})

#: POSIX's special builtins: assignments before them stay.
SPECIAL: frozenset[str] = frozenset(
    {":", ".", "break", "continue", "eval", "exit", "export", "readonly", "return", "set"}
    | {"shift", "times", "trap", "unset"}
)
BUILTINS: Mapping[str, Builtin] = {
    ":": _colon, "true": _colon, "false": _false, "break": _break, "continue": _continue,
    "return": _return, "exit": _exit, "eval": _eval, ".": _source, "cd": _cd, "pwd": _pwd,
    "export": _export, "readonly": _readonly, "local": _local, "unset": _unset, "set": _set,
    "shift": _shift, "trap": _trap, "kill": _kill, "wait": _wait, "jobs": _jobs, "read": _read,
    "type": _type, "command": _command, "umask": _umask, "times": _times, "ulimit": _ulimit,
    "echo": _echo, "printf": _printf, "test": _test, "[": _bracket,
}  # fmt: skip


def _as_command(builtin: Builtin) -> Body:
    return lambda process: builtin(Shell(process), process.arguments[1:])


#: Builtins that are programs too: what env(1), xargs(1) or timeout(1) run.
COMMANDS: Mapping[str, Body] = {
    name: _as_command(BUILTINS[name])
    for name in ("true", "false", "echo", "printf", "test", "[", "kill", "pwd")
}

__all__ = ["BUILTINS", "COMMANDS", "SPECIAL", "Errno", "where"]
