"""One round's spans as a tree, and as lines over time. Pure: no clock, no event loop, no OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedbus.telemetry.allowed import WORKER
from fedbus.telemetry.model import Span

# Of one party in one trace: a worker cannot fill the screen with spans of a round.
MOST_OF_A_PARTY = 400


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the waterfall. `left` and `width` are shares of the time that is shown, from 0 to 1."""

    span: Span
    depth: int
    left: float
    width: float

    @property
    def duration_s(self) -> float:
        """How long it took."""
        return self.span.end - self.span.start


@dataclass(frozen=True, slots=True)
class Tree:
    """A trace: its spans from the root down, and where each stands."""

    spans: tuple[Span, ...]
    depths: tuple[int, ...]

    @property
    def root(self) -> Span | None:
        """The round itself; None while it is under way."""
        return next((s for s in self.spans if s.parent_id is None), None)


def build(spans: Iterable[Span]) -> Tree:
    """Order spans depth first, each level by time.

    A span that is there twice counts once. Where two parties use one id, a service's span stands:
    workers know the ids of services' spans and may not replace them.
    """
    known: dict[str, Span] = {}
    counts: dict[str, int] = {}
    for span in sorted(spans, key=lambda s: (s.service == WORKER, s.start, s.span_id)):
        counts[span.party] = counts.get(span.party, 0) + 1
        if counts[span.party] <= MOST_OF_A_PARTY:
            known.setdefault(span.span_id, span)
    children: dict[str | None, list[Span]] = {}
    for span in sorted(known.values(), key=lambda s: (s.start, s.end, s.span_id)):
        parent = span.parent_id if span.parent_id in known else None
        children.setdefault(parent, []).append(span)
    ordered: list[Span] = []
    depths: list[int] = []
    # The root first, then what has lost its parent. What names itself as its ancestor is never reached.
    waiting = [(s, 0) for s in sorted(children.get(None, []), key=lambda s: s.parent_id is not None)][::-1]
    while waiting:
        span, depth = waiting.pop()
        ordered.append(span)
        depths.append(depth)
        waiting += [(child, depth + 1) for child in reversed(children.get(span.span_id, []))]
    return Tree(tuple(ordered), tuple(depths))


def coverage(tree: Tree) -> float:
    """Which share of the root's time its children cover together."""
    root = tree.root
    if root is None:
        return 0.0
    if root.end <= root.start:
        return 1.0
    covered, reached = 0.0, root.start
    for span in sorted(tree.spans, key=lambda s: s.start):
        if span.parent_id == root.span_id:
            start, end = max(span.start, reached), min(span.end, root.end)
            covered += max(0.0, end - start)
            reached = max(reached, end)
    return covered / (root.end - root.start)


def rows(tree: Tree) -> list[Row]:
    """Lines over time. Services' spans set the scale: a worker's clock that is off cannot stretch it."""
    begin, end = _shown(tree)
    length = max(end - begin, 1e-6)
    found = []
    for span, depth in zip(tree.spans, tree.depths, strict=True):
        left = min(1.0, max(0.0, (span.start - begin) / length))
        right = min(1.0, max(left, (span.end - begin) / length))
        found.append(Row(span, depth, left, right - left))
    return found


def _shown(tree: Tree) -> tuple[float, float]:
    trusted = [s for s in tree.spans if s.service != WORKER] or list(tree.spans)
    begin, end = min((s.start for s in trusted), default=0.0), max((s.end for s in trusted), default=0.0)
    root = tree.root
    if root is None or root.end <= root.start:
        return begin, end
    # A model may be scored long after its round: that must not squeeze the round into a corner.
    return root.start, min(max(root.end, end), root.end + (root.end - root.start) / 2)
