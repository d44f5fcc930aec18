"""What every command has: help in groups, a file of options, and a voice for people or for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

import click

from prunus.cli.config import configured, errors_name_file

if TYPE_CHECKING:
    from prunus.table import Table

OWN, RUN = "Options", "Run"  # titles of groups: what only one command has, and how any is run
META = "prunus.cli."  # of what the context of a command keeps about it


class Option(click.Option):
    """An option that stands in a group of `--help`.

    Args:
        group: its title.
        short: whether `--help` shows it, or `--help-all` alone.
    """

    def __init__(self, *args: Any, group: str = OWN, short: bool = True, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group, self.short = group, short


class Command(click.Command):
    """A command whose `--help` has groups, which follow from its options, and that has some options more."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params += [
            Option(
                ["--config"],
                group=RUN,
                is_eager=True,
                expose_value=False,
                type=click.Path(exists=True, dir_okay=False),
                callback=configured,
                help="TOML file of options, such as p-prune = 0.5; those given here come first. The "
                "config.toml in a results folder does the same run again.",
            ),
            _flag("--json", help="Print the result as JSON, and nothing else."),
            _flag("-q", "--quiet", short=False, help="Say nothing but the result, warnings and errors."),
            _flag("--help-all", is_eager=True, help="Show all options."),
        ]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Group by group; the most used ones, or all."""
        every, groups, left = ctx.meta.get(f"{META}help_all"), dict[str, list[tuple[str, str]]](), 0
        for parameter in self.get_params(ctx):
            group, short = getattr(parameter, "group", OWN), getattr(parameter, "short", True)
            if every or short:
                title = RUN if parameter is self.get_help_option(ctx) else group
                if shown := parameter.get_help_record(ctx):
                    groups.setdefault(title, []).append(shown)
            else:
                left += not getattr(parameter, "hidden", False)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if left:
            formatter.write_paragraph()
            formatter.write_text(f"{left} more options: {ctx.command_path} --help-all")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read options, also of a file."""
        with errors_name_file(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, with nothing on standard error or besides JSON on standard output where that is wanted."""
        ctx.meta[f"{META}stdout"] = sys.stdout
        with ExitStack() as told:
            if ctx.meta[f"{META}quiet"]:
                told.enter_context(redirect_stderr(StringIO()))
            if ctx.meta[f"{META}json"]:  # files of networks may print
                told.enter_context(redirect_stdout(sys.stderr))
            return super().invoke(ctx)


def command(name: str) -> Callable[[Callable[..., None]], Command]:
    """Make a function a command of this name."""
    return click.command(name, cls=Command)


class Commands(click.Group):
    """Commands, each with the first sentence of what it says about itself, whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A line or more for each."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, str(made.help).partition("\n\n")[0]) for name, made in self.commands.items()]
            )


def _flag(*names: str, short: bool = True, **attributes: Any) -> Option:
    return Option(
        names, group=RUN, short=short, is_flag=True, expose_value=False, callback=_keep, **attributes
    )


def _keep(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.meta[f"{META}{parameter.name}"] = value
    if value and parameter.name == "help_all":
        click.echo(ctx.get_help())
        ctx.exit()


def wants_json() -> bool:
    """Whether a program reads what the command prints."""
    return bool(click.get_current_context().meta[f"{META}json"])


def tell(result: Any, *lines: Table | str) -> None:
    """Print what came of a command: for people, or the same as JSON."""
    if wants_json():
        # What is no number is null, which every reader takes
        finite = json.loads(json.dumps(result), parse_constant=lambda constant: None)
        click.echo(json.dumps(finite, indent=1), file=click.get_current_context().meta[f"{META}stdout"])
        return
    for line in lines:
        click.echo(line) if isinstance(line, str) else show(line)


def tell_rows(rows: Iterable[Any], *lines: Table | str) -> None:
    """The same of rows of a results folder."""
    tell([row.columns() for row in rows], *lines)


def show(made: Table) -> None:
    """Print a table, on a terminal with a bold head."""
    for number, line in enumerate(str(made).splitlines()):
        click.secho(line, bold=number == bool(made.title))
