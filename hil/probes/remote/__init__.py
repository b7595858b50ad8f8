"""Programs sent as text to hosts and guests, and run there by `python3 -c`.

Each stands alone: standard library only, Python 3.9 and later, nothing of hil.
"""
