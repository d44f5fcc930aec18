"""Options of a command in a file, TOML: read for `--config`, and written as the run had them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from os import fspath
from pathlib import Path
from typing import Any

import click

import prunus

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


FILE = "prunus.cli.config"  # in the meta of a context, the path


def configured(ctx: click.Context, parameter: click.Parameter, file: str | None) -> None:
    """The callback of `--config`: what stands in the file is the default of what is not given.

    Raises:
        click.UsageError: it is not TOML, or has what the command does not.
    """
    if file is None or ctx.resilient_parsing:
        return
    try:
        told = tomllib.loads(Path(file).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # tomllib's, and of bytes that are no text
        raise click.UsageError(f"{file} is not TOML: {error}", ctx) from error
    others = [option for option in ctx.command.params if option is not parameter]
    options = {_key(flag): option for option in others for flag in option.opts if flag[:2] == "--"}
    read = {}
    for key, value in told.items():
        name = ctx.token_normalize_func(key) if ctx.token_normalize_func else key  # as on the command line
        if name not in options:
            raise click.UsageError(f"{file}: {_unknown(key, name, options, ctx)}", ctx)
        option = options[name]
        if option.name in read:
            raise click.UsageError(f"{file}: {key!r} says again what another name there says", ctx)
        if not _can_be_given(value, option):
            raise click.UsageError(f"{file}: {key!r} cannot be {value!r:.100}", ctx)
        read[str(option.name)] = _as_typed(value)
    ctx.default_map = {**(ctx.default_map or {}), **read}
    ctx.meta[FILE] = file


@contextmanager
def errors_name_file(ctx: click.Context) -> Iterator[None]:
    """Errors in what comes from the file say so."""
    try:
        yield
    except click.BadParameter as error:
        of = ctx.get_parameter_source(str(error.param.name)) if error.param else None
        if of is click.core.ParameterSource.DEFAULT_MAP and FILE in ctx.meta:
            raise click.UsageError(f"{ctx.meta[FILE]}: {error.format_message()}", ctx) from error
        raise


def _key(flag: str) -> str:
    return flag.removeprefix("--")


def _unknown(key: str, name: str, options: Mapping[str, click.Parameter], ctx: click.Context) -> str:
    near = get_close_matches(name, options, 1)
    hint = f": did you mean {near[0]!r}?" if near else f"; `{ctx.command_path} --help-all` names them"
    return f"{ctx.command_path} has no option {key!r}{hint}"


def _can_be_given(value: Any, option: click.Parameter) -> bool:
    """Whether TOML's kind of a value has a meaning: truths of flags; texts, numbers and lists of others."""
    if isinstance(value, bool):
        return getattr(option, "is_flag", False)
    return all(
        isinstance(one, str | int | float) and not isinstance(one, bool)
        for one in (value if isinstance(value, list) else [value])
    )


def _as_typed(value: Any) -> Any:
    """As it would be given to the command: several with commas."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, bool) else str(value)


def config_of(ctx: click.Context) -> str:
    """The file that lets a command do what it does now; where nothing is given, nothing stands there."""
    lines = [f"# {ctx.command_path} --config THIS does the same again (prunus {prunus.__version__})"]
    for option in ctx.command.params:
        value = ctx.params.get(str(option.name))
        if value not in (None, (), "") and not getattr(option, "hidden", False):
            key = _key(next(flag for flag in option.opts if flag[:2] == "--"))
            # Of texts, numbers, truths and lists of them, JSON is TOML, but for one character
            text = json.dumps(value, ensure_ascii=False, default=fspath).replace("\x7f", r"\u007F")
            lines.append(f"{key} = {text}")
    return "\n".join([*lines, ""])
