"""Laws of every partitioner: a cut covers the data, and all workers make the same one."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from fedbus import Site
from fedbus.tasks.partition import PARTITIONERS, part_of, split
from fedbus.tasks.task import Partition
from hypothesis import given
from hypothesis import strategies as st

# A worker that trains on everything is warned of it.
pytestmark = pytest.mark.filterwarnings("ignore:the plan has no data section")

KINDS = sorted(PARTITIONERS)
PINNED = {
    "by-label": [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]],
    "dirichlet": [[0, 2, 6, 8], [4, 7, 9, 10], [1, 3, 5, 11]],
    "iid": [[0, 1, 5, 11], [3, 4, 7, 10], [2, 6, 8, 9]],
    "shards": [[1, 4, 7, 10], [2, 6, 8, 9], [0, 3, 5, 11]],
}


@st.composite
def cuts(draw: st.DrawFn) -> tuple[str, list[int], int, int, float, int]:
    labels = draw(st.lists(st.integers(-3, 6), min_size=1, max_size=80))
    return (
        draw(st.sampled_from(KINDS)),
        labels,
        draw(st.integers(1, len(labels))),
        draw(st.integers(0, 2**63 - 1)),
        draw(st.floats(1e-4, 1e6)),
        draw(st.integers(1, 5)),
    )


@given(cuts())
def test_every_example_is_in_exactly_one_part_and_no_part_is_empty(cut):
    kind, labels, parts, seed, alpha, shards = cut
    dealt = split(kind, labels, parts, seed, alpha, shards)
    assert len(dealt) == parts
    assert all(len(part) > 0 and part.dtype == np.int64 for part in dealt)
    assert all((np.diff(part) > 0).all() for part in dealt)
    assert np.sort(np.concatenate(dealt)).tolist() == list(range(len(labels)))


@given(cuts())
def test_the_same_seed_makes_the_same_cut(cut):
    kind, labels, parts, seed, alpha, shards = cut
    first = split(kind, labels, parts, seed, alpha, shards)
    np.random.seed(1)  # chance of the process plays no part
    again = split(kind, np.array(labels), parts, seed, alpha, shards)
    assert [part.tolist() for part in first] == [part.tolist() for part in again]


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards"])
def test_another_seed_makes_another_cut(kind):
    labels = np.arange(1000) % 10
    cuts = {split(kind, labels, 4, seed)[0].tobytes() for seed in (0, 1, 2**32, 2**32 + 1)}
    assert len(cuts) == 4


def test_cuts_are_pinned():
    """Workers cut for themselves: a change of these lists would mix parts across versions."""
    labels = [i % 3 for i in range(12)]
    assert {kind: [part.tolist() for part in split(kind, labels, 3, 7, 0.5)] for kind in KINDS} == PINNED


def _distance(parts, labels):
    """Mean total variation between a part's labels and those of all the data: 0 is alike, near 1 apart."""
    whole = np.bincount(labels) / len(labels)
    mixes = [np.bincount(labels[part], minlength=len(whole)) / len(part) for part in parts]
    return np.mean([np.abs(mix - whole).sum() / 2 for mix in mixes])


def test_dirichlet_grows_more_skewed_as_alpha_falls():
    labels = np.arange(2000) % 10
    skew = [
        np.mean([_distance(split("dirichlet", labels, 8, seed, alpha), labels) for seed in range(8)])
        for alpha in (0.01, 0.1, 1.0, 10.0, 1000.0)
    ]
    assert all(more > less + 0.03 for more, less in pairwise(skew))
    assert skew[0] > 0.7
    # Drawing few examples is never quite even; the least skewed cut is as even as a shuffled one.
    assert skew[-1] == pytest.approx(_distance(split("iid", labels, 8, 0), labels), abs=0.03)


def test_dirichlet_parts_are_of_equal_size():
    sizes = [len(part) for part in split("dirichlet", np.arange(1003) % 10, 4, 0, 0.1)]
    assert sorted(sizes) == [250, 251, 251, 251]


def test_two_shards_hold_few_labels():
    labels = np.repeat(np.arange(10), 100)
    parts = split("shards", labels, 5, 3, shards=2)
    assert all(len(part) == 200 and len(set(labels[part])) <= 2 for part in parts)


def test_by_label_deals_whole_labels():
    labels = np.arange(100) % 10
    held = [sorted(set(labels[part].tolist())) for part in split("by-label", labels, 4, 0)]
    assert held == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]


def test_by_label_shares_a_label_where_parts_outnumber_labels():
    labels = np.array([0, 1] * 30)
    parts = split("by-label", labels, 5, 0)
    assert [set(labels[part].tolist()) for part in parts] == [{0}, {1}, {0}, {1}, {0}]
    assert [len(part) for part in parts] == [10, 15, 10, 15, 10]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("dirichle", [0, 1], 1, 0), "unknown partition 'dirichle'; known: iid, dirichlet, shards, by-label"),
        (("iid", [0, 1], 3, 0), "cannot cut 2 examples into 3 parts"),
        (("iid", [0, 1], 0, 0), "cannot cut 2 examples into 0 parts"),
        (("iid", [[0], [1]], 1, 0), "labels must be of shape"),
        (("dirichlet", [0, 1], 1, 0, 0.0), "alpha must be above 0"),
        (("shards", [0, 1], 1, 0, 1.0, 0), "shards at least 1"),
    ],
)
def test_what_cannot_be_cut_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        split(*arguments)


def test_a_site_selects_its_part():
    labels = np.arange(40) % 4
    partition = Partition("shards", parts=5, id=3, seed=9, shards=1)
    assert Site().select(labels).tolist() == list(range(40))
    assert (
        Site(partition=partition).select(labels).tolist()
        == split("shards", labels, 5, 9, shards=1)[3].tolist()
    )
    with pytest.raises(ValueError, match="there is no part 5 of 5"):
        part_of(Partition("iid", parts=5, id=5, seed=0), labels)


def test_who_trains_on_everything_is_warned_unless_its_data_is_its_own() -> None:
    with pytest.warns(UserWarning, match="all 3 examples"):
        Site().select([0, 1, 2])
    with warnings.catch_warnings(action="error"):
        Site(data="/srv/mine").select([0, 1, 2])
        Site(held_out=True).select([0, 1, 2])
