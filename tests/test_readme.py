"""What the README shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_its_program_prints_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    program = next(block for block in blocks("python") if ">>>" not in block)
    assert len([line for line in program.splitlines() if line.strip()]) <= 20
    made = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    [said] = blocks("text")
    for line, wanted in zip(made.stdout.splitlines(), said.splitlines(), strict=True):
        (percent, *sizes), (wanted_percent, *wanted_sizes) = numbers(line), numbers(wanted)
        assert words(line) == words(wanted)
        assert percent == pytest.approx(wanted_percent, abs=1.5)
        # Milliseconds are another machine's, and writers of files change
        assert sizes[:1] == pytest.approx(wanted_sizes[:1], rel=0.1)


def words(line: str) -> list[str]:
    return re.findall("[a-z]+", line)


def numbers(line: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", line)]
