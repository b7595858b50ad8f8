"""Allure 3, for the tests that make pages with it."""

from __future__ import annotations

import pytest

from hil.errors import HilError
from hil.reporting import html


def _find() -> str:
    try:
        return str(html.find_allure())
    except HilError:
        return ""


# Looked for before pytester, or a fixture, gives a test a home of its own.
ALLURE = _find()
needs_allure = pytest.mark.skipif(not ALLURE, reason=f"Allure 3 is missing: {html.INSTALL}")
