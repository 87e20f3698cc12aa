"""Which scores are due, how long members are waited for, and what their scores add up to."""

from __future__ import annotations

import pytest
from fedbus.rounds.evaluating import (
    awaited,
    due,
    federated_entry,
    federated_score,
    last_score_s,
    never_asked,
    scoring_round,
    to_score,
    wanting,
    wants_central,
    wants_federated,
)
from fedbus.rounds.planning import announcement
from fedbus.rounds.report import round_metrics, round_report
from fedbus.rounds.roster import LOST_AFTER_S, Roster
from fedbus.rounds.storage import obsolete
from fedbus.rounds.versions import misfit, model_report, registrable, version_of
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Evaluated
from fedbus_schemas.registry import ModelVersion
from fedbus_schemas.update import EvaluationReport, TensorSpec
from hypothesis import given
from hypothesis import strategies as st
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
    fold,
    lost,
    opened,
    plan,
    record,
    scored,
)

FEDERATED = plan(rounds=4, evaluate={"every": 2, "federated": True, "central": False})
BOTH = plan(rounds=4, evaluate={"federated": True})
MADE = (opened("w1", "w2"), accepted("w1", "w2"), closing(), aggregated())
ENDED = (*MADE, finished())


def report(worker: str, examples: int = 1, failed: str | None = None, **metrics: float) -> EvaluationReport:
    return EvaluationReport(
        run="run-1",
        round=2,
        worker=worker,
        attempt="a",
        model=BASE,
        num_examples=examples,
        metrics=metrics,
        failed=failed,
    )


def seats(*reports: EvaluationReport) -> dict[tuple[str, str], EvaluationReport]:
    return {(r.worker, r.node): r for r in reports}


def test_scores_are_due_every_so_many_rounds_and_for_the_last() -> None:
    odd = plan(rounds=5, evaluate={"every": 2})
    assert [n for n in range(6) if due(odd, n)] == [2, 4, 5]
    assert not any(due(plan(rounds=5, evaluate={"central": False}), n) for n in range(6))
    assert [n for n in range(5) if due(FEDERATED, n)] == [2, 4]


def test_each_way_is_wanted_until_it_is_there() -> None:
    made = fold(*MADE)
    assert (wants_central(BOTH, 1, made), wants_federated(BOTH, 1, made)) == (True, True)
    central, federated = fold(*MADE, evaluated()), fold(*MADE, scored("w1"))
    assert (wants_central(BOTH, 1, central), wants_federated(BOTH, 1, central)) == (False, True)
    assert (wants_central(BOTH, 1, federated), wants_federated(BOTH, 1, federated)) == (True, False)
    assert not wanting(BOTH, 1, fold(*MADE, scored("w1"), evaluated()))
    assert not wanting(BOTH, 1, fold(opened("w1"), aborted()))


def test_the_two_scores_come_in_any_order_or_alone() -> None:
    entries = [evaluated(), scored("w1")]
    one, other = fold(*ENDED, *entries), fold(*ENDED, *reversed(entries))
    assert round_metrics(one) == round_metrics(other) == {"accuracy": 0.5, "federated_loss": 0.5}
    assert round_metrics(fold(*ENDED, scored("w1"))) == {"federated_loss": 0.5}
    again = fold(*ENDED, *entries, scored("w2"), evaluated())
    assert again.federated == one.federated, "the first one counts"
    assert len(again.ignored) == 2
    assert fold(*MADE, scored("w1", model="other")).federated is None


def test_an_entry_is_one_of_the_two() -> None:
    both = scored("w1").model_dump() | {"metrics": {"loss": 1.0}}
    with pytest.raises(ValueError, match="not both"):
        Evaluated.model_validate(both)


def test_members_score_the_base_while_the_round_is_open_and_the_last_model_when_it_is_finished() -> None:
    assert to_score(FEDERATED, 3, fold(opened("w1"))) == BASE
    assert to_score(FEDERATED, 2, fold(opened("w1"))) is None, "every second model only"
    assert to_score(BOTH, 1, fold(opened("w1"))) is None, "the first model is not scored"
    assert to_score(FEDERATED, 4, fold(*MADE)) is None
    assert to_score(FEDERATED, 4, fold(*ENDED)) == digest("model")
    assert to_score(FEDERATED, 2, fold(*ENDED)) is None
    assert to_score(plan(rounds=4), 4, fold(*ENDED)) is None
    told = announcement(record(FEDERATED), 4, fold(*ENDED), {})
    assert (told.state, told.score) == ("closed", digest("model"))
    assert [scoring_round(FEDERATED, n) for n in (1, 3, 4)] == [2, 4, 4]


def test_while_the_next_round_is_open_its_members_are_waited_for() -> None:
    roster = Roster()
    open_ = fold(opened("w1", "w2"))
    assert awaited(BOTH, 1, open_, [], roster, NOW + 1e9) == [("w1", "0"), ("w2", "0")]
    assert awaited(BOTH, 1, open_, [("w1", "0")], roster, NOW) == [("w2", "0")]
    assert awaited(BOTH, 1, open_, [("w1", "0"), ("w2", "0")], roster, NOW) == []
    for over in (fold(opened("w1", "w2"), closing()), fold(opened("w1", "w2"), aborted()), fold(*ENDED)):
        assert awaited(BOTH, 1, over, [], roster, NOW) == []


def test_for_the_last_model_the_wait_is_bounded() -> None:
    roster, end = Roster(), finished().at
    for name in ("w1", "w2"):
        roster.hear(beat(name), end)
    everyone = [("w1", "0"), ("w2", "0")]
    assert awaited(BOTH, 4, fold(*MADE), [], roster, end) == everyone, "they are asked when it is finished"
    last = fold(*ENDED)
    assert awaited(BOTH, 4, last, [], roster, end + 1) == everyone
    roster.hear(beat("w2"), end + LOST_AFTER_S)
    assert awaited(BOTH, 4, last, [], roster, end + LOST_AFTER_S + 1) == [("w2", "0")], "w1 is silent"
    roster.hear(beat("w2", leaving=True), end + LOST_AFTER_S)
    assert awaited(BOTH, 4, last, [], roster, end + LOST_AFTER_S + 1) == []
    roster.hear(beat("w1"), end + last_score_s(BOTH))
    assert awaited(BOTH, 4, last, [], roster, end + last_score_s(BOTH)) == [("w1", "0")]
    assert awaited(BOTH, 4, last, [], roster, end + last_score_s(BOTH) + 1) == []
    gone = fold(opened("w1", "w2"), accepted("w1"), lost("w2"), closing(), aggregated(), finished())
    assert awaited(BOTH, 4, gone, [("w1", "0")], roster, end + 1) == []
    short = plan(rounds=4, close={"deadline_s": 5}, evaluate={"federated": True})
    assert last_score_s(short) == 5


def test_scores_are_weighted_by_examples_and_who_has_none_is_named() -> None:
    round_ = fold(opened("w1", "w2", "w3", "w4", "w5"))
    score = federated_score(
        round_,
        seats(
            report("w1", 30, loss=1.0, accuracy=0.5, extra=9.0),
            report("w2", 10, loss=3.0, accuracy=1.0),
            report("w3", failed="no such file: data.csv"),
            report("w4", 0, loss=7.0),
        ),
    )
    assert score.metrics == {"accuracy": pytest.approx(0.625), "loss": pytest.approx(1.5)}
    assert (score.num_examples, score.workers) == (40, ["w1", "w2"])
    assert [(each.worker, each.code) for each in score.failed] == [
        ("w3", "failed"),
        ("w4", "no-examples"),
        ("w5", "no-score"),
    ]
    entry = federated_entry(NOW + 9, digest("model"), score)
    told = round_report(1, fold(*MADE, finished(), entry))
    assert told.metrics == {"federated_accuracy": pytest.approx(0.625), "federated_loss": pytest.approx(1.5)}


def test_a_member_whose_task_reports_no_metric_empties_nobodys_score() -> None:
    found = seats(report("w1", 10, loss=1.0), report("w2", 90))
    score = federated_score(fold(opened("w1", "w2")), found)
    assert (score.metrics, score.num_examples, score.workers) == ({"loss": 1.0}, 10, ["w1"])
    assert [(each.worker, each.code, each.reason) for each in score.failed] == [
        ("w2", "no-metrics", "its task reports no metric")
    ]


def test_a_run_that_ended_between_rounds_says_why_its_last_model_has_no_score() -> None:
    entry = federated_entry(NOW, digest("model"), never_asked(fold(*ENDED)))
    round_ = fold(*ENDED, entry)
    assert not wants_federated(BOTH, 1, round_)
    score = entry.federated
    assert score is not None
    assert [(each.worker, each.code) for each in score.failed] == [("w1", "run-ended"), ("w2", "run-ended")]
    assert round_metrics(round_) == {}


def test_nobody_could_score_it() -> None:
    score = federated_score(fold(opened("w1")), {})
    assert (score.metrics, score.num_examples, score.workers) == ({}, 0, [])
    assert [each.reason for each in score.failed] == ["sent no score in time"]
    done = closing().model_copy(update={"code": "target"})
    told = round_report(
        1,
        fold(
            opened("w1"),
            accepted("w1"),
            done,
            aggregated(),
            finished(),
            federated_entry(NOW, digest("model"), score),
        ),
    )
    assert told.reason == "not scored by w1: sent no score in time [no-score]"


losses = st.lists(
    st.tuples(st.integers(1, 10**12), st.floats(allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=8,
)


@given(losses, st.randoms(use_true_random=False))
def test_a_score_is_a_mean_whatever_the_order(drawn: list[tuple[int, float]], rng: object) -> None:
    names = [f"w{i}" for i in range(len(drawn))]
    found = [report(name, n, loss=x) for name, (n, x) in zip(names, drawn, strict=True)]
    round_ = fold(opened(*names))
    score = federated_score(round_, seats(*found))
    rng.shuffle(found)  # type: ignore[attr-defined]
    assert federated_score(round_, seats(*found)) == score
    low, high = min(x for _, x in drawn), max(x for _, x in drawn)
    assert low <= score.metrics["loss"] <= high


def test_metrics_of_any_size_have_a_mean() -> None:
    huge = [report("w1", 1, loss=1.7e308), report("w2", 2, loss=1.7e308), report("w3", 3, loss=-1.7e308)]
    for found, mean in ((huge[:2], 1.7e308), (huge, 0.0), ([report("w1", loss=0.0)], 0.0)):
        score = federated_score(fold(opened("w1", "w2", "w3")), seats(*found))
        assert score.metrics["loss"] == pytest.approx(mean, abs=1e293)


def test_updates_are_kept_until_the_scores_beside_them_are_read() -> None:
    assert obsolete(plan(retain={"rounds": 0}), 3) == 2
    assert obsolete(plan(retain={"rounds": 0}, evaluate={"federated": True}), 3) == 1
    assert obsolete(plan(retain={"rounds": 3}, evaluate={"federated": True}), 4) == 0


# The registry

TABLE = [TensorSpec(name="w", shape=(2, 3), dtype="float32"), TensorSpec(name="n", shape=(), dtype="int64")]


def test_a_model_is_registered_when_its_score_is_there_or_not_due() -> None:
    assert not registrable(BOTH, 1, fold(*MADE))
    assert registrable(BOTH, 1, fold(*MADE, evaluated())), "the cohort's score is added when it comes"
    assert registrable(BOTH, 0, fold(*MADE))
    assert registrable(FEDERATED, 2, fold(*MADE))
    assert not registrable(BOTH, 1, fold(opened("w1"), aborted()))


def test_a_version_says_what_the_log_says() -> None:
    version = version_of(RoundRef("run-1", 1), fold(*ENDED, evaluated(), scored("w1")), BOTH, 7)
    assert (version.key, version.name, version.parent) == ("run-1.1", "run-1/1", BASE)
    assert (version.digest, version.elements, version.size_bytes) == (digest("model"), 7, 100)
    assert version.metrics == {"accuracy": 0.5, "federated_loss": 0.5}
    assert model_report(version).created_at == "1970-01-12T13:46:44.000Z"
    imported = ModelVersion.model_validate(version.model_dump() | {"round": 0, "source": "import"})
    assert imported.name == "run-1"


def test_the_first_tensor_that_does_not_fit_is_named() -> None:
    assert misfit(TABLE, list(reversed(TABLE))) is None, "their order does not matter"
    assert misfit(TABLE[:1], TABLE) == "tensor 'n' is missing, the task has int64 [], lossy"
    exact = [TABLE[0].model_copy(update={"group": "exact"}), TABLE[1]]
    assert misfit(exact, TABLE) == "tensor 'w' is float32 [2, 3], exact, the task has float32 [2, 3], lossy"
    assert misfit(TABLE, TABLE[:1]) == "tensor 'n' is int64 [], lossy, the task has missing"
