"""What is measured, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

SYSTEMS = ("fedbus", "Flower", "NVFlare", "relay", "direct")


@dataclass(frozen=True, slots=True)
class Setting:
    """So many clients, a model of so many float32 numbers, so many rounds of each system.

    Attributes:
        rounds: for each system that takes part, rounds that warm up and rounds that count. Slow systems get
            fewer, so that all repetitions fit into an hour.
        limit_s: what one trial may take, start-up included.
        repetitions: how often all systems take their turn.
    """

    key: str
    label: str
    clients: int
    elements: int
    rounds: dict[str, tuple[int, int]]
    limit_s: float
    repetitions: int

    @property
    def model_bytes(self) -> int:
        """Of one update, and of one model."""
        return 4 * self.elements


_TWO_PEERS = {"fedbus": (3, 30), "Flower": (1, 4), "NVFlare": (2, 8)}
_SOCKETS = {"relay": (10, 200), "direct": (10, 200)}
_LARGE = {"fedbus": (3, 6), "Flower": (1, 3), "NVFlare": (1, 3), "relay": (2, 6), "direct": (2, 6)}
SETTINGS = (
    Setting("4-small", "4 clients, 100 KB", 4, 25_000, {**_TWO_PEERS, **_SOCKETS}, 240, 3),
    Setting("4-large", "4 clients, 100 MB", 4, 25_000_000, _LARGE, 300, 3),
    Setting("10-small", "10 clients, 100 KB", 10, 25_000, _TWO_PEERS, 240, 3),
    # Once: a system that does not manage it takes the whole limit.
    Setting("50-small", "50 clients, 100 KB", 50, 25_000, _TWO_PEERS, 300, 1),
)
QUICK = ("4-small",)
