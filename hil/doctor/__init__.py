"""What this machine and a lab's hosts have and lack, with the command that mends it.

Nothing is changed.  Each check looks at one thing and never fails itself: what cannot
be seen is reported as such, with what stood in the way.  ``machine`` looks at where hil runs,
``linux`` and ``freebsd`` at hosts.
"""
