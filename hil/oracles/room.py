"""Is there room for a whole cluster: for BARs, memory and interrupt vectors of all its guests?

Asked before any of them starts.  Hypervisors leave out BARs without a word, end at the first
interrupt that they cannot have, and a host that runs out of memory may kill something else.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from hil import events
from hil.bench import (
    BenchHost,
    Groups,
    GuestPool,
    by_host,
    memory_for,
    memory_wanted,
    names_of,
)
from hil.errors import HilError
from hil.oracles import preflight
from hil.platforms.contract import Bar


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
        _tell(host, f"BARs of the guest with {names_of(group)}", budget.describe())


def check_memory(groups: Groups, guests: GuestPool, *, more: int = 0) -> None:
    """PF9: each host has memory for all its guests together.

    ``more``: the last guest of each host is to have so many bytes more: the control.

    Raises:
        ProductError: see :func:`hil.oracles.preflight.check_memory`.
    """
    for host, mine in by_host(groups):
        wanted = memory_wanted(mine)
        wanted[names_of(mine[-1])] += more
        with _on(host):
            planned = preflight.check_memory(wanted, guests.memory_left(host, mine))
        _tell(host, "memory", planned.describe())


def check_vectors(groups: Groups, *, taken: int = 0) -> None:
    """Hosts and guests have interrupt vectors for all cards.

    ``taken``: so many more of each host's vectors are in use: the control.

    Raises:
        ProductError: see :func:`hil.oracles.preflight.check_vectors`.
    """
    for host, mine in by_host(groups):
        wanted = {
            names_of(group): [f for device in group for f in device.look_at_all()] for group in mine
        }
        limits = host.vector_limits()
        if limits is not None:
            limits = dataclasses.replace(limits, used=limits.used + taken)
        with _on(host):
            planned = preflight.check_vectors(wanted, limits)
        _tell(host, "interrupt vectors", planned.describe())


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
