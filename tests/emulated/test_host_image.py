"""The user's FreeBSD as the emulated lab's host: all that can be said of it without booting it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from hil import cli
from hil.console.console import Console
from hil.deadline import Deadline
from hil.emulated import accel, host_cpu, host_image, images, machine
from hil.emulated.accel import Accelerator
from hil.emulated.host_image import FreebsdLab, Plan
from hil.emulated.image_store import Disk, inspect
from hil.errors import DeadlineExceeded, GuestError, InventoryError, LabError
from hil.lab import keeper, live
from hil.lab.load import load
from hil.transport import keys
from hil.transport.local import LocalTransport
from tests.console.streams import PtyStream, ScriptedStream
from tests.emulated.test_host_cpu import AMD, AMD_ON, INTEL, INTEL_ON

RECORDED = Path(__file__).parents[1] / "recorded/freebsd-13.2/host-boot.console.log"
MIB = 1 << 20
Fake = Callable[[str, str], None]

needs_qemu_img = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is not installed"
)


def limit(seconds: float = 60) -> Deadline:
    return Deadline(seconds, "the test")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HIL_QEMU", raising=False)
    monkeypatch.delenv("HIL_QEMU_ARGS", raising=False)
    machine.find_qemu.cache_clear()
    yield
    machine.find_qemu.cache_clear()


@pytest.fixture
def image(tmp_path: Path) -> Disk:
    """A raw disk of 5 MiB and a bit, each MiB of another content."""
    data = bytearray(b"".join(bytes([65 + n]) * MIB for n in range(5)) + b"z" * 1536)
    data[510:512] = b"\x55\xaa"
    path = tmp_path / "FreeBSD-15.raw"
    path.write_bytes(data)
    return inspect(path)


def plan(disk: Disk, *, accelerator: str = "kvm", amd: bool = False, iommu: bool = True) -> Plan:
    qemu = machine.Qemu("/usr/bin/qemu-system-x86_64", (10, 0), "QEMU 10.0")
    return Plan(qemu, Accelerator(accelerator, ""), amd, disk, disk, iommu)


def words(plan: Plan) -> str:
    return " ".join(plan.command("console", "monitor", Path("/run/x")))


class TestTheMachine:
    def test_the_iommu_is_of_the_processors_vendor(self, image: Disk) -> None:
        assert "intel-iommu,intremap=on,caching-mode=off" in words(plan(image))
        assert "amd-iommu,pt=off" in words(plan(image, amd=True))
        for amd in (False, True):
            assert "-iommu" not in words(plan(image, amd=amd, iommu=False))

    def test_devices_are_behind_the_same_ports(self, image: Disk) -> None:
        text = words(plan(image))
        for index, name in enumerate(machine.PORTS):
            place = f"{0x10 + index // 8:#x}.{index % 8}"
            assert f"pcie-root-port,id=port-{name},chassis={index + 1},addr={place}," in text
            assert re.search(rf"id={name},bus=port-{name}\b", text)

    def test_an_old_amd_vi_gets_its_devices_once_buses_have_numbers(self, image: Disk) -> None:
        def new(old: Plan) -> Plan:
            return replace(old, qemu=replace(old.qemu, version=(10, 2)))

        late = [plan(image, amd=True)]
        for each in (*late, plan(image), plan(image, amd=True, iommu=False), new(late[0])):
            assert each.plugs_late is (each in late)
            assert ("-device edu,id=edu0" not in words(each)) is (each in late)
            assert "edu,id=edu0,bus=port-edu0" in each.devices

    def test_when_buses_have_numbers(self) -> None:
        def bridge(number: int) -> dict[str, object]:
            return {"pci_bridge": {"bus": {"number": 0, "secondary": number}}}

        for numbers, done in (((), False), ((0, 0), False), ((1, 0), False), ((1, 2), True)):
            told = [{"bus": 0, "devices": [{"slot": 0}, *map(bridge, numbers)]}]
            assert host_image._numbered(told) is done

    def test_the_users_image_is_not_written(self, image: Disk) -> None:
        blocks = [word for word in plan(image).command("c", "m", Path("/run/x")) if "{" in word]
        (users,) = (json.loads(word) for word in blocks if str(image.path) in word)
        assert users["read-only"] is users["file"]["read-only"] is True
        assert users["file"]["file"]["read-only"] is True

    def test_arguments_of_the_user_come_last(
        self, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HIL_QEMU_ARGS", "-m 4096 -name 'a b'")
        command = plan(image).command("c", "m", Path("/run/x"))
        assert command[-4:] == ["-m", "4096", "-name", "a b"]

    def test_a_quote_without_end(self, image: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HIL_QEMU_ARGS", "-name 'a")
        with pytest.raises(InventoryError, match="HIL_QEMU_ARGS cannot be split"):
            plan(image).command("c", "m", Path("/run/x"))

    def test_another_qemu(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        own = tmp_path / "own-qemu"
        own.write_text("#!/bin/sh\necho 'QEMU emulator version 10.2.50'\n")
        own.chmod(0o755)
        monkeypatch.setenv("HIL_QEMU", str(own))
        assert machine.find_qemu() == machine.Qemu(
            str(own), (10, 2), "QEMU emulator version 10.2.50"
        )

    def test_no_such_qemu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HIL_QEMU", "/nowhere/qemu")
        with pytest.raises(InventoryError, match="/nowhere/qemu is no program"):
            machine.find_qemu()

    def test_whatever_shapes_it_is_in_its_key(self, image: Disk) -> None:
        plans = [plan(image), plan(image, amd=True), plan(image, iommu=False)]
        assert len({each.key() for each in plans}) == 3
        before = plan(image).key()
        os.utime(image.path, (0, 0))
        assert plan(image).key() != before

    @needs_qemu_img
    @pytest.mark.parametrize("amd", [False, True])
    def test_qemu_takes_it(self, image: Disk, tmp_path: Path, amd: bool) -> None:
        """Stopped: it runs no instruction."""
        qemu = machine.find_qemu()
        if not qemu.has_igb:
            pytest.skip(f"{qemu.words} has no igb")
        lab = bare(tmp_path, plan(image, amd=amd, accelerator="tcg"))
        lab._make_disks(host_image._qemu_img(qemu))
        (lab._folder / "nvme.img").touch()
        os.truncate(lab._folder / "nvme.img", MIB)
        command = lab._plan.command("null,id=console", "stdio,id=monitor", lab._folder)
        command.append("-S")
        command[0] = qemu.path
        late = lab._plan.devices if lab._plan.plugs_late else ()
        assert bool(late) is amd
        say = [
            {"execute": "qmp_capabilities"},
            *(human(f"device_add {device}") for device in late),
            {"execute": "query-block"},
            {"execute": "quit"},
        ]
        talk = b"".join(json.dumps(line).encode() + b"\n" for line in say)
        done = subprocess.run(command, input=talk, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert not [a for a in answers if isinstance(a.get("return"), str) and a["return"]]
        shown = next(a["return"] for a in answers if isinstance(a.get("return"), list))
        sizes = {
            block["inserted"]["node-name"]: block["inserted"]["image"]["virtual-size"]
            for block in shown
        }
        assert sizes["root"] == image.size
        assert sizes["guest"] == 3 * MIB
        assert {"pool", "seed", "nvme"} <= set(sizes)


def human(line: str) -> dict[str, object]:
    return {"execute": "human-monitor-command", "arguments": {"command-line": line}}


def bare(tmp_path: Path, made: Plan) -> FreebsdLab:
    """A lab without a machine."""
    folder = tmp_path / "lab"
    folder.mkdir()
    return FreebsdLab(made, folder, machine.new_keys(folder))


@needs_qemu_img
class TestTheDisks:
    @pytest.mark.parametrize("form", ["raw", "qcow2"])
    def test_ends_and_middle_are_the_whole(self, image: Disk, tmp_path: Path, form: str) -> None:
        disk = image
        if form == "qcow2":
            path = tmp_path / "a,b.qcow2"
            convert = ["qemu-img", "convert", "-O", "qcow2", str(image.path), str(path)]
            subprocess.run(convert, check=True)
            disk = inspect(path)
        lab = bare(tmp_path, plan(disk))
        node = json.loads(host_image._middle(disk))
        del node["node-name"]
        middle = tmp_path / "middle"
        read = ["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(node)}", str(middle)]
        subprocess.run(read, check=True)
        whole = disk.size // MIB
        head = lab._cut("qemu-img", 0, MIB)
        tail = lab._cut("qemu-img", (whole - 1) * MIB, disk.size - (whole - 1) * MIB)
        assert head + middle.read_bytes() + tail == image.path.read_bytes()

    def test_no_partition_table_in_the_middle(self, image: Disk) -> None:
        node = json.loads(host_image._middle(image))
        assert node["offset"] >= 34 * 512, "the table, and what GPT has behind it"
        assert image.size - node["offset"] - node["size"] >= 33 * 512, "its copy"

    def test_too_small(self, tmp_path: Path) -> None:
        with pytest.raises(InventoryError, match="too small"):
            host_image._middle(Disk(tmp_path / "x", "raw", 2 * MIB))

    def test_overlay_and_seed(self, image: Disk, tmp_path: Path) -> None:
        before = image.path.read_bytes()
        lab = bare(tmp_path, plan(image))
        lab._make_disks("qemu-img")
        show = ["qemu-img", "info", "--output=json", str(lab._folder / "root.qcow2")]
        told = json.loads(subprocess.run(show, check=True, capture_output=True).stdout)
        assert told["backing-filename"] == str(image.path)
        assert told["backing-filename-format"] == "raw"
        assert image.path.read_bytes() == before
        assert (lab._folder / "pool.img").stat().st_blocks < 100

    def test_the_seed_is_a_file_system_called_cidata(self, image: Disk, tmp_path: Path) -> None:
        """What FreeBSD looks for: sys/geom/label/g_label_msdosfs.c, libexec/rc/rc.d/nuageinit."""
        lab = bare(tmp_path, plan(image))
        lab._make_disks("qemu-img")
        command = lab._plan.command("c", "m", lab._folder)
        node = next(json.loads(word) for word in command if "vvfat" in word)
        del node["node-name"]
        path = tmp_path / "seed.img"
        read = ["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(node)}", str(path)]
        subprocess.run(read, check=True)
        sector = path.read_bytes()[:512]
        assert sector[510:] == b"\x55\xaa"
        assert struct.unpack_from("<H", sector, 22)[0] > 0, "sectors of a FAT: FAT12 or 16"
        assert sector[43:54].rstrip() == b"cidata"
        assert sector[54:57] == b"FAT"
        assert b"b64decode -r | sh" in path.read_bytes()

    def test_a_full_disk_is_told_before(
        self, image: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(host_image, "_SPACE", 1 << 60)
        with pytest.raises(LabError, match="GiB of free disk") as error:
            bare(tmp_path, plan(image))._make_disks("qemu-img")
        assert "HIL_CACHE" in error.value.hint

    def test_a_tool_that_fails(self, tmp_path: Path) -> None:
        lab = bare(tmp_path, plan(Disk(tmp_path / "gone", "raw", 8 * MIB)))
        with pytest.raises(LabError, match="qemu-img create failed") as error:
            lab._make_disks("qemu-img")
        assert "gone" in error.value.seen


class TestWhatCanRunBhyve:
    """Told before the boot."""

    @pytest.fixture(autouse=True)
    def _no_images(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "build", lambda *_: None)

    def here(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        cpuinfo: str = AMD,
        parameters: dict[str, str] = AMD_ON,
        device: str = "/dev/null",
        trial: str = "kvm",
        nrip: bool = False,
    ) -> tuple[Accelerator, bool]:
        monkeypatch.setattr(host_cpu, "cpuinfo", lambda: cpuinfo)
        monkeypatch.setattr(host_cpu, "parameters", lambda: parameters)
        monkeypatch.setattr(accel, "DEVICE", Path(device))
        monkeypatch.setattr(accel, "choose", lambda *_: Accelerator(trial, "tried"))
        monkeypatch.setattr(host_image, "_emulates_all", lambda _: nrip)
        return host_image.choose(machine.Qemu("qemu", (10, 0), "QEMU"), lambda _: None)

    def test_kvm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.here(monkeypatch) == (Accelerator("kvm", "tried"), True)
        intel = self.here(monkeypatch, cpuinfo=INTEL, parameters=INTEL_ON)
        assert intel == (Accelerator("kvm", "tried"), False)

    @pytest.mark.parametrize(
        ("option", "value", "reason"),
        [
            ("parameters", {"kvm_amd/nested": "0"}, "does not give its machines virtualization"),
            ("cpuinfo", AMD.replace("nrip_save", ""), "NRIP save"),
            ("device", "/nowhere/kvm", "there is no /dev/kvm"),
            ("trial", "tcg", "needs KVM under its host: tried"),
        ],
    )
    def test_why_not(
        self, monkeypatch: pytest.MonkeyPatch, option: str, value: object, reason: str
    ) -> None:
        with pytest.raises(LabError, match="bhyve cannot run") as error:
            self.here(monkeypatch, **{option: value})  # type: ignore[arg-type]
        assert reason in error.value.message
        assert error.value.hint

    def test_a_qemu_that_emulates_it_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        accelerator, amd = self.here(monkeypatch, device="/nowhere/kvm", nrip=True)
        assert (accelerator.name, amd) == ("tcg", True)
        assert "there is no /dev/kvm" in accelerator.reason

    @pytest.mark.parametrize("status", [0, 1])
    def test_qemu_is_asked_what_it_emulates(self, fake: Fake, status: int) -> None:
        script = f'case "$*" in *nrip-save,enforce*-S*) exit {status} ;; esac; exit 9'
        fake("qemu-system-x86_64", script)
        path = shutil.which("qemu-system-x86_64")
        assert path is not None
        assert host_image._emulates_all(machine.Qemu(path, (10, 0), "")) is (status == 0)


#: A machine whose getty wants a name, and for some a password.
GETTY = r"""
printf 'Booting [/boot/kernel/kernel]...\nem0: flags=8843<UP,BROADCAST>\n\n'
while :; do
    printf 'FreeBSD/amd64 (freebsd) (ttyu0)\n\nlogin: '
    read -r user || exit
    [ -n "$user" ] || continue
    if [ -n "$1" ]; then
        printf 'Password:'; read -r word; printf '\nLogin incorrect\n'; continue
    fi
    PS1='root@freebsd:~ # ' exec sh -i
done
"""


class _Ssh:
    """Stands for the connection: refuses as often as it is told to."""

    def __init__(self, refusals: int) -> None:
        self.refusals, self.tries = refusals, 0

    def __call__(self, deadline: Deadline) -> None:
        self.tries += 1
        if self.tries <= self.refusals:
            raise LabError("nothing answers")


class TestLettingIn:
    def lab(
        self,
        tmp_path: Path,
        image: Disk,
        monkeypatch: pytest.MonkeyPatch,
        stream: PtyStream | ScriptedStream,
        *,
        refusals: int = 0,
    ) -> tuple[FreebsdLab, _Ssh]:
        lab = bare(tmp_path, plan(image))
        lab.console = Console("the lab host", stream)
        ssh = _Ssh(refusals)
        monkeypatch.setattr(lab, "ssh", ssh)
        monkeypatch.setattr(lab, "_script", lambda: f"echo in >{tmp_path}/let-in")
        monkeypatch.setattr(host_image, "_QUIET", 0.2)
        return lab, ssh

    def getty(self, *arguments: str) -> PtyStream:
        return PtyStream(["sh", "-c", GETTY, "getty", *arguments])

    def test_by_the_console(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lab, ssh = self.lab(tmp_path, image, monkeypatch, self.getty())
        monkeypatch.setattr(host_image, "_QUIET", 60)
        with closing(lab.console):
            lab._let_in(limit())
        assert (tmp_path / "let-in").read_text() == "in\n"
        assert ssh.tries == 1

    def test_a_script_that_fails(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lab, _ = self.lab(tmp_path, image, monkeypatch, self.getty())
        monkeypatch.setattr(lab, "_script", lambda: "echo no interface >&2; exit 3")
        with closing(lab.console), pytest.raises(LabError, match="status 3") as error:
            lab._let_in(limit())
        assert "no interface" in error.value.seen

    def test_by_the_seed_where_root_has_a_password(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lab, ssh = self.lab(tmp_path, image, monkeypatch, self.getty("secret"))
        with closing(lab.console):
            lab._let_in(limit())
        assert ssh.tries >= 1
        assert not (tmp_path / "let-in").exists()

    def test_nobody_lets_us_in(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = self.getty("secret")
        lab, _ = self.lab(tmp_path, image, monkeypatch, stream, refusals=99)
        refused = pytest.raises(InventoryError, match="does not let us in")
        with closing(lab.console), refused as error:
            lab._let_in(limit())
        assert "BASIC-CI" in error.value.hint
        assert any("Password" in line for line in error.value.console)

    def test_by_the_seed_where_the_console_is_silent(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lab, ssh = self.lab(tmp_path, image, monkeypatch, ScriptedStream(), refusals=2)
        with closing(lab.console):
            lab._let_in(limit())
        assert ssh.tries == 4

    def test_nothing_at_all(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = ScriptedStream([b"Consoles: EFI console\r\n"])
        lab, _ = self.lab(tmp_path, image, monkeypatch, stream, refusals=99)
        with closing(lab.console), pytest.raises(DeadlineExceeded) as error:
            lab._let_in(limit(2))
        assert "comconsole" in error.value.hint
        assert "EFI console" in error.value.seen

    @pytest.mark.parametrize(
        "last", [b"\r\nmountroot> ", b"Enter full pathname of shell or RETURN for /bin/sh: "]
    )
    def test_a_system_that_stops_half_way(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch, last: bytes
    ) -> None:
        lab, _ = self.lab(
            tmp_path, image, monkeypatch, ScriptedStream([b"Trying to mount root\r\n", last])
        )
        monkeypatch.setattr(host_image, "_QUIET", 60)
        with closing(lab.console), pytest.raises(LabError, match="does not find its system"):
            lab._let_in(limit())

    def test_a_panic(self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = ScriptedStream([b"panic: vtd_init: invalid caching mode\r\n"])
        lab, _ = self.lab(tmp_path, image, monkeypatch, stream)
        with closing(lab.console), pytest.raises(GuestError, match="invalid caching mode"):
            lab._let_in(limit())

    def test_a_recorded_boot_has_one_prompt(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorded = RECORDED.read_bytes()
        pieces = [recorded[at : at + 97] for at in range(0, len(recorded), 97)]
        lab, ssh = self.lab(tmp_path, image, monkeypatch, ScriptedStream(pieces))
        monkeypatch.setattr(host_image, "_QUIET", 60)
        with closing(lab.console):
            assert lab._prompted(limit())
            assert lab.console.log.text().rstrip().endswith("login:"), "the last of all"
        assert ssh.tries == 0


class _Monitor:
    """QEMU's, of a machine whose firmware numbers the buses at the third question."""

    def __init__(self, said: str = "") -> None:
        self.said = said
        self.asked: list[str] = []

    def execute(self, command: str, _: Deadline) -> list[dict[str, object]]:
        self.asked.append(command)
        number = int(self.asked.count("query-pci") >= 3)
        return [{"bus": 0, "devices": [{"pci_bridge": {"bus": {"secondary": number}}}]}]

    def human(self, line: str, _: Deadline) -> str:
        self.asked.append(" ".join(line.split(",")[:2]))
        return self.said


class _Process:
    def __init__(self, monitor: _Monitor) -> None:
        self.monitor = monitor


class TestStartingOver:
    def lab(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch, monitor: _Monitor
    ) -> FreebsdLab:
        lab = bare(tmp_path, plan(image, amd=True))
        monkeypatch.setattr(lab, "_process", _Process(monitor), raising=False)
        return lab

    def test_devices_come_once_buses_have_numbers(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monitor = _Monitor()
        self.lab(tmp_path, image, monkeypatch, monitor)._plug_late(limit())
        assert monitor.asked == [
            *["query-pci"] * 3,
            "stop",
            "device_add igb id=nic0",
            "device_add igb id=peer0",
            "device_add e1000e id=nic1",
            "device_add bochs-display id=vram0",
            "device_add nvme id=nvme0",
            "device_add edu id=edu0",
            "device_add edu id=edu1",
            "system_reset",
            "cont",
        ]

    def test_a_device_that_qemu_does_not_take(
        self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lab = self.lab(tmp_path, image, monkeypatch, _Monitor("Error: no such bus\r\n"))
        with pytest.raises(LabError, match="does not take the device igb") as error:
            lab._plug_late(limit())
        assert error.value.seen == "Error: no such bus"

    def test_power(self, tmp_path: Path, image: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        monitor, ssh = _Monitor(), _Ssh(0)
        lab = self.lab(tmp_path, image, monkeypatch, monitor)
        lab.console = Console("the lab host", ScriptedStream([b"panic: for a test\r\n"]))
        monkeypatch.setattr(lab, "ssh", ssh)
        with closing(lab.console):
            with pytest.raises(GuestError):
                lab.console.expect("never", limit())
            lab.power_cycle(limit())
            assert lab.panic == ""
        assert monitor.asked == ["system_reset", "cont"]
        assert ssh.tries == 1


class TestTheScript:
    """Run by a real shell, in a folder, with stand-ins for FreeBSD's tools."""

    @pytest.fixture
    def run(self, tmp_path: Path, fake: Fake) -> Callable[[str], subprocess.CompletedProcess[str]]:
        interfaces = f"""case $1 in
            -l) echo em0 vtnet0 lo0 ;;
            vtnet0) [ $# -gt 1 ] || echo 'ether {host_image.MAC}' ;;
            esac"""
        for name, script in {
            "ifconfig": interfaces,
            "kldstat": "exit 1",
            "pkill": "exit 1",
            "pw": "exit 0",
            "sysrc": "echo no such variable >&2; exit 1",
            "sockstat": f"[ ! -e {tmp_path}/running ] || echo 'root sshd 1 tcp4 *:2222'",
            "b64decode": "exec base64 -d",
            "kenv": "echo loud",
            "sshd": f"touch {tmp_path}/running",
        }.items():
            fake(name, f'echo "{name} $*" >>{tmp_path}/calls\n{script}')

        def run(script: str) -> subprocess.CompletedProcess[str]:
            for place in ("/root/.hil", "/etc/rc.local"):
                script = script.replace(place, f"{tmp_path}/{place.rpartition('/')[2]}")
            script = script.replace("/usr/sbin/sshd", f"{tmp_path}/bin/sshd")
            return subprocess.run(
                ["sh"], input=script, capture_output=True, check=False, text=True, timeout=60
            )

        return run

    @pytest.fixture
    def script(self) -> str:
        return host_image.let_in_script("ssh-ed25519 AAAA 'it''s'", "-----BEGIN\nab%s\\n\n-----\n")

    def test_it_starts_a_server_with_our_keys(
        self,
        run: Callable[[str], subprocess.CompletedProcess[str]],
        tmp_path: Path,
        script: str,
    ) -> None:
        done = run(script)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        folder = tmp_path / ".hil"
        assert (folder / "authorized_keys").read_text() == "ssh-ed25519 AAAA 'it''s'\n"
        assert (folder / "host_key").read_text() == "-----BEGIN\nab%s\\n\n-----\n"
        assert (folder / "host_key").stat().st_mode & 0o777 == 0o600
        calls = (tmp_path / "calls").read_text().splitlines()
        assert "kenv hw.vmm.amdvi.enable=1" in calls, "bhyve leaves AMD's IOMMU off otherwise"
        assert f"ifconfig vtnet0 inet {host_image.ADDRESS} up" in calls
        assert "pw usermod root -s /bin/sh" in calls, "before FreeBSD 14 it is csh"
        server = next(call for call in calls if call.startswith("sshd "))
        assert f"-p {host_image.SSH_PORT} -h {folder}/host_key" in server

    def test_twice_is_as_once(
        self,
        run: Callable[[str], subprocess.CompletedProcess[str]],
        tmp_path: Path,
        script: str,
    ) -> None:
        for _ in range(2):
            assert run(script).returncode == 0
        assert (tmp_path / "rc.local").read_text() == f"sh {tmp_path}/.hil/start\n"
        calls = (tmp_path / "calls").read_text().splitlines()
        assert len([call for call in calls if call.startswith("sshd ")]) == 1

    def test_the_next_boot_starts_it_again(
        self,
        run: Callable[[str], subprocess.CompletedProcess[str]],
        tmp_path: Path,
        script: str,
    ) -> None:
        run(script)
        (tmp_path / "running").unlink()
        (tmp_path / "calls").unlink()
        subprocess.run(["sh", str(tmp_path / "rc.local")], check=True)
        assert "sshd -f /dev/null" in (tmp_path / "calls").read_text()

    def test_no_network_card(
        self,
        run: Callable[[str], subprocess.CompletedProcess[str]],
        tmp_path: Path,
        script: str,
        fake: Fake,
    ) -> None:
        (tmp_path / "bin/ifconfig").write_text("#!/bin/sh\necho lo0\n")
        done = run(script)
        assert done.returncode == 1
        assert f"no interface has {host_image.MAC}" in done.stderr

    def test_the_seed_runs_it(
        self,
        run: Callable[[str], subprocess.CompletedProcess[str]],
        tmp_path: Path,
    ) -> None:
        assert run(host_image.user_data(f"echo 'a b' >{tmp_path}/ran\n")).returncode == 0
        assert (tmp_path / "ran").read_text() == "a b\n"

    def test_the_seed_is_yaml_too(self, script: str) -> None:
        """A comment, and one plain scalar on one line: no ``: ``, no `` #``, no indicator."""
        first, second, *rest = host_image.user_data(script).split("\n")
        assert (first, rest) == ("#!/bin/sh", [""])
        assert re.fullmatch(r"[a-z](?:(?!: | #)[ -~])*(?<!:)", second)

    def test_keys_of_a_lab_are_used(self, image: Disk, tmp_path: Path) -> None:
        lab = bare(tmp_path, plan(image))
        text = lab._script()
        assert (lab._folder / "client.pub").read_text().strip() in text
        assert keys.KeyPair((lab._folder / "host").read_text(), "").private in text
        assert (lab._folder / "client").read_text() not in text


def test_the_guests_disk_is_found_by_its_serial_number(tmp_path: Path, fake: Fake) -> None:
    for name in ("vtbd0", "vtbd1", "vtbd2", "vtbd3"):
        (tmp_path / name).touch()
    serials = {"vtbd0": "hil-root", "vtbd1": "hil-pool", "vtbd2": "hil-guest", "vtbd3": "hil-seed"}
    cases = "\n".join(f"*/{name}) echo {serial} ;;" for name, serial in serials.items())
    fake("diskinfo", f"case $2 in\n{cases}\nesac")
    for tool in ("kldload", "sysctl", "zpool", "zfs"):
        fake(tool, f'echo "{tool} $*" >>{tmp_path}/calls')
    script = host_image._POOL_SCRIPT.replace("/dev/vtbd", f"{tmp_path}/vtbd")
    script = script.replace("/root/.hil/pool", f"{tmp_path}/pool")
    done = subprocess.run(
        ["sh", "-c", script, "hil", "6M", "1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/vtbd2\n"), done.stderr
    calls = (tmp_path / "calls").read_text()
    assert f"volmode=dev hil {tmp_path}/vtbd1" in calls
    assert "zfs create -s -V 6M hil/guest" in calls


class _Host:
    """A host's shell that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.parts: list[bytes] = []

    def run(self, command: Sequence[str], *, deadline: Deadline) -> object:
        from hil.transport.base import Result

        self.asked.append(list(command))
        out = "/dev/vtbd1\n" if command[0] == "sh" else ""
        return Result(tuple(command), 0, out.encode(), b"", 0.0)

    def put(self, data: bytes, path: str, *, deadline: Deadline) -> None:
        self.parts.append(data)


@needs_qemu_img
def test_the_guests_disk_is_put_together(
    image: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, host = bare(tmp_path, plan(image)), _Host()
    monkeypatch.setattr(lab, "ssh", lambda _: host)
    lab._provide_guests_disk("qemu-img", limit())
    seeks = {
        word.partition("=")[2]
        for command in host.asked
        if command[0] == "dd"
        for word in command
        if word.startswith("oseek")
    }
    assert seeks == {"0", "1", "4"}
    data = image.path.read_bytes()
    assert host.parts == [data[:MIB], data[4 * MIB :]]
    assert host.asked[-1] == ["zfs", "snapshot", host_image.SNAPSHOT]


@needs_qemu_img
def test_a_boot_that_fails_leaves_nothing(
    image: Disk, cache_folder: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = 'case "$1" in --version) echo "QEMU emulator version 10.0.2"; exit ;; esac'
    fake("qemu-system-x86_64", f"{version}\necho 'no such device' >&2; exit 1")
    monkeypatch.setattr(host_image, "choose", lambda *_: (Accelerator("kvm", "told so"), False))
    monkeypatch.setattr(host_image, "require_memory", lambda _: None)
    monkeypatch.setattr(host_image, "_SPACE", 0)
    before = image.path.read_bytes()
    with pytest.raises(LabError, match="QEMU did not start") as error:
        FreebsdLab.boot(image, deadline=limit())
    assert "no such device" in error.value.seen
    assert list((cache_folder / "run").iterdir()) == []
    assert image.path.read_bytes() == before


class TestTheLab:
    def test_its_inventory(self, image: Disk) -> None:
        lab = load(f"emulated:{image.path}")
        assert lab.kind == "emulated"
        assert lab.name == "emulated-FreeBSD-15.raw"
        (host,) = lab.hosts.values()
        assert host.platform == "freebsd-bhyve"
        assert lab.devices == load("emulated").devices
        assert lab.images["freebsd"].snapshot == host_image.SNAPSHOT
        assert (lab.host_image, lab.guest_image) == (str(image.path), str(image.path))

    def test_another_image_for_guests(self, image: Disk, tmp_path: Path) -> None:
        guest = tmp_path / "guest.img"
        guest.write_bytes(image.path.read_bytes())
        lab = load(f"emulated:{image.path},{guest}")
        assert (lab.host_image, lab.guest_image) == (str(image.path), str(guest))

    def test_its_machine_and_platform(
        self, image: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        booted = bare(tmp_path, plan(image))
        booted.missing["gpu0"] = "for a test"
        given: list[object] = []

        def boot(host: Disk, guest: Disk, **options: object) -> FreebsdLab:
            given.extend([host, guest, options["iommu"]])
            return booted

        monkeypatch.setattr(FreebsdLab, "boot", boot)
        monkeypatch.setattr(booted, "ssh", lambda _: LocalTransport("host"))
        lab = load(f"emulated:{image.path}")
        assert live.machine_of(lab, limit(), iommu=False) is booted
        assert given == [image, image, False]
        found = live.live_emulated(lab, booted, limit())
        assert found.platforms["host"].name == "freebsd-bhyve"
        assert set(found.lab.devices) == set(lab.devices) - {"gpu0"}

    def test_the_keeper_boots_it(self, image: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []

        def keep(name: str, bring_up: Callable[[object], object]) -> int:
            told.append(name)
            bring_up(print)
            return 0

        monkeypatch.setattr(keeper, "keep", keep)
        monkeypatch.setattr(live, "machine_of", lambda lab, *_, **__: told.append(lab.host_image))
        assert keeper._main("mine", "60", f"emulated:{image.path},{image.path}") == 0
        assert told == ["mine", str(image.path)]

    @pytest.mark.usefixtures("cache_folder")
    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ("/nowhere/disk.img", "cannot be read"),
            ("none", "there is no image 'none'"),
            ("", "is no name"),
        ],
    )
    def test_no_such_image(self, image: str, message: str) -> None:
        with pytest.raises(InventoryError, match=message):
            load(f"emulated:{image}")


class TestTheCommand:
    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        found: list[list[str]] = []

        def start(*_: object, lab: list[str]) -> None:
            found.append(lab)

        monkeypatch.setattr(keeper, "start", start)
        for name in ("HIL_QEMU", "HIL_QEMU_ARGS"):
            monkeypatch.setenv(name, "")  # so that what the command sets is taken back
        return found

    def test_the_keeper_gets_whole_paths(
        self,
        image: Disk,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        started: list[list[str]],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert cli.main(["lab", "up", "--host-image", image.path.name]) == 0
        assert started == [[f"emulated:{image.path},{image.path}"]]

    def test_qemu_and_arguments(self, image: Disk, started: list[list[str]]) -> None:
        words = ["--qemu", "/opt/qemu", "--qemu-arg=-m", "--qemu-arg", "4 096"]
        assert cli.main(["lab", "up", *words]) == 0
        assert started == [[]]
        assert os.environ["HIL_QEMU"] == "/opt/qemu"
        assert shlex.split(os.environ["HIL_QEMU_ARGS"]) == ["-m", "4 096"]

    @pytest.mark.usefixtures("cache_folder")
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--host-image", "none"], "there is no image 'none'"),
            (["--guest-image", "x"], "goes with --host-image"),
            (["--simulated", "freebsd-15-amd", "--host-image", "x"], "has no image"),
        ],
    )
    def test_mistakes(
        self,
        words: list[str],
        message: str,
        started: list[list[str]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert cli.main(["lab", "up", *words]) == InventoryError.exit_code
        assert message in " ".join(capsys.readouterr().err.split())
        assert started == []
