"""What the documentation says is so: plans are valid, links resolve, files and commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import fedbus.cli
import fedbus_worker.cli
import pytest
import yaml
from fedbus.rounds.admission import admit, read_plan
from fedbus.runtime import broker
from fedbus_schemas.log import AUTHORS
from support.docs import PAGES, ROOT, Fence, fences

COMMANDS: dict[str, click.Command] = {
    "fedbus": fedbus.cli.main,
    "fedbus-worker": fedbus_worker.cli.main,
    "python -m fedbus.runtime.broker": broker.main,
}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# Plans


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/round.md", "examples/README.md"} <= {
        str(page.relative_to(ROOT)) for page in PAGES
    }
    assert len(fences("yaml")) >= 3


@pytest.mark.parametrize("fence", fences("yaml"), ids=lambda fence: fence.place)
def test_plans_in_the_documentation_are_admitted(fence: Fence) -> None:
    admit(read_plan(yaml.safe_load(fence.text)))


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/plan.yaml")), ids=lambda path: path.parent.name)
def test_plans_of_the_examples_are_admitted(path: Path) -> None:
    admit(read_plan(yaml.safe_load(path.read_text())))


# Links, files, functions


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@EVERY_PAGE
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert anchor in {_slug(heading) for heading in headings}, f"{page.name} links to {target}"


@EVERY_PAGE
def test_files_that_are_named_exist(page: Path) -> None:
    # `core/fedbus/...`: a path from the repository's root. Examples name files that are still to be written.
    roots = "core|schemas|services|worker|tests|docs|examples"
    new = {match[1] for f in fences("python") if (match := re.match(r"# (\S+/\S+)\n", f.text))}
    named = re.findall(rf"`((?:{roots})/[\w./-]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists() and name not in new] == []


def test_functions_that_the_round_names_exist() -> None:
    names = set(re.findall(r"`(\w+)\(\)`", (ROOT / "docs" / "round.md").read_text()))
    sources = "\n".join(
        path.read_text() for root in ("core", "services", "worker") for path in (ROOT / root).rglob("*.py")
    )
    assert len(names) > 8
    assert {name for name in names if not re.search(rf"def {name}\(", sources)} == set()


def test_the_round_names_every_entry_with_its_author() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \|", (ROOT / "docs" / "round.md").read_text(), re.MULTILINE)
    assert dict(rows) == AUTHORS


def test_services_that_are_started_by_hand_exist() -> None:
    named = {match for f in fences("sh") for match in re.findall(r"python -m fedbus_(\w+)", f.text)}
    assert named == {"planner", "aggregator", "evaluator", "enroll"}
    for name in named:
        assert (ROOT / "services" / name / f"fedbus_{name}" / "__main__.py").exists()


# Commands


def _commands() -> list[tuple[str, list[str]]]:
    """Every command line in the `sh` fences, split into words, by the place that it stands at."""
    found = []
    for fence in fences("sh"):
        for number, line in enumerate(fence.text.splitlines(), start=fence.line + 1):
            words = shlex.split(line, comments=True)
            if words:
                found.append((f"{fence.page.relative_to(ROOT)}:{number}", words))
    return found


@pytest.mark.parametrize(("place", "words"), [pytest.param(p, w, id=p) for p, w in _commands()])
def test_commands_exist(place: str, words: list[str]) -> None:
    for prefix, command in COMMANDS.items():
        start = prefix.split()
        if words[: len(start)] == start:
            _check(command, words[len(start) :])
            return
    # Others are ordinary tools; a command of ours that is new here must be listed above.
    assert not words[0].startswith("fedbus"), words
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)


def _check(command: click.Command, words: list[str]) -> None:
    """Parse a command line as click would, without running it."""
    while isinstance(command, click.Group):
        assert words, f"{command.name} wants a subcommand"
        name, *words = words
        assert name in command.commands, f"no command {name!r}; there are {sorted(command.commands)}"
        command = command.commands[name]
    command.make_context(command.name, _existing(command, words))


def _existing(command: click.Command, words: list[str]) -> list[str]:
    """The words, with a folder that exists where an option wants one: those of examples need not be here."""
    folders = {
        flag
        for parameter in command.params
        if isinstance(parameter.type, click.Path) and parameter.type.exists
        for flag in parameter.opts
    }
    return [str(ROOT) if i and words[i - 1] in folders else word for i, word in enumerate(words)]


def test_a_command_that_does_not_exist_is_noticed() -> None:
    for line in ("round stop", "down", "round start plan.yaml --wacht", "worker drain"):
        with pytest.raises((AssertionError, click.ClickException)):
            _check(fedbus.cli.main, line.split())
