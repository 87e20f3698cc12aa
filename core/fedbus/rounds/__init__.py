"""Rounds as pure state: log entries in, state out, decisions out. No event loop, no clock, no environment."""
