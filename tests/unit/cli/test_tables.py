"""Tables on a terminal of 80 columns: numbers and names stay whole."""

from __future__ import annotations

from io import StringIO

import pytest
from fedbus.cli.models import model_list
from fedbus.cli.output import run_list, size
from fedbus_schemas.report import ModelReport, RunSummary
from rich.console import Console, RenderableType

DIGEST = "0123456789abcdef" * 4


def _shown(what: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=80).print(what)
    return out.getvalue()


def test_metrics_and_digests_of_models_are_whole() -> None:
    model = ModelReport(
        name="run-0001/10", run="run-0001", round=10, digest=DIGEST, parent=None, source="train",
        created_at="2026-01-02T03:04:05.678Z", task="iris:Iris", size_bytes=1404, elements=351,
        metrics={"accuracy": 0.9333, "loss": 0.2},
    )  # fmt: skip
    shown = _shown(model_list([model]))
    for whole in ("run-0001/10", "1.4 KB", "accuracy=0.9333 loss=0.2000", "0123456789ab"):
        assert whole in shown


def test_metrics_of_runs_are_whole() -> None:
    run = RunSummary(
        run="run-0001", state="finished", task="a.long.package.of.tasks:ClassOfTheTask", rounds_done=10,
        rounds=10, model=DIGEST, metrics={"accuracy": 0.9333, "loss": 0.2},
    )  # fmt: skip
    shown = _shown(run_list([run]))
    for whole in ("run-0001", "10/10", "accuracy=0.9333 loss=0.2000", "0123456789ab"):
        assert whole in shown


@pytest.mark.parametrize(("count", "said"), [(0, "0.0 KB"), (1404, "1.4 KB"), (26_300_000, "26.3 MB")])
def test_a_small_model_is_told_in_kilobytes(count: int, said: str) -> None:
    assert size(count) == said
