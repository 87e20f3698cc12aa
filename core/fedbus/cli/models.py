"""`fedbus model list | show | export | import`."""

from __future__ import annotations

from pathlib import Path

import click
from fedbus_schemas.report import ModelDetails, ModelReport
from rich.markup import escape
from rich.table import Table

from fedbus.base.errors import ConfigError
from fedbus.cli.output import (
    DIGEST,
    console,
    dir_option,
    json_option,
    print_json,
    print_list,
    reporting,
    size,
    url_option,
    with_federation,
)


@click.group("model")
def model_group() -> None:
    """Look at models, take them out, bring them in."""


@model_group.command("list")
@click.argument("run", required=False)
@dir_option
@url_option
@json_option
@reporting
def list_(run: str | None, folder: Path | None, url: str | None, as_json: bool) -> None:
    """List all models, or those of one RUN."""
    found = with_federation(folder, url, lambda federation: federation.models.versions(run))
    print_list(found, as_json, model_list, "no models yet: a run makes one in each round")


@model_group.command()
@click.argument("ref", metavar="MODEL")
@dir_option
@url_option
@json_option
@reporting
def show(ref: str, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Show a model: RUN for its last one, RUN/N, or the name of an imported one."""
    found = with_federation(folder, url, lambda federation: federation.models.show(ref))
    if as_json:
        print_json(found)
    else:
        console().print(model_details(found))
        console().print(tensor_table(found))


@model_group.command()
@click.argument("ref", metavar="MODEL")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Write over a file that exists.")
@dir_option
@url_option
@json_option
@reporting
def export(ref: str, file: Path, force: bool, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Write a MODEL (RUN, RUN/N or an imported one's name) to a FILE called *.safetensors."""
    if file.suffix != ".safetensors":
        raise ConfigError(f"{file}: the format is safetensors", hint=f"call it {file.stem}.safetensors")
    if file.exists() and not force:
        raise ConfigError(f"{file} exists already", hint="--force writes over it")
    found = with_federation(folder, url, lambda federation: federation.models.export(ref, file))
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.name} written to {file}: {len(found.tensors)} tensors, {found.elements} elements")


@model_group.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the model.  [default: the file's, without its suffix]")
@dir_option
@url_option
@json_option
@reporting
def import_(file: Path, name: str | None, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Bring a safetensors FILE in; plans start from it with `model: {from: NAME}`."""
    found = with_federation(folder, url, lambda federation: federation.models.import_file(file, name))
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.name} imported: {len(found.tensors)} tensors, {found.elements} elements")
        click.echo(f"start from it with this in a plan: model: {{from: {found.name}}}")


def model_list(models: list[ModelReport]) -> Table:
    """All models, a line each."""
    table = Table()
    for column in ("model", "task", "size", "metrics", "made", "digest"):
        # On a narrow terminal it is these two that are folded.
        foldable = column in ("task", "made")
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=not foldable)
    for m in models:
        made = m.created_at[:19].replace("T", " ") + (" (imported)" if m.source == "import" else "")
        metrics = _said({name: value for name, value in m.metrics.items() if not name.startswith("train_")})
        cells = (m.name, m.task or "", size(m.size_bytes), metrics, made, m.digest[:DIGEST])
        table.add_row(*map(escape, cells))
    return table


def model_details(m: ModelDetails) -> Table:
    """One model, a line per fact."""
    table = Table(show_header=False, title=escape(m.name))
    facts = {
        "digest": m.digest,
        "parent": m.parent or "none",
        "task": m.task or "not known",
        "source": m.source,
        "made": m.created_at,
        "elements": str(m.elements),
        "size": f"{size(m.size_bytes)}, {m.codec}" + (", as a difference to its parent" if m.delta else ""),
        "metrics": _said(m.metrics) or "none",
    }
    for fact, value in facts.items():
        table.add_row(fact, escape(value))
    return table


def tensor_table(m: ModelDetails) -> Table:
    """A model's tensors, in the order in which they travel."""
    table = Table(title="tensors")
    for column in ("name", "shape", "dtype", "travels", "elements"):
        table.add_column(column, justify="right" if column == "elements" else "left")
    for tensor in m.tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        table.add_row(escape(tensor.name), shape, tensor.dtype, tensor.group, str(tensor.size))
    return table


def _said(metrics: dict[str, float]) -> str:
    return " ".join(f"{name}={value:.4f}" for name, value in sorted(metrics.items()))
