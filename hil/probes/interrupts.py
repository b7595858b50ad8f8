"""Make a device send each of its interrupt messages, and count what arrives in the guest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hil.bench import BenchDevice
from hil.errors import LabError
from hil.guests.guest import Guest
from hil.pci.address import Address
from hil.probes.agent import GuestAgent

#: Seconds without a further interrupt after which a count stands.
SETTLE = 0.05
#: How often a message is sent to see it alone.
TRIES = 8


@dataclass(frozen=True, slots=True)
class Trigger:
    """A register that makes a device interrupt: writing ``bits[n]`` sends message ``n``.

    The guest's own driver has the interrupts, and ``/proc/interrupts`` counts them; a
    function without a driver (``acknowledge`` is set) is listened to by the probe.
    ``source`` is the specification.
    """

    bar: int
    register: int
    bits: tuple[int, ...]
    source: str
    acknowledge: int = 0
    """Register that takes back what was raised, by the same bits."""
    of_two: tuple[int, ...] = ()
    """The bits where a driver uses two vectors only, if they are not the first two."""
    throttle: int = 0
    """Register of the interval that the first vector keeps between messages; the other
    vectors' follow, 4 bytes each.  Zero there throttles nothing."""
    repeats: str = ""
    """Subsystem id of a model that is never without an interval: see :func:`_unthrottled`.
    A message and its repetition count as one."""

    def bits_of(self, vectors: int) -> tuple[int, ...]:
        """The bit of each of a driver's ``vectors``."""
        return self.of_two if self.of_two and vectors == 2 else self.bits[:vectors]


#: By ``vendor:device``.
TRIGGERS: dict[str, Trigger] = {
    "8086:10c9": Trigger(
        0, 0x1520, tuple(range(10)), "82576 datasheet 8.8.3, EICS; 8.8.14, EITR", throttle=0x1680
    ),
    # RXQ0, TXQ0 and OTHER, in the order in which Linux's e1000e requests its vectors;
    # FreeBSD's em has one for RXQ0 and one for OTHER.
    "8086:10d3": Trigger(
        0,
        0xC8,
        (20, 22, 24),
        "82574 datasheet 10.2.4.3, ICS; 10.2.4.2, EITR",
        of_two=(20, 24),
        throttle=0xE8,
        repeats="8086:0000",
    ),
    "1234:11e8": Trigger(0, 0x60, (0,), "QEMU docs/specs/edu.rst", acknowledge=0x64),
}


def triggered_each(
    guest: Guest, device: BenchDevice, *, leave_out: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Send each of the device's messages once; the events per vector after each.

    ``leave_out`` does not send that one: for controls.
    """
    look = device.look()
    trigger = TRIGGERS.get(f"{look.vendor:04x}:{look.device:04x}")
    if trigger is None:
        raise LabError(f"no way is known to make {device} send each of its messages")
    address = guest.address_of(device.address)
    agent = GuestAgent(guest)
    try:
        agent.open(address)
        if trigger.acknowledge:
            return (_listened(agent, address, trigger, leave_out),)
        guest.link_up(guest.interface_of(device.address))
        config = look.config
        subsystem = f"{config.subsystem_vendor:04x}:{config.subsystem_device:04x}"
        times = (1, 2) if subsystem == trigger.repeats else (1,)
        return _counted(guest, agent, address, trigger, leave_out, times)
    finally:
        agent.close()


def _write(agent: GuestAgent, address: Address, bar: int, register: int, value: int) -> None:
    agent.ask("write", address=str(address), bar=bar, offset=register, width=4, value=value)


@contextlib.contextmanager
def _unthrottled(
    agent: GuestAgent, address: Address, trigger: Trigger, vector: int
) -> Iterator[None]:
    """A vector that delays nothing while the block runs.

    QEMU's models send another message whenever an interval ends, if there was anything to
    delay or not (hw/net/igb_core.c, igb_intrmgr_on_msix_throttling_timer; seen in 10.0), and
    e1000e takes no interval below 500 (hw/net/e1000e_core.c, E1000E_MIN_XITR).
    """
    if not trigger.throttle:
        yield
        return
    register = trigger.throttle + 4 * vector
    before = int(agent.ask("read", address=str(address), bar=trigger.bar, offset=register, width=4))
    _write(agent, address, trigger.bar, register, 0)
    try:
        yield
    finally:
        _write(agent, address, trigger.bar, register, before)


def _listened(
    agent: GuestAgent, address: Address, trigger: Trigger, leave_out: int | None
) -> tuple[int, ...]:
    agent.ask("listen", address=str(address))
    bit = trigger.bits[0]
    if leave_out != 0:
        _write(agent, address, trigger.bar, trigger.register, 1 << bit)
    count = int(agent.ask("count", address=str(address), settle=SETTLE))
    _write(agent, address, trigger.bar, trigger.acknowledge, 1 << bit)
    agent.close_function(address)
    return (count,)


def _counted(
    guest: Guest,
    agent: GuestAgent,
    address: Address,
    trigger: Trigger,
    leave_out: int | None,
    times: Sequence[int],
) -> tuple[tuple[int, ...], ...]:
    """The rows of a driver's vectors; a message that counts ``times`` came once.

    A driver makes interrupts of its own now and then (igb's watchdog, every two seconds), so
    a message is sent again, a few times, until it is seen alone.
    """
    vectors = len(guest.interrupts(address))
    rows = []
    for number, bit in enumerate(trigger.bits_of(vectors)):
        alone = tuple(int(n == number) for n in range(vectors))
        seen_alone = {tuple(count * n for n in alone) for count in times}
        tries: list[tuple[int, ...]] = []
        with _unthrottled(agent, address, trigger, number):
            while seen_alone.isdisjoint(tries) and len(tries) < TRIES:
                before = guest.interrupts(address)
                if number != leave_out:
                    _write(agent, address, trigger.bar, trigger.register, 1 << bit)
                after = guest.interrupts(address)
                tries.append(tuple(after[name] - before[name] for name in before))
        rows.append(min(tries, key=sum) if seen_alone.isdisjoint(tries) else alone)
    return tuple(rows)
