"""What is known of GPUs: vendors, links, and what a reset does and leaves.

Data and judgement over values; what asks a guest is in :mod:`hil.probes`.
"""
