"""Trials become tables; one that failed is told, not left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers.envs import PACKAGES, constraints, version
from peers.settings import SETTINGS, SYSTEMS
from peers.tables import NAME, render
from peers.trial import Measured, Trial, summarise
from peers.watch import Sample, cpu_between
from tables import put


def _trial(system: str, seconds: list[float], *, setting: str = "4-small", repetition: int = 1) -> Trial:
    measured = Measured(
        seconds=seconds,
        server_bytes=300 << 20,
        client_bytes=100 << 20,
        cpu_s=0.08,
        hub_cpu_s=None if system == "direct" else 0.02,
        stored_bytes=600_000 if system == "fedbus" else None,
    )
    return Trial(
        setting=setting, system=system, repetition=repetition, load=1.5, others=0.25, measured=measured
    )


def _failed(system: str, error: str) -> Trial:
    return Trial(setting="4-small", system=system, repetition=2, load=3.0, others=0.5, error=error)


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_a_system_is_known_by_the_median_of_its_trials() -> None:
    trials = [_trial("Flower", [1.0, 5.0, 2.0]), _trial("Flower", [4.0, 4.0]), _trial("Flower", [3.0])]
    done = summarise(trials)
    assert done is not None
    assert (done.round_s, done.least_s, done.most_s, done.trials) == (3.0, 2.0, 4.0, 3)


def test_trials_that_all_failed_have_no_figures() -> None:
    assert summarise([_failed("Flower", "gone")]) is None
    assert summarise([]) is None


def test_figures_stand_beside_those_of_fedbus() -> None:
    text = render([_trial("fedbus", [0.02]), _trial("NVFlare", [2.5])], "make bench-peers", "2026-11-22")
    rows = _rows(text)
    assert ["4 clients, 100 KB", "NVFlare", "1/1", "8", "2.500", "2.500", "2.500", "125"] in rows
    assert ["4 clients, 100 KB", "fedbus", "300", "100", "0.080", "1"] in rows
    assert "1.5 to 1.5" in text
    assert f"NVFlare {version('NVFlare')}" in text


def test_a_failure_is_told_with_its_words() -> None:
    text = render([_trial("fedbus", [0.02]), _failed("Flower", "exit `305`\n| gone")], "x", "2026-11-22")
    assert ["4 clients, 100 KB", "Flower", "0/1", "-", "failed", "-", "-", "-"] in _rows(text)
    assert "- 4 clients, 100 KB, Flower, trial 2: `exit '305' | gone`" in text


def test_some_trials_may_fail_and_others_not() -> None:
    text = render([_trial("Flower", [9.0]), _failed("Flower", "gone")], "x", "2026-11-22")
    assert ["4 clients, 100 KB", "Flower", "1/2", "4", "9.000", "9.000", "9.000", "-"] in _rows(text)


def test_sockets_show_what_the_broker_costs() -> None:
    trials = [_trial("fedbus", [0.02]), _trial("relay", [0.002]), _trial("direct", [0.001])]
    rows = _rows(render(trials, "x", "2026-11-22"))
    # 8 times 100 KB of payload.
    assert ["4 clients, 100 KB", "fedbus", "20.0", "100.00", "25.00", "0.60"] in rows
    assert ["4 clients, 100 KB", "sockets, direct", "1.0", "100.00", "-", "-"] in rows
    assert not any(row[1] in ("relay", "direct") for row in rows)


def test_a_record_reads_back_as_it_was_written() -> None:
    for trial in (_trial("fedbus", [0.02]), _failed("Flower", "gone")):
        assert Trial.model_validate_json(trial.model_dump_json()) == trial


def test_cpu_time_lies_on_lines_between_samples() -> None:
    samples = [Sample(0.0, 0.0, {}), Sample(1.0, 2.0, {}), Sample(3.0, 3.0, {})]
    assert cpu_between(samples, 0.5, 2.0) == pytest.approx(1.5)
    assert cpu_between(samples, -1.0, 9.0) == pytest.approx(3.0)


def test_every_setting_has_fedbus_and_both_peers_at_least_once() -> None:
    for setting in SETTINGS:
        assert {"fedbus", *PACKAGES} <= set(setting.rounds) <= set(SYSTEMS)
        assert setting.repetitions >= 1
        assert all(rounds > 0 for _, rounds in setting.rounds.values())


def test_a_constraints_file_pins_all_and_names_no_host() -> None:
    for system in PACKAGES:
        lines = constraints(system).read_text().splitlines()
        assert all("==" in line or line.startswith("#") for line in lines)
        assert not any("://" in line for line in lines)


def test_tables_replace_what_stood_between_their_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = f"<!-- begin: {NAME} -->", f"<!-- end: {NAME} -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    put("new", page, NAME)
    assert page.read_text() == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    with pytest.raises(ValueError, match="has no lines"):
        put("new", page, "nowhere")
