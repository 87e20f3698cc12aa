"""NVIDIA FLARE in its POC mode: server and clients as processes, with the mutual TLS that it provisions."""

from __future__ import annotations

import socket
from pathlib import Path

from peers.fleet import Fleet
from peers.logs import last_words, nvflare_edges, round_times
from peers.settings import Setting
from peers.trial import Measured, TrialFailed
from peers.watch import Watch, cpu_between

EXPORT = Path(__file__).with_name("nvflare_job") / "export.py"
SERVER = "server"
PORT = 8002  # POC mode has no other


def measure(setting: Setting, environment: Path, folder: Path) -> Measured:
    """Run one trial.

    Args:
        setting: what to run.
        environment: the virtual environment with NVFlare in it.
        folder: empty; for the workspace and logs.

    Raises:
        TrialFailed: NVFlare did not manage it.
    """
    _check_port()
    programs = environment / "bin"
    (home := folder / "home").mkdir()
    variables = {
        "HOME": str(home),
        "NVFLARE_POC_WORKSPACE": str(folder / "poc"),
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": "",
        "PYTHONUNBUFFERED": "1",
    }
    warm_ups, rounds = setting.rounds["NVFlare"]
    with Fleet(folder, variables, setting.limit_s) as fleet:
        fleet.run([f"{programs}/nvflare", "poc", "prepare", "-n", str(setting.clients), "--force"])
        sizes = [str(size) for size in (setting.clients, warm_ups + rounds, setting.elements)]
        fleet.run([f"{programs}/python", str(EXPORT), *sizes, str(folder / "job")])
        (kits,) = (folder / "poc").glob("*/prod_00")

        def start(name: str) -> None:
            # `--once` is the start script without its loop that starts it again.
            fleet.start(name, ["bash", str(kits / name / "startup" / "sub_start.sh"), "--once"])

        start(SERVER)
        names = [f"site-{number}" for number in range(1, setting.clients + 1)]
        fleet.start_clients(names, start, "Successfully registered client")
        watch = Watch(fleet.roots)
        try:
            fleet.run([f"{programs}/nvflare", "job", "submit", "-j", str(folder / "job" / "rounds")])
            fleet.wait(
                f"the end of {warm_ups + rounds} rounds", lambda: "Finished FedAvg" in fleet.log(SERVER)
            )
        except TrialFailed as error:
            done = max(0, len(nvflare_edges(fleet.log(SERVER))) - 1)
            raise TrialFailed(
                f"{error}; {done} ended; the server: {last_words(fleet.log(SERVER))}"
            ) from error
        finally:
            samples = watch.stop()
        edges = nvflare_edges(fleet.log(SERVER))
    return Measured(
        seconds=round_times(edges, warm_ups, rounds),
        server_bytes=max(sample.memory[SERVER] for sample in samples),
        client_bytes=max(sample.memory[name] for sample in samples for name in names),
        cpu_s=cpu_between(samples, edges[warm_ups], edges[-1]) / rounds,
    )


def _check_port() -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections do not matter
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError as error:
            raise TrialFailed(f"NVFlare's server needs port {PORT}, which is in use") from error
