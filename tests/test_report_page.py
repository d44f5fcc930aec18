"""The page of results, as a browser shows it."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import Browser, Page, expect

from benchmarks.report_pictures import chromium, opened
from prunus.cli.main import main
from prunus.evaluation.evaluate import Result
from prunus.evaluation.rows import ProbeRow, SweepRow
from prunus.evaluation.sweep import Point, Setting
from prunus.results.curves import SWEEP
from prunus.results.folder import Layout, ResultsFolder
from prunus.results.heat import SENSITIVITY
from prunus.results.report import LAYOUTS
from prunus.results.trained import TRAINED
from prunus.training.rows import TrainRow
from prunus.transfer.rows import TransferRow

EVIL = [
    "<img src=x onerror='window.hit = 1'>",
    "</script><script>window.hit = 2</script>",
    "datum['x'] \\\"}; window.hit = 3; {{ 7 * 7 }} <!--",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not shutil.which("chromium"):
        pytest.skip("no chromium here")
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of four curves."""
    folder = tmp_path_factory.mktemp("results") / "sweep"
    command = "sweep -a digits:plain,digits:residual --p-prune 0,0.5,0.9 --granularity kernel,weight -o"
    assert main([*command.split(), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(browser: Browser, sweep: Path) -> Iterator[Page]:
    with watched(browser, sweep) as page:
        yield page


@contextmanager
def watched(browser: Browser, folder: Path, **context: Any) -> Iterator[Page]:
    """A report in a browser, which must not complain."""
    said: list[str] = []
    page = opened(browser, folder / "report.html", said, **context)
    yield page
    page.context.close()
    assert said == []


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def points(page: Page, name: str) -> Any:
    """The points of a curve, which say what they are."""
    return page.locator(f'[data-chart="0"] svg [aria-label^="{name}:"]')


def move_onto(page: Page, mark: Any) -> None:
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def test_hovering_shows_what_stands_in_the_csv(page: Page, sweep: Path) -> None:
    for row in csv_rows(sweep):
        name, top = f"{row['network']} · {row['granularity']}", f"{float(row['acc1']):.6g}"
        if row["p_prune"] == "0.5":  # elsewhere curves lie on each other
            move_onto(page, page.locator(f'[data-chart="0"] [aria-label^="{name}: p_prune 0.5,"]'))
            page.locator("#vg-tooltip-element", has_text=name).filter(has_text=top).wait_for()
    shown = page.locator("#lines tr").all_inner_texts()
    assert len(shown) == len(csv_rows(sweep))
    assert all(f"{float(row['acc1']):.6g}" in line for row, line in zip(csv_rows(sweep), shown, strict=True))


def test_filters_and_the_legend_hide_curves(page: Page) -> None:
    expect(points(page, "digits:residual · weight")).to_have_count(3)
    page.get_by_label("network").select_option("digits:plain")
    expect(page.locator("#lines tr:visible")).to_have_count(6)
    expect(points(page, "digits:residual · weight")).to_have_count(0)
    assert points(page, "digits:plain · weight").count() == 3
    assert page.locator(".panels figure:visible").count() == 2
    assert page.locator("#count").inner_text() == "6"
    switch = page.get_by_role("checkbox", name="digits:plain · weight")
    for left in (0, 3):
        switch.click()
        expect(points(page, "digits:plain · weight")).to_have_count(left)
        assert points(page, "digits:plain · kernel").count() == 3
    page.get_by_label("network").select_option("")
    assert page.locator("#lines tr:visible").count() == 12


def test_the_table_sorts_by_numbers_and_by_names(page: Page, sweep: Path) -> None:
    names = page.locator("th").all_inner_texts()
    for name, kind in (("acc1", float), ("loss", float), ("network", str)):
        for order in ("ascending", "descending"):
            page.get_by_role("button", name=name, exact=True).click()
            [header] = page.locator("th[aria-sort]").all()
            assert (header.inner_text(), header.get_attribute("aria-sort")) == (name, order)
            column = page.locator(f"#lines td:nth-child({names.index(name) + 1})").all_inner_texts()
            assert [kind(each) for each in column] == sorted(map(kind, column), reverse=order == "descending")
    assert len(column) == len(csv_rows(sweep))


def test_on_a_phone_nothing_is_cut_off_and_text_can_be_read(browser: Browser, sweep: Path) -> None:
    with watched(browser, sweep, viewport={"width": 360, "height": 740}, has_touch=True) as page:
        for chart in page.locator("[data-chart]").all():
            chart.scroll_into_view_if_needed()
            chart.locator("svg").wait_for()
            assert chart.locator("svg").bounding_box()["width"] <= 360
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        for scheme, darkest in (("light", 200), ("dark", 0)):
            page.emulate_media(color_scheme=scheme)
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 100
            assert [each for each in contrasts if each[0] < 4.5] == []
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert darkest < int(ground.strip("rgb()").split(",")[0]) < darkest + 56


# Of every text, beside the ground that it stands on
CONTRASTS = """() => {
  const numbers = (color) => color.match(/[0-9.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = numbers(color).map((c) => c / 255).map(
      (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return numbers(color)[3] === 0 ? ground(element.parentElement) : color;
  };
  return [...document.querySelectorAll("h1, h2, h3, p, small, span, a, td, th button, dt, dd, svg text")]
    .filter((element) => element.checkVisibility() && element.textContent.trim())
    .map((element) => {
      const style = getComputedStyle(element);
      const text = element.tagName === "text" ? style.fill : style.color;
      const pair = [light(text), light(ground(element.closest("svg") ?? element))].sort((a, b) => b - a);
      return [(pair[0] + 0.05) / (pair[1] + 0.05), element.textContent.slice(0, 40), text];
    });
}"""


def a_point(p_prune: float, correct: int, names: list[str], **setting: Any) -> Point:
    layers = {name: (round(100 * p_prune), 100) for name in names}
    loss = float("nan") if p_prune > 0.8 else 1 - correct / 100  # as of a network that is quite broken
    return Point(Setting(p_prune, **setting), Result(correct, 100, 100, loss), layers)


def hostile(kind: Layout[Any]) -> list[Any]:
    """Rows of names that would like to be more."""
    ratios = [(0.0, 90), (0.5, 80), (0.9, 10)]
    if kind is SWEEP:
        return [
            SweepRow(name, a_point(p, n, EVIL, seed=s)) for name in EVIL for s in (0, 1) for p, n in ratios
        ]
    if kind is SENSITIVITY:
        clean = ProbeRow(EVIL[0], a_point(0.0, 90, []), "", 0.0)
        return [clean, *(ProbeRow(EVIL[0], a_point(p, n, [g]), g, p) for g in EVIL for p, n in ratios[1:])]
    if kind is TRAINED:
        over_time = [dict.fromkeys(EVIL, 10), dict.fromkeys(EVIL, 90)]
        dense = [TrainRow(EVIL[0], a_point(0.0, 91, EVIL, seed=s), "dense", "", 2, []) for s in (0, 1)]
        return dense + [
            TrainRow(EVIL[0], a_point(0.9, 88 + s, EVIL, seed=s), how, "lr", 2, over_time)
            for how in ("one-shot", "iterative")
            for s in (0, 1)
        ]
    return [
        TransferRow(
            EVIL[0], method, strength, target, goal, 8 / 255, 0, 8, bits, 0.03, 1.0, 0.1, {1: 2, 10: 4}
        )
        for method, strength, bits in (("plain", None, "f0"), ("dwp", 0.7, "fe"), ("random", 0.7, "11"))
        for target in EVIL
        for goal in (False, True)
    ]


@pytest.mark.parametrize("kind", LAYOUTS, ids=["sweep", "sensitivity", "train", "transfer"])
def test_names_are_names_in_every_kind_of_report(
    kind: Layout[Any], tmp_path: Path, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """And `prunus report` makes the page of a folder that an earlier version wrote."""
    settings = {"data": EVIL[0], "networks": dict.fromkeys(EVIL, "f" * 64)}
    ResultsFolder(tmp_path, settings, kind).add(*hostile(kind))
    stored = json.loads((tmp_path / "results.json").read_text())
    stored["settings"]["versions"] = {"prunus": "0.0.1", "torch": EVIL[1]}
    for point in stored["points"]:
        for later in ("keep_at_least", "coupled", "p_prune_of", "backward", "seconds"):
            point.pop(later, None)
    (tmp_path / "results.json").write_text(json.dumps(stored))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    with watched(browser, tmp_path, viewport={"width": 360, "height": 740}) as page:
        for chart in page.locator("[data-chart]").all():
            chart.scroll_into_view_if_needed()
            chart.locator("svg").wait_for()
            assert chart.locator("[aria-label]").count() > 1
        move_onto(page, page.locator("[data-chart='0'] svg [aria-label*='(%)']").last)
        page.locator("#vg-tooltip-element.visible").wait_for()
        for control in page.locator("select").all():
            control.select_option(index=1)
        assert page.evaluate("window.hit") is None
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 3
        text = page.locator("body").inner_text()
        assert all(name in text for name in EVIL)
        assert "NaN" not in text


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, said in (
        (None, "holds no results: there is no results.json"),
        ("{", "is not a results file of prunus"),
        ('{"settings": {}, "points": []}', "holds no results yet"),
        ('{"settings": {}, "points": [{"network": "a"}]}', "is not a results file of prunus"),
    ):
        if content is not None:
            (tmp_path / "results.json").write_text(content)
        assert main(["report", str(tmp_path)]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.filterwarnings("default")
def test_where_no_page_can_be_drawn_all_else_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its library is missing."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    command = f"sweep -a digits:plain --p-prune 0.5 --granularity weight -o {tmp_path}"
    (tmp_path / "report.html").write_text("of other rows")
    assert main(command.split()) == 0
    assert (
        'report.html is not written: jinja2 is not installed: pip install "prunus[cli]"'
        in capsys.readouterr().err
    )
    assert (tmp_path / "curve.png").exists()
    assert len(csv_rows(tmp_path)) == 1
    assert not (tmp_path / "report.html").exists()
