"""Every subject, stream and bucket of a federation, and nothing about how they are configured.

| stream       | subjects              | written by             |
| ------------ | --------------------- | ---------------------- |
| FB_ROUNDS    | fb.round.*.*.log.*    | each service, its leaf |
| FB_ANNOUNCE  | fb.announce.*         | planner                |
| FB_INBOX     | fb.inbox.*            | planner                |
| FB_UPDATES   | fb.update.>           | workers, their own     |
| FB_MODELS    | fb.model.>            | aggregator, operator   |
| FB_TELEMETRY | fb.otel.*             | each party, its own    |
| FB_LEASES    | fb.lease.*            | aggregator             |

Beats and progress of a worker, and whether the holder of a lease is there, are core messages that no
stream keeps.
"""

from __future__ import annotations

from typing import Literal

Service = Literal["planner", "aggregator", "evaluator", "enroll"]

ROUNDS = "FB_ROUNDS"
ANNOUNCE = "FB_ANNOUNCE"
INBOX = "FB_INBOX"
UPDATES = "FB_UPDATES"
MODELS = "FB_MODELS"
EVENTS = "FB_EVENTS"
TELEMETRY = "FB_TELEMETRY"
LEASES = "FB_LEASES"
RUNS_BUCKET = "FB_RUNS"
ROSTER_BUCKET = "FB_ROSTER"
REGISTRY_BUCKET = "FB_REGISTRY"

ALL_LOGS = "fb.round.*.*.log.*"
# Where FB_ROUNDS republishes what it stored; see DESIGN on why nobody listens to fb.round.> itself.
LOG_COPIES = "fb.log.*.*.*"
# Where FB_UPDATES republishes manifests, so that the aggregator needs no consumer.
MANIFEST_COPIES = "fb.manifest.>"
ALL_ANNOUNCEMENTS = "fb.announce.*"
ALL_BEATS = "fb.worker.*.beat"
ALL_PROGRESS = "fb.worker.*.progress"
ALL_TELEMETRY = "fb.otel.*"


def log_of(run: str, number: int | str, service: str = "*") -> str:
    """Subject of a round's log: one leaf, or all of them."""
    return f"fb.round.{run}.{number}.log.{service}"


def parse_log(subject: str) -> tuple[str, int, str]:
    """Run, round number and author of a stored log entry."""
    _, _, run, number, _, service = subject.split(".")
    return run, int(number), service


def announce(run: str) -> str:
    """Subject of a run's last announcement."""
    return f"fb.announce.{run}"


def parse_announce(subject: str) -> str:
    """Run of an announcement's subject."""
    return subject.rpartition(".")[2]


def inbox(worker: str) -> str:
    """Subject of what concerns one worker alone."""
    return f"fb.inbox.{worker}"


def beat(worker: str) -> str:
    """Subject of a worker's heartbeat."""
    return f"fb.worker.{worker}.beat"


def progress(worker: str) -> str:
    """Subject of a worker's progress."""
    return f"fb.worker.{worker}.progress"


def otel(party: str) -> str:
    """Subject of the spans of a service or a worker, as OTLP bytes."""
    return f"fb.otel.{party}"


def update(run: str, number: int | str, worker: str, node: str, attempt: str, leaf: int | str) -> str:
    """Subject of one chunk of an update, of its `manifest`, or of an `evaluation`. Write-once."""
    return f"fb.update.{run}.{number}.{worker}.{node}.{attempt}.{leaf}"


def parse_update(subject: str) -> tuple[str, int, str, str, str, str]:
    """Run, round, worker, node, attempt and leaf of an update's subject."""
    _, _, run, number, worker, node, attempt, leaf = subject.split(".")
    return run, int(number), worker, node, attempt, leaf


def model_chunk(digest: str) -> str:
    """Subject of a model chunk, named by the SHA-256 of its bytes. Write-once."""
    return f"fb.model.c.{digest}"


def model_manifest(digest: str) -> str:
    """Subject of a model's manifest, named by the SHA-256 of its bytes. Write-once."""
    return f"fb.model.m.{digest}"


def event(kind: str) -> str:
    """Subject of something that happened to a worker or an invitation."""
    return f"fb.event.{kind}"


def lease(service: str) -> str:
    """Subject of who does a service's work just now, where several instances run."""
    return f"fb.lease.{service}"


def alive(service: str, token: str) -> str:
    """Subject that one instance of a service listens to for as long as it is there."""
    return f"fb.alive.{service}.{token}"


def api(service: str, verb: str) -> str:
    """Subject of a service command (a NATS micro endpoint)."""
    return f"fb.api.{service}.{verb}"
