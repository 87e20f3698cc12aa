"""Errors, clock, registry, settings. Imports nothing of ours and does no I/O."""
