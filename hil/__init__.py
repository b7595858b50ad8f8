"""hil: a hardware-in-the-loop test framework for PCI passthrough.

The package is cheap to import on purpose: command-line completion, the pytest
plugin of runs that use no lab, and editors all import it.  Import the module
you need (``hil.pci``, ``hil.lab`` …); nothing is re-exported here.
"""

import os as _os

__version__ = "0.1.0"

# The wheel carries fixtures/ and suites/ below hil/; in a checkout they stand beside
# it.  Either way they are hil.fixtures and hil.suites, so one entry point serves both.
_root = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))  # noqa: PTH100, PTH120
if _os.path.exists(_os.path.join(_root, "fixtures", "plugin.py")):  # noqa: PTH110, PTH118
    __path__.append(_root)
del _root
