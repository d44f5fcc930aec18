"""The form of docstrings here, for griffe, which reads Google's."""

from __future__ import annotations

import re
from typing import Any

import griffe

SEVERAL = re.compile(r"^    ((?:\*{0,2}\w+, )+\*{0,2}\w+):(.*(?:\n {8}.*)*)", re.MULTILINE)


class House(griffe.Extension):
    """Examples are sections of code also where there is one; names that share a line get one each."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """As each is read."""
        if obj.docstring:
            text = re.sub("^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = SEVERAL.sub(_one_each, text)


def _one_each(several: re.Match[str]) -> str:
    names, said = several.groups()
    return "\n".join(f"    {name}:{said}" for name in names.split(", "))
