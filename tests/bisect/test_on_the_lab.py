"""A bisection on the emulated lab: real kernels, VFIO and a guest, power cycles.

The commits differ by what they allow VFIO's module on the host to map for a guest.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hil import cli
from hil.bisect.record import Record, Verdict
from hil.deadline import Deadline
from hil.lab import keeper
from hil.lab.load import load
from tests.bisect.conftest import git

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("lab")]

INVENTORY = """
[lab]
name = "rack"
kind = "physical"
[hosts.host]
platform = "linux-vfio"
address = "127.0.0.1"
port = {port}
key_file = "{key_file}"
host_key = "{host_key}"
power = {{ driver = "kept", address = "bisect" }}
[devices.edu0]
kind = "edu"
host = "host"
functions = ["0000:04:00.0"]
match = {{ id = "1234:11e8" }}
[images.linux]
root = "{image.root}"
kernel = "{image.kernel}"
initrd = "{image.initrd}"
arguments = {arguments}
"""

#: How many mappings VFIO allows: with one, no guest's memory can be mapped for its device.
HISTORY = ("65535", "65534", "none", "65533", "1")
BUILD = "grep -qx '[0-9]*' dma_entry_limit"
# This host's disk is in its memory: what is to be there after a reboot is put there after it.
INSTALL = """
ssh -i "$HIL_KEY" -p "$HIL_PORT" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \\
    "$HIL_USER@$HIL_ADDRESS" \\
    "modprobe vfio_iommu_type1 && cd /sys/module/vfio_iommu_type1/parameters &&
     echo $(cat dma_entry_limit) > dma_entry_limit && cat dma_entry_limit"
"""


def test_the_commit_that_broke_passthrough_is_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "-q")
    commits = []
    for limit in HISTORY:
        (tree / "dma_entry_limit").write_text(f"{limit}\n")
        git(tree, "add", ".")
        git(tree, "commit", "-q", "-m", f"Allow {limit} mappings")
        commits.append(git(tree, "rev-parse", "HEAD"))
    state = keeper.start("bisect", Deadline(900, "the lab"), lambda text: None)
    try:
        image = load("emulated").images["linux"]
        inventory = INVENTORY.format(
            port=state.ssh_port,
            key_file=state.key_file,
            host_key=state.host_key,
            image=image,
            arguments=list(image.arguments),
        )
        (tmp_path / "rack.toml").write_text(inventory.replace("'", '"'))
        status = cli.main(
            [
                *("bisect", "start", "assignment", "--lab=rack.toml", f"--check={INSTALL}"),
                *(f"--tree={tree}", f"--good={commits[0]}", f"--bad={commits[-1]}"),
                *(f"--build={BUILD}", "--", "-k", "refuses_to_be_returned and edu0"),
            ]
        )
        if status == 4:
            # An emulated processor now and then misses its timer's interrupt, and its host
            # does not boot: what a person would do then, who is told to.
            status = cli.main(["bisect", "resume", f"--tree={tree}"])
    finally:
        keeper.stop("bisect", Deadline(60, "the end of the lab"))
    told = "".join(capfd.readouterr())
    assert status == 0, told
    assert "Allow 1 mappings" in told
    (folder,) = (tmp_path / "reports").iterdir()
    verdicts = {taken.commit: taken for taken in Record(folder).steps}
    assert "rebooting host" in told
    # "none" is no number: it does not build.
    assert verdicts[commits[2]].verdict is Verdict.SKIP
    assert verdicts[commits[3]].verdict is Verdict.GOOD
    assert verdicts[commits[4]].verdict is Verdict.BAD
