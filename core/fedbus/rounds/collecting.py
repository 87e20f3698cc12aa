"""Whether an update's manifest can count in a round, and when it is said: every check that needs no chunk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

from fedbus_schemas.ids import RoundRef
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import TensorSpec, UpdateManifest

from fedbus.base.errors import CodecError, DigestMismatch, StreamMissing
from fedbus.codec import codecs
from fedbus.codec.auto import AUTO
from fedbus.codec.framing import up_codec
from fedbus.codec.grid import Grid, order
from fedbus.rounds.close import Attempt
from fedbus.rounds.fold import Round, Seat
from fedbus.rounds.reasons import RefusalCode

# How long a verdict waits for those of the other members, to be one entry with them.
VERDICT_S = 0.05


def may_wait(round_: Round, verified: Collection[Seat]) -> bool:
    """Whether the verdicts on these seats may wait for others: the round cannot close on them alone.

    An entry costs each service a wake-up and the broker a synchronised write, so few are better; but
    nobody waits for the last of them.
    """
    opened = round_.opened
    assert opened is not None
    enough = len(round_.accepted) + len(verified) >= opened.target
    return not enough and any(seat not in verified for seat in round_.awaited)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an update does not count."""

    code: RefusalCode
    reason: str
    chunk: int | None = None

    @classmethod
    def of_another_manifest(cls) -> Self:
        """An accepted update whose manifest reads differently now."""
        return cls("digest-mismatch", "the manifest is not the one that was accepted")

    @classmethod
    def unreadable(cls, error: CodecError | StreamMissing, chunk: int | None = None) -> Self:
        """Bytes are not there, or not what they must be."""
        code: RefusalCode = "chunk-refused"
        if isinstance(error, StreamMissing):
            code = "stream-missing"
        elif isinstance(error, DigestMismatch):
            code = "digest-mismatch"
        named = chunk is None or error.message.startswith(f"chunk {chunk}:")
        where = "" if named else f"chunk {chunk}: "
        return cls(code, f"{where}{error.message}"[:500], chunk)


def judge_attempt(attempt: Attempt, round_: Round) -> Refusal | None:
    """Check what the subject alone says; the broker vouches for its worker."""
    worker, node, number = attempt
    if (worker, node) not in round_.seats:
        return Refusal("not-in-cohort", f"{worker} has no seat in this round")
    counted = round_.accepted_from(worker, node)
    if counted is not None and counted.attempt != number:
        return Refusal("duplicate", f"attempt {counted.attempt} of {worker} counts already")
    if counted is None and round_.full:
        return Refusal("not-needed", f"the first model was made by {round_.accepted[0].worker}")
    if round_.state != "open":
        return Refusal("late", f"stored after the round was {round_.state}")
    return None


def judge_manifest(
    manifest: UpdateManifest,
    attempt: Attempt,
    ref: RoundRef,
    round_: Round,
    plan: Plan,
    table: Sequence[TensorSpec] | None,
) -> Refusal | None:
    """Check a manifest against its subject, the round's contract and the model's grid.

    Args:
        manifest: as read.
        attempt: worker, node and attempt of its subject.
        ref: run and round of its subject.
        round_: the fold of that round.
        plan: the run's plan.
        table: tensors of the base model; None in the round that makes the first.
    """
    opened = round_.opened
    assert opened is not None
    if (manifest.worker, manifest.node, manifest.attempt) != attempt or (manifest.run, manifest.round) != (
        ref.run,
        ref.number,
    ):
        return Refusal(
            "wrong-manifest", f"names {manifest.run}/{manifest.round} of {manifest.worker}, stored as {ref}"
        )
    if manifest.plan != opened.plan:
        return Refusal("wrong-plan", "made under another plan")
    if manifest.base != opened.base:
        return Refusal("wrong-base", "is a delta to another model")
    codec = up_codec(plan.codec.up, opened.base).name
    if codec == AUTO:
        if manifest.codec not in codecs.names():
            return Refusal("wrong-codec", f"is coded {manifest.codec}, which is not installed here")
    elif manifest.codec != codec:
        said = "the plan says" if opened.base else "first weights travel"
        return Refusal("wrong-codec", f"is coded {manifest.codec}, {said} {codec}")
    if manifest.size_bytes > plan.max_update_bytes:
        return Refusal(
            "too-large",
            f"weighs {manifest.size_bytes / 1e6:.1f} MB, allowed {plan.limits.mb_per_worker:g} MB",
        )
    if (table is None) != (manifest.table is not None):
        return Refusal("wrong-table", "tensors are listed where, and only where, there is no base model")
    if manifest.table is not None:
        refusal = _judge_table(manifest.table, plan)
        if refusal:
            return refusal
        table = manifest.table
    assert table is not None
    chunks = len(Grid.of(table).spans)
    if len(manifest.chunks) != chunks:
        return Refusal("wrong-shape", f"has {len(manifest.chunks)} chunks, the model has {chunks}")
    if manifest.body is not None and chunks != 1:
        return Refusal("wrong-shape", f"carries a body, but the model has {chunks} chunks")
    return None


def _judge_table(table: list[TensorSpec], plan: Plan) -> Refusal | None:
    names = [tensor.name for tensor in table]
    if len(set(names)) != len(names):
        return Refusal("wrong-table", "two tensors have the same name")
    if order(table) != table:
        return Refusal("wrong-table", "exact tensors come before lossy ones")
    size = sum(tensor.size for tensor in table)
    if size == 0:
        return Refusal("wrong-table", "the model has no element")
    if 4 * size > plan.max_update_bytes:
        # Integers: a hostile size can be too large for a float.
        megabytes = min(4 * size // 10**6, 10**15)
        return Refusal("too-large", f"the model has {megabytes} MB, allowed {plan.limits.mb_per_worker:g} MB")
    return None
