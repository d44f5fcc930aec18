"""What all commands share: help, completion, files of options, output for programs, folders that grow."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from safetensors.torch import save_file

from prunus.cli.main import cli, main
from prunus.files import only_writer
from prunus.inputs import digits
from prunus.results.folder import ResultsFolder

NETS = """
from torch import nn

class Net(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        Net.calls += 1
        if Net.calls > 6:
            raise KeyboardInterrupt
        return self.conv(x).mean((2, 3))
"""
SWEEP = ("sweep", "-a", "digits:plain", "--granularity", "kernel")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").open()))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder, which tests copy before they add to it."""
    folder = tmp_path_factory.mktemp("swept") / "out"
    assert run(*SWEEP, "--p-prune", "0,0.5", "-o", folder) == 0
    return folder


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", [name for name in cli.commands if name not in ("completion", "report")])
def test_help_is_short_in_groups_and_whole_on_demand(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 0
    short = capsys.readouterr().out
    assert run(name, "--help-all") == 0
    whole = capsys.readouterr().out
    options = [o for o in cli.commands[name].params if not getattr(o, "hidden", False)]
    flags = {next(flag for flag in o.opts if flag.startswith("--")) for o in options}
    told = {text: set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.M)) for text in (short, whole)}
    assert told[whole] >= flags
    assert told[short] < told[whole]
    assert f"{len(told[whole] - told[short])} more options: prunus {name} --help-all" in short
    titles = re.findall(r"^(\w[\w ]*):$", whole, re.M)
    assert len(titles) == len(set(titles)) > 2
    assert {"Images", "Run"} < set(titles)


def test_help_and_completion_in_bash_do_not_wait_for_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once the names were asked for."""
    if not (bash := shutil.which("bash")):
        pytest.skip("no bash")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    subprocess.run([sys.executable, "-m", "prunus", "sweep", "--help-all"], check=True, capture_output=True)
    program = tmp_path / "bin" / "prunus"
    program.parent.mkdir()
    (tmp_path / "blocked" / "torch").mkdir(parents=True)
    (tmp_path / "blocked" / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m prunus "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'blocked'}{os.pathsep}{inherited}")
    subprocess.run([program, "sweep", "--help-all"], check=True, capture_output=True)

    def complete(*words: str) -> list[str]:
        line = " ".join(map(shlex.quote, words))
        script = (
            f'eval "$(prunus completion bash)"; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; '
            f'_prunus_completion prunus; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert complete("prunus", "se") == ["sensitivity"]
    assert complete("prunus", "sweep", "--criterion", "magnitude,t") == ["magnitude,taylor"]
    assert complete("prunus", "sweep", "--pass") == ["--passes"]
    assert "torch" not in capsys.readouterr().err


def test_the_settings_of_a_run_are_a_file_that_repeats_it(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = swept / "config.toml", tmp_path / "again"
    assert run("sweep", "--config", config, "-o", output) == 0
    assert rows_of(output) == rows_of(swept)
    capsys.readouterr()
    assert run("sweep", "--config", output / "config.toml") == 0
    assert " p_prune " not in capsys.readouterr().err  # the same folder, which has it all
    own = tmp_path / "own.toml"
    own.write_text(
        'arch = "digits:plain"\np_prune = ["0:0.2:0.1", 0.5]\ncoupled = true\ngranularity="filter"'
    )
    assert run("sweep", "--config", own, "--criterion", "random", "-o", tmp_path / "own") == 0
    rows = rows_of(tmp_path / "own")
    assert [row["p_prune"] for row in rows] == ["0.0", "0.1", "0.2", "0.5"]
    assert {(row["criterion"], row["coupled"]) for row in rows} == {("random", "True")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('granularty = "kernel"', "prunus sweep has no option 'granularty': did you mean 'granularity'?"),
        ("p-bern = 0.5\nxyzzy = 1", "has no option 'xyzzy'; `prunus sweep --help-all` names them"),
        (
            'criterion = ["magnitude", "size"]',
            "Invalid value for '--criterion': 'size' is not one of magnitude, random",
        ),
        ("batch-size = 0", "Invalid value for '-b' / '--batch-size': 0 is not in the range x>=1"),
        ("batch-size = true", "'batch-size' cannot be True"),
        ("p-prune = 0.5.3", "is not TOML: "),
        ("p-prune = 0.5\np_prune = 0.9", "'p_prune' says again what another name there says"),
        ("layers = true", "'layers' cannot be True"),
        ("seed = [1, true]", "'seed' cannot be [1, True]"),
        ("scope = {a = 1}", "'scope' cannot be {'a': 1}"),
        ("\N{ZERO WIDTH NO-BREAK SPACE}batch-size = 0", "Invalid value for '-b'"),  # as Notepad begins files
    ],
)
def test_files_of_options_that_cannot_be(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    assert run("sweep", "--config", config) == 2
    error = capsys.readouterr().err
    assert f"Error: {config}" in error
    assert message in error
    assert run("find", "--config", tmp_path / "none.toml") == 2


def test_a_file_of_options_comes_before_a_preset_and_after_what_is_given(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('steps = 7\nattack = "mi"\nimage_size = 32')
    first, second = ["--config", str(config)], ["--preset", "targeted-imagenet"]
    for given in ((*first, *second), (*second, *first)):
        command = cli.commands["transfer"]
        told = command.make_context(
            "transfer", [*given, "--attack", "di"], parent=click.Context(cli, **cli.context_settings)
        ).params
        assert (told["steps"], told["attack"], told["image_size"]) == (7, "di", 32)
        assert (told["loss"], told["count"]) == ("logit", 1000)  # of the preset


def test_what_a_command_does_not_have_is_refused_in_a_file_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("p-prune = 0.5")
    assert run("find", "--config", config) == 2
    assert "p_prune has no meaning here" in capsys.readouterr().err


def test_for_programs_there_is_json_alone_and_silence(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ("eval", "--p-prune", "0.95", "--granularity", "filter", "--scope", "global"),
        ("find", "--tolerance", "0.5"),
    ):
        assert run(*command, "--json", "--quiet", "-a", "digits:plain") == 0
        told = capsys.readouterr()
        assert [found["network"] for found in json.loads(told.out)] == ["digits:plain"]
        lines = told.err.splitlines()
        assert all(line.startswith("warning: ") for line in lines)
        assert bool(lines) == (command[0] == "eval")  # a layer that is emptied is still told of


def test_what_the_file_of_a_network_does_spoils_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text('print("noise")\n' + NETS)
    assert run("inspect", "-a", f"{nets}:Net", "--weights", "none", "--image-size", 8, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)[0]["network"] == "Net"
    assert told.err == "noise\n"
    nets.write_text("raise SystemExit(0)")  # no success of ours
    assert run("inspect", "-a", f"{nets}:Net") == 1
    assert "raised SystemExit: 0" in capsys.readouterr().err


def test_what_is_said_without_quiet_is_not_said_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, lines in ((["-q"], 0), ([], 2)):
        output = tmp_path / str(lines)
        assert run(*SWEEP, "--p-prune", "0,0.5", "--json", "-o", output, *more) == 0
        told = capsys.readouterr()
        assert len(told.err.splitlines()) == lines
        assert [row["acc1"] for row in json.loads(told.out)] == [
            float(row["acc1"]) for row in rows_of(output)
        ]
    assert run("eval", "-q", "--arch", "digits:huge") == 1
    assert "Error: digits: networks are" in capsys.readouterr().err


def test_one_word_for_the_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tops(*arguments: str) -> list[tuple[float, float, str]]:
        assert run(*arguments, "-a", "digits:plain", "--json") == 0
        return [(row["p_prune"], row["acc1"], row["passes"]) for row in json.loads(capsys.readouterr().out)]

    clean, pruned = tops("eval")[0], tops("eval", "--p-prune", "0.9")[0]
    assert clean[0] == 0
    assert clean[1] > pruned[1]
    assert tops("eval", "--prune_type", "global", "--p_prune", "0.9") == [pruned]
    assert tops("eval", "--passes", "both", "--p-prune", "0.9") == [pruned]
    backward = [(0.3, clean[1], "backward")]  # at the default of all that prune once
    assert tops("eval", "--passes", "backward") == tops("eval", "--prune_type", "gredient") == backward
    command = ("sweep", "--p-prune", "0.9", "--granularity", "weight", "--passes", "both,backward,forward")
    assert tops(*command, "--output_dir", str(tmp_path)) == [
        pruned,
        (0.9, clean[1], "backward"),
        (0.9, pruned[1], "forward"),
    ]


def test_a_folder_grows_to_what_one_run_would_have_made(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    shutil.copytree(swept, grown)
    capsys.readouterr()
    assert run(*SWEEP, "--p-prune", "0.3,0.5", "--criterion", "magnitude,taylor", "-o", grown) == 0
    assert capsys.readouterr().err.count(" p_prune ") == 3
    assert run(*SWEEP, "--p-prune", "0", "--criterion", "taylor", "-o", grown) == 0
    every = ("--p-prune", "0,0.3,0.5", "--criterion", "magnitude,taylor")
    assert run(*SWEEP, *every, "-o", whole) == 0
    assert (grown / "results.csv").read_text() == (whole / "results.csv").read_text()
    stored = [json.loads((folder / "results.json").read_text()) for folder in (grown, whole)]
    assert stored[0]["points"] == stored[1]["points"]
    assert sorted(stored[0]["settings"]["p_prune"]) == stored[1]["settings"]["p_prune"]
    residual = ["digits:residual", *SWEEP[3:], "--p-prune", "0", "-o", grown]
    assert run("sweep", "-a", *residual) == 0  # which was not asked for before, and the other not now
    assert {row["network"] for row in rows_of(grown)} == {"digits:plain", "digits:residual"}
    before = (grown / "results.json").read_bytes()
    other = tmp_path / "other.safetensors"
    save_file({k: v + 1 for k, v in digits.load_network("plain").state_dict().items()}, other)
    assert run(*SWEEP, "--weights", other, "--p-prune", "0.7", "-o", grown) == 1
    assert "networks was" in capsys.readouterr().err
    assert (grown / "results.json").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_folders_of_strange_names_have_settings_too(swept: Path, tmp_path: Path) -> None:
    out = shutil.copytree(swept, tmp_path / 'd\x7fe\nf "ü" #')
    assert run(*SWEEP, "--p-prune", "0", "-o", out) == run("sweep", "--config", out / "config.toml") == 0
    assert run(*SWEEP, "--p-prune", "0", "-o", shutil.copytree(swept, tmp_path / "\udcff")) == 0


def test_two_do_not_write_to_one_folder_at_once(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(swept, tmp_path / "out")
    with only_writer(out):
        assert run(*SWEEP, "--p-prune", "0.9", "-o", out) == 1
    assert "another process is writing to" in capsys.readouterr().err
    assert run(*SWEEP, "--p-prune", "0.9", "-o", out) == 0
    assert len(rows_of(out)) == 3


def test_training_images_may_come_to_a_folder_but_not_change(tmp_path: Path) -> None:
    from prunus.results import curves

    def settings(**more: Any) -> dict[str, Any]:
        return {"images": "a", "networks": {"net": "1"}, **more}

    ResultsFolder(tmp_path, settings(), curves.SWEEP)._write_json([])
    ResultsFolder(tmp_path, settings(**{"training images": "b"}), curves.SWEEP)._write_json([])
    ResultsFolder(tmp_path, settings(), curves.SWEEP)._write_json([])
    with pytest.raises(ValueError, match="training images was 'b', now 'c'"):
        ResultsFolder(tmp_path, settings(**{"training images": "c"}), curves.SWEEP)
    with pytest.raises(ValueError, match="images was 'a', now 'z'"):
        ResultsFolder(tmp_path, {**settings(), "images": "z"}, curves.SWEEP)


def test_sensitivity_and_trainings_grow_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probes, trained = tmp_path / "probes", tmp_path / "trained"
    for ratios, asked in (("0.5", 1 + 3), ("0.5,0.9", 3)):
        assert run("sensitivity", "-a", "digits:plain", "--p-prune", ratios, "-o", probes) == 0
        assert len(capsys.readouterr().err.splitlines()) == asked
    assert len(rows_of(probes)) == 7
    command = ("train", "-a", "digits:plain", "--epochs", "1", "-o", trained)
    for more, asked in (
        (("--schedule", "one-shot", "--to", "0.9"), 2),
        (("--schedule", "gradual,one-shot", "--to", "0.5", "--seed", "0"), 2),
        (("--backward", "meprop:0.5"), 1),
    ):
        assert run(*command, *more) == 0
        assert len(capsys.readouterr().err.splitlines()) == asked
    ways = [(row["schedule"], row["backward"], row["p_prune"]) for row in rows_of(trained)]
    assert ways == [
        ("dense", "", "0.0"),
        ("dense", "meprop:0.5", "0.0"),
        ("one-shot", "", "0.5"),
        ("one-shot", "", "0.9"),
        ("gradual", "", "0.5"),
    ]
    assert len(list((trained / "networks").iterdir())) == 5
    assert run("train", "--config", trained / "config.toml", "--quiet") == 0  # of --backward alone
    assert run(*command, "--schedule", "one-shot", "--lr", "0.01") == 1
    assert "lr was None, now 0.01" in capsys.readouterr().err


def test_a_transfer_is_repeated_with_what_was_meant_for_the_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("transfer", "--steps", "2", "--goal", "untargeted", "--methods", "plain", "--discard-images")
    assert run(*command, "-s", "digits:plain", "--images", "8", "-o", tmp_path) == 0
    assert f"eps = [{48 / 255}]" in (tmp_path / "config.toml").read_text()
    capsys.readouterr()
    assert run("transfer", "--config", tmp_path / "config.toml", "--json") == 0
    told = capsys.readouterr()
    assert [row["eps_255"] for row in json.loads(told.out)] == [48]
    assert "untargeted eps" not in told.err


def test_what_an_interrupted_command_has_saved(
    nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--dummy", "--image-size", "8", "-j", "0", "-a", f"{nets}:Net")
    assert run("eval", *common, "-b", "4") == 130
    assert "Interrupted. Nothing is saved without a results folder, -o." in capsys.readouterr().err
    command = ("train", *common, "-b", "64", "--epochs", "9", "--checkpoint-every", "0")
    assert run(*command, "--schedule", "one-shot", "--to", "0.5", "-o", tmp_path / "out") == 130
    assert (
        f"Interrupted. 0 of 2 trainings are saved in {tmp_path / 'out'}, and Net dense seed 0 up to its last "
        "checkpoint; run again to go on."
    ) in capsys.readouterr().err


def test_the_commands_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, body in re.findall(r"`(\S+\.toml)`:\n\n```toml\n(.*?)```", text, re.S):
        Path(name).write_text(body)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    ran = [shlex.split(line.partition(" > ")[0])[1:] for line in commands if line.startswith("prunus ")]
    assert len(ran) > 5
    for arguments in ran:
        assert main(arguments) == 0, (arguments, capsys.readouterr().err)
