from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import hil
from hil import cli
from hil.errors import GuestError, HilError, InventoryError, LabError, ProductError
from hil.journal import LINUX
from hil.platforms.linux import LinuxVfio
from tests.inventories import HERE

pytestmark = pytest.mark.usefixtures("signals")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    places = replace(LINUX, leases=str(tmp_path / "leases"), journal=str(tmp_path / "journal"))
    monkeypatch.setattr(LinuxVfio, "dialect", places)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "here.toml").write_text(HERE)
    return tmp_path / "here.toml"


def test_alone_it_shows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([])
    text = "".join(capsys.readouterr())
    for command in ("run", "doctor", "devices", "lab", "report"):
        assert re.search(rf"\b{command}\b", text)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hil {hil.__version__}\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    assert cli.main(["frobnicate"]) == 2
    assert cli.main(["run", "--danger", "4"]) == 2


@pytest.mark.parametrize("error", [ProductError, GuestError, LabError, InventoryError])
def test_an_error_is_explained_and_is_the_exit_code(
    error: type[HilError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> None:
        raise error("it is wrong", seen="a\x1b[31mb [bold]", hint="mend it")

    monkeypatch.setattr("hil.lab.load.load", fail)
    assert cli.main(["doctor"]) == error.exit_code
    err = capsys.readouterr().err
    assert err.splitlines() == ["hil: it is wrong", "  seen:    ab [bold]", "  next:    mend it"]


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise LabError("it is wrong")

    monkeypatch.setattr("hil.lab.load.load", fail)
    with pytest.raises(LabError):
        cli.main(["--debug", "doctor"])
    assert cli.main(["doctor"]) == 4


def test_a_fault_of_hil_itself_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hil.lab.load.load", lambda _: 1 // 0)
    assert cli.main(["doctor"]) == 70
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "make room"), (errno.EACCES, "permissions")]
)
def test_what_this_machine_denies_is_no_fault_of_hil(
    number: int,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def denied(_: str) -> None:
        raise OSError(number, os.strerror(number), "/reports/run.json")

    monkeypatch.setattr("hil.lab.load.load", denied)
    assert cli.main(["doctor"]) == LabError.exit_code
    err = capsys.readouterr().err
    assert f"hil: /reports/run.json: {os.strerror(number)}" in err
    assert advice in err


def test_a_user_without_home_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hil.lab.load.load", lambda _: Path("~nobody-has-this-name").expanduser())
    assert cli.main(["doctor"]) == InventoryError.exit_code
    assert "set HOME" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_told_in_short(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", "x" * 5000]) == LabError.exit_code
    err = capsys.readouterr().err
    assert "File name too long" in err
    assert len(err) < 1000


def test_output_that_cannot_be_written_is_said_once(lab: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hil.cli", "image", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "HIL_CACHE": str(lab.parent)},
        )
    assert done.returncode == LabError.exit_code
    assert done.stderr.splitlines()[0].endswith("No space left on device")
    assert "Exception" not in done.stderr


def test_a_terminal_that_knows_few_letters_gets_the_others_as_question_marks(lab: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hil.cli", "doctor", "--help"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "TERM": "dumb"},
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_a_wrong_inventory_has_all_its_mistakes_shown(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.write_text(HERE.replace("platform", "platfrom").replace("physical", "real"))
    assert cli.main(["doctor", "--lab", str(lab)]) == 5
    err = capsys.readouterr().err
    assert "did you mean 'platform'?" in err
    assert "lab.kind: should be" in err


# ---- run ------------------------------------------------------------------------------


@pytest.fixture
def pytest_arguments(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen: list[list[str]] = []

    def run(arguments: list[str], plugins: object) -> int:
        seen.append(arguments)
        return 0

    monkeypatch.setattr(pytest, "main", run)
    return seen


def test_run_hands_its_options_to_the_plugin(lab: Path, pytest_arguments: list[list[str]]) -> None:
    options = ["--report-dir=r", "--danger=1", "--cycles=9", "--watch=60", "--wait=5"]
    ours = ["-k", "x or y", "--", "z"]
    code = cli.main(["run", "dma", f"--lab={lab}", *options, "reset", "--", *ours])
    assert code == 0
    suites = Path(hil.__file__).parents[1] / "suites"
    assert pytest_arguments == [
        [
            *(f"--hil-lab={lab}", "--hil-report=r", "--hil-danger=1", "--hil-wait=5.0"),
            *("--hil-cycles=9", "--hil-watch=60.0"),
            *("-k", "x or y", "--", "z"),
            *(str(suites / "dma"), str(suites / "reset")),
        ]
    ]


def test_run_alone_runs_all_suites_on_the_emulated_lab(
    pytest_arguments: list[list[str]],
) -> None:
    assert cli.main(["run"]) == 0
    assert "--hil-lab=emulated" in pytest_arguments[0]
    assert pytest_arguments[0][-1] == str(cli.run.suites_folder())


@pytest.mark.parametrize(
    ("processors", "options", "labs"), [(4, [], ["2"]), (1, [], []), (4, ["--labs=3"], ["3"])]
)
def test_simulated_labs_share_the_work(
    processors: int,
    options: list[str],
    labs: list[str],
    pytest_arguments: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    assert cli.main(["run", "--lab=freebsd-15-intel", *options]) == 0
    (words,) = pytest_arguments
    assert [words[at + 1] for at, word in enumerate(words) if word == "-n"] == labs


def test_a_physical_lab_is_there_once(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", f"--lab={lab}", "--labs=2"]) == 5
    assert "a lab that is physical is there once, not 2 times" in capsys.readouterr().err


def test_an_unknown_suite_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "rest"]) == 5
    err = capsys.readouterr().err
    assert "there is no suite 'rest'; did you mean 'reset'?" in err


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def test_it(): pass\n", 0),
        ("def test_it(): assert False\n", 1),
        ("def test_it(\n", 1),
        ("", 5),
    ],
)
def test_the_exit_code_of_a_run_of_ones_own_tests(lab: Path, text: str, code: int) -> None:
    (lab.parent / "test_own.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "hil.cli", "run", f"--lab={lab}", "test_own.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "which is physical" in done.stderr


def test_pytests_usage_error_is_one() -> None:
    assert cli.main(["run", "--", "--no-such-option"]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_cleans_up_and_says_so(lab: Path, number: signal.Signals) -> None:
    (lab.parent / "test_own.py").write_text(
        "import pytest, pathlib, threading\n"
        "@pytest.fixture\n"
        "def thing():\n"
        "    yield\n"
        "    pathlib.Path('cleaned').touch()\n"
        "def test_it(thing):\n"
        "    print('begun', flush=True)\n"
        "    threading.Event().wait(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "hil.cli", "run", f"--lab={lab}", "test_own.py", "--", "-s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "begun" in line:
                break
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(60) == 130, rest
    assert (lab.parent / "cleaned").exists()


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        (["product", "lab"], 1),
        (["test", "guest"], 1),
        (["guest", "lab"], 3),
        (["lab", "inventory", ""], 4),
        (["inventory"], 5),
        ([], 1),
    ],
)
def test_whose_fault_it_was_is_the_exit_code(tmp_path: Path, faults: list[str], code: int) -> None:
    from hil.reporting.outcome import Outcome, Status
    from hil.reporting.run import Run

    run = Run.create(tmp_path, "lab")
    for fault in faults:
        run.add(Outcome("t", Status.BROKEN, 0, "emulated", fault=fault))
    assert cli.run._by_fault(run.directory) == code


# ---- doctor, devices, report ------------------------------------------------------------


def test_doctor_prints_json_and_its_status_follows(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["doctor", "--json", "--lab", str(lab)])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["ok"] else 1)
    assert {check["where"] for check in report["checks"]} == {"this machine", "alpha"}
    bad = [c for c in report["checks"] if c["needed"] and c["state"] == "not found"]
    assert report["ok"] is not bool(bad)


def test_doctor_goes_on_where_a_host_does_not_answer(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = '[hosts.beta]\nplatform="linux-vfio"\naddress="127.0.0.1"\nkey_file="none"\n'
    more += '[hosts.gamma]\nplatform="freebsd-bhyve"\naddress="127.0.0.1"\nkey_file="none"\n'
    lab.write_text(HERE + more)
    assert cli.main(["doctor", "--lab", str(lab)]) == 1
    out = capsys.readouterr().out
    assert "vfio-pci" in out
    assert re.search(r"answers +not found", out)
    assert re.search(r"gamma\n +answers +not found", out)


def test_the_device_table_and_its_json(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.lab.test_check import config, function

    found = (function("03:00.0", config(serial=7)), function("04:00.0", in_use_as="root disk"))
    monkeypatch.setattr("hil.platforms.linux.LinuxVfio.functions", lambda *_: found)
    assert cli.main(["devices", "--lab", str(lab)]) == 0
    out = capsys.readouterr().out
    assert "alpha (physical)" in out
    assert re.search(r"0000:03:00.0 +8086:10c9 .* igb +1 +flr +flr msix", out)
    assert re.search(r"0000:04:00.0 .* root disk", out)
    assert "driver" in out
    found = (replace(found[0], driver=None), replace(found[1], driver=None))
    assert cli.main(["devices", "--lab", str(lab)]) == 0
    assert "driver" not in capsys.readouterr().out, "a column in which nothing stands"
    assert cli.main(["devices", "--json", "--lab", str(lab)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["serial"] for row in rows] == ["0000000000000007", None]


def test_no_word_of_the_device_table_is_broken_where_it_need_not_be(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.lab.test_check import function

    nic = function("03:00.0", in_use_as="management NIC")
    found = (replace(nic, driver="virtio_pci", group=None),)
    monkeypatch.setattr("hil.platforms.linux.LinuxVfio.functions", lambda *_: found)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["devices", "--lab", str(lab)]) == 0
    assert {"unclassified", "virtio_pci", "management"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("host_key", "options"),
    [
        ("ssh-ed25519 AAAA", ["KnownHostsCommand=/bin/echo %H ssh-ed25519 AAAA"]),
        (f"SHA256:{'A' * 43}", []),
        ("", []),
    ],
)
def test_ssh_expects_the_host_key_that_the_inventory_names(
    host_key: str, options: list[str], lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr("os.execvp", lambda _, words: started.extend(words))
    lab.write_text(HERE.replace('transport = "local"', f'address = "a"\nhost_key = "{host_key}"'))
    assert cli.main(["lab", "ssh", "--lab", str(lab), "--", "uname"]) == 0
    assert started[-5:] == ["-l", "root", "--", "a", "uname"]
    assert [word for word in started if word.startswith("KnownHosts")] == options
    assert ("StrictHostKeyChecking=yes" in started) == bool(options)


def test_a_reader_that_has_seen_enough_is_no_error(lab: Path) -> None:
    script = f"{sys.executable} -m hil.cli doctor --lab {lab} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [["bogus"], ["recorded-"], ["recorded-13.2"], ["freebsd-15-arm"], ["freebsd-15-intel", "x"]],
)
def test_a_simulated_host_that_there_is_not_is_the_users_mistake(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, *faults = words
    options = [word for fault in faults for word in ("--fault", fault)]
    assert cli.main(["lab", "up", "--simulated", name, *options]) == InventoryError.exit_code
    assert "hil: no " in capsys.readouterr().err


def test_report_of_no_run(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "none"]) == 5
    assert "not the folder of a run" in capsys.readouterr().err


def test_report_makes_the_page_of_a_run_anew(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hil.reporting.outcome import Outcome, Status
    from hil.reporting.run import Run

    run = Run.create(lab.parent / "reports", "lab")
    run.add(Outcome("a::b", Status.PASSED, 1.0, "emulated"))
    made: list[Path] = []
    monkeypatch.setattr("hil.reporting.html.generate", made.append)
    assert cli.main(["report"]) == 0
    assert made == [run.directory]
    assert "1 passed" in capsys.readouterr().out
    assert json.loads(run.summary.read_text())["counts"]["passed"] == 1


def test_the_command_is_quick_to_start() -> None:
    # What is heavy is imported by the command that needs it.
    code = "import sys, hil.cli; print([m for m in sys.modules if m in HEAVY])"
    code = code.replace("HEAVY", repr(["pydantic", "paramiko", "pytest", "rich.table", "pexpect"]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["ssh"], "hil lab up --simulated freebsd-13.2-amd, then: hil lab ssh --name freebsd-13_2"),
        (["power", "cycle"], "name a physical lab"),
    ],
)
def test_a_host_that_only_a_run_has_is_not_reached_by_hand(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lab", *words, "--lab", "freebsd-13.2-amd"]) == 5
    told = capsys.readouterr().err
    assert "is simulated: each run makes one for itself" in told
    assert hint in told
