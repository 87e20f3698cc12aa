"""The edge to NATS: the only package that imports nats-py, and where its traps are kept."""

from fedbus.bus.connection import Bus, Message
from fedbus.bus.credentials import Credentials

__all__ = ["Bus", "Credentials", "Message"]
