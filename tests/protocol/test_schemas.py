"""The wire, byte for byte: a change of any contract shows here first. And what no contract lets in.

`golden/` holds what this version writes; versions that follow must still read it. To add a case, write its
value below and its bytes there; never change bytes that a released version wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from fedbus.rounds.versions import model_report
from fedbus_schemas.base import Wire, is_token
from fedbus_schemas.log import Entry, Member, decode_entry, encode_entry
from fedbus_schemas.messages import (
    Aborting,
    AbortRun,
    Announcement,
    Beat,
    EndedRound,
    InboxNotices,
    Notice,
    Progress,
    RunRecord,
    StartRun,
)
from fedbus_schemas.plan import Plan
from fedbus_schemas.registry import ImportModel, ModelVersion
from fedbus_schemas.report import (
    ErrorBody,
    ErrorReport,
    ModelDetails,
    RefusalReport,
    RoundReport,
    RunReport,
    RunSummary,
    SpanEventReport,
    SpanReport,
    TraceReport,
    UpdateReport,
)
from fedbus_schemas.roster import (
    Activity,
    Admission,
    AskWhy,
    CreateInvite,
    Doing,
    Invite,
    InviteCreated,
    InviteList,
    InviteReport,
    Join,
    Joined,
    RevokeInvite,
    RosterEntry,
    RosterEvent,
    Standing,
    Standings,
    WorkerReport,
)
from fedbus_schemas.update import (
    MAX_CHUNKS,
    ChunkHeader,
    EvaluationReport,
    ModelManifest,
    TensorSpec,
    UpdateManifest,
)
from pydantic import TypeAdapter, ValidationError
from support.rounds import (
    BASE,
    NOW,
    aborted,
    accepted,
    aggregated,
    beat,
    closing,
    digest,
    evaluated,
    finished,
    lost,
    opened,
    progress,
    rejected,
    scored,
    update,
    voided,
)

GOLDEN = Path(__file__).parent / "golden"

ENTRIES: list[Entry] = [
    opened("w1", "w2", base=None, base_bytes=0).model_copy(
        update={"members": [Member(worker="w1", partition=0), Member(worker="w2", node="n1")]}
    ),
    accepted(update("w1", weight=359.0, metrics={"loss": 0.25}), update("w2", "b2")),
    rejected("w2"), lost("w3"), closing(), voided("w1"), aggregated(), evaluated(), finished(), aborted(),
]  # fmt: skip

FULL = Plan.model_validate(
    {
        "task": "my_package.tasks:Mine",
        "rounds": 3,
        "seed": 7,
        "model": {"from": "run-0001"},
        "data": {"partition": "dirichlet", "alpha": 0.3, "parts": 4},
        "cohort": {"fraction": 0.5, "min": 3, "over_select": 1.3, "require": {"gpu": "yes"}},
        "close": {"target": 3, "quorum": 0.5, "deadline_s": 30},
        "train": {"lr": 0.05, "layers": [1, 2], "name": None},
        "strategy": "fedavg",
        "codec": {"up": {"name": "int8"}, "down": "bf16"},
        "evaluate": {"every": 2, "central": False, "federated": True},
        "limits": {"mb_per_worker": 1.5},
        "retain": "all",
    }
)
ROUND = RoundReport(
    round=1,
    state="finished",
    reason="have 1 of 1 updates",
    cohort=["w1", "w2"],
    accepted=1,
    accepted_updates=[UpdateReport(worker="w1", node="0", weight=5.0, bytes=10, digest=digest("u"))],
    rejected=[RefusalReport(worker="w2", code="late", reason="stored after the round was closing")],
    waiting=[],
    lost=[RefusalReport(worker="w3", code="silent", reason="not heard")],
    opened_at="2026-01-02T03:04:05.678Z",
    closed_at="2026-01-02T03:04:06.000Z",
    seconds=0.322,
    bytes_up=10,
    bytes_down=200,
    model=digest("model"),
    trace_id="0" * 32,
    metrics={"accuracy": 0.91},
    kpis={"participation": 0.5},
)
TABLE = [
    TensorSpec(name="conv.weight", shape=(16, 1, 3, 3), dtype="float32"),
    TensorSpec(name="bn.running_mean", shape=(16,), dtype="float32", group="exact"),
]
VERSION = ModelVersion(
    run="run-0001", round=2, digest=digest("model"), parent=BASE, task="digits", size_bytes=812, elements=160,
    metrics={"accuracy": 0.5, "federated_loss": 0.25}, created_at=NOW, source="train",
)  # fmt: skip
LABELS = {"gpu": "yes"}
ENTRY = RosterEntry(
    worker="w1", state="here", since=NOW, site="north", labels=LABELS,
    capabilities=beat("w1").capabilities, incarnation="i",
)  # fmt: skip
JOIN = Join(invite="0123456789ab", secret="s" * 32, worker="w1", own_secret="o" * 43)
ROSTER: dict[str, Wire] = {
    "roster-entry": ENTRY,
    "roster-admission": Admission(worker="w1", invite=JOIN.invite, site="north", labels=LABELS, at=NOW),
    "roster-event": RosterEvent(kind="lost", at=NOW, worker="w1", code="lost", reason="w1 was not heard"),
    "invite": Invite(
        id=JOIN.invite, secret_sha256=digest("secret"), site="north", labels=LABELS, created_at=NOW,
        expires_at=NOW + 60, uses=2, left=1, used_by={"w1": digest("own")},
    ),
    "invite-create": CreateInvite(site="north", expires_s=60.0, uses=2, labels=LABELS),
    "invite-created": InviteCreated(id=JOIN.invite, secret="s" * 32, expires_at=NOW + 60),
    "invite-revoke": RevokeInvite(id=JOIN.invite),
    "join": JOIN,
    "joined": Joined(worker="w1", site="north", labels=LABELS),
    "activity": Activity(workers={"w1": Doing(run="run-0001", round=2, phase="train", fraction=0.5)}),
    "why": Standings(
        worker="w1", items=[Standing(run="run-0001", round=2, code="labels", reason="labels do not match")]
    ),
    "ask-why": AskWhy(worker="w1", run="run-0001"),
    "report-invites": InviteList(
        items=[
            InviteReport(
                id=JOIN.invite, state="used-up", site="north", labels=LABELS, uses=1, left=0,
                created_at="2026-01-02T03:04:05.678Z", expires_at="2026-01-03T03:04:05.678Z", workers=["w1"],
            )
        ]
    ),
    "report-worker": WorkerReport(
        worker="w1", state="here", since="2026-01-02T03:04:05.678Z", site="north", labels=LABELS,
        capabilities=ENTRY.capabilities, doing=Doing(run="r", round=2, phase="train", fraction=0.5),
    ),
}  # fmt: skip
JSON: dict[str, Wire] = {
    **{f"log-{entry.kind}": entry for entry in ENTRIES},
    "log-evaluated-federated": scored("w1", "w2", failed=["w3"]),
    "plan-short": Plan(task="digits"),
    "plan-full": FULL,
    "announcement": Announcement(
        run="run-0001",
        round=2,
        state="open",
        plan=FULL,
        plan_digest=FULL.digest(),
        base=BASE,
        members=[Member(worker="w1", partition=0)],
        opened_at=NOW,
        deadline_s=30.0,
        traceparent="00-" + "0" * 32 + "-" + "0" * 16 + "-01",
        ended=EndedRound(round=1, accepted=["w1"]),
    ),
    "inbox": InboxNotices(notices=[Notice(run="r", round=1, attempt="a", code="late", reason="too late")]),
    "beat": beat("w1", labels={"gpu": "yes"}, leaving=True),
    "progress": progress("w1", 3, failed="out of memory"),
    "abort-run": AbortRun(run="run-0001", reason="wrong data"),
    "aborting": Aborting(run="run-0001", reason="wrong data"),
    "start-run": StartRun(plan={"task": "digits", "close": {"target": 1.0}}, name="mine", token="t0"),
    "run-record": RunRecord(
        token="t0",
        name="run-0001",
        plan=FULL,
        plan_digest=FULL.digest(),
        created_at=NOW,
        partitions={"w1": 0},
    ),
    "report-round": ROUND,
    "report-run": RunReport(run="run-0001", state="finished", rounds=[ROUND], model=digest("model")),
    "report-summary": RunSummary(
        run="run-0001", state="running", task="digits", rounds_done=1, rounds=3, model=None, metrics={}
    ),
    "model-version": VERSION,
    "import-model": ImportModel(name="mine", digest=digest("model"), task="digits"),
    "report-model": model_report(VERSION),
    "report-model-details": ModelDetails(**model_report(VERSION).model_dump(), codec="dense", tensors=TABLE),
    "report-trace": TraceReport(
        trace_id="a" * 32,
        spans=[
            SpanReport(
                name="upload",
                service="worker",
                worker="w1",
                span_id="b" * 16,
                parent_id="c" * 16,
                start="2026-01-02T03:04:05.678901Z",
                end="2026-01-02T03:04:06.000000Z",
                attributes={"attempt": "a", "bytes": 10},
                events=[
                    SpanEventReport(name="chunk", at="2026-01-02T03:04:05.700000Z", attributes={"chunk": 0})
                ],
                error="the broker refused",
            )
        ],
    ),
    **ROSTER,
    "report-error": ErrorReport(error=ErrorBody(code="plan-refused", message="no", hint="say yes")),
}
UPDATE = UpdateManifest(
    run="run-0001", round=2, worker="w1", attempt="0123abcd", plan=digest("plan"), base=BASE, codec="int8",
    num_examples=359, metrics={"loss": 0.25}, chunks=[digest("0"), digest("1")], size_bytes=200,
)  # fmt: skip
PACKED: dict[str, UpdateManifest | ModelManifest | EvaluationReport] = {
    "evaluation": EvaluationReport(
        run="run-0001",
        round=2,
        worker="w1",
        attempt="0123abcd",
        model=BASE,
        num_examples=359,
        metrics={"loss": 0.25},
    ),
    "update-manifest": UPDATE,
    "first-update-manifest": UPDATE.model_copy(update={"base": None, "table": TABLE, "body": b"\x00\xff"}),
    "model-manifest": ModelManifest(
        run="run-0001", round=0, parent=None, codec="dense", table=TABLE, chunks=[digest("0")], size_bytes=640
    ),
}


@pytest.mark.parametrize("name", JSON)
def test_json_contracts(name: str) -> None:
    written = (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")
    assert JSON[name].model_dump_json(by_alias=True).encode() == written
    assert type(JSON[name]).model_validate_json(written) == JSON[name]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.kind)
def test_log_entries_are_those_bytes(entry: Entry) -> None:
    written = (GOLDEN / f"log-{entry.kind}.json").read_bytes().rstrip(b"\n")
    assert encode_entry(entry) == written
    assert decode_entry(written) == entry


@pytest.mark.parametrize("name", PACKED)
def test_packed_contracts(name: str) -> None:
    written = bytes.fromhex((GOLDEN / f"{name}.hex").read_text())
    assert PACKED[name].pack() == written
    assert type(PACKED[name]).unpack(written) == PACKED[name]


def test_digests_are_golden() -> None:
    golden = json.loads((GOLDEN / "digests.json").read_text())
    assert golden == {
        "plan-short": Plan(task="digits").digest(),
        "plan-full": FULL.digest(),
        **{name: manifest.digest() for name, manifest in PACKED.items()},
    }


def test_every_golden_file_is_checked() -> None:
    expected = {f"{n}.json" for n in JSON} | {f"{n}.hex" for n in PACKED} | {"digests.json"}
    assert {path.name for path in GOLDEN.iterdir()} == expected


# What is refused

NO_NAMES = ["", "a.b", "*", ">", "a b", "a\n", "a\t", "-a", "_a", "é", "a" * 65, "a/b", "a:b", "$JS", "a\x00"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_name_can_reach_into_a_subject(name: str) -> None:
    assert not is_token(name)
    cases: list[tuple[Wire, list[str]]] = [
        (ENTRIES[2], ["worker", "node", "attempt", "code"]),
        (ENTRIES[3], ["worker", "node", "code"]),
        (JSON["beat"], ["worker", "incarnation"]),
        (JSON["progress"], ["worker", "node", "run"]),
        (JSON["announcement"], ["run"]),
        (JSON["run-record"], ["name"]),
        (JSON["start-run"], ["name"]),
        (ENTRY, ["worker", "site", "incarnation"]),
        (JOIN, ["invite", "worker"]),
        (JSON["ask-why"], ["worker", "run"]),
        (UPDATE, ["run", "worker", "node", "attempt", "codec"]),
        (Member(worker="w"), ["worker", "node"]),
    ]
    for value, names in cases:
        for field in names:
            with pytest.raises(ValidationError) as caught:
                type(value).model_validate(value.model_dump(by_alias=True) | {field: name})
            assert caught.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize("name", ["a", "0", "run-0001", "host_1-2", "A" * 64])
def test_names(name: str) -> None:
    assert is_token(name)
    assert Member(worker=name).worker == name


@pytest.mark.parametrize("name", JSON)
def test_unknown_keys_are_refused_at_every_depth(name: str) -> None:
    value = JSON[name]
    plain = value.model_dump(by_alias=True)
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(value).model_validate(plain | {"unknown": 1})
    for key, inner in plain.items():
        if isinstance(getattr(value, key, None), Wire):
            with pytest.raises(ValidationError):
                type(value).model_validate(plain | {key: inner | {"unknown": 1}})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1", '"x"', "null", "[]"])
@pytest.mark.parametrize("key", ["at", "weight", "metric"])
def test_numbers_that_are_none(key: str, number: str) -> None:
    text = encode_entry(ENTRIES[1]).decode()
    old = {"at": '"at":1000001.0', "weight": '"weight":359.0', "metric": '"loss":0.25'}[key]
    assert text.count(old) == 1
    bad = text.replace(old, old.rpartition(":")[0] + ":" + number)
    if key == "metric" and number == "-1":
        assert decode_entry(bad.encode()).kind == "accepted"
        return
    with pytest.raises(ValidationError):
        decode_entry(bad.encode())


HOSTILE: dict[str, dict[str, Any]] = {
    "no chunk": {"chunks": []},
    "chunk is no digest": {"chunks": ["0" * 63]},
    "upper-case digest": {"chunks": ["A" * 64]},
    "digest and a newline": {"chunks": ["0" * 64 + "\n"]},
    "no examples": {"num_examples": 0},
    "examples are not whole": {"num_examples": 1.5},
    "examples are text": {"num_examples": "many"},
    "metric is NaN": {"metrics": {"loss": float("nan")}},
    "metric is infinite": {"metrics": {"loss": float("inf")}},
    "long metric name": {"metrics": {"l" * 65: 1.0}},
    "too many metrics": {"metrics": {str(i): 1.0 for i in range(65)}},
    "negative round": {"round": -1},
    "round too high": {"round": 10_000_001},
    "no size": {"size_bytes": 0},
    "unknown key": {"more": 1},
    "negative shape": {"table": [{"name": "w", "shape": [-1], "dtype": "float32"}]},
    "too many dimensions": {"table": [{"name": "w", "shape": [1] * 17, "dtype": "float32"}]},
    "no dtype": {"table": [{"name": "w", "shape": [1], "dtype": "object"}]},
    "nameless tensor": {"table": [{"name": "", "shape": [1], "dtype": "float32"}]},
    "unknown group": {"table": [{"name": "w", "shape": [1], "dtype": "float32", "group": "x"}]},
    "body is a list": {"body": [1]},
    "worker is a number": {"worker": 7},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_manifests(case: str) -> None:
    packed = msgpack.packb(UPDATE.model_dump() | HOSTILE[case])
    with pytest.raises(ValidationError):
        UpdateManifest.unpack(packed)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x90",
        b"\x01",
        UPDATE.pack()[:-1],
        UPDATE.pack() + b"\x00",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x81\x01\x02",
        b"\x81\xa1\xff\x02",
        b"\xd4\x05\x00",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x00\x05",
        msgpack.packb(["x"] * (MAX_CHUNKS + 1)),
        msgpack.packb({str(i): 1 for i in range(300)}),
        msgpack.packb(UPDATE.model_dump() | {"attempt": "a" * 5000}),
    ],
    ids=range(19),
)
def test_bytes_that_are_no_manifest_are_a_value_error_and_nothing_else(data: bytes) -> None:
    for contract in (UpdateManifest, ModelManifest, EvaluationReport):
        with pytest.raises(ValueError):  # noqa: PT011  # the contract: that class, whatever the reason
            contract.unpack(data)


@pytest.mark.parametrize("key", ["chunks", "table"])
def test_a_list_of_mistakes_is_one_mistake(key: str) -> None:
    """A message of one MiB can hold a million of them, and each would cost a kilobyte to report."""
    with pytest.raises(ValidationError) as caught:
        UpdateManifest.unpack(msgpack.packb(UPDATE.model_dump() | {key: [1] * 50_000}))
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    "changes", [{"codec": "a.b"}, {"offset": -1}, {"count": 0}, {"offset": 1.5}, {"blosc": "maybe"}, {"x": 1}]
)
def test_hostile_chunk_headers(changes: dict[str, Any]) -> None:
    header = {"codec": "int8", "offset": 0, "count": 1, "blosc": True}
    assert ChunkHeader.model_validate(header).blosc
    with pytest.raises(ValidationError):
        ChunkHeader.model_validate(header | changes)


@pytest.mark.parametrize(
    ("contract", "changes"),
    [
        (Beat, {"capabilities": {"tasks": ["t"] * 1001, "codecs": []}}),
        (Beat, {"capabilities": {"tasks": [], "codecs": ["c"] * 101}}),
        (Beat, {"labels": {str(i): "x" for i in range(65)}}),
        (Beat, {"labels": {"k": "v" * 257}}),
        (Beat, {"at": float("nan")}),
        (Progress, {"fraction": 1.01}),
        (Progress, {"fraction": float("nan")}),
        (Progress, {"failed": "x" * 2001}),
        (Progress, {"phase": "sleep"}),
        (Join, {"invite": "0123456789AB"}),
        (Join, {"secret": "short"}),
        (Join, {"own_secret": "$2a$" + "x" * 40}),
        (Join, {"own_secret": "x" * 40 + "\n"}),
        (Join, {"worker": "a.b"}),
        (CreateInvite, {"site": "*"}),
        (CreateInvite, {"uses": 0}),
        (CreateInvite, {"uses": 1001}),
        (CreateInvite, {"expires_s": 0}),
        (CreateInvite, {"expires_s": float("inf")}),
        (CreateInvite, {"labels": {str(i): "x" for i in range(33)}}),
    ],
)
def test_hostile_worker_messages(contract: type[Wire], changes: dict[str, Any]) -> None:
    sound = next(value for value in JSON.values() if type(value) is contract).model_dump()
    with pytest.raises(ValidationError):
        contract.model_validate(sound | changes)


def test_contracts_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        UPDATE.worker = "w2"  # type: ignore[misc]


def test_schemas_can_be_exported() -> None:
    for value in [*JSON.values(), *PACKED.values()]:
        assert TypeAdapter(type(value)).json_schema()["type"] == "object"
