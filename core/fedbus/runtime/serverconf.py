"""The broker's configuration, rendered from values: nothing here touches a file or a process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbus.bus.credentials import bracketed
from fedbus.runtime.rights import (
    IDENTITIES,
    SERVICE_EXPORTS,
    STREAM_EXPORTS,
    STREAMED_EXPORTS,
    Rights,
    rights_of,
    rights_of_invite,
    rights_of_worker,
)

MIB = 1 << 20
MAX_PAYLOAD = 2 * MIB
ACCOUNTS_FILE = "accounts.conf"
# No stream or consumer of ours lives in memory; this bounds what a mistake could take.
_MAX_MEMORY = 64 * MIB
# Bytes that a stream may hold in memory before they are written; beyond it publishes are refused (10167).
_MAX_BUFFERED = 128 * MIB


def render_server(folder: Path, host: str, port: int, max_file: int) -> str:
    """The server's own part; it includes the accounts, which change while it runs.

    Args:
        folder: holds the store, the log and the accounts' part.
        host: address to listen on.
        port: port to listen on; -1 takes a free one.
        max_file: most bytes that the accounts' part will ever let the streams take on disk.
    """
    return (
        _lines(
            {
                "server_name": "fedbus",
                "listen": f"{bracketed(host)}:{port}",
                "max_payload": MAX_PAYLOAD,
                "max_pending": 256 * MIB,
                "write_deadline": "30s",
                "log_file": str(folder / "log"),
                "logfile_size_limit": 16 * MIB,
                "logfile_max_num": 4,
                # A host under full load may need longer than the default 2 s to answer the greeting.
                "authorization": {"timeout": 10},
                "jetstream": {
                    "store_dir": str(folder / "store"),
                    # An acknowledged write is on disk: a round survives a power cut, not only a kill.
                    "sync_interval": "always",
                    # What binds is the account's limit. Where that is raised while the server runs, the
                    # server counts it beside what its streams have reserved of it.
                    "max_file_store": 2 * max_file,
                    "max_memory_store": _MAX_MEMORY,
                    "max_buffered_size": _MAX_BUFFERED,
                },
            }
        )
        + f"include {ACCOUNTS_FILE}\n"
    )


def render_accounts(
    services: Mapping[str, str],
    workers: Mapping[str, str],
    max_file: int,
    invites: Mapping[str, str] | None = None,
) -> str:
    """The accounts' part: FED with JetStream, WRK without, and what crosses between them.

    Args:
        services: password of each service and the operator.
        workers: password of each worker.
        max_file: bytes that FED's streams may take; stated here so that JetStream's account info shows it.
        invites: password of the holders of each invitation.
    """
    fed = {
        "jetstream": {"max_file": max_file, "max_memory": _MAX_MEMORY},
        "users": [_user(name, services[name], rights_of(name)) for name in IDENTITIES],
        "exports": [
            *({"service": subject, "accounts": ["WRK"]} for subject in SERVICE_EXPORTS),
            *(
                {"service": subject, "accounts": ["WRK"], "response": "stream"}
                for subject in STREAMED_EXPORTS
            ),
            *({"stream": subject, "accounts": ["WRK"]} for subject in STREAM_EXPORTS),
        ],
    }
    holders = sorted((invites or {}).items())
    wrk = {
        "users": [
            *(_user(name, password, rights_of_worker(name)) for name, password in sorted(workers.items())),
            *(_user(name, password, rights_of_invite(name)) for name, password in holders),
        ],
        "imports": [
            *({"service": _from_fed(subject)} for subject in (*SERVICE_EXPORTS, *STREAMED_EXPORTS)),
            *({"stream": _from_fed(subject)} for subject in STREAM_EXPORTS),
        ],
    }
    # SYS has no user: nobody may ask the server about itself or steer it.
    return _lines({"accounts": {"SYS": {"users": []}, "FED": fed, "WRK": wrk}, "system_account": "SYS"})


def _user(name: str, password: str, rights: Rights) -> dict[str, Any]:
    return {
        "user": name,
        "password": password,
        "permissions": {"publish": list(rights.publish), "subscribe": list(rights.subscribe)},
    }


def _from_fed(subject: str) -> dict[str, str]:
    return {"account": "FED", "subject": subject}


def _lines(values: Mapping[str, Any]) -> str:
    # The server's format is a superset of JSON below the top level.
    return "".join(f"{key}: {json.dumps(value, indent=2)}\n" for key, value in values.items())
