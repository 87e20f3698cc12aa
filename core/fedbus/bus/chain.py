"""What a model's values are made of: a whole model or the file of one, and the differences that follow it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from io import FileIO
from typing import Self

from fedbus_schemas.base import Payload
from fedbus_schemas.update import MOST_DELTAS, ModelManifest

from fedbus.base.errors import RemoteContractError
from fedbus.bus.modelfile import Scratch, read_span
from fedbus.codec import Vector
from fedbus.codec.delta import add_delta, check_values
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span

# Opens the file of a model, where this host has it. It need not be right: what it leads to is compared.
Near = Callable[[str], FileIO | None]


def nowhere(digest: str) -> None:
    """No file is at hand."""


class Chain:
    """Makes values, span by span.

    Args:
        start: file of the oldest link's parent; None: the oldest link is whole.
        links: manifests, oldest first; the last is the model's own, and all others have its tensors.
    """

    def __init__(self, start: FileIO | None, links: Sequence[ModelManifest]) -> None:
        self._start = start
        self._links = links
        self._framings = [Framing(link.codec) for link in links]
        self._scratch = Scratch(Grid.of(links[-1].table))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._start is not None:
            self._start.close()

    @property
    def begins_with_a_file(self) -> bool:
        """Whether what comes out depends on a file of this host."""
        return self._start is not None

    @property
    def size_bytes(self) -> int:
        """What all links weigh on the wire."""
        return sum(len(m.pack()) + (m.size_bytes if m.body is None else 0) for m in self._links)

    def links_of(self, span: Span) -> Sequence[ModelManifest]:
        """Whose chunks a span is made of, oldest first."""
        return self._links[-1:] if span.group == "exact" else self._links

    def build(self, span: Span, chunks: Sequence[Payload], out: Vector) -> None:
        """Make one span's values, in any thread.

        Args:
            span: the place.
            chunks: one for each of `links_of`.
            out: where to; its content is undefined after an error.

        Raises:
            ChunkRefused, DigestMismatch: a chunk, or what comes out, is not what it must be.
        """
        links = self.links_of(span)
        if self._start is not None:
            read_span(self._start, span, out)
        for link, framing, data in zip(links, self._framings[-len(links) :], chunks, strict=True):
            digest = link.chunks[span.index]
            if link.is_delta:
                with self._scratch.lent(span.count) as scratch:
                    add_delta(framing, data, digest, span, out, scratch)
            else:
                framing.decode(data, digest, span, out)
        listed = self._links[-1].values
        if listed is not None:
            check_values(out, listed[span.index], span)


async def chain_of(
    manifest: ModelManifest, read: Callable[[str], Awaitable[ModelManifest]], near: Near
) -> Chain:
    """Go back from a model to the nearest one that is at hand, or that travels whole.

    Args:
        manifest: of the model.
        read: reads another one.
        near: opens a file.

    Raises:
        RemoteContractError: there is none within reach, or an ancestor has other tensors.
        StreamMissing, DigestMismatch: an ancestor's manifest is not there, or is another.
    """
    links = [manifest]
    while links[-1].parent is not None and links[-1].is_delta:
        where = f"model {manifest.run}/{manifest.round}"
        if len(links) > MOST_DELTAS:
            raise RemoteContractError(f"{where} is over {MOST_DELTAS} differences away from a whole one")
        if (file := near(links[-1].parent)) is not None:
            return Chain(file, links[::-1])
        links.append(await read(links[-1].parent))
        if links[-1].table != manifest.table:
            raise RemoteContractError(f"{where} is a difference to a model with other tensors")
    return Chain(None, links[::-1])
