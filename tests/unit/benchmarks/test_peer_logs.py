"""What another system writes about its rounds, read as round times."""

from __future__ import annotations

import json

import pytest
from peers.logs import flower_edges, last_words, nvflare_edges, round_times
from peers.trial import TrialFailed

NVFLARE = """\
WORKSPACE set to /somewhere
2026-11-22 16:01:34,526 - FedAvg - INFO - [run=45ff, wf=controller] -

                                Round 0 started.

2026-11-22 16:01:34,526 - FedAvg - INFO - [run=45ff] - Sampled clients: ['site-1']
2026-11-22 16:01:37,026 - FedAvg - INFO - [run=45ff] - aggregating 1 update(s) at round 0
\x1b[32m2026-11-22 16:01:37,030 - FedAvg - INFO - [run=45ff] - Round 1 started.\x1b[0m
2026-11-22 16:01:39,530 - FedAvg - INFO - [run=45ff] -

                                Finished FedAvg.
"""


def _marks(*replies: int) -> str:
    lines: list[dict[str, object]] = []
    for number, count in enumerate(replies, 1):
        lines.append({"at": 10.0 * number, "event": "round"})
        error = "node gone" if count < 4 else ""
        lines.append(
            {"at": 10.0 * number + 6, "event": "replies", "round": number, "replies": count, "errors": error}
        )
    lines.append({"at": 10.0 * (len(replies) + 1), "event": "end"})
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_line_of_nvflare_without_a_time_has_the_one_before_it() -> None:
    edges = nvflare_edges(NVFLARE)
    assert [edge - edges[0] for edge in edges] == pytest.approx([0.0, 2.504, 5.004], abs=1e-4)


def test_a_log_that_does_not_speak_of_rounds_has_none() -> None:
    assert nvflare_edges("Round 0 started.\n") == []
    assert nvflare_edges("") == []
    assert flower_edges("", 4) == []


def test_rounds_of_flower_go_from_one_beginning_to_the_next() -> None:
    assert flower_edges(_marks(4, 4), 4) == [10.0, 20.0, 30.0]


def test_a_half_written_line_is_left_for_later() -> None:
    assert flower_edges(_marks(4, 4)[:-3], 4) == [10.0, 20.0]


def test_a_round_of_flower_without_all_replies_does_not_count() -> None:
    with pytest.raises(TrialFailed, match="round 2 closed with 3 of 4 replies: node gone"):
        flower_edges(_marks(4, 3), 4)


def test_rounds_that_warm_up_are_left_out() -> None:
    assert round_times([0.0, 9.0, 11.0, 14.0], 1, 2) == [2.0, 3.0]


@pytest.mark.parametrize(
    ("edges", "said"), [([], "0 of 3"), ([0.0], "0 of 3"), ([0.0, 1.0, 2.0], "2 of 3"), ([0.0] * 5, "4 of 3")]
)
def test_another_number_of_rounds_is_a_failure(edges: list[float], said: str) -> None:
    with pytest.raises(TrialFailed, match=f"{said} rounds ended"):
        round_times(edges, 1, 2)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("one\ntwo: Error: no   room\nthree\n", "two: Error: no room"),
        ("one\ntwo\n\n", "two"),
        ("\x1b[91mERROR\x1b[0m:  gone\n╰────╯\n", "ERROR: gone"),
        ("", "(its log is empty)"),
    ],
)
def test_the_last_words_of_a_log_are_those_about_an_error(log: str, said: str) -> None:
    assert last_words(log) == said
