"""`codec.up: auto`: each worker takes the codec that suits its update, by measuring on a sample.

What fits depends on how the task trains: differences of SGD are sparse in energy, and a
coarse `ecq` keeps most of it; those of Adam are more alike in size, and it would keep too
little. Nobody but the worker can know before the update is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fedbus_schemas.plan import Named

from fedbus.codec import Vector, codec
from fedbus.codec.measure import Measured, measure

AUTO = "auto"
# Error feedback makes good for as much: 0.42 cost no round on mnist5k, see docs/benchmarks.md.
MOST_LOST = 0.5
# Not `topk`, which takes more rounds: that is for a person to decide. Nor `eden`: where step 4
# loses too much, step 2 takes fewer bytes than it at 2 bits.
TRIED = (
    Named(name="ecq", params={"step": 4.0}),
    Named(name="ecq", params={"step": 2.0}),
    Named(name="ecq", params={"step": 1.0}),
)
_SAFE = Named(name="int8")


@dataclass(frozen=True, slots=True)
class Choice:
    """A codec, and why."""

    codec: Named
    why: str


def choose(sample: Vector) -> Choice:
    """The codec with the fewest bytes among those that lose little enough of a sample.

    Args:
        sample: an update's first chunk.
    """
    if not np.isfinite(sample).all():
        return Choice(_SAFE, "values are not finite")
    found = [(each, measure(codec(each.name, each.params), sample)) for each in TRIED]
    fit = [(each, measured) for each, measured in found if measured.nmse <= MOST_LOST]
    if not fit:
        return Choice(_SAFE, f"all that is smaller loses more than {MOST_LOST:.0%} of the first chunk")
    best, measured = max(fit, key=lambda pair: pair[1].ratio)
    return Choice(best, _said(best, measured))


def _said(chosen: Named, measured: Measured) -> str:
    params = "".join(f", {key} {value:g}" for key, value in chosen.params.items())
    return (
        f"{chosen.name}{params}: {measured.ratio:.0f} times fewer bytes, "
        f"NMSE {measured.nmse:.2g} on the first chunk"
    )
