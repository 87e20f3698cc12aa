"""The worker: an agent that talks and a trainer child that trains."""
