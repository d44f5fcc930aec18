"""Pictures of a report for the docs.

prunus sweep && python -m benchmarks.report_pictures prunus-sweep/report.html docs
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of the system."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox"],  # which root and containers do not have
        )
        yield browser
        browser.close()


def opened(browser: Browser, report: Path, said: list[str] | None = None, **context: Any) -> Page:
    """A report in a window without a network, from its file; what it complains of is added to `said`."""
    said = [] if said is None else said
    page = browser.new_context(offline=True, **context).new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.resolve().as_uri())
    page.locator("[data-chart] svg").first.wait_for()
    return page


def main(report: Path, folder: Path) -> None:
    """Write report.png, of a desk, by day, and report-phone.png, by night."""
    sizes: dict[str, dict[str, Any]] = {
        "report": {"viewport": {"width": 1120, "height": 1010}},
        "report-phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5},
    }
    with chromium() as browser:
        for name, context in sizes.items():
            page = opened(browser, report, **context, color_scheme="dark" if "phone" in name else "light")
            if name == "report-phone":
                page.locator(".legend").evaluate("legend => legend.scrollIntoView()")
            page.wait_for_timeout(500)  # until nothing moves
            page.screenshot(path=folder / f"{name}.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
