"""What can go wrong while something is started: one class, whose message says what to do about it."""

from __future__ import annotations


class Trouble(Exception):
    """A step failed. The message is for a person, and ends with what that person can do."""
