"""Is there room for a whole cluster: for BARs, memory and interrupt vectors of all its guests?

Asked before any of them starts.  Hypervisors leave out BARs without a word, end at the first
interrupt that they cannot have, and a host that runs out of memory may kill something else.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from hil import events
from hil.bench import BenchDevice, BenchHost, GuestPool, memory_for
from hil.errors import HilError
from hil.oracles import preflight
from hil.platforms.contract import Bar

Groups = Sequence[Sequence[BenchDevice]]
"""A cluster's devices, by the guest that is to have them; those of one guest are on one host."""


def check_bars(groups: Groups, *, extra: int = 0) -> None:
    """PF6: each guest has room for all BARs of its cards.

    ``extra``: the first card of each has one of so many bytes more: the control.

    Raises:
        ProductError: see :func:`hil.oracles.preflight.check_budget`.
    """
    for group in groups:
        found = {device.name: device.look_at_all() for device in group}
        if extra:
            first, *rest = found[group[0].name]
            bar = Bar(0, 0, extra, memory=True, prefetchable=True, wide=True)
            found[group[0].name] = (dataclasses.replace(first, bars=(*first.bars, bar)), *rest)
        host = group[0].host
        with _on(host):
            budget = preflight.check_budget(found, host.bar_windows(), memory_for(group))
        _tell(host, f"BARs of the guest with {_names(group)}", budget.describe())


def check_memory(groups: Groups, guests: GuestPool, *, more: int = 0) -> None:
    """PF9: each host has memory for all its guests together.

    ``more``: the last guest of each host is to have so many bytes more: the control.

    Raises:
        ProductError: see :func:`hil.oracles.preflight.check_memory`.
    """
    for host, mine in _by_host(groups):
        wanted = {_names(group): memory_for(group) for group in mine}
        wanted[_names(mine[-1])] += more
        with _on(host):
            planned = preflight.check_memory(wanted, guests.memory_left(host, mine))
        _tell(host, "memory", planned.describe())


def check_vectors(groups: Groups, *, taken: int = 0) -> None:
    """Hosts and guests have interrupt vectors for all cards.

    ``taken``: so many more of each host's vectors are in use: the control.

    Raises:
        ProductError: see :func:`hil.oracles.preflight.check_vectors`.
    """
    for host, mine in _by_host(groups):
        wanted = {
            _names(group): [f for device in group for f in device.look_at_all()] for group in mine
        }
        limits = host.vector_limits()
        if limits is not None:
            limits = dataclasses.replace(limits, used=limits.used + taken)
        with _on(host):
            planned = preflight.check_vectors(wanted, limits)
        _tell(host, "interrupt vectors", planned.describe())


def _by_host(groups: Groups) -> Iterator[tuple[BenchHost, Groups]]:
    for host in dict.fromkeys(group[0].host for group in groups):
        yield host, [group for group in groups if group[0].host is host]


def _names(group: Sequence[BenchDevice]) -> str:
    return "+".join(device.name for device in group)


def _tell(host: BenchHost, what: str, text: str) -> None:
    events.emit(events.Evidence(f"{what}, on {host.name}", text.encode()))


@contextlib.contextmanager
def _on(host: BenchHost) -> Iterator[None]:
    """Errors of what is done within name the host."""
    try:
        yield
    except HilError as error:
        error.host = host.name
        raise
