"""`prunus`: its commands, and how they end. No torch is imported before a command runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import click

import prunus
from prunus.cli.bench import bench_command
from prunus.cli.command import Commands
from prunus.cli.compact import compact_command
from prunus.cli.completion import completion_command
from prunus.cli.eval import eval_command
from prunus.cli.export import export_command
from prunus.cli.find import find_command
from prunus.cli.inspect import inspect_command
from prunus.cli.report import report_command
from prunus.cli.sensitivity import sensitivity_command
from prunus.cli.sweep import sweep_command
from prunus.cli.train import train_command
from prunus.cli.transfer import transfer_command

# Of the original research script, beside _ for -
SPELLINGS = {"prune-type": "passes", "gredient": "gradient", "output-dir": "output"}


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 110,
        "token_normalize_func": lambda token: SPELLINGS.get(word := token.replace("_", "-"), word),
    },
    epilog="A command ends with 0 when all went well, 1 on an error, 2 on wrong usage, and 130 when it was "
    "interrupted. `prunus completion` lets the shell complete commands and options.",
)
@click.version_option(prunus.__version__, prog_name="prunus")
def cli() -> None:
    """Prune the weights of PyTorch networks and measure what it costs."""


COMMANDS = (
    sweep_command,
    eval_command,
    inspect_command,
    sensitivity_command,
    find_command,
    train_command,
    compact_command,
    export_command,
    bench_command,
    transfer_command,
    report_command,
    completion_command,
)
for command in COMMANDS:
    cli.add_command(command)  # the first line of its docstring stands in `prunus --help`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 on an error, 2 on wrong usage, 130 when interrupted."""
    heard = sys.stderr  # --quiet stops all but this
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", file=heard)
            cli.main(arguments, prog_name="prunus", standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as abort:
        click.echo(f"Interrupted. {abort.__cause__ or ''}".strip(), err=True)
        return 130
    except ModuleNotFoundError as error:  # of an extra, which a command loads when it runs
        library = (error.name or "a library").partition(".")[0]
        click.echo(f'Error: the command line needs {library}: pip install "prunus[cli]"', err=True)
        return 1
    except (ValueError, TypeError, ImportError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    return 0
