"""`fedbus invite create | list | revoke` and `fedbus worker list | show | why`."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import click
from fedbus_schemas.base import Wire, is_token
from fedbus_schemas.roster import LONGEST_S, MOST_USES, Doing, InviteReport, WorkerReport, is_invite_id
from rich.markup import escape
from rich.table import Table

from fedbus.api.federation import Federation
from fedbus.base.errors import ConfigError
from fedbus.bus.credentials import bracketed
from fedbus.cli.output import (
    console,
    dir_option,
    json_option,
    print_json,
    print_list,
    reporting,
    url_option,
    with_federation,
)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class InviteDocument(Wire):
    """What `invite create --json` prints."""

    id: str
    join: str
    site: str
    expires_at: float
    uses: int


@click.group("invite")
def invite_group() -> None:
    """Let workers of other sites join by one string."""


@invite_group.command()
@click.option("--site", required=True, help="Whose workers come by it.")
@click.option("--expires", default="24h", show_default=True, help="30m, 24h, 7d: nobody new after that.")
@click.option(
    "--uses", type=click.IntRange(1, MOST_USES), default=1, show_default=True, help="How many workers."
)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label that its workers carry.")
@click.option("--host", help="HOST or HOST:PORT by which workers reach the broker.  [default: as we do]")
@dir_option
@url_option
@json_option
@reporting
def create(
    site: str,
    expires: str,
    uses: int,
    labels: tuple[str, ...],
    host: str | None,
    folder: Path | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Make an invitation; prints the string for `fedbus-worker join`."""
    if not is_token(site):
        raise ConfigError(f"--site {site!r}: use letters, digits, '-' and '_', at most 64")
    seconds, given = _seconds(expires), _labels(labels)

    async def work(federation: Federation) -> InviteDocument:
        members = federation.members
        address = _address(host, members.url) if host else None
        made, string = await members.invite(site, expires_s=seconds, uses=uses, labels=given, address=address)
        return InviteDocument(
            id=made.id, join=string.to_text(), site=site, expires_at=made.expires_at, uses=uses
        )

    document = with_federation(folder, url, work)
    if as_json:
        print_json(document)
        return
    click.echo(document.join)
    if urlsplit(document.join).hostname in _LOOPBACK:
        click.echo("note: this address is this machine's own; for other hosts give --host", err=True)


@invite_group.command("list")
@dir_option
@url_option
@json_option
@reporting
def list_invites(folder: Path | None, url: str | None, as_json: bool) -> None:
    """List all invitations; their secrets are stored nowhere."""
    found = with_federation(folder, url, lambda federation: federation.members.invites())
    none = "no invitations yet: make one with `fedbus invite create --site SITE`"
    print_list(found, as_json, invite_list, none)


@invite_group.command()
@click.argument("id_", metavar="ID")
@dir_option
@url_option
@json_option
@reporting
def revoke(id_: str, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Let nobody else in by an invitation. Workers that came by it stay."""
    if not is_invite_id(id_):
        raise ConfigError(f"{id_!r} is no invitation's id", hint="see: fedbus invite list")
    with_federation(folder, url, lambda federation: federation.members.revoke_invite(id_))
    if as_json:
        found = with_federation(folder, url, lambda federation: federation.members.invites())
        print_json(next(invite for invite in found if invite.id == id_))
    else:
        click.echo(f"{id_} is revoked")


@click.group("worker")
def worker_group() -> None:
    """Who is here, and why one takes part or not."""


@worker_group.command("list")
@dir_option
@url_option
@json_option
@reporting
def list_workers(folder: Path | None, url: str | None, as_json: bool) -> None:
    """List all workers that ever came."""
    found = with_federation(folder, url, lambda federation: federation.members.workers())
    print_list(found, as_json, worker_list, "no workers yet: one joins with `fedbus-worker join`")


@worker_group.command()
@click.argument("name")
@dir_option
@url_option
@json_option
@reporting
def show(name: str, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Show one worker: where it is, what it can do, what it does."""
    _check_name(name)
    w = with_federation(folder, url, lambda federation: federation.members.worker(name))
    if as_json:
        print_json(w)
        return
    can = w.capabilities
    table = Table(show_header=False, title=escape(w.worker))
    for label, value in (
        ("state", f"{w.state} since {w.since}"),
        ("site", w.site or ""),
        ("labels", _pairs(w.labels)),
        ("tasks", ", ".join(can.tasks)),
        ("codecs", ", ".join(can.codecs)),
        ("host", f"{can.cpus} CPUs, {can.memory_mb} MB, Python {can.python}, fedbus {can.version}"),
        ("doing", _doing(w.doing)),
    ):
        table.add_row(label, escape(value))
    console().print(table)


@worker_group.command()
@click.argument("name")
@click.argument("run", required=False)
@dir_option
@url_option
@json_option
@reporting
def why(name: str, run: str | None, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Say why a worker is, or is not, in the open runs, or in one RUN."""
    _check_name(name)
    if run is not None and not is_token(run):
        raise ConfigError(f"{run!r} does not name a run", hint="see: fedbus round list")
    items = with_federation(folder, url, lambda federation: federation.members.why(name, run))
    if as_json:
        print_json(items)
    elif not items:
        click.echo("no run is open")
    else:
        for item in items:
            where = item.run if item.round is None else f"{item.run}/{item.round}"
            click.echo(f"{where}: {name}: {item.reason} [{item.code}]")


def invite_list(invites: list[InviteReport]) -> Table:
    """All invitations, a line each."""
    table = _table("id", "state", "site", "left", "expires", "labels", "workers")
    for i in invites:
        left, workers = f"{i.left}/{i.uses}", ", ".join(i.workers)
        shown = (i.id, i.state, i.site, left, i.expires_at, _pairs(i.labels), workers)
        table.add_row(*map(escape, shown))
    return table


def worker_list(workers: list[WorkerReport]) -> Table:
    """All workers, a line each."""
    table = _table("worker", "site", "state", "since", "tasks", "doing")
    for w in workers:
        shown = (w.worker, w.site or "", w.state, w.since, _few(w.capabilities.tasks), _doing(w.doing))
        table.add_row(*map(escape, shown))
    return table


def _check_name(name: str) -> None:
    if not is_token(name):
        raise ConfigError(f"{name!r} does not name a worker", hint="see: fedbus worker list")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_S:
        raise ConfigError(f"--expires {text}: use a number and s, m, h or d, such as 24h; at most 366d")
    return float(seconds)


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    labels = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(labels) != len(pairs) or "" in labels:
        raise ConfigError(f"--label wants K=V with different keys, got {', '.join(pairs)}")
    if len(labels) > 32 or any(len(k) > 64 or len(v) > 256 for k, v in labels.items()):
        raise ConfigError("--label: at most 32 labels, keys of 64 and values of 256 characters")
    if "site" in labels:
        raise ConfigError("--label site=...: the site is given by --site")
    return labels


def _address(host: str, ours: str) -> str:
    try:
        parts = urlsplit(f"nats://{host}")
        name, port = parts.hostname, parts.port or urlsplit(ours).port
    except ValueError:
        name, port = None, None
    if not name or parts.username or parts.path or parts.query or parts.fragment:
        raise ConfigError(f"--host {host!r}: use HOST or HOST:PORT, such as hub.example.org:4222")
    return f"nats://{bracketed(name)}:{port}"


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column)
    return table


def _few(tasks: list[str]) -> str:
    """The tasks that a worker offers of its own, and how many others; `worker show` names all."""
    own = [task for task in tasks if ":" in task] or tasks[:2]
    more = len(tasks) - len(own)
    return ", ".join(own) + (f" +{more}" if more else "")


def _pairs(labels: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _doing(doing: Doing | None) -> str:
    if doing is None:
        return ""
    if doing.failed:
        return f"{doing.run}/{doing.round} failed: {doing.failed}"
    return f"{doing.run}/{doing.round} {doing.phase} {doing.fraction:.0%}"
