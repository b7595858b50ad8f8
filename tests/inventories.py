"""Inventories that several tests begin with."""

#: This very machine.
HERE = """
[lab]
name = "here"
kind = "physical"
[hosts.alpha]
platform = "linux-vfio"
transport = "local"
"""
#: One that is reached by SSH.
REMOTE = HERE.replace('transport = "local"', 'address = "alpha.example.org"')
#: That, with a GPU, whose entry may go on.
WITH_GPU = f"""{REMOTE}
[devices.gpu0]
kind = "gpu"
host = "alpha"
"""
