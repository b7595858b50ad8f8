"""Commands about processes, the clock, the environment and terminals."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping

from hil.simulated.commands.options import getopt
from hil.simulated.console import Tty, terminal
from hil.simulated.errno import SimError
from hil.simulated.process import SIGKILL, SIGNALS, SIGTERM, Command, Exit, OpenFile, Process
from hil.simulated.shell import Shell, sh

# ps

_HEADS = {
    "pid": "PID", "ppid": "PPID", "stat": "STAT", "state": "STAT", "command": "COMMAND",
    "args": "COMMAND", "comm": "COMMAND", "ucomm": "UCOMM", "tt": "TT", "tty": "TTY",
    "time": "TIME", "etime": "ELAPSED", "etimes": "ELAPSED", "user": "USER", "uid": "UID",
    "pgid": "PGID", "rss": "RSS", "vsz": "VSZ", "jid": "JID", "lstart": "STARTED",
}  # fmt: skip
_LEFT = frozenset({"stat", "state", "command", "args", "comm", "ucomm", "user", "tt", "tty"})


def _value(process: Process, key: str, *, environment: bool) -> str:
    parent = process.parent
    orphan = parent is None or parent.status is not None
    values: dict[str, Callable[[], str]] = {
        "pid": lambda: str(process.pid),
        "ppid": lambda: "1" if orphan or parent is None else str(parent.pid),
        "pgid": lambda: str(process.pid),
        "stat": lambda: "Ss" if orphan else "S",
        "command": lambda: _command_line(process, environment=environment),
        "comm": lambda: process.command_name,
        "ucomm": lambda: process.command_name,
        "tt": lambda: process.tty,
        "tty": lambda: process.tty,
        "time": lambda: "0:00.01",
        "etime": lambda: _elapsed(process),
        "etimes": lambda: str(int(time.time() - process.started)),
        "user": lambda: "root",
        "lstart": lambda: time.strftime("%c", time.gmtime(process.started)),
    }
    known = {"args": "command", "state": "stat"}.get(key, key)
    return values.get(known, lambda: "0")()


def _elapsed(process: Process) -> str:
    minutes, seconds = divmod(int(time.time() - process.started), 60)
    return f"{minutes:02d}:{seconds:02d}"


def _command_line(process: Process, *, environment: bool) -> str:
    line = process.title or " ".join(process.arguments)
    if environment:
        line = " ".join([*(f"{k}={v}" for k, v in process.environment.items()), line])
    return line.replace("\n", "\\n")


def ps(process: Process) -> int:
    words = process.arguments[1:]
    if words and not words[0].startswith("-"):
        words[0] = f"-{words[0]}"
    process.arguments = [process.arguments[0], *words]
    found, rest = getopt(process, "acCdeGgHhjLlM:mN:O:o:p:rSTt:U:uvwXxZf", "usage: ps\n")
    option = dict(found)
    formats = [value for letter, value in found if letter == "o"]
    if not formats:
        formats = (
            ["user,pid,rss,tt,stat,time,command"] if "u" in option else ["pid,tt,stat,time,command"]
        )
    columns: list[tuple[str, str]] = []
    for text in formats:
        if "=" in text:
            # A heading of its own: it takes the rest of the word.
            *plain, titled = text.split(",") if text.endswith("=") else [text]
            columns += [(key, key) for key in plain]
            key, _, heading = titled.partition("=")
            columns.append((key, heading))
        else:
            columns += [(key, _HEADS.get(key, key.upper())) for key in text.split(",")]
    wanted = {
        int(each) for each in re.split(r"[ ,]", option.get("p", " ".join(rest))) if each.isdigit()
    }
    everything = sorted(process.system.processes.values(), key=lambda each: each.pid)
    shown = [each for each in everything if not wanted or each.pid in wanted]
    if not wanted and "a" not in option and "x" not in option and "A" not in option:
        shown = [each for each in shown if each.tty == process.tty]
    rows = [[_value(each, key, environment="e" in option) for key, _ in columns] for each in shown]
    headings = [heading for _, heading in columns]
    table = [headings, *rows] if any(headings) and "h" not in option else rows
    widths = [max([len(row[i]) for row in [headings, *rows]] or [0]) for i in range(len(columns))]
    for row in table:
        cells = [
            cell.ljust(width) if key in _LEFT else cell.rjust(width)
            for cell, width, (key, _) in zip(row, widths, columns, strict=True)
        ]
        if columns[-1][0] in _LEFT:
            cells[-1] = row[-1]
        process.out(" ".join(cells) + "\n")
    return 0 if rows or not wanted else 1


def _pid_in(process: Process, name: str) -> int:
    """The number at the start of a file, as takepid reads it (FreeBSD: bin/pkill/pkill.c)."""
    try:
        file = process.system.files.open(process, process.path(name), "r").reference()
    except SimError as error:
        process.complain(f"Cannot open pidfile `{name}': {error.text}")
        raise Exit(3) from None
    try:
        text = file.stream.read(process, 1024)
    finally:
        file.release()
    if not text:
        process.complain(f"Pidfile `{name}' is empty")
        raise Exit(3)
    number = re.match(rb"\s*(\d+)(?=\s|\Z)", text)  # a newline need not follow
    if number is None or not 5 <= int(number[1]) <= 99999:
        process.complain(f"Invalid pid in file `{name}'")
        raise Exit(3)
    return int(number[1])


def pgrep(process: Process) -> int:
    words = process.arguments[1:]
    number = SIGTERM
    if process.name == "pkill" and words and words[0].startswith("-"):
        name = words[0][1:].upper().removeprefix("SIG")
        if name.isdigit() or name in SIGNALS:  # else it is an option, as -F
            number = int(name) if name.isdigit() else SIGNALS[name]
            process.arguments = [process.arguments[0], *words[1:]]
    found, patterns = getopt(process, "F:G:M:N:P:SU:ac:d:fg:ij:lnoqs:t:u:vx")
    option = dict(found)
    only = _pid_in(process, option["F"]) if "F" in option else None
    hits = []
    for each in sorted(process.system.processes.values(), key=lambda each: each.pid):
        if each is process or only not in (None, each.pid):
            continue
        text = _command_line(each, environment=False) if "f" in option else each.command_name
        if "P" in option and (each.parent is None or str(each.parent.pid) != option["P"]):
            continue
        for pattern in patterns or [""]:
            hit = re.fullmatch(pattern, text) if "x" in option else re.search(pattern, text)
            if bool(hit) is ("v" not in option):
                hits.append(each)
                break
    for each in hits:
        if process.name == "pkill":
            each.signal(number)
        elif "q" not in option:
            line = _command_line(each, environment=False) if "f" in option else each.command_name
            process.out(f"{each.pid} {line}\n" if "l" in option else f"{each.pid}\n")
    return 0 if hits else 1


# Running others


def _run(process: Process, words: list[str]) -> int:
    """Run a command in this process's place."""
    body = Shell(process).find(words[0])
    process.arguments = words
    return body(process)


def env(process: Process) -> int:
    words = process.arguments[1:]
    if words[:1] == ["-i"]:
        process.environment.clear()
        words = words[1:]
    while words and "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        process.environment[name] = value
    if words:
        return _run(process, words)
    process.out("".join(f"{name}={value}\n" for name, value in process.environment.items()))
    return 0


def printenv(process: Process) -> int:
    names = process.arguments[1:]
    if not names:
        return env(process)
    if names[0] not in process.environment:
        return 1
    process.out(f"{process.environment[names[0]]}\n")
    return 0


def nohup(process: Process) -> int:
    process.ignored.add(1)
    return _run(process, process.arguments[1:])


def timeout(process: Process) -> int:
    found, words = getopt(process, "fk:ps:v")
    option = dict(found)
    name = option.get("s", "TERM").upper().removeprefix("SIG")
    number = int(name) if name.isdigit() else SIGNALS.get(name, SIGTERM)
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    seconds = float(words[0].rstrip("smhd")) * units.get(words[0][-1:], 1)
    child = process.child(words[1:])
    body = Shell(child).find(words[1])
    over = threading.Event()

    def expire() -> None:
        over.set()
        child.signal(number)

    timer = threading.Timer(seconds, expire)
    killer = threading.Timer(seconds + float(option.get("k", 0)), lambda: child.signal(SIGKILL))
    timer.daemon = killer.daemon = True
    timer.start()
    if "k" in option:
        killer.start()
    try:
        status = process.run_here(child, body)
    finally:
        timer.cancel()
        killer.cancel()
    return 124 if over.is_set() else status


def lockf(process: Process) -> int:
    """The lock is its own and goes with it; the command may outlive it."""
    usage = "usage: lockf [-kns] [-t seconds] file command [arguments]\n"
    found, words = getopt(process, "knst:", usage)
    option = dict(found)
    if len(words) < 2:
        process.err(usage)
        raise Exit(64)
    path = process.path(words[0])
    if not process.system.files.exists(path):
        process.system.files.write(path, b"", 0o644)
    seconds = float(option["t"]) if "t" in option else None
    if not process.system.lock(process, path, seconds):
        if "s" not in option:
            process.complain(f"{words[0]}: already locked")
        return 75
    child = process.child(words[1:])
    status = process.run_here(child, Shell(child).find(words[1]))
    if "k" not in option:
        process.system.files.remove(path)
    return status


def daemon(process: Process) -> int:
    found, words = getopt(process, "cfHP:p:rRSsl:m:o:t:T:u:")
    option = dict(found)
    files = process.files
    if "f" in option:
        null = process.system.files.open(process, "/dev/null", "r")
        files = {0: null, 1: null, 2: null}
    child = process.child(words, files)
    if "p" in option:
        process.system.files.write(process.path(option["p"]), f"{child.pid}".encode(), 0o600)
    process.run_beside(child, Shell(child).find(words[0]))
    return 0


def xargs(process: Process) -> int:
    found, words = getopt(process, "0oprtE:I:J:L:n:P:R:S:s:x")
    option = dict(found)
    text = process.read_all().decode("utf-8", "surrogateescape")
    items = [item for item in text.split("\0") if item] if "0" in option else text.split()
    words = words or ["echo"]
    status = 0
    step = int(option.get("n", len(items) or 1))
    groups = (
        [[item] for item in items]
        if "I" in option
        else [items[at : at + step] for at in range(0, len(items), step)]
    )
    for group in groups:
        line = (
            [word.replace(option["I"], group[0]) for word in words]
            if "I" in option
            else [*words, *group]
        )
        child = process.child(line)
        status |= process.run_here(child, Shell(child).find(line[0]))
    return 1 if status else 0


def sleep(process: Process) -> int:
    try:
        seconds = float(process.arguments[1].rstrip("s"))
    except (IndexError, ValueError):
        process.err("usage: sleep number[unit] [...]\n")
        return 1
    process.sleep(seconds)
    return 0


# The system


def date(process: Process) -> int:
    found, words = getopt(process, "Ijnr:uv:z:f:R")
    option = dict(found)
    moment = time.gmtime(float(option["r"])) if "r" in option else time.gmtime()
    form = words[0][1:] if words and words[0].startswith("+") else "%a %b %e %H:%M:%S UTC %Y"
    if words and not words[0].startswith("+"):
        return 0  # the clock is set: it is the one we run on
    process.out(time.strftime(form.replace("%N", f"{time.time_ns() % 10**9:09d}"), moment) + "\n")
    return 0


def hostname(process: Process) -> int:
    found, words = getopt(process, "fsd")
    if words:
        process.system.name = words[0]
        return 0
    short = ("s", "") in found
    process.out(f"{process.system.name.partition('.')[0] if short else process.system.name}\n")
    return 0


def identity(process: Process) -> int:
    """id(1)."""
    found, _ = getopt(process, "AGMPcgnpru")
    letters = {letter for letter, _ in found}
    if "u" in letters:
        process.out("root\n" if "n" in letters else "0\n")
    else:
        process.out("uid=0(root) gid=0(wheel) groups=0(wheel),5(operator)\n")
    return 0


def whoami(process: Process) -> int:
    process.out("root\n")
    return 0


def uptime(process: Process) -> int:
    up = int(time.time() - process.system.booted)
    days, seconds = divmod(up, 86400)
    hours, seconds = divmod(seconds, 3600)
    minutes = seconds // 60
    if days:
        text = f"up {days} day{'s' if days > 1 else ''}, {hours:2d}:{minutes:02d}"
    elif hours:
        text = f"up {hours:2d}:{minutes:02d}"
    elif minutes:
        text = f"up {minutes} min{'s' if minutes > 1 else ''}"
    else:
        text = f"up {seconds} secs"
    clock = time.strftime("%l:%M%p", time.gmtime())
    process.out(f"{clock}  {text}, 0 users, load averages: 0.10, 0.08, 0.03\n")
    return 0


def which(process: Process) -> int:
    from hil.simulated.builtins import where

    status = 0
    for name in process.arguments[1:]:
        path = where(process, name)
        if path:
            process.out(f"{path}\n")
        else:
            status = 1
    return status


def quiet(process: Process) -> int:
    """logger(1) and others of which nothing is to be seen."""
    return 0


# stty


def _stty_file(process: Process) -> tuple[Tty | None, list[str], OpenFile | None]:
    words = process.arguments[1:]
    opened = None
    if words[:1] == ["-f"]:
        path = process.path(words[1])
        words = words[2:]
        opened = process.system.files.open(process, path, "rwn").reference()
        return terminal(opened.stream), words, opened
    return terminal(process.file(0).stream), words, None


def stty(process: Process) -> int:
    try:
        tty, words, opened = _stty_file(process)
    except SimError as error:
        process.complain(f"{process.arguments[2]}: {error.text}")
        return 1
    try:
        if tty is None:
            process.complain("stdin isn't a terminal")
            return 1
        return _set_modes(process, tty, words)
    finally:
        if opened is not None:
            opened.release()


def _set_modes(process: Process, tty: Tty, words: list[str]) -> int:
    from dataclasses import fields, replace

    flags = {field.name for field in fields(tty.modes)}
    if not words or words == ["-a"]:
        shown = [name if getattr(tty.modes, name) else f"-{name}" for name in sorted(flags)]
        process.out(f"speed 9600 baud; 0 rows; 0 columns;\n{' '.join(shown)}\n")
        return 0
    values = iter(words)
    for word in values:
        name = word.removeprefix("-")
        if word == "raw":
            modes = tty.modes.raw()
        elif word in ("-raw", "cooked", "sane"):
            modes = tty.modes.sane()
        elif name in flags:
            modes = replace(tty.modes, **{name: not word.startswith("-")})
        elif name in ("speed", "rows", "cols", "columns", "min", "time"):
            next(values, None)
            continue
        elif name in _OTHER_MODES or word.isdigit():
            continue
        else:
            process.complain(f"illegal option -- {word}")
            return 1
        with tty.changed:
            tty.modes = modes
            tty.changed.notify_all()
    return 0


_OTHER_MODES = frozenset(
    {"echoe", "echok", "echoctl", "echoke", "echonl", "ixon", "ixoff", "ixany", "inlcr", "igncr"}
    | {"iexten", "crtscts", "cread", "parenb", "cs8", "hupcl", "onocr", "onlret", "ocrnl"}
    | {"tostop", "brkint", "inpck", "istrip"}
)

COMMANDS: Mapping[str, Command] = {
    "ps": ps, "pgrep": pgrep, "pkill": pgrep, "env": env, "printenv": printenv, "nohup": nohup,
    "timeout": timeout, "daemon": daemon, "xargs": xargs, "sleep": sleep, "date": date,
    "lockf": lockf,
    "hostname": hostname, "id": identity, "whoami": whoami, "uptime": uptime, "which": which,
    "logger": quiet, "wall": quiet, "stty": stty, "sh": sh,
}  # fmt: skip
