"""Rounds of fedbus, Flower and NVFlare on this machine, one system after the other, again and again.

    make bench-peers                                # everything, into docs/benchmarks.md: 40 minutes
    PYTHONPATH=benchmarks python -m peers --quick   # 4 clients, 100 KB, each system once: two minutes

Each trial goes into a record, one line of JSON, as it ends; `--render` makes tables of records. A system that
fails is reported with its error. Exits with 1 when fedbus failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tables import put

from peers import flower, nvflare
from peers.envs import PACKAGES, environment
from peers.ours import measure_fedbus, measure_sockets
from peers.settings import QUICK, SETTINGS, SYSTEMS, Setting
from peers.tables import NAME, render
from peers.trial import Measured, Trial, TrialFailed
from peers.watch import adopt_orphans, end_all, machine_cpu

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "benchmarks.md"
ENVS = ROOT / "benchmarks" / ".envs"


def main() -> int:
    """Measure, or read records, and print the tables."""
    options = _options()
    trials: list[Trial] = []
    for path in options.render:
        trials += [Trial.model_validate_json(line) for line in path.read_text().splitlines()]
    if not options.render:
        # Not SystemExit: every driver already cleans up after Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            trials = _all_trials(options)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        finally:
            end_all()
    arguments = [] if options.render else sys.argv[1:]
    command = shlex.join(["python", "-m", "peers", *arguments])
    text = render(trials, command, options.date or datetime.now(UTC).date().isoformat())
    print(text)
    failed = any(trial.system == "fedbus" and trial.error for trial in trials)
    if options.write and not failed:
        put(text, DOCS, NAME)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="peers", description=(__doc__ or "").split("\n\n")[0])
    keys = [setting.key for setting in SETTINGS]
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, each system once")
    parser.add_argument("--only", action="append", choices=keys, help="this setting; repeatable")
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="this system; repeatable")
    parser.add_argument("--repetitions", type=int, help="instead of each setting's own number")
    parser.add_argument("--envs", type=Path, default=ENVS, help="where the peers' environments are made")
    parser.add_argument("--record", type=Path, help="append each trial to this file")
    parser.add_argument("--render", type=Path, nargs="+", default=[], help="measure nothing; read records")
    parser.add_argument("--date", help="of the records")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{DOCS.name}")
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("memory and CPU are read from /proc, so this runs on Linux only")
    return options


def _all_trials(options: argparse.Namespace) -> list[Trial]:
    wanted = options.system or SYSTEMS
    envs = {name: environment(name, options.envs.absolute()) for name in PACKAGES if name in wanted}
    chosen = [
        each for each in SETTINGS if each.key in (options.only or (QUICK if options.quick else each.key))
    ]
    adopt_orphans()
    trials: list[Trial] = []
    for setting in chosen:
        repetitions = options.repetitions or (1 if options.quick else setting.repetitions)
        for repetition in range(1, repetitions + 1):
            for system in (name for name in setting.rounds if name in wanted):
                began = time.monotonic()
                trial = _trial(setting, system, repetition, envs)
                trials.append(trial)
                if options.record is not None:
                    with options.record.open("a") as file:
                        file.write(trial.model_dump_json() + "\n")
                said = trial.error or "measured"
                print(
                    f"{setting.label}, {system}, {repetition} of {repetitions}: {said} "
                    f"({time.monotonic() - began:.0f} s)",
                    file=sys.stderr,
                    flush=True,
                )
    return trials


def _trial(setting: Setting, system: str, repetition: int, envs: dict[str, Path]) -> Trial:
    measured, error = None, None
    began, (busy, own) = time.monotonic(), machine_cpu()
    folder = Path(tempfile.mkdtemp(prefix="fedbus-peers-"))
    try:
        measured = _measure(setting, system, folder, envs)
    except TrialFailed as failed:
        error = str(failed).replace(str(folder), "…")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # asyncio leaves the default behind, which would end this process at once.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    now_busy, now_own = machine_cpu()
    others = max(0.0, (now_busy - busy) - (now_own - own)) / (time.monotonic() - began)
    return Trial(
        setting=setting.key,
        system=system,
        repetition=repetition,
        load=os.getloadavg()[0],
        others=others,
        measured=measured,
        error=error,
    )


def _measure(setting: Setting, system: str, folder: Path, envs: dict[str, Path]) -> Measured:
    if system == "Flower":
        return flower.measure(setting, envs[system], folder)
    if system == "NVFlare":
        return nvflare.measure(setting, envs[system], folder)
    return measure_fedbus(setting) if system == "fedbus" else measure_sockets(setting, system)


if __name__ == "__main__":
    sys.exit(main())
