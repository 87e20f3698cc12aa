"""`fedbus model`: a run's models listed, shown, taken out as a file, brought back and trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fedbus_schemas.report import ModelDetails, ModelReport, RunReport
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.commands import Shell, shell

PLAN = "task: noop\nrounds: 2\ntrain: {elements: 1000, value: 0.5}\nevaluate: {federated: true}\n"


def printed(typed: Shell, *command: str) -> str:
    done = typed.run("fedbus", *command)
    assert done.code == 0, done.err
    return done.out


def test_models_go_out_and_come_back(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    with shell(tmp_path) as typed:
        typed.start("broker", "python", "-m", "fedbus.runtime.broker")
        typed.says("broker", "nats://")
        for service in ("planner", "aggregator", "evaluator"):
            typed.start(service, "python", "-m", f"fedbus_{service}")
        for service in ("planner", "aggregator", "evaluator"):
            typed.says(service, "ready")
        typed.start("ann", "fedbus-worker", "join", "--name", "ann", "--state", "state")
        typed.says("ann", "joined")

        assert "no models yet" in printed(typed, "model", "list")
        report = RunReport.model_validate_json(
            printed(typed, "round", "start", "plan.yaml", "--watch", "--json")
        )
        assert [r.metrics["federated_loss"] for r in report.rounds] == [0.5, 1.0]
        assert [r.metrics["loss"] for r in report.rounds] == [0.5, 1.0]

        items = json.loads(printed(typed, "model", "list", "run-0001", "--json"))["items"]
        models = [ModelReport.model_validate(item) for item in items]
        assert [m.name for m in models] == ["run-0001/0", "run-0001/1", "run-0001/2"]
        assert models[2].digest == report.model
        assert "run-0001/2" in printed(typed, "model", "list")
        shown = ModelDetails.model_validate_json(printed(typed, "model", "show", "run-0001", "--json"))
        assert (shown.name, shown.parent) == ("run-0001/2", models[1].digest)
        assert [(t.name, t.shape, t.dtype) for t in shown.tensors] == [("w", (1000,), "float32")]
        table = printed(typed, "model", "show", "run-0001/1")
        assert models[1].digest in table
        assert "float32" in table

        assert "written to" in printed(typed, "model", "export", "run-0001/2", "taken.safetensors")
        file = tmp_path / "taken.safetensors"
        with safe_open(file, framework="numpy") as opened:
            kept = opened.metadata()
        assert {key: kept[key] for key in ("run", "round", "digest", "task")} == {
            "run": "run-0001",
            "round": "2",
            "digest": shown.digest,
            "task": "noop",
        }
        assert json.loads(kept["metrics"]) == shown.metrics
        np.testing.assert_array_equal(load_file(file)["w"], np.ones(1000, np.float32))

        came = ModelDetails.model_validate_json(
            printed(typed, "model", "import", str(file), "--name", "mine", "--json")
        )
        assert (came.name, came.source, came.elements) == ("mine", "import", 1000)
        again = ("round", "start", "plan.yaml", "--set", "model={from: mine}", "--rounds", "1")
        on_top = RunReport.model_validate_json(printed(typed, *again, "--watch", "--json"))
        assert on_top.rounds[0].metrics["federated_loss"] == 1.5

        save_file({"w": np.full(1000, np.nan, np.float32)}, tmp_path / "sick.safetensors")
        for command, code, said in (
            (("show", "run-0009"), 30, "error[unknown-model]: no run or imported model called 'run-0009'"),
            (("show", "run-0001/7"), 30, "error[unknown-model]: round 7 of run-0001 has no model"),
            (("show", "a/b/c"), 10, "error[config-error]"),
            (("import", "sick.safetensors"), 30, "tensor 'w' is not finite"),
            (("import", "plan.yaml"), 30, "is not a safetensors file"),
            (("import", "taken.safetensors", "--name", "run-0001"), 30, "error[model-refused]"),
            (("import", "absent.safetensors"), 10, "there is no file"),
            (("export", "run-0001", "nowhere/file.safetensors"), 10, "cannot write"),
            (("export", "run-0001", "taken.npz"), 10, "call it taken.safetensors"),
            (("export", "run-0001", "taken.safetensors"), 10, "--force writes over it"),
        ):
            done = typed.run("fedbus", "model", *command)
            assert (done.code, said in done.err) == (code, True), (command, done.err)
        refused = typed.run("fedbus", "model", "import", "sick.safetensors", "--json")
        assert json.loads(refused.out)["error"]["code"] == "model-refused"
