"""The command line: ``hil run``, ``doctor``, ``devices``, ``leases``, ``recover`` and the rest.

One module a command or a family of them.  Exit codes are those of :mod:`hil.errors`; besides,
2 is a usage error, 70 a fault in hil itself, and 130 an interruption (Ctrl-C, SIGTERM, SIGHUP).
``hil qualify`` has two of its own, 6 and 7.
"""

# In the order in which ``hil --help`` lists them.
# isort: off
from hil.cli import (  # noqa: F401
    run,
    prove,
    report,
    compare,
    qualify,
    bisect,
    devices,
    lab,
    image,
    recover,
    doctor,
)

# isort: on
from hil.cli.app import main

__all__ = ["main"]
