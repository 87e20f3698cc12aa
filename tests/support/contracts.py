"""One value of every wire contract, whose bytes stand in tests/protocol/golden."""

from __future__ import annotations

from fedbus.rounds.versions import model_report
from fedbus_schemas.base import Wire
from fedbus_schemas.log import Entry, Excluded, Member
from fedbus_schemas.messages import (
    Aborting,
    AbortRun,
    Announcement,
    AskReplay,
    EndedRound,
    InboxNotices,
    LeaseHolder,
    Notice,
    Replayed,
    RunRecord,
    StartRun,
)
from fedbus_schemas.plan import Plan
from fedbus_schemas.registry import ImportModel, ModelVersion
from fedbus_schemas.report import (
    ErrorBody,
    ErrorReport,
    ExplainReport,
    HintReport,
    ModelDetails,
    PaceReport,
    PathStepReport,
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
    EvaluationReport,
    ModelManifest,
    TensorSpec,
    UpdateManifest,
)
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

ENTRIES: list[Entry] = [
    opened("w1", "w2", base=None, base_bytes=0).model_copy(
        update={
            "members": [Member(worker="w1", partition=0), Member(worker="w2", node="n1")],
            "excluded": [Excluded(worker="w4", code="labels", reason="labels do not match")],
        }
    ),
    accepted(update("w1", weight=359.0, metrics={"loss": 0.25}, codec="int8"), update("w2", "b2")),
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
    code="deadline",
    reason="have 1 of 1 updates",
    cohort=["w1", "w2"],
    accepted=1,
    accepted_updates=[
        UpdateReport(worker="w1", node="0", weight=5.0, bytes=10, digest=digest("u"), codec="int8")
    ],
    rejected=[RefusalReport(worker="w2", code="late", reason="stored after the round was closing")],
    waiting=[],
    lost=[RefusalReport(worker="w3", code="silent", reason="not heard")],
    excluded=[RefusalReport(worker="w4", code="labels", reason="labels do not match")],
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
        run_at=1_000_000.0,
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
    "lease-holder": LeaseHolder(token="t0", place="process 7 on host-a"),
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
    "ask-replay": AskReplay(run="run-0001", round=2),
    "replayed": Replayed(
        run="run-0001",
        round=2,
        code="different",
        reason="another model comes out",
        updates=3,
        model=digest("model"),
        again=digest("other"),
    ),
    "report-explain": ExplainReport(
        run="run-0001",
        round=2,
        state="finished",
        code=None,
        reason=None,
        seconds=2.0,
        path=[PathStepReport(name="train", party="w1", seconds=1.5, share=0.75)],
        last="w1",
        last_did="train",
        workers=[
            PaceReport(
                worker="w1", node="0", outcome="accepted", settled_s=1.9, phases={"train": 1.5}, clock_s=-0.5
            )
        ],
        hints=[HintReport(code="straggler", reason="without w1", saves_s=1.0)],
    ),
    **ROSTER,
    "report-error": ErrorReport(error=ErrorBody(code="plan-refused", message="no", hint="say yes")),
}
UPDATE = UpdateManifest(
    run="run-0001", round=2, worker="w1", attempt="0123abcd", plan=digest("plan"), base=BASE, codec="int8",
    chosen="as measured", num_examples=359, metrics={"loss": 0.25}, chunks=[digest("0"), digest("1")],
    size_bytes=200,
)  # fmt: skip
MODEL = ModelManifest(
    run="run-0001", round=0, parent=None, codec="dense", table=TABLE, chunks=[digest("0")], size_bytes=640
)
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
    "model-manifest": MODEL,
    "small-model-manifest": MODEL.model_copy(update={"body": b"\x00\xff"}),
    "delta-manifest": MODEL.model_copy(
        update={"round": 2, "parent": BASE, "codec": "ecq", "values": [digest("1")]}
    ),
}
