"""`fedbus completion`: the script that a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

WHERE = {
    "bash": 'eval "$(fedbus completion bash)" in ~/.bashrc (bash 4.4 or later)',
    "zsh": 'eval "$(fedbus completion zsh)" in ~/.zshrc',
    "fish": "fedbus completion fish > ~/.config/fish/completions/fedbus.fish",
}


@click.command(epilog="  ".join(f"{shell}: {how}." for shell, how in WHERE.items()))
@click.argument("shell", type=click.Choice(list(WHERE)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    command = context.find_root().command
    click.echo(kind(command, {}, "fedbus", "_FEDBUS_COMPLETE").source())
