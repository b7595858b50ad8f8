"""hil: a hardware-in-the-loop test framework for PCI passthrough.

The package is cheap to import on purpose: command-line completion, the pytest
plugin of runs that use no lab, and editors all import it.  Import the module
you need (``hil.pci``, ``hil.lab`` …); nothing is re-exported here.
"""

__version__ = "0.1.0"
