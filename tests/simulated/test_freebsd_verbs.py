"""What hil asks of a FreeBSD's base tools, run on the simulated host by its own shell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from hil.deadline import Deadline, poll
from hil.errors import LabError
from hil.guests.freebsd import FreebsdGuest
from hil.iommu.scope import Topology
from hil.pci.address import Address
from hil.platforms.contract import Bar
from hil.platforms.freebsd import FreebsdBhyve
from hil.platforms.freebsd_memory import DevMemory
from hil.simulated.host import SimulatedHost
from hil.transport.base import Result
from hil.transport.ssh import SshTransport

OS = FreebsdGuest()
NIC, PEER = "igb0", "igb1"


def soon() -> Deadline:
    return Deadline(60, "an answer")


@pytest.fixture(scope="module")
def host() -> Iterator[SimulatedHost]:
    up = SimulatedHost("freebsd-13.2-intel").start()
    yield up
    up.close()


@pytest.fixture(scope="module")
def shell(host: SimulatedHost) -> Iterator[SshTransport]:
    transport = SshTransport.connect(
        "host",
        "127.0.0.1",
        port=host.port,
        key=host.key.load(),
        host_key=host.host_key,
        deadline=soon(),
    )
    yield transport
    transport.close()


def run(shell: SshTransport, command: list[str], stdin: bytes = b"") -> Result:
    return shell.run(command, stdin=stdin, deadline=soon()).check()


def received(shell: SshTransport, interface: str) -> int:
    return int(run(shell, OS.received_frames(interface)).stdout)


def test_what_was_written_to_a_disk_reads_back(shell: SshTransport) -> None:
    data = bytes(range(256)) * 18
    run(shell, OS.disk_write("/dev/nvd0", 1536, 3), stdin=data)
    assert run(shell, OS.disk_read("/dev/nvd0", 1536, 3, 3)).out == data
    digest = run(shell, OS.disk_digest("/dev/nvd0", 1536, 3, 3)).stdout
    assert digest.split()[0] == hashlib.sha256(data).hexdigest()


def test_a_broadcast_reaches_the_far_end_and_leaves_no_address(shell: SshTransport) -> None:
    run(shell, OS.link_up(PEER))
    before = received(shell, PEER)
    run(shell, OS.announce(NIC))
    assert received(shell, PEER) >= before + 3
    assert int(run(shell, OS.sent_frames(NIC)).stdout) >= 3
    assert "198.18." not in run(shell, ["ifconfig", NIC]).stdout


@pytest.mark.parametrize("everybody", [False, True])
def test_a_flood_goes_on_until_its_input_ends(shell: SshTransport, everybody: bool) -> None:
    run(shell, OS.link_up(NIC))
    mac = run(shell, OS.hardware_address(NIC)).stdout.strip()
    command = OS.flood(PEER, "ff:ff:ff:ff:ff:ff" if everybody else mac, b"hil flood")
    before = received(shell, NIC)
    stream = shell.open_stream(command, deadline=soon())
    assert stream.read().startswith(b"ready")
    poll(lambda: received(shell, NIC) > before + 20, soon())
    stream.close()
    poll(lambda: "ping" not in run(shell, ["ps", "-ax", "-o", "comm="]).stdout, soon())


def test_a_register_is_written_and_read_with_decoding_as_before(
    host: SimulatedHost, shell: SshTransport
) -> None:
    function = host.machine.function_named("nic0")
    place = next(bar for bar in function.bars if bar.index == 0)
    bar = Bar(0, place.address, place.size, memory=True)
    address = Address(0, 1, 0, 0)
    function.config_write(4, 2, function.command & ~2)
    command = function.command
    written = OS.register(address, bar, 0x5478, 4, 0x5AC3_0FF1)
    assert int(run(shell, written).stdout) == 0x5AC3_0FF1
    assert int(run(shell, OS.register(address, bar, 0x5478, 4)).stdout) == 0x5AC3_0FF1
    assert function.command == command
    with pytest.raises(LabError, match="not aligned"):
        OS.register(address, bar, 0x5476, 4)


def test_bridges_and_virtual_functions_are_those_of_a_whole_survey(shell: SshTransport) -> None:
    platform = FreebsdBhyve("host", shell)
    port = next(f.address for f in platform.functions(soon()) if "igb0" in f.interfaces)
    made = platform.create_vfs(port, 2, soon())
    try:
        everything = platform.functions(soon())
        topology = platform._view.topology(soon())
        chosen = {f.address: f for f in platform._view.survey([made[1]], soon())}
    finally:
        platform.remove_vfs(port, soon())
    assert topology == Topology.of(everything)
    assert topology.buses
    assert topology.physical_functions[made[1].requester_id] == port.requester_id
    whole = {f.address: f for f in everything}
    assert chosen == {address: whole[address] for address in (port, made[1])}


def test_ranges_of_memory_are_read_by_one_command(shell: SshTransport) -> None:
    memory = DevMemory(shell, soon(), unit=8)
    ranges = [(0xFED9_0008, 8), (0x10_0003, 21), (0xFED9_0020, 4)]
    assert memory.read_many(ranges) == [memory.read(*span) for span in ranges]


def test_a_system_without_a_tool_says_so() -> None:
    with pytest.raises(LabError, match="no tool"):
        OS.lie("igb1", "198.18.0.251")
