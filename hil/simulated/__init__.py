"""The simulated lab: a model of a bhyve host that needs no hardware.

Nothing in it is hardware, and no result of it can be taken for hardware's.  The model
proper (memory, PCI functions, IOMMU, kernel, vmm) prints nothing but kernel messages;
commands, shells and guests stand on top of it.
"""
