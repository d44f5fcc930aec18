"""A page of results: one file that opens anywhere, without a server and without a network."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from prunus.extras import need
from prunus.files import whole_file
from prunus.results.palette import COLORS, DASHES, ON_DARK, SHAPES

Told = Mapping[str, str]  # settings by name, in words


@dataclass(frozen=True)
class Curve:
    """What has a colour, and an entry in the legend that switches it on and off.

    Args:
        name: in the legend.
        told: the settings that filters look at.
        note: what is to be said of it in a few words.
        shown: at first.
    """

    name: str
    told: Told = field(default_factory=dict)
    note: str = ""
    shown: bool = True


@dataclass(frozen=True)
class Chart:
    """A picture.

    Args:
        title: above it; "" for none.
        spec: in Vega-Lite, see `prunus.results.page_charts`.
        words: what it shows, a sentence each.
        told: the settings that filters look at.
    """

    title: str
    spec: Mapping[str, Any]
    words: Sequence[str]
    told: Told = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Pictures that belong together.

    Args:
        title: above them.
        lead: what is to be seen there, in a sentence or two.
        charts: side by side, where there is room.
        curves: the legend; data of the charts name them by their place here.
        scale: of heat: what the darkest colour is, what the brightest.
    """

    title: str
    lead: str
    charts: Sequence[Chart]
    curves: Sequence[Curve] = ()
    scale: tuple[str, str] | None = None


@dataclass(frozen=True)
class Line:
    """A line of the table: its cells, and the settings that filters look at."""

    cells: Mapping[str, Any]
    told: Told = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """All that one kind of results has to show.

    Args:
        kind: of results.
        title: above all.
        lead: of what, in a sentence.
        sections: pictures.
        lines: the table; all have the same cells.
        table: where the lines come from, by the name of a CSV file.
    """

    kind: str
    title: str
    lead: str
    sections: Sequence[Section]
    lines: Sequence[Line]
    table: str = "results"

    @property
    def filters(self) -> dict[str, list[str]]:
        """The settings that differ, each with its values."""
        told = [
            *(curve.told for section in self.sections for curve in section.curves),
            *(chart.told for section in self.sections for chart in section.charts),
            *(line.told for line in self.lines),
        ]
        names = dict.fromkeys(name for one in told for name in one)
        values = {name: list(dict.fromkeys(one[name] for one in told if name in one)) for name in names}
        return {name: found for name, found in values.items() if len(found) > 1}


def write_page(
    target: Path, page: Page, settings: Mapping[str, Any], config: str, files: Sequence[str]
) -> None:
    """Write the page.

    Args:
        target: a path.
        page: what it shows.
        settings: that a results folder keeps.
        config: the options of the run as a file, where they are kept too.
        files: that lie beside it.

    Raises:
        ImportError: a library is missing, with what to install.
        OSError: the file cannot be written; the old one is as it was.
    """
    text = _render(page, settings, config, files)
    with whole_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def _render(page: Page, settings: Mapping[str, Any], config: str, files: Sequence[str]) -> str:
    jinja2 = need("jinja2", "cli")
    here = Path(__file__).parent
    library, glue = vega_script(), (here / "page.js").read_text(encoding="utf-8")
    loader = jinja2.FileSystemLoader(here, encoding="utf-8")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # which no browser reads; keys unsorted
    environment.filters["cell"] = cell
    rendered: str = environment.get_template("page.html").render(
        page=page,
        style=(here / "page.css").read_text(encoding="utf-8"),
        colors=COLORS,
        on_dark=ON_DARK,
        shapes=list(SHAPES.values()),
        dashes=DASHES,
        specs=[chart.spec for section in page.sections for chart in section.charts],
        library=library,
        glue=glue,
        hashes=[_hash(library), _hash(glue)],
        settings=dict(_in_words(settings)),
        versions=settings.get("versions", {}),
        config=config,
        files=files,
    )
    return rendered


def cell(value: Any) -> str:
    """A value as people read it: a number as in the CSV, to six places; of a fingerprint its beginning."""
    if value is None:
        return ""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _in_words(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings, without those that were not given."""
    for name, value in settings.items():
        if name == "versions" or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            yield name, ", ".join(f"{key}: {cell(one)}" for key, one in value.items())
        elif isinstance(value, list):
            yield name, ", ".join(map(cell, value))
        else:
            yield name, {True: "yes", False: "no"}[value] if isinstance(value, bool) else cell(value)


def _hash(script: str) -> str:
    """By which the page's own policy lets a script run, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def vega_script() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script.

    To bundle them takes seconds, so that the bundle is kept beside what torch keeps (`TORCH_HOME`).
    """
    vl_convert = need("vl_convert", "cli")
    kept = Path(torch.hub.get_dir()).parent / "prunus" / f"vega-{vl_convert.__version__}.js"
    with suppress(OSError):
        return kept.read_text(encoding="utf-8")
    script: str = vl_convert.javascript_bundle().replace("</script", r"<\/script").replace("<!--", r"<\!--")
    with suppress(OSError):  # no such place, or no room there: it is bundled again next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(kept) as partial:
            partial.write_text(script, encoding="utf-8")
    return script
