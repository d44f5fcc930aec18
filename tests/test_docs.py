"""The site has every page and public name once; `.ci/run` builds it, and its examples are tests."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import prunus

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def pages() -> dict[str, str]:
    return {page.relative_to(DOCS).as_posix(): page.read_text() for page in DOCS.rglob("*.md")}


def test_every_page_stands_once_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = Counter(re.findall(r"^ *- (?:.*: )?(\S+\.md)$", navigation, re.MULTILINE))
    assert listed == Counter(list(pages()))


def test_every_public_name_stands_once_in_the_reference() -> None:
    named = re.findall(r"^::: prunus\.(\w+)$", "\n".join(pages().values()), re.MULTILINE)
    assert Counter(named) == Counter(prunus.__all__)


def test_examples_are_fenced_as_sessions() -> None:
    """Which the site highlights as such, and copies without prompts."""
    found = [
        name for name, text in pages().items() if re.search(r"^```(?!pycon)\w*\n>>>", text, re.MULTILINE)
    ]
    assert not found


def test_what_other_files_link_to_in_docs_is_there() -> None:
    for file in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for path in re.findall(r"(?<![\w-])docs/[\w/.]+\w", (ROOT / file).read_text()):
            assert (ROOT / path).exists(), f"{file}: {path}"
