"""Sent as text to hosts and guests, and run there by `python3 -c`; see hil.transport.agent."""
