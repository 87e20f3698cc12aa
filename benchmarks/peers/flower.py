"""Flower in deployment mode: SuperLink, SuperNodes, and the app handed in by `flwr run`."""

from __future__ import annotations

from pathlib import Path

from peers.fleet import Fleet, free_ports
from peers.logs import flower_edges, last_words, round_times
from peers.settings import Setting
from peers.trial import Measured, TrialFailed
from peers.watch import Watch, cpu_between

APP = Path(__file__).with_name("flower_app")
SERVER = "superlink"


def measure(setting: Setting, environment: Path, folder: Path) -> Measured:
    """Run one trial.

    Args:
        setting: what to run.
        environment: the virtual environment with Flower in it.
        folder: empty; for state and logs.

    Raises:
        TrialFailed: Flower did not manage it.
    """
    programs = environment / "bin"
    (home := folder / "home").mkdir()
    port, *node_ports = free_ports(1 + setting.clients)
    link = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{link}"\ninsecure = true\n'
    )
    variables = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": "",
        "PYTHONUNBUFFERED": "1",
    }
    marks = folder / "marks.jsonl"
    marks.touch()
    warm_ups, rounds = setting.rounds["Flower"]
    sizes = f"clients={setting.clients} rounds={warm_ups + rounds} elements={setting.elements}"
    run = [f"{programs}/flwr", "run", str(APP), "here", "--run-config", f"{sizes} marks='{marks}'"]

    with Fleet(folder, variables, setting.limit_s) as fleet:
        fleet.start(
            SERVER,
            [
                f"{programs}/flower-superlink",
                "--insecure",
                "--disable-runtime-dependency-installation",
                "--port",
                str(port),
            ],
        )
        fleet.wait("a SuperLink that listens", lambda: "startup complete" in fleet.log(SERVER))

        def start(name: str) -> None:
            number = names.index(name)
            (own := folder / name).mkdir()
            fleet.start(
                name,
                [
                    f"{programs}/flower-supernode",
                    "--insecure",
                    "--superlink",
                    link,
                    "--port",
                    str(node_ports[number]),
                ],
                {"FLWR_HOME": str(own)},
            )

        names = [f"node{number}" for number in range(setting.clients)]
        fleet.start_clients(names, start, "SuperNode ID")
        watch = Watch(fleet.roots)
        try:
            fleet.run(run)
            fleet.wait(
                f"the end of {warm_ups + rounds} rounds",
                lambda: len(flower_edges(marks.read_text(), setting.clients)) > warm_ups + rounds,
            )
        except TrialFailed as error:
            done = max(0, len(marks.read_text().splitlines()) // 2)
            raise TrialFailed(
                f"{error}; {done} ended; the SuperLink: {last_words(fleet.log(SERVER))}"
            ) from error
        finally:
            samples = watch.stop()
        edges = flower_edges(marks.read_text(), setting.clients)
    return Measured(
        seconds=round_times(edges, warm_ups, rounds),
        server_bytes=max(sample.memory[SERVER] for sample in samples),
        client_bytes=max(sample.memory[name] for sample in samples for name in names),
        cpu_s=cpu_between(samples, edges[warm_ups], edges[-1]) / rounds,
    )
