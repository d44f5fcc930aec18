"""What is measured shows itself: as text without any extra, and as pictures that can be read."""

from __future__ import annotations

import csv
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

import prunus
from prunus import Point, Points, Probe, Result, Sensitivity, Setting
from prunus.results.palette import COLORS
from tests.conftest import small_net

DATA = [(torch.rand(8, 3, 8, 8), torch.arange(8) % 4)]
EYES = {  # what is seen without one kind of cones, in linear RGB (Machado et al. 2009, severity 1)
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "all cones": np.eye(3),
}


def lab(colour: str, seen: Any) -> Any:
    """CIELAB of an sRGB colour, white D65."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x, y, z = to_xyz @ np.clip(np.array(seen) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    f = [np.cbrt(t) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", EYES)
def test_twelve_colours_can_be_told_apart(eyes: str) -> None:
    """About 2.3 is a difference that is just noticed."""
    found = [lab(colour, EYES[eyes]) for colour in COLORS]
    assert len(COLORS) == 12
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(found, 2)) > 15
    assert max(lightness for lightness, _, _ in found) < 85  # on white
    if eyes == "all cones":
        assert max(lightness for lightness, _, _ in found) < 61.6  # a contrast of 3


def point(p_prune: float, top1: float, layers: dict[str, tuple[int, int]] | None = None, **how: Any) -> Point:
    result = Result(int(10 * top1), 1000, 1000, 1.0)
    return Point(Setting(p_prune, **how), result, layers or {"a.weight": (int(1000 * p_prune), 1000)})


def falling(slope: float, **how: Any) -> list[Point]:
    return [point(p / 10, 95 - slope * p, **how) for p in range(9)]


TWELVE = Points([p for n in range(12) for p in falling(0.7 * n, p_bern=round(n / 20 + 0.1, 2))], "net")
CROSSED = Points(
    [
        p
        for n, criterion in enumerate(("magnitude", "lamp", "random"))
        for m, granularity in enumerate(("weight", "kernel"))
        for s, scope in enumerate(("global", "layer"))
        for p in falling(n + 3 * m + 6.5 * s, criterion=criterion, granularity=granularity, scope=scope)
    ],
    "net",
)
FULL = Points([point(p / 10, 8 * n + 5, p_bern=n / 20) for n in range(12) for p in range(9)], "net")
EQUAL = Points([p for kind in ("weight", "kernel", "1x1") for p in falling(5, granularity=kind)], "net")


def lines_of(points: Points) -> list[Any]:
    return [line for line in points.plot().axes[0].lines if len(np.asarray(line.get_xdata())) > 1]


@pytest.mark.parametrize("points", [TWELVE, CROSSED])
def test_twelve_settings_of_one_network_are_twelve_colours(points: Points) -> None:
    assert len({to_hex(line.get_color()) for line in lines_of(points)}) == 12


def test_colours_are_of_what_varies_most_and_styles_of_the_next() -> None:
    looks = {
        (p.setting.criterion, p.setting.granularity, p.setting.scope): line
        for p, line in zip(CROSSED[::9], lines_of(CROSSED), strict=True)
    }
    for (criterion, granularity, scope), line in looks.items():
        for (other, piece, place), second in looks.items():
            hues = [matplotlib.colors.rgb_to_hsv(to_rgb(one.get_color()))[0] for one in (line, second)]
            assert (criterion == other) == (abs(hues[0] - hues[1]) < 0.05)
            assert (granularity == piece) == (line.get_linestyle() == second.get_linestyle())
            assert (scope == place) == (line.get_marker() == second.get_marker())


def drawn(figure: Figure) -> Any:
    """The pixels of a figure, (height, width, RGB)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_curves_that_are_equal_are_all_seen() -> None:
    figure = EQUAL.plot()
    pixels, axes = drawn(figure), figure.axes[0]
    for text in axes.get_legend().get_lines() if axes.get_legend() else ():
        text.set_visible(False)
    pixels = drawn(figure)
    for line in axes.lines[:3]:
        near = np.abs(pixels - 255 * np.array(to_rgb(line.get_color()))).max(-1) < 30
        assert near.sum() > 500, line.get_color()


MANY = [f"features.denseblock{n // 30}.denselayer{n}.conv{1 + n % 2}.weight" for n in range(120)]
DEEP = Points(
    [point(p / 10, 90, {name: (p * 10, 100 + n) for n, name in enumerate(MANY)}) for p in range(10)], "net"
)
ONE_LAYER = Points([point(0.5, 50)], "a network with quite a long name, as they are called by their authors")
PROBES = Sensitivity(
    Result(9, 9, 9, 1.0), [Probe("a.weight", 0.5, 1, 2, 0.1, Result(5, 9, 9, 1.0))], network="net"
)
PICTURES: dict[str, Callable[..., Figure]] = {
    "twelve": TWELVE.plot,
    "crossed": CROSSED.plot,
    "two": Points([*falling(2), *falling(8, granularity="kernel")], "net").plot,
    "one layer": lambda **size: ONE_LAYER.plot("layers", **size),
    "deep": lambda size: DEEP.plot("layers", size=size or (5, 6)),
    "panels": lambda **size: CROSSED[:36].plot("layers", **size),
    "one probe": PROBES.plot,
}


def texts(figure: Figure) -> Iterator[Text]:
    """All that is drawn, ticks beyond the view left out."""
    ticks = {
        label
        for axes in figure.axes
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
        if not (axes.axison and label.get_visible() and min(ends) <= tick.get_loc() <= max(ends))
    }
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text not in ticks:
            yield text


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("size", [None, (3.3, 2.6)], ids=["by itself", "small"])
def test_nothing_is_cut_off(picture: str, size: Any) -> None:
    figure = PICTURES[picture](size=size)
    figure.draw_without_rendering()
    if size:
        assert tuple(figure.get_size_inches()) == size
    whole = figure.bbox.padded(1)
    for text in texts(figure):
        box = text.get_window_extent()
        assert whole.contains(*box.min), text
        assert whole.contains(*box.max), text
        assert text.get_fontsize() >= 4


@pytest.mark.parametrize("points", [TWELVE, FULL, EQUAL])
def test_legends_lie_on_no_curve(points: Points) -> None:
    figure = points.plot()
    figure.draw_without_rendering()
    [axes] = figure.axes
    legends = [*figure.legends, *([axes.get_legend()] if axes.get_legend() else [])]
    assert len(legends) == 1
    box = legends[0].get_window_extent()
    for line in axes.lines:
        xy = line.get_transform().transform(line.get_xydata())
        fine = np.concatenate([np.linspace(a, b, 50) for a, b in pairwise(xy)])
        assert not any(box.contains(*at) for at in fine)


def test_few_curves_are_named_at_their_ends() -> None:
    figure = Points([*falling(2), *falling(8, granularity="kernel")], "net").plot()
    [axes] = figure.axes
    assert axes.get_legend() is None
    assert [(text.get_text(), text.get_color()) for text in axes.texts] == [
        ("weight", COLORS[0]),
        ("kernel", COLORS[1]),
    ]


def test_names_of_layers_of_a_deep_network_can_be_read() -> None:
    figure = DEEP.plot("layers")
    figure.draw_without_rendering()
    labels = [label for label in figure.axes[0].get_yticklabels() if label.get_text()]
    assert [label.get_text().split()[0] + ".weight" for label in labels] == MANY
    boxes = [label.get_window_extent() for label in labels]
    assert all(label.get_fontsize() >= 5 for label in labels)
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_layers_are_told_apart_under_every_scope(scope: str) -> None:
    """Where all lose the same part, by what is left in them."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[1].weight.mul_(0.1)
    points = prunus.sweep(net, DATA, p_prune=(0, 0.5, 0.8, 1), scope=scope)
    figure = points.plot("layers")
    [image] = figure.axes[0].images
    colours = image.to_rgba(image.get_array())[..., :3]
    assert np.abs(colours[0] - colours[1]).max() > 0.2
    assert ("weights left" in figure.get_suptitle()) == (scope == "layer")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0  216", "1  1.15k"]
    numbers = [text.get_text() for text in figure.axes[0].texts]
    counts = [one.layers["0.weight"] for one in points]
    left = [f"{weights - pruned}" for pruned, weights in counts]
    lost = [f"{100 * pruned / weights:.0f}" for pruned, weights in counts]
    assert numbers[:4] == (left if scope == "layer" else lost)


def test_names_are_shown_as_they_are() -> None:
    name = r"_<b>a&b</b> $\frac{$"
    points = Points([*falling(1), *falling(2, granularity="kernel")], name)
    assert drawn(points.plot()).std() > 0
    assert drawn(points.plot("layers")).std() > 0
    assert "<b>" not in points._repr_html_()
    assert "_&lt;b&gt;a&amp;b&lt;/b&gt; $\\frac{$" in points._repr_html_()


def test_a_notebook_shows_a_picture() -> None:
    assert TWELVE.plot()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def points() -> Points:
    return prunus.sweep(small_net().eval(), DATA, p_prune=(0, 0.5), granularity=("weight", "kernel"))


def test_points_are_a_list(points: Points) -> None:
    assert isinstance(points, list)
    assert points == [*points] == list(iter(points))
    assert (len(points), points[-1], points[1:]) == (4, [*points][-1], [*points][1:])
    assert isinstance(points[1:], Points)
    again = pickle.loads(pickle.dumps(points))
    assert (again, again.network, repr(again)) == (points, "Sequential", "Points(4 points)")


def test_tables_hold_what_was_measured(points: Points) -> None:
    assert str(points) == points.table()
    head, *lines = points.table().splitlines()
    assert head.split() == ["network", "granularity", "p_prune", "fraction", "acc@1", "acc@5", "loss"]
    for line, one in zip(lines, points, strict=True):
        kind, p, fraction, top1, top5, loss = line.split()[1:]
        assert (kind, float(p)) == (one.setting.granularity, one.setting.p_prune)
        assert fraction == f"{one.pruned_fraction:.4f}"
        assert (top1, top5) == (f"{one.result.top1:.2f}", f"{one.result.top5:.2f}")
        assert loss == f"{one.result.loss:.4f}"
    cells = re.findall("<td[^>]*>([^<]*)</td>", points._repr_html_())
    assert cells == points.table().split()[7:]


def test_what_was_saved_is_what_the_command_writes_and_can_be_loaded(points: Points, tmp_path: Path) -> None:
    points.save(tmp_path / "a")
    names = {"results.csv", "results.json", "curve.png", "curve.svg", "layers.png", "layers.svg"}
    assert names <= {path.name for path in (tmp_path / "a").iterdir()}
    assert Points.load(tmp_path / "a") == points
    points[:1].save(tmp_path / "a")  # in place of what was saved before
    assert Points.load(tmp_path / "a") == points[:1]
    with (tmp_path / "a" / "results.csv").open() as file:
        [row] = csv.DictReader(file)
    assert (row["network"], row["acc1"]) == ("Sequential", str(round(points[0].result.top1, 4)))
    stored = json.loads((tmp_path / "a" / "results.json").read_text())
    probes = {"points": [{**point, "group": "0.weight", "predicted": 0.1} for point in stored["points"]]}
    (tmp_path / "results.json").write_text(json.dumps(probes))  # of a sensitivity, which holds no points
    with pytest.raises(ValueError, match="does not hold such results"):
        Points.load(tmp_path)
    stored["settings"] = {"data": "others"}
    (tmp_path / "a" / "results.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="holds results of other settings"):
        points.save(tmp_path / "a")
    with pytest.raises(ValueError, match="nothing was measured"):
        Points().save(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        Points.load(tmp_path / "b")
    stored["points"].append({**stored["points"][0], "network": "other"})
    (tmp_path / "a" / "results.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="several networks: give network=, one of Sequential, other"):
        Points.load(tmp_path / "a")
    assert Points.load(tmp_path / "a", "other") == points[:1]


def test_a_data_frame_has_the_columns_of_the_csv(points: Points) -> None:
    pytest.importorskip("pandas")
    frame = points.to_pandas()
    assert list(frame["acc1"]) == [round(one.result.top1, 4) for one in points]
    assert {"granularity", "p_prune", "pruned_fraction", "seed"} <= {*frame.columns}


def test_a_metric_and_functions_are_shown_too(tmp_path: Path) -> None:
    mine = [lambda pieces: pieces.values.abs(), lambda pieces: -pieces.values.abs()]
    how = {"criterion": (*mine, "magnitude"), "metric": nn.functional.cross_entropy}
    points = prunus.sweep(small_net(), DATA, p_prune=(0, 0.5), **how)  # type: ignore[arg-type]
    assert {"lambda>()", "lambda>#2()"} <= {cell.rpartition("<")[2] for cell in points.table().split()}
    assert len(lines_of(points)) == 3
    assert "acc@1" not in points.table()
    assert f"{points[1].result.metric:.4g}" in points.table()
    assert points.plot().axes[0].get_ylabel() == "metric"
    points.save(tmp_path)
    again = Points.load(tmp_path)
    assert [one.result for one in again] == [one.result for one in points]
    assert again.table().split()[3:] == points.table().split()[3:]
    with pytest.raises(TypeError, match="is known by name only"):
        prunus.prune(small_net(), 0.5, criterion=again[0].setting.criterion)
    with pytest.raises(ValueError, match="picture must be one of curve, layers; got 'pie'"):
        points.plot("pie")


def test_sensitivity_shows_itself_likewise(tmp_path: Path) -> None:
    found = prunus.sensitivity(small_net().eval(), DATA, p_prune=(0.5, 0.9), granularity="kernel", seed=3)
    assert str(found) == found.table()
    for group, probes in found.groups.items():
        [line] = [
            line
            for line in found.table().splitlines()
            if line.startswith(group.removesuffix(".weight") + " ")
        ]
        assert line.split()[3:] == [f"{probe.result.top1:.2f}" for probe in probes]
    found.save(tmp_path)
    with pytest.raises(ValueError, match="does not hold such results"):
        Points.load(tmp_path)  # whose weights are those of the whole network
    again = Sensitivity.load(tmp_path)
    assert (again.clean, again.probes, again.setting) == (found.clean, found.probes, found.setting)
    assert again.setting.granularity == "kernel"
    [image] = found.plot().axes[0].images
    assert image.get_array().shape == (len(found.groups), 2)
    file = tmp_path / "results.json"
    stored = json.loads(file.read_text())
    for points, said in (
        (
            [*stored["points"], {**stored["points"][1], "seed": 4}],
            "one way to prune, and its rows differ in seed",
        ),
        (stored["points"][1:], "nothing of the unpruned network"),
    ):
        file.write_text(json.dumps({**stored, "points": points}))
        with pytest.raises(ValueError, match=said):
            Sensitivity.load(tmp_path)


def test_a_pruning_prints_as_a_table_that_flags_emptied_layers() -> None:
    net = small_net()
    with torch.no_grad():
        net[0].weight.mul_(1e-3)
    with pytest.warns(UserWarning, match="empties"):
        pruning = prunus.prune(net, 0.5)
    first, head, *lines = str(pruning).splitlines()
    assert first == repr(pruning)
    assert head.split() == ["layer", "shape", "weights", "pruned", "fraction"]
    rows = {line.split()[0]: line.split() for line in lines if line}
    counts = pruning.masks.counts
    assert rows["0"][-1] == "emptied"
    for name, (pruned, weights) in counts.items():
        row = rows[name.removesuffix(".weight")]
        assert f"{weights:,} {pruned:,} {pruned / weights:.4f}" in " ".join(row)
        assert ("emptied" in row) == (pruned == weights)
    assert f"{pruning.masks.pruned:,}" in lines[-1]
    assert lines[-1].endswith("1 emptied")
    assert "emptied" in pruning._repr_html_()


def test_tables_need_no_extra_and_pictures_name_theirs() -> None:
    code = """
import sys
for name in ("matplotlib", "rich", "click", "pandas", "torchvision", "sklearn", "scipy", "PIL"):
    sys.modules[name] = None
import prunus, torch
from torch import nn
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
data = [(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))]
points = prunus.sweep(net, data, p_prune=(0, 0.5))
found = prunus.sensitivity(net, data, p_prune=0.5)
print(points, found, prunus.prune(net, 0.5), points._repr_html_(), found._repr_html_())
for call in (points.plot, points.to_pandas, lambda: points.save("x"), found.plot):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "0.5000" in done.stdout
    plot = 'matplotlib is not installed: pip install "prunus[cli]"'
    pandas = 'pandas is not installed: pip install "prunus[pandas]"'
    assert done.stdout.splitlines()[-4:] == [plot, pandas, plot, plot]
