"""Subjects, and how people write runs and rounds."""

from __future__ import annotations

import pytest
from fedbus_schemas import subjects
from fedbus_schemas.base import is_token
from fedbus_schemas.ids import RoundRef, next_run_name, parse_ref
from fedbus_schemas.messages import Progress


def test_subjects_and_back() -> None:
    assert subjects.log_of("run-1", 3, "planner") == "fb.round.run-1.3.log.planner"
    assert subjects.parse_announce("fb.announce.run-1") == "run-1"
    assert subjects.parse_log("fb.round.run-1.3.log.planner") == ("run-1", 3, "planner")
    leaf = subjects.update("run-1", 3, "w1", "0", "abcd", "manifest")
    assert leaf == "fb.update.run-1.3.w1.0.abcd.manifest"
    assert subjects.parse_update(leaf) == ("run-1", 3, "w1", "0", "abcd", "manifest")
    assert subjects.model_chunk("d") == "fb.model.c.d"
    assert subjects.model_manifest("d") == "fb.model.m.d"
    assert subjects.announce("run-1") == "fb.announce.run-1"
    assert subjects.inbox("w1") == "fb.inbox.w1"
    assert subjects.api("planner", "start") == "fb.api.planner.start"
    assert (subjects.beat("w1"), subjects.progress("w1")) == ("fb.worker.w1.beat", "fb.worker.w1.progress")


@pytest.mark.parametrize(
    ("text", "ref"), [("run-0007", ("run-0007", None)), ("run-0007/3", ("run-0007", 3)), ("x/0", ("x", 0))]
)
def test_references(text: str, ref: tuple[str, int | None]) -> None:
    assert parse_ref(text) == ref
    if ref[1] is not None:
        assert str(RoundRef(ref[0], ref[1])) == text


@pytest.mark.parametrize(
    "text",
    ["", "/", "/3", "run-1/", "run-1/x", "run-1/-1", "run-1/3/4", "run-1/٣", "run-1\n", "run-1/3\n", "a.b/1"],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ValueError, match="does not name"):
        parse_ref(text)


def test_a_number_of_any_length_is_no_round() -> None:
    with pytest.raises(ValueError, match="does not name a round"):
        parse_ref("run-1/" + "9" * 10_000)


@pytest.mark.parametrize(
    ("taken", "name"),
    [
        (set(), "run-0001"),
        ({"run-0001", "run-0003", "mine"}, "run-0004"),
        ({"run-9999"}, "run-10000"),
        ({"run-" + "9" * 60}, "run-0001"),
    ],
)
def test_the_next_run(taken: set[str], name: str) -> None:
    assert next_run_name(taken) == name
    assert is_token(name)


@pytest.mark.parametrize("text", ["a\x1b]0;title\x07b", "a\x1b[2Jb", "a\r\nb", "a\u202eb"])
def test_what_peers_say_cannot_steer_a_terminal(text: str) -> None:
    said = Progress(worker="w", run="r", round=1, phase="train", at=1.0, failed=text).failed
    assert said is not None
    assert said.isprintable()
    assert said.startswith("a")
    assert said.endswith("b")
