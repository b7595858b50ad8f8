"""A guest's life, on a console that is a shell on a terminal or a script of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from hil import events
from hil.deadline import Deadline
from hil.errors import DeadlineExceeded, GuestError, HilError, LabError, ProductError
from hil.guests.guest import Guest, GuestState
from hil.pci.address import Address
from hil.platforms.contract import GuestSpec, MachineState
from hil.transport.base import ByteStream, Transport
from hil.transport.local import LocalTransport
from tests.console.streams import PtyStream, ScriptedStream
from tests.fakes import DISK, NIC, SHELL, FakeMachine, FakeOS, FakeTransport

SPEC = GuestSpec("g1", "linux", devices=(NIC, DISK))
Make = Callable[..., Guest]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Guest] = []

    def make(
        stream: ByteStream,
        ssh: Transport | None = None,
        os: FakeOS | None = None,
        pace: float = 1.0,
    ) -> Guest:
        guest = Guest(FakeMachine(SPEC, stream, ssh), os or FakeOS(), pace=pace)
        made.append(guest)
        return guest

    yield make
    for guest in made:
        machine = guest.machine
        assert isinstance(machine, FakeMachine)
        machine.refusal = None
        guest.destroy()
        machine.stream.close()


class CountingOS(FakeOS):
    """Its boot id is the number that the console's script counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def boot_id(self) -> list[str]:
        return ["cat", str(self.path)]


def terminal(path: Path) -> PtyStream:
    return PtyStream(["sh", "-c", SHELL, "sh", str(path)])


def test_boot_to_a_shell(make: Make, tmp_path: Path) -> None:
    guest = make(terminal(tmp_path / "count"))
    heard: list[events.Event] = []
    with events.subscribed(heard.append):
        assert guest.boot() is guest
    assert (guest.state, guest.booted) == (GuestState.READY, True)
    phases = [event.phase for event in heard if isinstance(event, events.PhaseReached)]
    assert phases == ["booting", "ready"]
    assert guest.console.run("echo hello", guest.limit(20, "a word")).output == "hello\n"


def test_reboot(make: Make, tmp_path: Path) -> None:
    count = tmp_path / "count"
    guest = make(terminal(count), LocalTransport(), CountingOS(count)).boot()
    assert guest.boot_id() == "boot 1"
    guest.reboot()
    assert guest.state is GuestState.READY
    assert guest.boot_id() == "boot 2"


def test_a_reboot_that_did_not_take_place_is_the_guest_s(make: Make, tmp_path: Path) -> None:
    class Lazy(FakeOS):
        def boot_id(self) -> list[str]:
            return ["echo", "the same"]

    guest = make(terminal(tmp_path / "count"), LocalTransport(), Lazy()).boot()
    with pytest.raises(GuestError, match="g1 did not reboot"):
        guest.reboot()


def test_a_panic_while_booting_is_told_with_the_last_lines(make: Make) -> None:
    stream = ScriptedStream(
        [
            b"[    0.000000] Linux version 6.1.0\r\n",
            b"[    1.000000] VFS: Cannot open root device\r\n",
            b"[    1.100000] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n",
        ]
    )
    guest = make(stream)
    with pytest.raises(GuestError, match="VFS: Unable to mount root") as caught:
        guest.boot()
    assert any("Cannot open root device" in line for line in caught.value.console)
    assert (guest.state, guest.booted) == (GuestState.CRASHED, False)


def test_a_guest_that_never_asks_for_a_log_in_is_the_guest_s_fault(make: Make) -> None:
    guest = make(ScriptedStream([b"[    0.000000] Linux version 6.1.0\r\n"]), pace=0.005)
    with pytest.raises(GuestError, match="never came to its log-in prompt") as caught:
        guest.boot()
    assert caught.value.console == ("[    0.000000] Linux version 6.1.0",)
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert guest.state is GuestState.CRASHED


class Talkative(FakeMachine):
    """Its hypervisor knows more, and its guest has to be let in from its console."""

    def __init__(self, stream: ByteStream, *, broken: bool = False) -> None:
        super().__init__(SPEC, stream)
        self.broken = broken
        self.said: list[str] = []

    def evidence(self, deadline: Deadline) -> Mapping[str, str]:
        if self.broken:
            raise LabError("the host is gone")
        return {"exits": "vcpu0: 7"}

    def let_in(self, at_console: Callable[[Sequence[str]], str]) -> None:
        self.said.append(at_console(["echo", "ssh-ed25519 AAAA"]))


class Ended(FakeMachine):
    """Its hypervisor has failed."""

    def why_ended(self) -> HilError | None:
        return ProductError("bhyve refused to start guest g1 again")


@pytest.mark.parametrize("stream", [[b"booting\r\n"], [b"booting\r\n", b""]])
def test_a_hypervisor_that_failed_is_no_fault_of_the_guest(stream: list[bytes]) -> None:
    guest = Guest(Ended(SPEC, ScriptedStream(stream)), FakeOS(), pace=0.005)
    with pytest.raises(ProductError, match="refused to start guest g1 again"):
        guest.boot()
    assert guest.state is GuestState.CRASHED


@pytest.mark.parametrize("broken", [False, True])
def test_what_the_hypervisor_knows_of_a_stuck_guest_is_kept(broken: bool) -> None:
    guest = Guest(Talkative(ScriptedStream([b"booting\r\n"]), broken=broken), FakeOS(), pace=0.005)
    heard: list[events.Event] = []
    with (
        events.subscribed(heard.append),
        pytest.raises(GuestError, match="never came to its log-in prompt"),
    ):
        guest.boot()
    kept = [(e.name, e.data) for e in heard if isinstance(e, events.Evidence)]
    assert kept == ([] if broken else [(f"{SPEC.name}: exits", b"vcpu0: 7")])
    guest.destroy()


def test_a_guest_is_let_in_from_its_console_before_ssh(tmp_path: Path) -> None:
    machine = Talkative(terminal(tmp_path / "boots"))
    guest = Guest(machine, FakeOS()).boot()
    guest.run(["true"])
    guest.run(["true"])
    assert machine.said == ["ssh-ed25519 AAAA\n"]
    guest.destroy()
    machine.stream.close()


def test_a_console_that_ends_shows_what_the_hypervisor_said(make: Make) -> None:
    guest = make(ScriptedStream([b"hello\r\n"], ends=True))
    assert isinstance(guest.machine, FakeMachine)
    guest.machine.words = "KVM internal error"
    with pytest.raises(GuestError) as caught:
        guest.boot()
    assert caught.value.seen == "KVM internal error"
    assert caught.value.console == ("hello",)


def test_a_crash_is_told_as_the_panic_that_it_is(make: Make, tmp_path: Path) -> None:
    guest = make(terminal(tmp_path / "count")).boot()
    with pytest.raises(GuestError, match="sysrq triggered crash"):
        guest.crash()
    assert guest.state is GuestState.CRASHED


def test_power_off_waits_for_the_hypervisor(make: Make, tmp_path: Path) -> None:
    guest = make(terminal(tmp_path / "count")).boot()
    machine = guest.machine
    assert isinstance(machine, FakeMachine)
    machine.at = MachineState.STOPPED
    guest.power_off()
    assert guest.state is GuestState.STOPPED
    with pytest.raises(LabError, match="is stopped and cannot be booting"):
        guest.wait_for_reboot()


def test_a_power_off_that_stays_without_effect_ends_in_time(make: Make, tmp_path: Path) -> None:
    guest = make(terminal(tmp_path / "count")).boot()
    guest.pace = 0.005
    with pytest.raises(DeadlineExceeded, match="the power-off of guest g1"):
        guest.power_off()


def test_destroy_is_done_once_and_closes_everything(make: Make) -> None:
    told: list[Guest] = []
    stream = ScriptedStream()
    machine = FakeMachine(SPEC, stream)
    guest = Guest(machine, FakeOS(), on_destroy=told.append)
    assert guest.run(["true"]).status == 0
    transport = machine.transport
    guest.destroy()
    guest.destroy()
    assert machine.destroyed == 1
    assert isinstance(transport, FakeTransport)
    assert transport.closed
    assert told == [guest]
    assert guest.state is GuestState.DESTROYED
    with pytest.raises(LabError):
        guest.boot()


def test_a_destroy_that_fails_still_counts_as_the_end(make: Make) -> None:
    told: list[Guest] = []
    machine = FakeMachine(SPEC, ScriptedStream())
    machine.refusal = LabError("the host is gone")
    guest = Guest(machine, FakeOS(), on_destroy=told.append)
    with pytest.raises(LabError, match="the host is gone"):
        guest.destroy()
    assert (guest.state, told) == (GuestState.DESTROYED, [guest])


def test_kill_leaves_a_guest_to_be_destroyed(make: Make, tmp_path: Path) -> None:
    guest = make(terminal(tmp_path / "count")).boot()
    guest.kill()
    assert guest.state is GuestState.CRASHED
    guest.destroy()
    assert isinstance(guest.machine, FakeMachine)
    assert guest.machine.destroyed == 1


def test_a_guest_that_was_not_booted_has_no_console(make: Make) -> None:
    with pytest.raises(LabError, match="has no console yet"):
        _ = make(ScriptedStream()).console


def test_limits_follow_the_lab_s_pace(make: Make) -> None:
    slow = make(ScriptedStream(), pace=8.0)
    assert 79 < slow.limit(10, "x").remaining <= 80


LIST = "0000:00:10.0 0x8086 0x10c9 igb\n0000:00:11.0 0x1b36 0x0010 \n"


def test_the_passed_function_is_found_where_it_was_put(make: Make) -> None:
    ssh = FakeTransport(lambda _c, _s: (0, LIST, ""))
    guest = make(ScriptedStream(), ssh)
    assert guest.address_of(DISK) == Address.parse("0000:00:11.0")
    seen = guest.seen(NIC)
    assert (seen.vendor, seen.device, seen.driver) == (0x8086, 0x10C9, "igb")
    assert guest.seen(DISK).driver is None


def test_a_function_that_the_guest_does_not_see_is_named_both_ways(make: Make) -> None:
    guest = make(ScriptedStream(), FakeTransport(lambda _c, _s: (0, LIST.splitlines()[0], "")))
    with pytest.raises(GuestError, match=r"no function at 0000:00:11.0, where 0000:02:00.0"):
        guest.seen(DISK)


def test_an_interface_is_waited_for(make: Make) -> None:
    answers = iter(["", "", "eth1\neth2\n"])
    guest = make(ScriptedStream(), FakeTransport(lambda _c, _s: (0, next(answers), "")))
    assert guest.interface_of(NIC) == "eth1"


def test_an_interface_that_never_comes_is_the_guest_s(make: Make) -> None:
    guest = make(ScriptedStream(), FakeTransport(), pace=0.001)
    with pytest.raises(GuestError, match=r"made no network interface of 0000:00:10.0"):
        guest.interface_of(NIC)
    with pytest.raises(GuestError, match=r"made no disk of 0000:00:11.0"):
        guest.disk_of(DISK)


def test_work_begins_before_the_block_and_ends_after_it(make: Make) -> None:
    ssh = FakeTransport()
    stream = ScriptedStream([b"working\n"])
    ssh.streams.append(stream)
    guest = make(ScriptedStream(), ssh)
    with guest.working(NIC):
        assert not stream._closed
    assert stream._closed


# ---- deaths ------------------------------------------------------------------------------

PANIC = b"[   19.534315] Kernel panic - not syncing: Fatal exception\r\n"


class Restarting(FakeMachine):
    """Its hypervisor counts how often the guest began anew."""

    def __init__(self, count: Path) -> None:
        super().__init__(SPEC, terminal(count), LocalTransport())
        self.count = count
        self.more = 0

    def restarts(self) -> int:
        boots = self.count.read_text().removeprefix("boot ")
        return int(boots) - 1 + self.more


@pytest.fixture
def restarting(tmp_path: Path) -> Iterator[tuple[Guest, Restarting]]:
    machine = Restarting(tmp_path / "count")
    guest = Guest(machine, CountingOS(machine.count)).boot()
    yield guest, machine
    guest.destroy()
    machine.stream.close()


def test_a_guest_that_lives_has_not_died(restarting: tuple[Guest, Restarting]) -> None:
    guest, _ = restarting
    assert guest.died() == ""
    guest.reboot()
    assert guest.died() == ""
    guest.destroy()
    assert guest.died() == ""


def test_a_guest_that_restarted_by_itself_has_died(restarting: tuple[Guest, Restarting]) -> None:
    guest, machine = restarting
    guest.reboot()
    machine.more += 1
    assert guest.died() == "guest g1 restarted by itself"
    guest.destroy()
    assert guest.died() == "guest g1 restarted by itself", "and it is remembered"


def test_a_restart_that_was_asked_for_is_no_death_and_another_is(
    restarting: tuple[Guest, Restarting],
) -> None:
    guest, machine = restarting
    guest.triple_fault()
    machine.more += 1
    assert guest.died() == ""
    machine.more += 1
    assert guest.died() == "guest g1 restarted by itself"


def test_the_end_of_its_hypervisor_is_a_death_if_nobody_asked_for_it(
    make: Make, tmp_path: Path
) -> None:
    guest = make(terminal(tmp_path / "one")).boot()
    machine = guest.machine
    assert isinstance(machine, FakeMachine)
    machine.at = MachineState.CRASHED
    assert guest.died() == "guest g1 crashed by itself, says its hypervisor"
    other = make(terminal(tmp_path / "two")).boot()
    other.kill()
    assert other.died() == ""
    other.destroy()
    assert other.died() == ""


def test_a_panic_is_a_death_if_nobody_asked_for_it(make: Make) -> None:
    guest = make(ScriptedStream([PANIC]))
    with pytest.raises(GuestError):
        guest.boot()
    words = "the kernel of guest g1 reported a panic: "
    assert guest.died().startswith(words)
    guest.destroy()
    assert guest.died().startswith(words)


def test_a_panic_that_was_asked_for_is_no_death(make: Make, tmp_path: Path) -> None:
    class Crashing(FakeOS):
        def crash(self) -> list[str]:
            return ["printf", "%s\\r\\n", PANIC.decode().strip()]

    guest = make(terminal(tmp_path / "count"), None, Crashing()).boot()
    with pytest.raises(GuestError, match="panic"):
        guest.crash()
    assert guest.died() == ""
    guest.destroy()
    assert guest.died() == ""


def test_a_hypervisor_that_does_not_answer_tells_of_no_death(make: Make, tmp_path: Path) -> None:
    class Silent(FakeMachine):
        def state(self, deadline: Deadline) -> MachineState:
            raise LabError("the monitor is gone")

    machine = Silent(SPEC, terminal(tmp_path / "count"))
    guest = Guest(machine, FakeOS()).boot()
    assert guest.died() == ""
    guest.destroy()
    machine.stream.close()
