"""Finds the commit of a kernel or driver that made a test fail: ``hil bisect``.

``git bisect run`` chooses the commits; a *step* (:mod:`hil.bisect.step`) builds and installs
one, reboots the host, runs the test and gives the verdict by the status that git knows: 0
good, 1 bad, 125 cannot be tested.  Whatever is not the product's fault cannot be tested.
"""
