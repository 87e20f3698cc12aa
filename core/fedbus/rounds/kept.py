"""What a columnwise strategy keeps of updates that a codec has thinned out, measured.

A codec that leaves most values of an update out lets each worker speak of other ones; the
middle of what is mostly zero is zero. A mean is not troubled by that.
"""

from __future__ import annotations

import numpy as np
from fedbus_schemas.plan import Named

from fedbus.codec import Vector, codec
from fedbus.strategies import Columnwise

# Of the squares of what the strategy makes of whole updates. On mnist5k with ten skewed parts, 15 rounds came
# to an accuracy of 0.88 to 0.93 where 1.0 to 1.2 is kept (int8, eden, ecq with step 2), of 0.74 to 0.85 where
# it is 0.2 to 0.3 (step 4), and of 0.12 to 0.58 where it is 0.02 (topk); fedavg: 0.93, and 0.89 with topk.
LEAST_KEPT = 0.5
_UPDATES, _ELEMENTS = 10, 4096


def share_kept(strategy: Columnwise, up: Named) -> float:
    """The share that is left of what workers agree on, 1.0 where nothing is lost.

    Args:
        strategy: as it would fold them.
        up: the codec of updates that have one half in common.
    """
    chance = np.random.RandomState(0)
    common = chance.standard_normal(_ELEMENTS)
    rows = (common + chance.standard_normal((_UPDATES, _ELEMENTS))).astype(np.float32)
    thinned, made = np.empty_like(rows), codec(up.name, up.params)
    for row, got in zip(rows, thinned, strict=True):
        body, blosc = made.encode(row)
        made.decode(memoryview(body), blosc, got)
    return _squares(strategy, thinned) / _squares(strategy, rows)


def _squares(strategy: Columnwise, rows: Vector) -> float:
    out = np.empty(_ELEMENTS, np.float32)
    strategy.combine(0, rows, np.ones(len(rows)), out)
    return float(np.square(out, dtype=np.float64).sum())
