"""What all tests of the framework share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A test says nothing about time: machines may be slow, and busy.
settings.register_profile("hil", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hil")
