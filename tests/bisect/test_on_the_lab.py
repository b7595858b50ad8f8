"""A bisection on the emulated lab: a kernel module that is built from each commit's source, real
kernels and VFIO, power cycles.

The module is what a vendor might ship: it sets quirks of PCI functions.  One commit of its
history takes the Function Level Reset from a network card, which then keeps its state.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil import cli
from hil.bisect.record import Record, Verdict
from hil.deadline import Deadline
from hil.emulated.machine import find_qemu
from hil.errors import LabError
from hil.lab import keeper
from tests.bisect import kernel
from tests.bisect.conftest import git

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("lab")]

MODULE = Path(__file__).parent / "module"
LAB = "bisect"
INVENTORY = """
[lab]
name = "rack"
kind = "emulated"
[hosts.host]
platform = "linux-vfio"
address = "127.0.0.1"
port = {state.ssh_port}
key_file = "{state.key_file}"
host_key = "{state.host_key}"
power = {{ driver = "kept", address = "{state.name}" }}
[devices.nic0]
kind = "nic"
host = "host"
functions = ["0000:01:00.0"]
match = {{ id = "8086:10c9" }}
capabilities = ["flr"]
"""


@pytest.fixture
def build() -> Iterator[tuple[Path, str]]:
    """The module's git tree, and the command that builds what is checked out in it."""
    if not find_qemu().has_igb:
        pytest.skip("this QEMU has no igb, the network card that the module has a quirk of")
    release = kernel.release()
    try:
        root = kernel.toolchain(release)
    except LabError as error:
        pytest.skip(f"no headers of the lab's kernel {release}: {error.message}; {error.hint}")
    tree = Path(tempfile.mkdtemp(prefix="module-", dir=root / "tmp"))
    try:
        git(tree, "init", "-q")
        git(tree, "am", "-q", *map(str, sorted(MODULE.glob("*.patch"))))
        make = [*kernel.within(root), "make", "-C", f"/usr/src/linux-headers-{release}"]
        yield tree, shlex.join([*make, f"M=/{tree.relative_to(root)}", "modules"])
    finally:
        shutil.rmtree(tree)


def bring_up(folder: Path) -> None:
    """A lab that is kept up, and its inventory."""
    state = keeper.start(LAB, Deadline(900, "the lab"), lambda text: None)
    (folder / "rack.toml").write_text(INVENTORY.format(state=state))


def test_the_commit_that_broke_a_reset_is_found(
    build: tuple[Path, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree, make = build
    commits = git(tree, "rev-list", "--reverse", "HEAD").split()
    # The scripts call hil.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    bring_up(tmp_path)
    try:
        status = cli.main(
            [
                *("bisect", "start", "reset", "--lab=rack.toml", f"--tree={tree}"),
                *(f"--good={commits[0]}", f"--bad={commits[-1]}"),
                f"--build={make} && {MODULE}/install.sh {LAB}",
                *(f"--check={MODULE}/check.sh {LAB}", "--"),
                *("-k", "sentinel_register_does_not_survive"),
            ]
        )
        if status == 4:
            # An emulated processor now and then misses its timer's interrupt, and its host
            # does not boot, or QEMU ends: what a person would do then, who is told to.
            keeper.stop(LAB, Deadline(60, "the end of the lab"))
            bring_up(tmp_path)
            status = cli.main(["bisect", "resume", f"--tree={tree}"])
    finally:
        keeper.stop(LAB, Deadline(60, "the end of the lab"))
    told = "".join(capfd.readouterr())
    assert status == 0, told
    assert "Reset the 82576 by D3hot, which is faster" in told
    assert "rebooting host" in told
    (folder,) = (tmp_path / "reports").iterdir()
    steps = {step.commit: step for step in Record(folder).steps}
    verdicts = {commits.index(name): step.verdict for name, step in steps.items()}
    assert verdicts[0] is verdicts[4] is Verdict.GOOD
    assert verdicts[5] is verdicts[7] is Verdict.BAD
    assert "its state survived the reset" in steps[commits[5]].reason
    # It does not build; git chooses it first, as the one in the middle.
    assert verdicts[3] is Verdict.SKIP
    assert re.search("error: .notifier. undeclared", steps[commits[3]].reason)
