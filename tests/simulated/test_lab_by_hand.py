"""``hil lab up --simulated``: a simulated host that outlives the command."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from hil.cli import main
from hil.deadline import Deadline, poll
from hil.lab import keeper
from hil.transport.ssh import SshTransport


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_up_ssh_and_down(capsys: pytest.CaptureFixture[str]) -> None:
    fault = "3-host-domain-while-idle"
    assert main(["lab", "up", "--simulated", "freebsd-13.2-amd", "--fault", fault]) == 0
    assert "the simulated lab freebsd-13_2-amd is up" in capsys.readouterr().out
    state = keeper.get("freebsd-13_2-amd")
    transport = SshTransport.connect(
        "simulated",
        "127.0.0.1",
        port=state.ssh_port,
        key_file=state.key_file,
        host_key=state.host_key,
        deadline=Deadline(60, "the simulated host"),
    )
    result = transport.run(["uname", "-r"], deadline=Deadline(60, "a command"))
    assert result.out == b"13.2-RELEASE\n"
    transport.close()
    assert main(["lab", "down", "--name", "freebsd-13_2-amd"]) == 0
    assert keeper.find("freebsd-13_2-amd") is None


def test_a_killed_keeper_leaves_no_process() -> None:
    assert main(["lab", "up", "--simulated", "freebsd-15-intel"]) == 0
    state = keeper.get("freebsd-15-intel")
    # The host is all in this one process.
    children = Path(f"/proc/{state.pid}/task/{state.pid}/children").read_text()
    assert children == ""
    os.kill(state.pid, signal.SIGKILL)
    poll(lambda: keeper.find("freebsd-15-intel") is None, Deadline(60, "the lab's end"))


def test_a_fault_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "up", "--simulated", "freebsd-15-intel", "--fault", "none"]) == 5
    assert "no fault 'none'" in capsys.readouterr().err
    assert main(["lab", "up", "--fault", "none"]) == 5


def test_the_doctor_examines_a_simulated_host(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--lab", "freebsd-15-intel", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["IOMMU in the firmware"]["state"] == "found"
    assert "answers" not in checks
