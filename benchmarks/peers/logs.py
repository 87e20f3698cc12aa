"""When rounds began, read from what a system writes about itself."""

from __future__ import annotations

import json
import re
from datetime import datetime
from itertools import pairwise

from peers.trial import TrialFailed

_STAMP = re.compile(r"^(?:\x1b\[[0-9;]*m)*(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})")
_NVFLARE_EDGE = re.compile(r"Round \d+ started|Finished FedAvg")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"error|exception|failed|exit code|unavailable|aborted", re.IGNORECASE)
_MOST = 240


def nvflare_edges(text: str) -> list[float]:
    """Begin of each round, and the end of the last one, by the clock of NVFlare's server log."""
    edges, at = [], None
    for line in text.splitlines():
        # A message of several lines has its time before the first.
        if stamp := _STAMP.match(line):
            at = datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        if at is not None and _NVFLARE_EDGE.search(line):
            edges.append(at)
    return edges


def flower_edges(text: str, clients: int) -> list[float]:
    """Begin of each round, and the end of the last one, from the lines that our ServerApp writes.

    Raises:
        TrialFailed: a round closed without the replies of all clients.
    """
    edges = []
    # The last line may be half written.
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        mark = json.loads(line)
        if mark["event"] in ("round", "end"):
            edges.append(float(mark["at"]))
        elif mark["replies"] < clients:
            raise TrialFailed(
                f"round {mark['round']} closed with {mark['replies']} of {clients} replies: {mark['errors']}"
            )
    return edges


def round_times(edges: list[float], warm_ups: int, rounds: int) -> list[float]:
    """Seconds of the rounds that count.

    Args:
        edges: begin of each round and the end of the last.
        warm_ups: rounds at the beginning that do not count.
        rounds: those that do.

    Raises:
        TrialFailed: there were fewer rounds, or more.
    """
    if len(edges) != warm_ups + rounds + 1:
        raise TrialFailed(f"{max(0, len(edges) - 1)} of {warm_ups + rounds} rounds ended")
    return [end - begin for begin, end in pairwise(edges[warm_ups:])]


def last_words(text: str) -> str:
    """The last line of a log that speaks of an error, or else its last line."""
    lines = [" ".join(_COLOUR.sub("", line).split()) for line in text.splitlines()]
    lines = [line for line in lines if line.strip(" │╭╮╰╯─|")]
    told = [line for line in lines if _ERROR.search(line)] or lines
    return told[-1][-_MOST:] if told else "(its log is empty)"
