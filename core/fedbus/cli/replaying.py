"""`fedbus round replay`: rounds that are over, made again from what is stored, and compared."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import click
from fedbus_schemas.messages import Replayed

from fedbus.api.federation import Federation
from fedbus.api.refs import read_ref
from fedbus.base.errors import ConfigError
from fedbus.cli.output import (
    DIGEST,
    dir_option,
    json_option,
    print_json,
    reporting,
    url_option,
    with_federation,
)


@click.command("replay")
@click.argument("ref")
@click.option("--all", "every", is_flag=True, help="All rounds of the run.")
@dir_option
@url_option
@json_option
@reporting
def replay(ref: str, every: bool, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Make the model of a round (RUN/N), or of all (RUN --all), again, and compare: exit 1 where one differs.

    An aggregator reads the accepted updates in the order of the log and folds them as it
    did then; nothing is stored. Rounds whose updates are not kept any more (`retain`)
    cannot be made again, and are named.
    """
    run, number = read_ref(ref)
    if (number is None) != every:
        raise ConfigError(
            f"{ref} is {'a run' if number is None else 'one round'}",
            hint=f"fedbus round replay {run}/1, or fedbus round replay {run} --all",
        )

    async def work(federation: Federation) -> list[Replayed]:
        numbers = [number] if number is not None else [r.round for r in (await federation.run(run)).rounds]
        found = []
        for each in numbers:
            found.append(await federation.replay(run, each))
            if not as_json:
                click.echo(_line(found[-1]))
        return found

    found = with_federation(folder, url, work)
    if as_json:
        print_json(list(found))
    elif every:
        counts = Counter(each.code for each in found)
        click.echo(f"{run}: " + ", ".join(f"{count} {code}" for code, count in counts.items()))
    if any(each.code == "different" for each in found):
        sys.exit(1)


def _line(each: Replayed) -> str:
    model = each.model[:DIGEST] if each.model else "-"
    again = each.again[:DIGEST] if each.again else "-"
    about = "" if each.code == "equal" else f": {each.reason}"
    return (
        f"{each.run}/{each.round}  {each.updates} updates  model {model}  again {again}  {each.code}{about}"
    )
