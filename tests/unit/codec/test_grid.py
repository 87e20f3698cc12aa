"""The grid: whatever the tensors, the chunks tile the vector and each fits a message."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from fedbus.codec.chunk import ALLOWANCE_BYTES, max_chunk_bytes
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid, order
from fedbus_schemas.update import MAX_CHUNKS, MAX_ELEMENTS, Group, TensorSpec
from hypothesis import given, settings
from hypothesis import strategies as st

LAWS = settings(derandomize=True, database=None, deadline=None, max_examples=200)
lengths = st.one_of(
    st.integers(0, 3000),
    st.builds(lambda chunks, more: chunks * CHUNK_ELEMENTS + more, st.integers(1, 4), st.integers(-2, 2)),
)
shapes = st.one_of(st.tuples(lengths), st.tuples(st.integers(0, 50), st.integers(0, 50)), st.just(()))
tables = st.lists(
    st.tuples(shapes, st.sampled_from(["lossy", "exact"])).map(
        lambda pair: TensorSpec(name="t", shape=pair[0], dtype="float32", group=pair[1])
    ),
    max_size=8,
)
some = tables.filter(lambda table: sum(t.size for t in table) > 0)


@LAWS
@given(table=some)
def test_spans_tile_the_vector(table: list[TensorSpec]) -> None:
    grid = Grid.of(table)
    assert grid.size == sum(math.prod(t.shape) for t in table)
    assert grid.bytes == 4 * grid.size
    assert grid.spans[0].offset == 0
    assert grid.spans[-1].end == grid.size
    assert [span.index for span in grid.spans] == list(range(len(grid.spans)))
    assert all(left.end == right.offset for left, right in pairwise(grid.spans))


@LAWS
@given(table=some)
def test_no_span_straddles_the_groups(table: list[TensorSpec]) -> None:
    grid = Grid.of(table)
    lossy = sum(t.size for t in table if t.group == "lossy")
    for span in grid.spans:
        expected: Group = "lossy" if span.end <= lossy else "exact"
        assert span.group == expected
        assert span.end <= lossy or span.offset >= lossy


@LAWS
@given(table=some)
def test_spans_are_full_but_for_the_last_of_a_group(table: list[TensorSpec]) -> None:
    spans = Grid.of(table).spans
    assert all(1 <= span.count <= CHUNK_ELEMENTS for span in spans)
    assert all(left.count == CHUNK_ELEMENTS for left, right in pairwise(spans) if left.group == right.group)


@LAWS
@given(table=some)
def test_the_grid_of_a_table_is_that_of_its_wire_order(table: list[TensorSpec]) -> None:
    assert Grid.of(order(table)) == Grid.of(table)


@LAWS
@given(table=tables)
def test_wire_order_puts_lossy_first_and_keeps_the_rest(table: list[TensorSpec]) -> None:
    named = [t.model_copy(update={"name": f"t{i}"}) for i, t in enumerate(table)]
    ordered = order(named)
    assert [t for t in ordered if t.group == "lossy"] == [t for t in named if t.group == "lossy"]
    assert [t for t in ordered if t.group == "exact"] == [t for t in named if t.group == "exact"]
    assert "exactlossy" not in "".join(t.group for t in ordered)
    assert len(ordered) == len(named)


def test_the_largest_chunk_fits_the_default_payload_with_its_headers() -> None:
    span = Grid.of([TensorSpec(name="w", shape=(CHUNK_ELEMENTS,), dtype="float32")]).spans[0]
    assert max_chunk_bytes(span) == 4 * CHUNK_ELEMENTS + ALLOWANCE_BYTES
    assert max_chunk_bytes(span) < (1 << 20) - 4096


def test_a_table_without_elements_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one element"):
        Grid.of([TensorSpec(name="w", shape=(3, 0), dtype="float32")])


@pytest.mark.parametrize("shape", [(MAX_CHUNKS * CHUNK_ELEMENTS + 1,), (MAX_ELEMENTS, MAX_ELEMENTS)])
def test_a_table_that_claims_the_earth_is_refused_at_once(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="need more than 1000000 chunks"):
        Grid.of([TensorSpec(name="w", shape=shape, dtype="float32")])
