"""`prunus completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, /, shell: str) -> None:
    """What a shell runs to complete commands, options and their values.

    \b
    In ~/.bashrc:                      eval "$(prunus completion bash)"
    In ~/.zshrc:                       eval "$(prunus completion zsh)"
    In ~/.config/fish/config.fish:     prunus completion fish | source
    """
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(context.find_root().command, {}, "prunus", "_PRUNUS_COMPLETE").source())
