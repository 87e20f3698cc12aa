"""How shipped data is dealt to workers: one seeded cut that every worker makes alike.

Workers cut for themselves, each under its own interpreter and numpy, and their parts must
fit together. Hence numpy's legacy `RandomState`: its streams are frozen for good, which
those of `Generator` are not (NEP 19).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedbus.tasks.task import Partition

    Indices = NDArray[np.int64]
    Chance = np.random.RandomState

# Given the class of each example (0..k-1), parts, chance, alpha and shards: the parts, some perhaps empty.
Partitioner = Callable[["Indices", int, "Chance", float, int], List["Indices"]]


def iid(classes: Indices, parts: int, chance: Chance, alpha: float, shards: int) -> List[Indices]:
    """Shuffle, and cut into parts of equal size."""
    return np.array_split(chance.permutation(len(classes)), parts)


def dirichlet(classes: Indices, parts: int, chance: Chance, alpha: float, shards: int) -> List[Indices]:
    """Parts of equal size, each with its own mix of labels drawn from Dir(alpha, …, alpha).

    Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution for
    federated visual classification": each part in turn draws its mix, then its examples
    without replacement; where a label has run out, the mix is taken over the others.
    """
    pools = [list(chance.permutation(np.flatnonzero(classes == k))) for k in range(int(classes.max()) + 1)]
    left = np.array([len(pool) for pool in pools])
    mixes = _log_dirichlet(chance, alpha, parts, len(pools))
    # The last parts take what is left over, so a random part comes last, not always the highest id.
    turns = chance.permutation(parts)
    sizes = [len(part) for part in np.array_split(classes, parts)]
    dealt: List[Indices] = [np.empty(0, np.int64)] * parts
    for part in turns:
        taken = np.zeros_like(left)
        while (missing := sizes[part] - int(taken.sum())) > 0:
            mix = np.where(left > taken, mixes[part], -np.inf)
            mix = np.exp(mix - mix.max())
            taken += np.minimum(chance.multinomial(missing, mix / mix.sum()), left - taken)
        left -= taken
        dealt[part] = np.array([pools[k].pop() for k in np.repeat(np.arange(len(pools)), taken)], np.int64)
    return dealt


def shards(classes: Indices, parts: int, chance: Chance, alpha: float, shards: int) -> List[Indices]:
    """Sort by label, cut into `parts * shards` shards of equal size, deal each part `shards` of them.

    McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized
    data": with 2 shards most parts hold two labels.
    """
    shuffled = chance.permutation(len(classes))
    by_label = shuffled[np.argsort(classes[shuffled], kind="stable")]
    cut = np.array_split(by_label, parts * shards)
    order = chance.permutation(parts * shards).reshape(parts, shards)
    return [np.concatenate([cut[i] for i in row]) for row in order]


def by_label(classes: Indices, parts: int, chance: Chance, alpha: float, shards: int) -> List[Indices]:
    """Deal whole labels round robin; where there are more parts than labels, parts share a label."""
    labels = int(classes.max()) + 1
    dealt: List[List[Indices]] = [[] for _ in range(parts)]
    for label in range(labels):
        examples = chance.permutation(np.flatnonzero(classes == label))
        holders = range(label, parts, labels) if parts > labels else [label % parts]
        for i, share in enumerate(np.array_split(examples, len(holders))):
            dealt[holders[i]].append(share)
    return [np.concatenate(part) for part in dealt]


PARTITIONERS: Dict[str, Partitioner] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
    "by-label": by_label,
}


def split(
    kind: str, labels: Any, parts: int, seed: int, alpha: float = 1.0, shards: int = 2
) -> List[Indices]:
    """Cut a data set into parts: each example in exactly one, no part empty.

    Args:
        kind: iid, dirichlet, shards or by-label.
        labels: one label per example, of shape (n,), of any sortable type.
        parts: how many parts, at most n.
        seed: from 0; the same seed gives the same parts under any numpy.
        alpha: concentration, for dirichlet; above 0, small is skewed.
        shards: shards per part, for shards.

    Returns:
        For each part the sorted int64 indices of its examples.

    Raises:
        ValueError: an unknown kind, or more parts than examples.
    """
    if kind not in PARTITIONERS:
        raise ValueError("unknown partition {!r}; known: {}".format(kind, ", ".join(PARTITIONERS)))
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError("labels must be of shape (n,), got {}".format(labels.shape))
    if not 1 <= parts <= len(labels):
        raise ValueError("cannot cut {} examples into {} parts".format(len(labels), parts))
    if not alpha > 0 or shards < 1:
        raise ValueError("alpha must be above 0 and shards at least 1, got {} and {}".format(alpha, shards))
    classes = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    chance = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
    dealt = PARTITIONERS[kind](classes, parts, chance, alpha, shards)
    return [np.sort(part).astype(np.int64) for part in _fill_empty(dealt)]


def part_of(partition: Partition, labels: Any) -> Indices:
    """The examples of one part.

    Raises:
        ValueError: as `split`, or there is no such part.
    """
    if not 0 <= partition.id < partition.parts:
        raise ValueError(
            "there is no part {} of {}; parts count from 0".format(partition.id, partition.parts)
        )
    p = partition
    return split(p.kind, labels, p.parts, p.seed, p.alpha, p.shards)[p.id]


def _log_dirichlet(chance: Chance, alpha: float, rows: int, columns: int) -> NDArray[np.float64]:
    """Logarithms of Dirichlet draws, up to a constant per row.

    A plain draw underflows to 0/0 for a small alpha. Gamma(a) is Gamma(a + 1) * U**(1/a)
    (Marsaglia and Tsang 2000), which stays finite as a logarithm.
    """
    gamma = chance.standard_gamma(alpha + 1.0, (rows, columns))
    uniform = 1.0 - chance.random_sample((rows, columns))  # never 0
    return np.log(gamma) + np.log(uniform) / alpha


def _fill_empty(dealt: List[Indices]) -> List[Indices]:
    """Give each empty part one example of the largest part."""
    dealt = list(dealt)
    for i, part in enumerate(dealt):
        if len(part) == 0:
            largest = max(range(len(dealt)), key=lambda k: len(dealt[k]))
            dealt[i], dealt[largest] = dealt[largest][-1:], dealt[largest][:-1]
    return dealt
