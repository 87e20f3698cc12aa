"""The Python API over a running federation; the command line uses it."""
