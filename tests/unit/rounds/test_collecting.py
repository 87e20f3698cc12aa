"""Whether a manifest can count: every refusal, by its code, and hostile manifests."""

from __future__ import annotations

from typing import Any

import pytest
from fedbus.codec.grid import CHUNK_ELEMENTS
from fedbus.rounds.collecting import judge_attempt, judge_manifest, may_wait
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Entry
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import MAX_CHUNKS, MAX_ELEMENTS, TensorSpec, UpdateManifest
from support.rounds import (
    BASE,
    aborted,
    accepted,
    aggregated,
    closing,
    digest,
    finished,
    fold,
    lost,
    opened,
    plan,
    rejected,
)

TABLE = [TensorSpec(name="w", shape=(10,), dtype="float32")]
LARGEST = plan(limits={"mb_per_worker": 1e6})
REF = RoundRef("run-1", 3)
SEAT = ("w1", "0", "a")


@pytest.mark.parametrize(
    ("entries", "attempt", "code", "says"),
    [
        ([], SEAT, None, ""),
        ([accepted("w1")], SEAT, None, ""),
        ([accepted("w2"), rejected("w1", "old")], SEAT, None, ""),
        ([], ("stranger", "0", "a"), "not-in-cohort", "stranger has no seat"),
        ([], ("w1", "1", "a"), "not-in-cohort", "w1 has no seat"),
        ([closing()], ("stranger", "0", "a"), "not-in-cohort", ""),
        ([accepted("w1")], ("w1", "0", "b"), "duplicate", "attempt a of w1 counts already"),
        ([accepted("w1"), closing()], ("w1", "0", "b"), "duplicate", ""),
        ([closing()], SEAT, "late", "after the round was closing"),
        ([aborted()], SEAT, "late", "after the round was aborted"),
        ([closing(), aggregated(), finished()], SEAT, "late", "after the round was finished"),
    ],
)
def test_attempts(entries: list[Entry], attempt: tuple[str, str, str], code: str | None, says: str) -> None:
    refusal = judge_attempt(attempt, fold(opened("w1", "w2"), *entries))
    assert (refusal and refusal.code) == code
    assert says in (refusal.reason if refusal else "")


def test_one_update_makes_the_first_model() -> None:
    refusal = judge_attempt(SEAT, fold(opened("w1", "w2", base=None), accepted("w2")))
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("not-needed", "the first model was made by w2")


def _manifest(**changes: Any) -> UpdateManifest:
    values: dict[str, Any] = {
        "run": "run-1", "round": 3, "worker": "w1", "attempt": "a", "plan": digest("plan"), "base": BASE,
        "codec": "int8", "num_examples": 5, "chunks": [digest("chunk")], "size_bytes": 50,
    }  # fmt: skip
    return UpdateManifest(**(values | changes))


def _judge(
    manifest: UpdateManifest, table: list[TensorSpec] | None = TABLE, plan_: Plan | None = None
) -> tuple[str, str] | None:
    round_ = fold(opened("w1", "w2", base=None if table is None else BASE))
    refusal = judge_manifest(manifest, SEAT, REF, round_, plan_ or plan(), table)
    return (refusal.code, refusal.reason) if refusal else None


def _first(*tensors: TensorSpec, **changes: Any) -> UpdateManifest:
    return _manifest(**({"base": None, "codec": "dense", "table": list(tensors)} | changes))


def _tensor(name: str = "w", *shape: int, group: str = "lossy") -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "shape": shape, "dtype": "float32", "group": group})


def test_a_good_manifest_is_not_refused() -> None:
    assert _judge(_manifest()) is None
    assert _judge(_manifest(body=b"x")) is None
    assert _judge(_first(_tensor("w", 10)), None) is None
    assert _judge(_first(_tensor("w", 10), codec="int8"), None) == (
        "wrong-codec",
        "is coded int8, first weights travel dense",
    )


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"worker": "w2"}, "wrong-manifest", "names run-1/3 of w2, stored as run-1/3"),
        ({"node": "1"}, "wrong-manifest", ""),
        ({"attempt": "b"}, "wrong-manifest", ""),
        ({"run": "run-2"}, "wrong-manifest", "names run-2/3"),
        ({"round": 4}, "wrong-manifest", "names run-1/4"),
        ({"plan": digest("other")}, "wrong-plan", "another plan"),
        ({"base": digest("other")}, "wrong-base", "another model"),
        ({"base": None}, "wrong-base", "another model"),
        ({"codec": "dense"}, "wrong-codec", "is coded dense, the plan says int8"),
        ({"size_bytes": 2_000_001}, "too-large", "weighs 2.0 MB, allowed 2 MB"),
        ({"size_bytes": 2**64 - 1}, "too-large", "allowed 2 MB"),
        ({"table": TABLE}, "wrong-table", "where, and only where, there is no base"),
        ({"chunks": [digest("a"), digest("b")]}, "wrong-shape", "has 2 chunks, the model has 1"),
    ],
)
def test_refusals(changes: dict[str, Any], code: str, says: str) -> None:
    refusal = _judge(_manifest(**changes), plan_=plan(limits={"mb_per_worker": 2}))
    assert refusal is not None
    assert refusal[0] == code
    assert says in refusal[1]


@pytest.mark.parametrize(
    ("tensors", "code", "says"),
    [
        ([], "wrong-table", "no element"),
        ([_tensor("w", 0)], "wrong-table", "no element"),
        ([_tensor("w", 1), _tensor("w", 1)], "wrong-table", "same name"),
        ([_tensor("s", 1, group="exact"), _tensor("w", 1)], "wrong-table", "before"),
        ([_tensor("w", 500_001)], "too-large", "the model has 2 MB, allowed 2 MB"),
        ([_tensor("w", *[MAX_ELEMENTS] * 16)], "too-large", "allowed 2 MB"),
        ([_tensor("w", 1), _tensor("s", 1, group="exact")], "wrong-shape", "has 1 chunks, the model has 2"),
        ([_tensor("w", CHUNK_ELEMENTS + 1)], "wrong-shape", "has 1 chunks, the model has 2"),
    ],
)
def test_refusals_of_a_first_models_table(tensors: list[TensorSpec], code: str, says: str) -> None:
    refusal = _judge(_first(*tensors), None, plan(limits={"mb_per_worker": 2}))
    assert refusal is not None
    assert refusal[0] == code
    assert says in refusal[1]


def test_where_the_plan_says_auto_any_codec_that_is_installed_will_do() -> None:
    auto = plan(codec={"up": "auto"})
    assert _judge(_manifest(codec="ecq"), plan_=auto) is None
    assert _judge(_manifest(codec="auto"), plan_=auto) == (
        "wrong-codec",
        "is coded auto, which is not installed here",
    )
    assert _judge(_first(_tensor("w", 10)), None, auto) is None


def test_a_first_model_without_a_table_is_refused() -> None:
    assert (_judge(_manifest(base=None, codec="dense"), None) or ("",))[0] == "wrong-table"


def test_a_body_is_for_one_chunk_only() -> None:
    two = [_tensor("w", CHUNK_ELEMENTS + 1)]
    refusal = _judge(_manifest(chunks=[digest("a"), digest("b")], body=b"x"), two)
    assert refusal is not None
    assert refusal[0] == "wrong-shape"
    assert "carries a body" in refusal[1]


@pytest.mark.parametrize("elements", [CHUNK_ELEMENTS * MAX_CHUNKS, MAX_ELEMENTS])
def test_no_table_that_a_plan_allows_breaks_the_grid(elements: int) -> None:
    """The largest plan: a refusal, not an error that would stop the aggregator."""
    assert (_judge(_first(_tensor("w", elements)), None, LARGEST) or ("",))[0] == "too-large"


def test_the_largest_table_that_a_plan_allows_fits_the_grid() -> None:
    fits = _tensor("w", LARGEST.max_update_bytes // 4)
    assert (_judge(_first(fits), None, LARGEST) or ("",))[0] == "wrong-shape"


@pytest.mark.parametrize(
    ("target", "entries", "verified", "may"),
    [
        (3, [], ["w1"], True),
        (3, [], ["w1", "w2"], True),
        (3, [], ["w1", "w2", "w3"], False),
        (2, [], ["w1", "w2"], False),
        (3, [accepted("w1", "w2")], ["w3"], False),
        (3, [accepted("w1")], ["w2"], True),
        (3, [accepted("w1"), lost("w3")], ["w2"], False),
        (3, [rejected("w3"), lost("w2")], ["w1"], False),
    ],
)
def test_verdicts_wait_while_more_are_needed_and_to_come(
    target: int, entries: list[Entry], verified: list[str], may: bool
) -> None:
    round_ = fold(opened("w1", "w2", "w3", target=target), *entries)
    assert may_wait(round_, {(worker, "0") for worker in verified}) == may
