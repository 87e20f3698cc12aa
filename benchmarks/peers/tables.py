"""Trials as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from tables import machine, table

from peers.envs import PACKAGES, version
from peers.settings import SETTINGS, SYSTEMS, Setting
from peers.trial import Summary, Trial, summarise

NAME = "make bench-peers"
OURS = "fedbus"
FLOORS = ("relay", "direct")
NAMES = {"relay": "sockets, one relay", "direct": "sockets, direct"}


def render(trials: Sequence[Trial], command: str, date: str) -> str:
    """All tables, with the machine, the versions and the command."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    parts = [
        f"Measured on {date} with `{command}`. {machine()} {versions}. The machine is shared: over the "
        "trials, the load average of the last minute, the trial included, went from "
        f"{_ends([each.load for each in trials])}, and processes outside the benchmark took "
        f"{_ends([each.others for each in trials])} cores.",
        "**Seconds of a round.** The median of the trials' medians, and the least and greatest of them; how "
        "many times fedbus's time that is; rounds that count in each trial.",
        _times(trials),
        "**Memory and CPU.** Peak resident memory of all processes of the server side together, and of the "
        "largest client, in MiB; CPU seconds of all processes per round. Medians of the trials.",
        _costs(trials),
    ]
    if floors := _floors(trials):
        parts += [
            "**What a broker costs.** Plain sockets that move the same bytes and do nothing else, beside "
            "fedbus. A round's payload is one model and one update per client; the hub is the broker or the "
            "relay.",
            floors,
        ]
    failures = [
        f"- {_label(trial)}, {trial.system}, trial {trial.repetition}: {_plain(trial.error)}"
        for trial in trials
        if trial.error is not None
    ]
    if failures:
        parts += ["**What failed**, in the words of the system or of the benchmark.", "\n".join(failures)]
    return "\n\n".join(parts)


def _times(trials: Sequence[Trial]) -> str:
    head = ["setting", "system", "trials", "rounds", "median s", "least", "most", "times fedbus"]
    rows = []
    for setting, system, those in _groups(trials):
        if system in FLOORS:
            continue
        tried = f"{sum(trial.error is None for trial in those)}/{len(those)}"
        done, ours = summarise(those), _ours(trials, setting)
        if done is None:
            rows.append([setting.label, system, tried, "-", "failed", "-", "-", "-"])
            continue
        ratio = f"{done.round_s / ours.round_s:.3g}" if ours is not None else "-"
        seconds = [f"{value:.3f}" for value in (done.round_s, done.least_s, done.most_s)]
        rows.append([setting.label, system, tried, str(setting.rounds[system][1]), *seconds, ratio])
    return table(head, rows, 2)


def _costs(trials: Sequence[Trial]) -> str:
    head = ["setting", "system", "server MiB", "client MiB", "CPU s/round", "CPU, times fedbus"]
    rows = []
    for setting, system, those in _groups(trials):
        if system in FLOORS or (done := summarise(those)) is None:
            continue
        ours = _ours(trials, setting)
        ratio = f"{done.cpu_s / ours.cpu_s:.3g}" if ours is not None else "-"
        memory = [f"{value / 2**20:.0f}" for value in (done.server_bytes, done.client_bytes)]
        rows.append([setting.label, system, *memory, f"{done.cpu_s:.3f}", ratio])
    return table(head, rows, 2)


def _floors(trials: Sequence[Trial]) -> str | None:
    head = ["setting", "what", "ms/round", "CPU s/GB", "of it hub", "MB written by the hub"]
    rows = []
    for setting, system, those in _groups(trials):
        if not set(FLOORS) & set(setting.rounds) or system not in (OURS, *FLOORS):
            continue
        if (done := summarise(those)) is None:
            continue
        gigabytes = 2 * setting.clients * setting.model_bytes / 1e9
        hub = "-" if done.hub_cpu_s is None else f"{done.hub_cpu_s / gigabytes:.2f}"
        written = "-" if done.stored_bytes is None else f"{done.stored_bytes / 1e6:.2f}"
        cells = [f"{1000 * done.round_s:.1f}", f"{done.cpu_s / gigabytes:.2f}", hub, written]
        rows.append([setting.label, NAMES.get(system, system), *cells])
    return table(head, rows, 2) if rows else None


def _groups(trials: Sequence[Trial]) -> list[tuple[Setting, str, list[Trial]]]:
    """Trials of one system in one setting, in the order of the settings."""
    found = []
    for setting in SETTINGS:
        for system in SYSTEMS:
            those = [each for each in trials if (each.setting, each.system) == (setting.key, system)]
            if those:
                found.append((setting, system, those))
    return found


def _ours(trials: Sequence[Trial], setting: Setting) -> Summary | None:
    return summarise(each for each in trials if (each.setting, each.system) == (setting.key, OURS))


def _label(trial: Trial) -> str:
    return next(setting.label for setting in SETTINGS if setting.key == trial.setting)


def _plain(error: str | None) -> str:
    """Words of another program, as they are shown inside Markdown."""
    return "`" + " ".join((error or "").replace("`", "'").split()) + "`"


def _ends(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}" if values else "-"
