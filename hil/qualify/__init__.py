"""Release qualification: do these results satisfy this policy?

::

    policy.py    what a policy file may say, and what is wrong with one
    evidence.py  runs as they were found on disk
    worth.py     what a single result is worth to a requirement
    judge.py     policy and runs in, verdict out; asks nobody, not even the clock
    verdict.py   the words of a verdict
    render.py    a verdict on the terminal, as HTML and as PDF
    bundle.py    a verdict with all that it stands on, in a folder, signed; and its check
    signing.py   ssh-keygen -Y
"""
