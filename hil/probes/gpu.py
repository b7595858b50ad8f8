"""What a guest's own tools say of a GPU, for a report."""

from __future__ import annotations

from hil import events
from hil.bench import BenchDevice
from hil.gpu.known import vendor_of
from hil.gpu.statement import statement
from hil.guests.guest import Guest

#: Characters of a tool's output that are kept.
_KEPT = 100_000


def report(guest: Guest, device: BenchDevice) -> None:
    """Put into the report what the host and the vendor's tool in the guest say of a card."""
    function = device.look()
    vendor = vendor_of(function)
    said = statement(function)
    lines = [str(said), *(f"known: {quirk}" for quirk in said.quirks)]
    events.emit(events.Evidence(f"{device.name} between guests", "\n".join(lines).encode()))
    if vendor is None or not vendor.tool:
        return
    result = guest.run(vendor.tool)
    if result.status != 127:  # the guest has it
        text = f"{result.stdout}\n{result.stderr}".strip()[:_KEPT]
        events.emit(events.Evidence(f"{device.name}: {' '.join(vendor.tool)}", text.encode()))
