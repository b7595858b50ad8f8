"""Consoles: one reader each, a log with time stamps, expect, log-in, commands."""
