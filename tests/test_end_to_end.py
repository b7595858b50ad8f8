"""The whole way, as a user goes it: ``hil run`` on the emulated lab, then what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("lab")]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hil.cli", "run", "--report-dir", str(folder), "--labs", "1"]
    command += arguments
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def test_a_run_of_some_suites_leaves_a_report(tmp_path: Path) -> None:
    ended = run(tmp_path, "preflight", "dma", "--", "-k", "edu0 or PF1 or iommu")
    # Under nested software emulation a guest dies by itself now and then, or its host does: that
    # must be told as what it is (status 3 or 1), and is the only thing that may go wrong here.
    assert ended.returncode in (0, 1, 3), ended.stdout + ended.stderr
    assert "emulated (emulated: the hardware was QEMU's)" in ended.stdout
    folder = (tmp_path / "latest").resolve()
    assert str(folder / "report.html") in ended.stdout.replace("\n", "")
    outcomes = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    assert len(outcomes) > 10
    others = [outcome for outcome in outcomes if outcome["status"] != "passed"]
    for outcome in others:
        assert outcome["fault"] == "guest" or outcome["reason"].startswith("host host died: ")
    assert len(others) <= 1, others
    assert {outcome["provenance"] for outcome in outcomes} == {"emulated"}
    assert (folder / "junit.xml").stat().st_size > 1000
    results = list((folder / "allure-results").glob("*-result.json"))
    assert len(results) == len(outcomes)


def test_a_failing_oracle_fails_the_run(tmp_path: Path) -> None:
    test = tmp_path / "test_wrong.py"
    test.write_text(
        "import pytest\n"
        "from hil.oracles import preflight\n"
        "@pytest.mark.needs(device='edu')\n"
        "@pytest.mark.danger(0)\n"
        "def test_edu_has_a_reset(device):\n"
        "    preflight.check_reset(device.look())\n"
    )
    ended = run(tmp_path / "reports", str(test))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "no reset of its own" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_what_dies_is_replaced_and_without_kvm_a_dead_guests_test_is_repeated(
    tmp_path: Path,
) -> None:
    test = tmp_path / "test_dying.py"
    test.write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.danger(2)\n"
        "CRASH = 'echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger'\n"
        "DIED = []\n"
        "def test_a_host_that_dies(lab):\n"
        "    limit = lab.host.limit(60, 'the panic')\n"
        "    lab.host.platform.transport.run(['sh', '-c', CRASH], deadline=limit)\n"
        "def test_b_guest_that_dies_once(lab):\n"
        "    guest = lab.guests.shared(host=lab.host)\n"
        "    if not DIED:\n"
        "        DIED.append(1)\n"
        "        guest.run(['sh', '-c', CRASH], seconds=5)\n"
        "    assert guest.run(['true']).status == 0\n"
        "def test_c(lab):\n"
        "    assert lab.host.facts().kernel\n"
    )
    ended = run(tmp_path / "reports", str(test))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    folder = tmp_path / "reports" / "latest"
    attempts = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    for outcome in attempts:
        if "host_that_dies" in outcome["test"]:
            assert (outcome["status"], outcome["fault"]) == ("failed", "product")
            assert "Kernel panic" in outcome["reason"]
    environment = json.loads((folder / "environment.json").read_text())
    told = [(outcome["attempt"], outcome["status"]) for outcome in attempts]
    if environment["emulation: accelerator"].startswith("tcg"):
        assert told == [(1, "failed"), (1, "broken"), (2, "passed"), (1, "passed")]
        assert "Kernel panic" in attempts[2]["earlier"]
    else:
        assert told == [(1, "failed"), (1, "broken"), (1, "passed")]


def test_a_restart_of_the_host_s_ssh_server_ends_nothing(tmp_path: Path) -> None:
    test = tmp_path / "test_restart.py"
    test.write_text(
        "import pytest\n"
        "from hil.deadline import poll\n"
        "pytestmark = pytest.mark.danger(1)\n"
        "def server(lab):\n"
        "    limit = lab.host.limit(20, 'the SSH server')\n"
        "    command = ['sh', '-c', 'cat /run/sshd.pid 2>/dev/null; true']\n"
        "    done = lab.host.platform.transport.run(command, deadline=limit)\n"
        "    return done.check().stdout.strip()\n"
        "def test_a_restart(lab):\n"
        "    before = server(lab)\n"
        "    guest = lab.guests.shared(host=lab.host)\n"
        "    limit = lab.host.limit(20, 'another SSH server')\n"
        "    lab.host.platform.transport.run(['kill', before], deadline=limit).check()\n"
        "    poll(lambda: server(lab) not in ('', before), limit)\n"
        "    assert guest.run(['true']).status == 0\n"
        "def test_b_what_comes_after(lab):\n"
        "    assert lab.guests.fresh(host=lab.host).run(['true']).status == 0\n"
    )
    ended = run(tmp_path / "reports", str(test))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout
