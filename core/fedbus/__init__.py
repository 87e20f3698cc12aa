"""fedbus: event-driven federated learning on NATS JetStream.

Importing this imports neither torch nor the bus: a trainer child under an old
interpreter loads it to find `TorchTask`. Names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbus.api.connection import connect, connect_async
    from fedbus.api.local import local
    from fedbus.tasks.task import Evaluated, Site, Step, Trained, TrainingTask
    from fedbus.tasks.torch_task import TorchTask

__all__ = [
    "Evaluated",
    "Site",
    "Step",
    "TorchTask",
    "Trained",
    "TrainingTask",
    "connect",
    "connect_async",
    "local",
]


def __getattr__(name: str) -> Any:
    if name == "TorchTask":
        from fedbus.tasks.torch_task import TorchTask

        return TorchTask
    if name in ("connect", "connect_async"):
        from fedbus.api import connection

        return getattr(connection, name)
    if name == "local":
        from fedbus.api.local import local

        return local
    if name in __all__:
        from fedbus.tasks import task

        return getattr(task, name)
    raise AttributeError("module 'fedbus' has no attribute {!r}".format(name))
