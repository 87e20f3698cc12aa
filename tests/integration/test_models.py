"""The registry of models, and models as files: what runs make, what is taken out and brought in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedbus.api.models import Models
from fedbus.base.clock import random_token
from fedbus.base.errors import (
    BusUnavailable,
    ConfigError,
    FedbusError,
    ModelRefused,
    PlanRefused,
    UnknownModel,
)
from fedbus.bus import Bus, Message
from fedbus.bus.micro import ask
from fedbus.bus.models import read_manifest
from fedbus.bus.registry import Registry
from fedbus.bus.store import Publisher, list_subjects, persist
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid
from fedbus_evaluator.service import Evaluator
from fedbus_schemas import subjects
from fedbus_schemas.registry import ImportModel, ModelVersion
from fedbus_schemas.update import ModelManifest, TensorSpec
from safetensors.numpy import load_file, save_file
from support.buses import Ask, Tapped
from support.federation import Parties, federation
from support.natsd import Stack

NOOP = {"train": {"elements": 300_000, "value": 0.5}, "evaluate": {"central": True}}


async def registered(parties: Parties, run: str, *numbers: int) -> None:
    """Return once the registry has these models, with all their scores."""
    registry = Registry(parties.operator)

    async def said() -> bool:
        found = [(await registry.get(run, number))[0] for number in numbers]
        reports = {r.round: r for r in (await parties.api.run(run)).rounds}
        return all(
            version is not None and (n == 0 or version.metrics == reports[n].metrics)
            for n, version in zip(numbers, found, strict=True)
        )

    await parties.until_true(said, f"models {numbers} of {run} are registered")


async def test_every_model_of_a_run_is_registered_with_its_scores(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=["w1"], evaluator=True) as parties:
        run = await parties.start(NOOP | {"rounds": 3, "evaluate": {"every": 2}}, "registered")
        report = await parties.finished(run)
        await registered(parties, run, 0, 1, 2, 3)
        models = await parties.api.models.versions(run)
        assert [(m.name, m.round, m.source, m.task) for m in models] == [
            (f"{run}/{n}", n, "train", "noop") for n in range(4)
        ]
        assert [m.digest for m in models[1:]] == [r.model for r in report.rounds]
        assert [m.parent for m in models] == [None, *(m.digest for m in models[:-1])]
        assert {m.elements for m in models} == {300_000}
        assert ["loss" in m.metrics for m in models] == [False, False, True, True]
        assert models[3].metrics["loss"] == pytest.approx(1.5)
        shown = await parties.api.models.show(run)
        assert (shown.name, shown.tensors[0].name, shown.tensors[0].shape) == (f"{run}/3", "w", (300_000,))
        for wrong in (f"{run}/9", "registred"):
            with pytest.raises(UnknownModel):
                await parties.api.models.show(wrong)


async def test_an_evaluator_that_comes_late_fills_in_what_is_missing(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=["w1"]) as parties:
        run = await parties.start(NOOP | {"rounds": 4, "evaluate": {"central": False}}, "late-evaluator")
        await parties.finished(run)
        assert (await Registry(parties.operator).rounds()).get(run) is None
        evaluator = await parties.add("evaluator", lambda bus: Evaluator(bus, tmp_path).run())
        await registered(parties, run, 0, 1, 2, 3, 4)
        before = [await Registry(parties.operator).get(run, n) for n in range(5)]
        await evaluator.crash()
        await evaluator.start()
        other = await parties.start(NOOP | {"rounds": 1}, "after")
        await parties.finished(other)
        await registered(parties, other, 0, 1)
        after = [await Registry(parties.operator).get(run, n) for n in range(5)]
        assert after == before, "written once: same records, same revisions"


async def test_a_model_goes_out_and_comes_back_the_same(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=["w1"], evaluator=True) as parties:
        run = await parties.start(NOOP | {"rounds": 2}, "out")
        report = await parties.finished(run)
        await registered(parties, run, 2)
        file = tmp_path / "taken.safetensors"
        models = parties.api.models
        taken = await models.export(run, file)
        arrays = load_file(file)
        np.testing.assert_array_equal(arrays["w"], np.ones(300_000, np.float32))
        came = await models.import_file(file)
        assert (came.name, came.source, came.task, came.parent) == ("taken", "import", "noop", None)
        chunks = [(await read_manifest(parties.operator, m.digest)).chunks for m in (taken, came)]
        assert chunks[0] == chunks[1], "the same tensors have the same digests"
        assert await models.import_file(file) == came, "importing it again changes nothing"
        assert await models.show("taken") == came
        on_top = await parties.start(NOOP | {"model": {"from": "taken"}}, "on-imported")
        done = await parties.finished(on_top)
        assert parties.round(on_top, 1).opened.base == came.digest  # type: ignore[union-attr]
        assert (await parties.model(done.model) == 1.5).all()
        again = tmp_path / "again.safetensors"
        await models.export("taken", again)
        assert load_file(again)["w"].tobytes() == arrays["w"].tobytes()
        assert report.model == taken.digest


class Rereading(Tapped):
    """A connection to a broker that reads its accounts again when it is first asked for each thing."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: set[str] = set()

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        if subject.startswith("$JS.API.") and subject not in self.asked:
            self.asked.add(subject)
            raise BusUnavailable(f"nobody serves {subject}")
        return await ask()


async def test_a_broker_that_reads_its_accounts_again_does_not_end_an_import(
    stack: Stack, tmp_path: Path
) -> None:
    file = tmp_path / "ones.safetensors"
    save_file({"w": np.ones(1000, np.float32)}, file)
    async with federation(stack.credentials, tmp_path, workers=(), evaluator=True):
        bus = await Rereading.connect(stack.credentials("operator"))
        try:
            came = await Models(bus).import_file(file, f"reread-{random_token(4)}")
            assert came.elements == 1000
            assert f"$JS.API.STREAM.INFO.{subjects.MODELS}" in bus.asked
        finally:
            await bus.close()


async def test_names_of_imported_models_are_their_own(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=["w1"], evaluator=True) as parties:
        plan = NOOP | {"train": {"elements": 300_000, "value": 0.75}}
        run = await parties.start(plan, "named")
        await parties.finished(run)
        await registered(parties, run, 1)
        models = parties.api.models
        ones, twos = tmp_path / "ones.safetensors", tmp_path / "twos.safetensors"
        save_file({"w": np.ones(300_000, np.float32)}, ones)
        save_file({"v": np.ones(3, np.float32)}, twos)
        await models.import_file(ones, "mine")
        for file, name, reason in (
            (twos, "mine", "another model is called 'mine'"),
            (twos, run, "a run called 'named' exists"),
            (twos, "run-0077", "a run may get"),
        ):
            with pytest.raises(ModelRefused, match=reason):
                await models.import_file(file, name)
        with pytest.raises(ConfigError, match="cannot name a model"):
            await models.import_file(twos, "a.b")
        with pytest.raises(PlanRefused, match="an imported model is called 'mine'"):
            await parties.start(plan, "mine")
        await models.import_file(twos)
        with pytest.raises(PlanRefused, match=r"twos does not fit task noop, as in named/1: tensor 'w'"):
            await parties.start(plan | {"model": {"from": "twos"}}, "misfit")
        with pytest.raises(FedbusError, match="no run is called 'no-such-run'"):
            await parties.start(plan | {"model": {"from": "no-such-run"}}, "from-nobody")


async def test_the_evaluator_checks_what_it_registers(stack: Stack, tmp_path: Path) -> None:
    """Whoever has the operator's credential may store models; the registry names whole ones only."""
    async with federation(stack.credentials, tmp_path, workers=(), evaluator=True) as parties:
        bus: Bus = parties.operator
        await persist(bus, lambda: bus.request("$SRV.PING.evaluator"))
        table = [TensorSpec(name="w", shape=(3,), dtype="float32")]
        (span,) = Grid.of(table).spans
        sick = Framing("dense").encode(span, np.array([1, np.nan, 2], np.float32))
        for name, chunk, stored in (("sick", sick, True), ("absent", b"nothing", False)):
            digest = chunk_digest(chunk)
            manifest = ModelManifest(
                run=name, round=0, parent=None, codec="dense", table=table, chunks=[digest], size_bytes=9
            )
            if stored:
                await Publisher(bus).put(subjects.model_chunk(digest), chunk)
            await Publisher(bus).put(subjects.model_manifest(manifest.digest()), manifest.pack())
            for called in (name, "other"):
                wish = ImportModel(name=called, digest=manifest.digest())
                with pytest.raises(ModelRefused, match="not whole" if called == name else "another model"):
                    await ask(bus, "evaluator", "import", wish, ModelVersion)
            with pytest.raises(UnknownModel):
                await parties.api.models.show(name)


HEADERS = {
    "offsets beyond the file": {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}},
    "a shape that lies": {"w": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 16]}},
    "a shape that overflows": {"w": {"dtype": "F32", "shape": [1 << 33, 1 << 33], "data_offsets": [0, 16]}},
    "overlapping tensors": {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    },
    "a hole": {"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
    "an unknown dtype": {"w": {"dtype": "OBJECT", "shape": [4], "data_offsets": [0, 16]}},
    "bfloat16": {"w": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}},
    "a nameless tensor": {"": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    "a long name": {"n" * 501: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    "many dimensions": {"w": {"dtype": "F32", "shape": [4, *[1] * 17], "data_offsets": [0, 16]}},
    "no tensor": {"__metadata__": {"run": "r"}},
    "no element": {"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
    "an order of other tensors": {
        "__metadata__": {"tensor_order": '[["v","lossy"]]'},
        "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    },
    "an order that is none": {
        "__metadata__": {"tensor_order": '{"w": 1}'},
        "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    },
    "a group that is none": {
        "__metadata__": {"tensor_order": '[["w","secret"]]'},
        "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    },
    "other tensors than were written": {
        "__metadata__": {"tensors": "0" * 64},
        "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    },
    "a value that is not finite": {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    "a value beyond float32": {"w": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}},
}
BODIES = {
    "no tensor": b"",
    "no element": b"",
    "a value that is not finite": np.array([1, 2, np.inf, 4], "<f4").tobytes(),
    "a value beyond float32": np.array([1, 1e300], "<f8").tobytes(),
}
RAW = {
    "an empty file": b"",
    "a header that has no end": (1 << 62).to_bytes(8, "little") + b"{}",
    "a header that is no JSON": (4).to_bytes(8, "little") + b"\x80\x05]q" + bytes(16),
    "a pickle": b"\x80\x05cos\nsystem\n(S'exit 1'\ntR.",
}


def hostile(case: str) -> bytes:
    if case in RAW:
        return RAW[case]
    header = json.dumps(HEADERS[case]).encode()
    body = BODIES.get(case, np.ones(4, "<f4").tobytes())
    return len(header).to_bytes(8, "little") + header + body


async def test_hostile_files_are_refused_and_leave_nothing(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=(), evaluator=True) as parties:
        before = await list_subjects(parties.operator, subjects.MODELS, "fb.model.>")
        for number, case in enumerate([*HEADERS, *RAW]):
            file = tmp_path / f"hostile-{number}.safetensors"
            file.write_bytes(hostile(case))
            with pytest.raises(ModelRefused) as caught:
                await parties.api.models.import_file(file)
            assert file.name in caught.value.message, case
        with pytest.raises(ConfigError, match="there is no file"):
            await parties.api.models.import_file(tmp_path / "absent.safetensors")
        with pytest.raises(ConfigError, match="there is no file"):
            await parties.api.models.import_file(tmp_path, "folder")
        assert await list_subjects(parties.operator, subjects.MODELS, "fb.model.>") == before
