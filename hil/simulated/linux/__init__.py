"""A Linux guest of the simulated bhyve host: kernel, sysfs and procfs, userland, console.

What it prints follows Debian 13 (Linux 6.12); its drivers are the model's own
(:mod:`hil.simulated.drivers`), under Linux's names.
"""
