"""What all tests of the framework share."""

from __future__ import annotations

# pytester forgets the modules that a run inside a test has imported.  These two have classes
# that their compiled part remembers: imported anew, they would be strangers to it.
import cryptography.hazmat.primitives.asymmetric.ed25519
import cryptography.hazmat.primitives.serialization  # noqa: F401
from hypothesis import HealthCheck, settings

# A test says nothing about time: machines may be slow, and busy.
settings.register_profile("hil", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hil")
