"""What all tests of the framework share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

# pytester forgets the modules that a run inside a test has imported.  These two have classes
# that their compiled part remembers: imported anew, they would be strangers to it.
import cryptography.hazmat.primitives.asymmetric.ed25519
import cryptography.hazmat.primitives.serialization  # noqa: F401
import pytest
from hypothesis import HealthCheck, settings

# A test says nothing about time: machines may be slow, and busy.
settings.register_profile("hil", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hil")

# A shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def signals() -> Iterator[None]:
    """What handles signals is put back: commands of ``hil`` change it for their process."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
