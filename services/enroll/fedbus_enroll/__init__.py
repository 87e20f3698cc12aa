"""Enroll: invitations, admission, liveness; the only writer of the roster."""
