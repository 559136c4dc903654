"""Tokens in the forms of other programs, in and out: what a path holds, read piece by piece."""
