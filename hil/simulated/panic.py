"""The end of the modelled kernel."""

from __future__ import annotations


class HostPanic(Exception):  # noqa: N818 - named for what happened
    """The modelled kernel has panicked: the host stands at ``db>``; the text is its message."""
