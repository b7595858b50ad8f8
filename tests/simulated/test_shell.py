"""The simulated machines' shell, against this machine's POSIX shell where both must agree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.simulated.commands import standard_commands
from hil.simulated.files import Files
from hil.simulated.grammar import ShellSyntaxError, parse
from hil.simulated.process import System
from tests.simulated.machine import Outcome, run

#: Scripts whose output every POSIX shell and tool must agree on; ⏎ is a newline.
SCRIPTS = r"""
echo hello world
a="x  y"; echo $a; echo "$a"; for i in $a; do echo "[$i]"; done
f() { echo "$1-$2-$#"; return 3; }; f a b; echo $?
echo a b c | cat | cat; echo $?; false | true; echo $?; true | false; echo $?
if false; then echo no; elif true; then echo yes; else echo other; fi
i=0; while [ $i -lt 5 ]; do i=$((i+1)); [ $i = 3 ] && continue; echo $i; done
case foo.txt in *.c) echo c;; *.txt|*.md) echo text;; esac
x=/a/b/c.tar.gz; echo ${x##*/} ${x%.*} ${x%%.*} ${x#*/} ${#x} ${y:-def} ${y:=set} $y ${x:+alt}
cat <<E⏎hi $a "q" \$x `echo bq`⏎E
cat <<'E' | cat⏎hi $HOME⏎E
echo one >f; echo two >>f; cat <f; exec 3<>f; read a <&3; echo "got $a"; read b <&3; echo $b
(exit 3); echo $?; { echo grp; } 2>&1; ! true; echo $?
set -- a "b c" d; for x; do echo "<$x>"; done; echo "$@"; echo "$*"; shift; echo $1 $#
trap 'echo bye' EXIT; echo x; exit 4
sleep 0 & p=$!; wait $p; echo done $?
set -e; false || echo ok; if false; then :; fi; false; echo notreached
echo "a b  c" | while read -r x y; do echo "$y|$x"; done
IFS=:; v=a:b::c; set -- $v; echo $#; echo "$3|$4"
echo $((1+2*3)) $((7/2)) $((-7/2)) $((-7%3)) $((1<<4|3)) $((5>3?10:20)) $((0x10))
x=5; echo $((x+=2)) $x $((x==7 && x!=8)) $((!x)) $(( (1+2) * 3 ))
sh -c 'echo $0 $1' hil arg; a=1 sh -c 'echo $a'; export b=2; sh -c 'echo $b'
test -e /nonexistent || echo no; [ a = a -a b = b ] && echo yes; [ ! -d /tmp ] || echo d
f() { local a=1; echo $a; }; a=2; f; echo $a
eval 'x=1; echo $x'; . /dev/null; echo $?
echo 'it'"'"'s' a\ b "c\"d" "\$x"
trap 'echo term; exit 7' TERM; kill -TERM $$; echo after
cd /tmp && pwd; cd /; pwd; echo "~" $(echo ~/x | sed s,.*/x,home,)
for f in a.x b.x c.y; do : > $f; done; echo *.x "*.x" no*match [ab].x ?.y
echo a; { echo err >&2; } 2>/dev/null; echo "x$(echo y; echo z)w"; false; echo $(true) $?
while :; do echo once; break; done; until true; do :; done; echo "${u-unset}" "${u+set}"
exec 3>&1; (echo x >&3) | cat; echo err 2>&1 >/dev/null
x=$(cat <<E⏎in⏎E⏎); echo $x
echo a |⏎cat &&⏎echo b ||⏎echo c
echo "$(echo "nested $(echo deep)")" "`echo \`echo old\``"
true & wait $!; echo $?; false & wait $!; echo $?
case "$1" in "") echo empty;; *) echo full;; esac; case 'a*' in 'a*') echo lit;; esac
for i in 1 2; do for j in a b; do [ $i$j = 1b ] && continue 2; echo $i$j; done; done
for i in 1 2; do false || continue; done; echo $?; for i in 1 2; do false || break; done; echo $?
i=0; while [ $i = 0 ]; do i=1; false || continue; done; echo $?; while false; do :; done; echo $?
while false || true; do false || break; done; echo $?
i=0; until [ $i = 1 ]; do i=1; false; done; echo $?
printf '%s=%d|%5s|%-5s|%x\n' k 12 ab cd 255; printf '%s\n' 1 2 3; printf 'a\tb\n'
printf 'a\nb\nc\n' | tail -2; printf 'a\nb\nc\n' | head -1; printf 'abc' | tail -c 2
printf 'one 1\ntwo 2\n' >f; grep -n t f; grep -c . f; grep -v o f; grep -E 'one|two' f; grep z f
printf 'one\nab xab' >f; grep -a -b -o -F -e ab f; grep -a -b -o -F -e no f; echo $?
printf 'one 1\ntwo 2\n' >f; sed 's/o/0/' f; sed -n '/two/p' f; sed '2d' f; sed -n '1,/two/p' f
printf 'ab 12\n' | sed -E 's/([a-z]+) ([0-9])/\2-\1/'; echo a/b | sed 's|/|-|'
echo "c b a" | tr ' ' '\n' | sort | uniq; echo abc | tr a-c A-C; echo 'a:b:c' | cut -d: -f2,3
printf 'hello world' | dd bs=4 count=2 status=none; echo; echo x | tee f; cat f
printf abcdef >f; printf XY | dd of=f bs=1 seek=1 conv=notrunc status=none; cat f
mkdir -p a/b; touch a/b/f; ls a a/b; cp a/b/f a/g; mv a/g a/h; ls a; rm -rf a; ls; echo $?
seq 1 3; basename /a/b.c .c; dirname /a/b/c; printf 'a b\n' | xargs -n1 echo
env A=1 sh -c 'echo $A'; timeout 30 sh -c 'exit 3'; echo $?; cmp -s f f; cmp f /dev/null; echo $?
"""


def machine() -> System:
    return System("host", standard_commands(), Files())


def simulated(script: str) -> Outcome:
    return run(machine(), f"mkdir -p /tmp/w; cd /tmp/w; {script}")


@pytest.mark.parametrize("script", SCRIPTS.strip().splitlines())
def test_it_does_as_this_machines_shell_does(script: str, tmp_path: Path) -> None:
    script = script.replace("⏎", "\n")
    here = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    found = simulated(script)
    assert (found.out.decode(), found.status) == (here.stdout.decode(), here.returncode)
    assert bool(found.err) is bool(here.stderr)


@pytest.mark.parametrize(
    ("script", "out", "err", "status"),
    [
        ("nosuch; echo $?", b"127\n", b"nosuch: not found\n", 0),
        ("if", b"", b"sh: Syntax error: end of file unexpected\n", 2),
        ("echo 'x", b"", b"sh: Syntax error: Unterminated quoted string\n", 2),
        ("set -u; echo $z; echo no", b"", b"sh: z: parameter not set\n", 2),
        ("cat < /none; echo $?", b"2\n", b"sh: cannot open /none: No such file or directory\n", 0),
        ("sh -c 'kill -9 $$'; echo $?", b"137\n", b"Killed\n", 0),
        ("sleep 100 & kill $!; wait $!; echo $?", b"143\n", b"", 0),
        ("(sleep 100) & kill -9 $!; wait; echo over", b"over\n", b"", 0),
        ("echo 'a\\nb'", b"a\\nb\n", b"", 0),
    ],
)
def test_what_freebsds_shell_says(script: str, out: bytes, err: bytes, status: int) -> None:
    assert simulated(script) == Outcome(status, out, err)


def test_a_signal_reaches_the_command_that_took_the_shells_place() -> None:
    # $! is the command itself: a kill of it leaves no sleep behind.
    system = machine()
    found = run(system, "sleep 1000 & [ $(pgrep -x sleep) = $! ] && echo same; kill $!; wait")
    assert found.out == b"same\n"
    assert not [each for each in system.processes.values() if each.name == "sleep"]


def test_a_trap_ends_a_wait() -> None:
    script = "trap 'echo got; kill $p' TERM; sleep 1000 & p=$!; (kill -TERM $$) & wait $p; echo $?"
    found = simulated(script)
    assert found.out == b"got\n143\n"


def test_nothing_is_left_of_a_pipeline_whose_reader_ends() -> None:
    system = machine()
    found = run(system, "while :; do echo y; done | head -2")
    assert found.out == b"y\ny\n"
    assert system.processes == {}


def test_a_script_on_standard_input_shares_it_with_its_commands() -> None:
    found = run(machine(), "sh -s a", stdin=b"read x\nvalue\necho $x $1\n")
    assert found.out == b"value a\n"


@given(st.text(alphabet="ab$(){}[]'\"`\\|&;<>#! \n=*?~-0123", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_commands_or_a_syntax_error(text: str) -> None:
    try:
        parse(text)
    except ShellSyntaxError as error:
        message = str(error)
    else:
        return
    assert message.startswith("Syntax error: ")
