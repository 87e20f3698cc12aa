"""A virtual environment for each peer, with the exact versions of its constraints file."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = {"Flower": "flwr", "NVFlare": "nvflare"}


def constraints(system: str) -> Path:
    """The file that pins a peer and all that it needs."""
    return HERE / f"{system.lower()}.txt"


def version(system: str) -> str:
    """The pinned version of a peer."""
    found = re.search(rf"^{PACKAGES[system]}==(\S+)$", constraints(system).read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def environment(system: str, folder: Path) -> Path:
    """Make the environment of a peer below a folder, unless it is there with these very versions.

    Raises:
        CalledProcessError: pip could not install it.
    """
    pinned = constraints(system)
    place = folder / system.lower()
    stamp = place / "constraints.txt"
    if stamp.is_file() and stamp.read_bytes() == pinned.read_bytes():
        return place
    print(f"installing {system} {version(system)} into {place}", file=sys.stderr, flush=True)
    venv.create(place, clear=True, with_pip=True)
    pip = [str(place / "bin" / "pip"), "install", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "-c", str(pinned), PACKAGES[system]], check=True)
    stamp.write_bytes(pinned.read_bytes())
    return place
