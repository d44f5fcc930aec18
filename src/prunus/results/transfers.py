"""What should a person look at after a transfer experiment?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunus.evaluation.statistics import Shares, gain, wilson
from prunus.results import page_charts as charts
from prunus.results.figures import Picture, fit, legend_outside
from prunus.results.folder import Layout
from prunus.results.page import Chart, Curve, Line, Page, Section
from prunus.results.palette import STYLES, color, plain
from prunus.table import Table
from prunus.transfer.methods import KINDS, PLAIN, Method
from prunus.transfer.published import Published, PublishedRow
from prunus.transfer.rows import TransferRow, check_rows, goal_of
from prunus.transfer.summaries import Key, Summary, black_box, summarize, summary_lines, with_published

Panel = tuple[bool, float]  # targeted, eps


def panels(rows: Sequence[TransferRow]) -> list[Panel]:
    """The goals and eps of these rows: a panel of every figure each."""
    return list(dict.fromkeys((row.targeted, row.eps) for row in rows))


def title(panel: Panel) -> str:
    """What stands above a panel or a table."""
    targeted, eps = panel
    return f"{goal_of(targeted)}, eps {255 * eps:g}/255"


def transfer_tables(rows: Sequence[TransferRow], published: Published | None = None) -> Iterator[Table]:
    """For each goal and eps, success of every method on every surrogate against every target, in percent.

    Below, and said to be so, what was published with this goal and eps.
    """
    found = summarize(rows)
    targets = list(dict.fromkeys(row.target for row in rows))
    surrogates = list(dict.fromkeys(row.surrogate for row in rows))
    for panel in panels(rows):
        head = ("surrogate", "method", *targets, "black box", "minus plain", "minus random", "s/image")
        lines = []
        for surrogate, method in dict.fromkeys((key.surrogate, key.method) for key in found):
            summaries = [found.get(Key(*panel, surrogate, method, target)) for target in targets]
            first = next((summary for summary in summaries if summary), None)
            if first:
                shares = black_box(found, *panel, surrogate, method)
                against = (PLAIN if method != PLAIN else None, method.control)
                lines.append(
                    [
                        surrogate,
                        method.name,
                        *(_rate(summary) if summary else "" for summary in summaries),
                        f"{100 * float(shares.mean()):.1f}" if shares is not None else "",
                        *(_gain(shares, black_box(found, *panel, surrogate, other)) for other in against),
                        f"{first.seconds_per_image:.3f}",
                    ]
                )
        beside = published.of(*panel, surrogates, targets) if published else ()
        said = [["published, not measured here:"]] if beside else []
        said += [[row.surrogate, row.name, *_published(row, targets)] for row in beside]
        totals = [[*cells, *[""] * (len(head) - len(cells))] for cells in said]
        yield Table(head, lines, named=2, title=title(panel), totals=totals)


def _published(row: PublishedRow, targets: Sequence[str]) -> Iterator[str]:
    """The cells of the targets, and their mean where all were published."""
    for target in targets:
        rate = row.rates.get(target)
        yield "" if rate is None else f"{100 * rate:.1f}{'*' * (target == row.surrogate)}"
    others = [row.rates.get(target) for target in targets if target != row.surrogate]
    known = [rate for rate in others if rate is not None]
    yield f"{100 * float(np.mean(known)):.1f}" if known and len(known) == len(others) else ""


def _rate(summary: Summary) -> str:
    low, high = wilson(summary.rate * summary.images, summary.images)
    mark = "*" if summary.key.white_box else ""
    return f"{100 * summary.rate:.1f} [{100 * low:.0f}, {100 * high:.0f}]{mark}"


def _gain(first: Shares | None, second: Shares | None) -> str:
    if first is None or second is None:
        return ""
    mean, low, high = gain(first, second)
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def heat_map(rows: Sequence[TransferRow]) -> Figure:
    """Success in percent: a panel for each goal and eps, a line a surrogate and method, a column a target."""
    found, places = summarize(rows), panels(rows)
    targets = list(dict.fromkeys(row.target for row in rows))
    lines = list(dict.fromkeys((key.surrogate, key.method) for key in found))
    size = 3.2 + (0.75 * len(targets) + 0.4) * len(places), 1.6 + 0.2 * len(lines)
    figure = Picture(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(places), squeeze=False, sharey=True)
    for axes, panel in zip(grid.flat, places, strict=True):
        rates = np.full((len(lines), len(targets)), np.nan)
        for row, line in enumerate(lines):
            for column, target in enumerate(targets):
                key = Key(*panel, *line, target)
                if key in found:
                    rates[row, column] = rate = 100 * found[key].rate
                    text, colour = f"{rate:.0f}{'*' * key.white_box}", "white" if rate < 60 else "black"
                    axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
        image = axes.imshow(rates, vmin=0, vmax=100, aspect="auto", cmap="viridis")
        axes.set_title(title(panel), fontsize=8)
        axes.set_xticks(range(len(targets)), map(plain, targets), fontsize=6, rotation=30, ha="right")
        axes.set_yticks(range(len(lines)), [plain(f"{s} · {method.name}") for s, method in lines], fontsize=6)
    figure.colorbar(image, ax=grid, label="fooled (%); * white box", shrink=0.8)
    return fit(figure)


def by_gradients(rows: Sequence[TransferRow]) -> Figure:
    """Mean black-box success of one seed, the first that ran, against gradients taken, before rounding."""
    figure, grid = _grid(rows)
    found = summarize(rows)
    methods = sorted({key.method for key in found}, key=lambda method: method.strength or 0)
    for axes, panel, surrogate in grid:
        curves: dict[Method, dict[int, list[float]]] = {}
        for key, summary in found.items():
            if (key.targeted, key.eps) == panel and key.surrogate == surrogate and not key.white_box:
                curve = curves.setdefault(key.method, {})
                for at, count in max((row.curve for row in summary.rows), key=len).items():
                    curve.setdefault(at, []).append(100 * count / summary.images)
        for method, curve in curves.items():
            points = sorted(curve)
            means = [np.mean(curve[at]) for at in points]
            nth = [other for other in methods if other.kind == method.kind].index(method)
            axes.plot(
                points,
                means,
                color=_colour(method.kind),
                linestyle=STYLES[nth % len(STYLES)],
                linewidth=1,
                marker="o",
                markersize=2,
                label=method.name,
            )
        axes.set_xlabel("gradients an image", fontsize=8)
    return _with_legend(figure)


def _colour(kind: str) -> str:
    """The colour of a kind of method, the same in every figure."""
    return "black" if kind == PLAIN.kind else color(list(KINDS).index(kind))


def _with_legend(figure: Figure) -> Figure:
    """One legend for all panels, outside them."""
    entries = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    if entries:  # there are targets other than the surrogate
        legend_outside(figure, entries)
    return fit(figure)


def by_strength(rows: Sequence[TransferRow]) -> Figure:
    """Mean black-box success against the fraction pruned, with 95% intervals over images."""
    figure, grid = _grid(rows)
    found = summarize(rows)
    methods = sorted({key.method for key in found}, key=lambda method: (method.kind, method.strength or 0))
    kinds = list(dict.fromkeys(method.kind for method in methods))
    for axes, panel, surrogate in grid:
        for kind in kinds:
            points = []
            for method in methods:
                shares = black_box(found, *panel, surrogate, method) if method.kind == kind else None
                if shares is not None:
                    rate = float(shares.mean())
                    low, high = wilson(rate * len(shares), len(shares))
                    points.append((method.strength, 100 * rate, 100 * (rate - low), 100 * (high - rate)))
            if kind == PLAIN.kind and points:
                axes.axhline(points[0][1], color=_colour(kind), linewidth=1, label=kind)
            elif points:
                x, y, below, above = zip(*points, strict=True)
                axes.errorbar(
                    x,
                    y,
                    (below, above),
                    color=_colour(kind),
                    linewidth=1,
                    marker="o",
                    markersize=3,
                    label=kind,
                )
        axes.set_xlabel("fraction pruned (p_prune) or dropped", fontsize=8)
    return _with_legend(figure)


def _grid(rows: Sequence[TransferRow]) -> tuple[Figure, list[tuple[Axes, Panel, str]]]:
    """A panel for each goal and eps (down) and surrogate (across)."""
    surrogates, places = list(dict.fromkeys(row.surrogate for row in rows)), panels(rows)
    size = (1 + 3 * len(surrogates), 0.6 + 2.6 * len(places))
    figure = Picture(figsize=size, layout="constrained")
    grid = figure.subplots(len(places), len(surrogates), squeeze=False, sharey="row")
    panes = [
        (grid[line][column], panel, surrogate)
        for line, panel in enumerate(places)
        for column, surrogate in enumerate(surrogates)
    ]
    for axes, panel, surrogate in panes:
        axes.set_title(plain(f"{surrogate}: {title(panel)}"), fontsize=8)
        axes.set_ylabel("black-box success (%)", fontsize=8)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panes


def page(rows: Sequence[TransferRow]) -> Page:
    """Methods beside each other against every target, with intervals, and the summary over seeds."""
    found = summarize(rows)
    targets = list(dict.fromkeys(row.target for row in rows))
    surrogates = list(dict.fromkeys(key.surrogate for key in found))
    drawn = []
    for panel in panels(rows):
        for surrogate in surrogates:
            ours = {
                key: summary
                for key, summary in found.items()
                if ((key.targeted, key.eps), key.surrogate) == (panel, surrogate)
            }
            if ours:
                name, words = f"{surrogate}: {title(panel)}", list(_best(ours))
                spots = [_spot(targets.index(key.target), key, summary) for key, summary in ours.items()]
                chart = charts.dots(spots, "fooled (%)", f"{name}. " + " ".join(words))
                told = {"surrogate": surrogate, **_told(panel)}
                drawn.append(Chart(name, chart, words, told))
    attacked = f"{rows[0].images:,} images"
    return Page(
        "transfer",
        "Who fools whom",
        f"Adversarial examples of {attacked}, made on {', '.join(surrogates)}.",
        [
            Section(
                "Methods against targets",
                "How many images fool each target, read from their files: the mean of all seeds, with 95% "
                "intervals over images. Empty marks are white boxes, where the target is the surrogate.",
                drawn,
                [Curve(target) for target in targets],
            )
        ],
        [
            Line(
                {name: line[name] for name in TABLE},
                {"surrogate": line["surrogate"], "goal": line["goal"], "eps": f"{line['eps_255']:g}/255"},
            )
            for line in summary_lines(rows)
        ],
        "summary",
    )


TABLE = (
    *("surrogate", "method", "strength", "target", "goal", "eps_255", "seeds"),
    *("rate", "wilson_low", "wilson_high", "minus_plain", "minus_random"),
)


def _told(panel: Panel) -> dict[str, str]:
    """What filters look at."""
    targeted, eps = panel
    return {"goal": goal_of(targeted), "eps": f"{255 * eps:g}/255"}


def _spot(curve: int, key: Key, summary: Summary) -> charts.Spot:
    low, high = wilson(summary.rate * summary.images, summary.images)
    tip = {
        "title": f"{key.method.name} against {key.target}",
        "fooled (%)": 100 * summary.rate,
        "95% interval": f"{100 * low:.1f} to {100 * high:.1f}",
        "seeds": len(summary.rows),
    }
    rate, ends = 100 * summary.rate, (100 * low, 100 * high)
    return charts.Spot(curve, rate, key.method.name, tip, *ends, hollow=key.white_box)


def _best(ours: Mapping[Key, Summary]) -> Iterator[str]:
    """In words, for each target which method fools it most."""
    for target in dict.fromkeys(key.target for key in ours):
        rates = {key.method.name: summary.rate for key, summary in ours.items() if key.target == target}
        best = max(rates, key=lambda name: rates[name])
        plain = f", plain {100 * rates['plain']:.1f}%" if "plain" in rates and best != "plain" else ""
        box = " (white box)" if any(key.white_box and key.target == target for key in ours) else ""
        yield f"{target}{box} is fooled most by {best}: {100 * rates[best]:.1f}%{plain}."


TRANSFER = Layout(
    TransferRow.read,
    {"transfer": heat_map, "gradients": by_gradients, "strength": by_strength},
    page,
    summary_lines,
    check_rows,
)


def layout_beside(published: Published | None) -> Layout[TransferRow]:
    """That of `prunus transfer`, with these numbers below the summary of ours."""
    if published is None:
        return TRANSFER
    return replace(TRANSFER, summary=lambda rows: with_published(rows, published))
