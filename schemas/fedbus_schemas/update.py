"""Updates and models on the wire: tensor table, chunk header, manifests."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, Self

import msgpack
from pydantic import Field, StringConstraints, model_validator

from fedbus_schemas.base import (
    Digest,
    Metrics,
    NodeName,
    Payload,
    Reason,
    RoundNumber,
    RunName,
    Token,
    Wire,
    WorkerName,
)

# `lossy` tensors go through the plan's codec, `exact` ones (BatchNorm statistics) always travel dense.
Group = Literal["lossy", "exact"]
MAX_TENSORS = 100_000
MAX_CHUNKS = 1_000_000
MAX_ELEMENTS = 1 << 40
MOST_DELTAS = 100  # that lie between a model and one that travels whole


class TensorSpec(Wire):
    """One named tensor's place in the flat vector."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    shape: tuple[Annotated[int, Field(ge=0, le=MAX_ELEMENTS)], ...] = Field(max_length=16)
    dtype: Literal[
        "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
    ]
    group: Group = "lossy"

    @property
    def size(self) -> int:
        """Number of elements. Shapes come from peers: this is an exact integer, however large."""
        size = 1
        for n in self.shape:
            size *= n
        return size


class ChunkHeader(Wire):
    """What precedes a chunk's body. Its span must be the one that the grid gives the chunk."""

    codec: Token
    offset: int = Field(ge=0, description="first element, counted over the whole flat vector")
    count: int = Field(ge=1, description="elements")
    blosc: bool = Field(False, description="the body's codes went through blosc2")


class _Packed(Wire):
    """A contract that travels as msgpack; its digest is that of its bytes."""

    def pack(self) -> bytes:
        """The bytes on the wire."""
        packed: bytes = msgpack.packb(self.model_dump(mode="python"), use_bin_type=True)
        return packed

    @classmethod
    def unpack(cls, data: Payload) -> Self:
        """Read what `pack` wrote, with lengths capped and extension types refused.

        Raises:
            ValueError: the bytes are not this contract (pydantic's ValidationError is one).
        """
        try:
            value: Any = msgpack.unpackb(
                data,
                raw=False,
                strict_map_key=True,
                use_list=True,
                max_str_len=4096,
                max_bin_len=len(data),
                max_array_len=MAX_CHUNKS,
                max_map_len=256,
                max_ext_len=0,
            )
        except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
            raise ValueError(f"not msgpack: {error}") from error
        return cls.model_validate(value)

    def digest(self) -> str:
        """SHA-256 of the packed bytes, in hex."""
        return hashlib.sha256(self.pack()).hexdigest()


class UpdateManifest(_Packed):
    """The commit of an update: before it nothing of the update counts.

    Lists fail at their first wrong item: a peer could make a million of them wrong.
    """

    run: RunName
    round: RoundNumber
    worker: WorkerName
    node: NodeName = "0"
    attempt: Token
    plan: Digest
    base: Digest | None = Field(description="model the update is a delta to; none: weights from zero")
    codec: Token
    chosen: Reason | None = Field(None, description="why this codec, where the plan says auto")
    num_examples: int = Field(ge=1, le=10**12)
    metrics: Metrics = {}
    chunks: list[Digest] = Field(
        min_length=1, max_length=MAX_CHUNKS, fail_fast=True, description="SHA-256 of each chunk, in order"
    )
    size_bytes: int = Field(ge=1, description="sum of the chunks' sizes")
    table: list[TensorSpec] | None = Field(
        None, max_length=MAX_TENSORS, fail_fast=True, description="only where there is no base"
    )
    body: bytes | None = Field(None, description="the chunk itself, when there is one and it fits")


class ModelManifest(_Packed):
    """A model: its digest names it.

    It travels whole, or as a difference. Then `values` is there: exact chunks are values as ever, lossy ones
    are what to add to the parent's values, by one float32 addition for each element.
    """

    run: RunName
    round: RoundNumber
    parent: Digest | None
    codec: Token
    table: list[TensorSpec] = Field(min_length=1, max_length=MAX_TENSORS, fail_fast=True)
    chunks: list[Digest] = Field(min_length=1, max_length=MAX_CHUNKS, fail_fast=True)
    size_bytes: int = Field(ge=1, description="sum of the chunks' sizes")
    body: bytes | None = Field(None, description="the chunk itself, when there is one and it fits")
    values: list[Digest] | None = Field(
        None,
        max_length=MAX_CHUNKS,
        fail_fast=True,
        description="of a difference: SHA-256 of each span's float32 values, once it is added to the parent",
    )

    @property
    def is_delta(self) -> bool:
        """Whether it travels as a difference to its parent."""
        return self.values is not None

    @model_validator(mode="after")
    def _whole_difference(self) -> Self:
        if self.values is not None and (self.parent is None or len(self.values) != len(self.chunks)):
            raise ValueError("a difference needs a parent, and a digest of the values of each chunk")
        return self


class EvaluationReport(_Packed):
    """A worker's score of a model on its own data, or why it has none. One message, without chunks."""

    run: RunName
    round: RoundNumber
    worker: WorkerName
    node: NodeName = "0"
    attempt: Token
    model: Digest
    num_examples: int = Field(0, ge=0, le=10**12)
    metrics: Metrics = {}
    failed: Reason | None = None
