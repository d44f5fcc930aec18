"""The command line as a user meets it."""

from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import prunus
from prunus.checks import spread
from prunus.cli.main import main
from prunus.inputs import digits
from tests.conftest import interrupt

NETS = """
import torch
from torch import nn

def tiny(classes=3):
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, classes))

def number():
    return 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of five small PNG images, for validation and for training."""
    from torchvision.transforms.functional import to_pil_image

    for split in ("val", "train"):
        for name in ("ant", "bee", "cat"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(5):
                image = to_pil_image(torch.rand(3, 12, 16))
                image.save(tmp_path / "data" / split / name / f"{index}.png")
    return tmp_path / "data"


def rows_of(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((output / "results.csv").open()))


def error_of(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """Run a command that must fail with this exit code; the one line it says."""
    assert main([str(argument) for argument in arguments]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines)
    errors = [line for line in lines if line.startswith("Error:")]
    assert len(errors) == 1
    assert errors[0] == lines[-1]
    return errors[0]


def test_the_sweep_of_the_built_in_digits(tmp_path: Path) -> None:
    """The first command of the README, in a process of its own and an empty folder."""
    done = subprocess.run(
        [sys.executable, "-m", "prunus", "sweep"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    output = tmp_path / "prunus-sweep"
    pictures = {f"{name}.{kind}" for name in ("curve", "layers") for kind in ("png", "svg")}
    files = {"config.toml", "report.html", "results.csv", "results.json", *pictures}
    assert {path.name for path in output.iterdir()} == files
    rows = rows_of(output)
    assert len(rows) == 2 * 2 * 10
    for row, line in zip(rows, done.stdout.splitlines()[1:], strict=False):
        assert line.split()[:2] == [row["network"], row["granularity"]]
        assert line.split()[4] == f"{float(row['acc1']):.2f}"
        assert float(row["acc1"]) == pytest.approx(100 * int(row["correct"]) / 899, abs=1e-4)
    stored = json.loads((output / "results.json").read_text())
    assert stored["settings"]["versions"]["torch"] == torch.__version__
    assert stored["settings"]["p_prune"] == [p / 10 for p in range(10)]
    assert set(stored["settings"]["networks"]) == {"digits:plain", "digits:residual"}
    for point in stored["points"]:
        assert sum(pruned for pruned, _ in point["layers"].values()) == point["pruned"]
    assert (output / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (output / "curve.svg").read_text()


SWEEP = ("sweep", "-a", "digits:plain", "--p-prune", "0:0.9:0.1", "--granularity", "weight,kernel,filter")


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*SWEEP, "-o", str(whole)]) == 0
    command = [sys.executable, "-m", "prunus", *SWEEP, "-o", str(broken)]
    counts = []
    for sign, expected in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        assert interrupt(command, sign) == expected  # after three points
        counts.append(len(json.loads((broken / "results.json").read_text())["points"]))
    assert 3 <= counts[0] < counts[1] < 30
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert resumed.stderr.count(" p_prune ") == 30 - counts[1]  # nothing is measured again
    stored, fresh = (json.loads((f / "results.json").read_text()) for f in (broken, whole))
    assert stored == fresh
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert rows_of(broken) == rows_of(whole)


def test_a_finished_sweep_is_shown_again_and_other_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    command = ["sweep", "-a", "digits:plain", "--p-prune", "0,0.5,0.50", "-o", str(output)]
    assert main(command) == 0
    assert len(rows_of(output)) == 4
    first = capsys.readouterr()
    assert main(command) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "p_prune" not in again.err
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    for change, name in (
        (["--layers", "Conv2d,Linear"], "layers"),
        (["--exclude", "0"], "exclude"),
        (["--amp"], "amp"),
    ):
        error = error_of(capsys, 1, *command, *change)
        assert f"holds results of other settings: {name} was" in error
    other = tmp_path / "other.safetensors"
    save_file({k: v + 1 for k, v in digits.load_network("plain").state_dict().items()}, other)
    assert "networks was" in error_of(capsys, 1, *command, "--weights", other)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    (output / "results.json").write_text("{")
    assert "is not a results file" in error_of(capsys, 1, *command)
    assert (output / "results.json").read_text() == "{"
    (output / "results.json").write_bytes(before["results.json"])
    (output / "results.csv").unlink()  # as if killed before it was written
    assert main(command) == 0
    assert (output / "results.csv").read_bytes() == before["results.csv"]


def test_the_spelling_of_the_original_script(
    folder: Path, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["eval", "--data", str(folder), "-a", f"{nets}:tiny", "-j", "0", "-b", "4", "--seed", "1"]
    theirs = ["--prune_type", "global", "--p_prune", "0.5", "--p_bern", "0.5", "-o", str(tmp_path / "a")]
    ours = ["--prune-type=global", "--p-prune=0.5", "--p-bern=0.5", "--output", str(tmp_path / "b")]
    for arguments in (theirs, ours):
        assert main(common + arguments) == 0
    a, b = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert a == b
    assert a[0]["images"] == "15"
    assert 0.1 < float(a[0]["pruned_fraction"]) < 0.4
    capsys.readouterr()
    for kind in ("gredient", "gradient"):
        assert main([*common, "--prune_type", kind, "--p_prune", "0.9"]) == 0
    outputs = capsys.readouterr().out.splitlines()
    assert outputs[:2] == outputs[2:]


def test_synthetic_images(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--dummy", "-a", f"{nets}:tiny", "--image-size", "16", "-j", "0"]) == 0
    assert "tiny" in capsys.readouterr().out


@pytest.mark.parametrize("arch", ["squeezenet1_1", "timm:lcnet_035"])
def test_torchvision_and_timm(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    assert main(["inspect", "-a", arch, "--weights", "none", "--p-prune", "0.25"]) == 0
    out = capsys.readouterr().out
    assert arch in out
    assert "0.2500" in out.splitlines()[-1]
    assert main(["eval", "-a", arch, "--weights", "none", "--dummy", "-j", "0"]) == 0


def test_gradient_criteria_from_the_training_folder(folder: Path, nets: Path, tmp_path: Path) -> None:
    command = ["sweep", "--data", str(folder), "-a", f"{nets}:tiny", "-j", "0", "-o", str(tmp_path / "out")]
    assert main([*command, "--criterion", "taylor,gradient,magnitude", "--p-prune", "0,0.5", "--amp"]) == 0
    rows = rows_of(tmp_path / "out")
    assert {row["criterion"] for row in rows} == {"taylor", "gradient", "magnitude"}
    assert {row["pruned"] for row in rows} == {"0", "108"}


def test_weights_from_files(folder: Path, nets: Path, tmp_path: Path) -> None:
    code = compile(NETS, "nets", "exec")
    scope: dict = {}
    exec(code, scope)
    state = {name: value + 0.1 for name, value in scope["tiny"]().state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "c.pth")
    prints = set()
    for file in ("a.safetensors", "b.pth", "c.pth"):
        out = tmp_path / f"out-{file}"
        command = [
            "eval",
            "--data",
            folder,
            "-a",
            f"{nets}:tiny",
            "-j",
            0,
            "--weights",
            tmp_path / file,
            "-o",
            out,
        ]
        assert main([str(part) for part in command]) == 0
        prints.add(json.loads((out / "results.json").read_text())["settings"]["networks"]["tiny"])
    assert len(prints) == 1


def test_bad_checkpoints(
    folder: Path, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Malicious:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return os.mkdir, (str(tmp_path / "pwned"),)

    good = tmp_path / "good.pth"
    torch.save(torch.nn.Conv2d(3, 3, 3).state_dict(), good)
    save_file(torch.nn.Conv2d(3, 3, 3).state_dict(), tmp_path / "good.safetensors")
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-20])
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"weight": Malicious()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious()))
    torch.save([1, 2], tmp_path / "list.pth")
    command = ("eval", "--data", folder, "-a", f"{nets}:tiny", "--weights")
    for name in ("cut.pth", "cut.safetensors", "empty.pth", "evil.pth", "plain.pth"):
        assert f"{name} is not a readable state_dict" in error_of(capsys, 1, *command, tmp_path / name)
    assert "list.pth is not a state_dict" in error_of(capsys, 1, *command, tmp_path / "list.pth")
    assert "does not fit" in error_of(capsys, 1, *command, good)
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pth")
    assert "numbers.pth is not a state_dict" in error_of(capsys, 1, *command, tmp_path / "numbers.pth")
    assert "no weights file" in error_of(capsys, 1, *command, tmp_path / "missing.pth")
    assert not (tmp_path / "pwned").exists()


def test_bad_data_folders(
    folder: Path, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("eval", "-a", f"{nets}:tiny", "-j", 0, "--data")
    (tmp_path / "empty" / "val").mkdir(parents=True)
    (tmp_path / "hollow" / "val" / "ant").mkdir(parents=True)
    assert "no folder" in error_of(capsys, 1, *command, tmp_path / "missing")
    assert "class folder" in error_of(capsys, 1, *command, tmp_path / "empty")
    assert "ant" in error_of(capsys, 1, *command, tmp_path / "hollow")
    (folder / "val" / "dog").mkdir()
    (folder / "val" / "ant" / "0.png").rename(folder / "val" / "dog" / "0.png")
    assert "4 classes, but tiny tells 3 apart" in error_of(capsys, 1, *command, folder)
    assert "needs images: --data" in error_of(capsys, 1, "eval", "-a", f"{nets}:tiny")


def test_preprocessing_of_ones_own_is_not_for_the_bundled_digits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "digits:plain needs images: --data" in error_of(
        capsys, 1, "eval", "-a", "digits:plain", "--mean", "0.5,0.5,0.5"
    )


def test_images_of_different_sizes(
    folder: Path, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.transforms.functional import to_pil_image

    (folder / "val" / ".ipynb_checkpoints").mkdir()  # no class
    to_pil_image(torch.rand(3, 9, 9)).save(folder / "val" / "ant" / "0.png")
    command = ["eval", "--data", str(folder), "-a", f"{nets}:tiny", "-j", "1"]
    assert "images differ in size ((3, 9, 9), (3, 12, 16)): give --image-size" in error_of(
        capsys, 1, *command
    )
    assert main([*command, "--image-size", "8", "-o", str(tmp_path / "out")]) == 0
    to_pil_image(torch.rand(3, 9, 9)).save(folder / "val" / "ant" / "new.png")
    error = error_of(capsys, 1, *command, "--image-size", "8", "-o", tmp_path / "out")
    assert "holds results of other settings: images was" in error


def test_networks_that_cannot_run(
    folder: Path, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets.write_text(
        "from torch import nn\n"
        "gray = lambda: nn.Conv2d(1, 3, 3)\n"
        "maps = lambda: nn.Conv2d(3, 3, 3)\n"
        "broken = lambda: 1 / 0\n"
        "rows = lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))\n"
    )
    command = ("eval", "--data", folder, "-j", 0, "-a")
    assert "gray cannot run on an image of shape (3, 12, 16)" in error_of(capsys, 1, *command, f"{nets}:gray")
    assert "maps must give logits (batch, classes)" in error_of(capsys, 1, *command, f"{nets}:maps")
    assert "raised ZeroDivisionError" in error_of(capsys, 1, *command, f"{nets}:broken")
    assert "nothing to prune" in error_of(capsys, 1, *command, f"{nets}:rows", "--prune-type", "global")
    assert main([str(part) for part in (*command, f"{nets}:rows")]) == 0  # nothing is to be pruned


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (("--gpu", 99), ("--device", "cuda:99"), ("--device", "abacus")):
        assert "is not to be had here" in error_of(capsys, 1, "eval", *option)


def test_corrupt_images(folder: Path, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = folder / "val" / "bee" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    (folder / "val" / "cat" / "4.png").write_bytes(b"no image")
    command = [
        "sweep",
        "--data",
        str(folder),
        "-a",
        f"{nets}:tiny",
        "--p-prune",
        "0,0.5",
        "-o",
        str(tmp_path / "o"),
    ]
    for workers in ("0", "1"):
        assert f"cannot read image {bad}" in error_of(capsys, 1, *command, "-j", workers)
    assert main([*command, "--skip-bad-images", "-j", "1", "-b", "1", "--quiet"]) == 0
    err = capsys.readouterr().err
    assert err.count("skipped unreadable image") == 2
    assert "2 unreadable images skipped" in err
    assert {row["images"] for row in rows_of(tmp_path / "o")} == {"13"}


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet99", "no torchvision classifier 'resnet99'"),
        ("timm:resnet99", "timm:resnet99"),
        ("digits:huge", "plain, residual"),
        ("missing.py:net", "no file 'missing.py'"),
        ("{nets}:absent", "has no callable 'absent'"),
        ("{nets}:number", "returned int, expected a torch.nn.Module"),
    ],
)
def test_unknown_networks(arch: str, message: str, nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(capsys, 1, "inspect", "-a", arch.format(nets=nets), "--weights", "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--p-prune", "1.5"], "p_prune must be in [0, 1], got 1.5"),
        (["--p-prune", "-0.1"], "p_prune must be in [0, 1]"),
        (["--p-bern", "nan"], "p_bern must be in [0, 1], got nan"),
        (["--exclude", "layer9"], "exclude='layer9' matches nothing"),
        (["--layers", "Conv1d"], "nothing to prune"),
        (["--weights", "a,b"], "2 weights for 1 networks"),
    ],
)
def test_arguments_out_of_range(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(capsys, 1, "inspect", "-a", "digits:plain", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--p-prune", "0:0.75:0.1"],
        ["sweep", "--p-prune", "0:1"],
        ["sweep", "--p-prune", "many"],
        ["sweep", "--p-prune", "nan"],
        ["sweep", "--seed", "0.5"],
        ["sweep", "--seed", "inf"],
        ["sweep", "--std", "nan,1,1"],
        ["sweep", "--granularity", "wieght"],
        ["sweep", "--mean", "0.5,0.5"],
        ["eval", "--prune-type", "all"],
        ["eval", "--batch-size", "0"],
        ["evaluate"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    error_of(capsys, 2, *arguments)


def test_inspect_counts_and_warns_of_emptied_layers(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "-a", "digits:plain", "--p-prune", "0.95", "--granularity", "filter"]
    assert main([*arguments, "--scope", "global"]) == 0
    out, err = capsys.readouterr()
    with pytest.warns(UserWarning, match="empties"):
        masks = prunus.make_masks(digits.load_network("plain"), 0.95, granularity="filter", scope="global")
    for name, (pruned, total) in masks.counts.items():
        line = next(line for line in out.splitlines() if line.startswith(f"{name.removesuffix('.weight')} "))
        cells = line.removesuffix("  emptied").split()
        assert cells[-6:-3] == [f"{total:,}", f"{pruned:,}", f"{pruned / total:.4f}"]
        assert line.endswith("  emptied") == (pruned == total)
        assert (f"{name} ({total} weights)" in err) == (pruned == total)
    assert err.startswith("warning: pruning empties 1 of 3 layers, all of whose weights fall: ")
    assert len(err.splitlines()) == 1


def test_a_network_of_a_file_is_run_on_images_of_its_size(
    folder: Path, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["inspect", "-a", f"{nets}:tiny", "--weights", "none", "--json"]
    for more, told in (([], "3x224x224"), (["--image-size", "8"], ""), (["--data", str(folder)], "")):
        assert main([*command, *more]) == 0
        out, err = capsys.readouterr()
        assert (told in err) if told else err == "", more
        macs = json.loads(out)[0]["layers"][0]["macs"]
        assert (macs > 1_000_000) == bool(told), more


def test_weights_that_nobody_gave_are_said(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (([], 1), (["--weights", "none"], 0), (["-q"], 0)):
        assert main(["inspect", "-a", f"{nets}:tiny", "--image-size", "8", *more]) == 0
        assert capsys.readouterr().err.count("as no --weights are given") == said


def test_a_layer_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(0, 3, 1), nn.Conv2d(3, 4, 3))"
    )
    assert main(["inspect", "-a", f"{nets}:net"]) == 0
    assert "0.0000" in capsys.readouterr().out


def test_a_ratio_without_a_way_to_prune_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "p_bern prunes nothing without --p-prune" in error_of(capsys, 2, "eval", "--p-bern", 0.5)
    assert "p_prune_of prunes nothing" in error_of(capsys, 2, "eval", "--p-prune-of", "0=0.5")
    command = ("eval", "--prune_type", "none", "--p_prune", 0.5)
    assert "p_prune prunes nothing with --prune-type none" in error_of(capsys, 2, *command)


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-a", "vgg11", "--weights", "none"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: Conv2d layers hold only 6.9%")
    assert len(err.splitlines()) == 1


def test_help_names_every_option_and_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["sweep"], ["eval"], ["inspect"]):
        assert main([*command, "--help"]) == 0
        out = capsys.readouterr().out
        assert "prunus" in out
        if command:
            assert "[weight|kernel|filter|channel|RxC]" in out
    assert main(["--version"]) == 0
    assert prunus.__version__ in capsys.readouterr().out


def test_ranges_are_decimal() -> None:
    assert [float(number) for number in spread("0:0.7:0.1")] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize("library", ["click", "rich", "matplotlib"])
def test_missing_extras_are_named(library: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.modules['{library}'] = None\n"  # as if it were not installed
        "from prunus.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "sweep", "-a", "digits:plain", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f'the command line needs {library}: pip install "prunus[cli]"')


def test_the_core_imports_torch_numpy_and_safetensors_only() -> None:
    code = (
        "import sys, prunus\n"
        "prunus.prune, prunus.selection.scope, prunus.masks\n"
        "extras = {'torchvision', 'timm', 'sklearn', 'scipy', 'click', 'rich', 'matplotlib', 'PIL'}\n"
        "assert not extras & set(sys.modules), extras & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["swep"], 2),
        (["sweep", "--p-prun", "0.3"], 2),
        (["eval", "--batch-size", "many"], 2),
        (["transfer", "--stpes", "3"], 2),
    ],
)
def test_help_and_a_mistyped_option_do_not_wait_for_torch(arguments: list[str], code: int) -> None:
    script = (
        "import sys\n"
        "from prunus.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'torchvision', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr


def test_a_results_folder_knows_its_results_by_what_it_always_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders of earlier versions are read: the names under which settings are kept have not changed."""
    command = ["sweep", "-a", "digits:plain", "--p-prune", "0", "-o", str(tmp_path)]
    assert main(command) == 0
    stored = json.loads((tmp_path / "results.json").read_text())
    settings = stored["settings"]
    for point in stored["points"]:
        assert point.pop("keep_at_least") == 0
    (tmp_path / "results.json").write_text(json.dumps(stored))
    capsys.readouterr()
    assert main(command) == 0
    assert "p_prune 0:" not in capsys.readouterr().err  # nothing was measured again
    assert "layers was ['Conv2d'], now ['all']" in error_of(capsys, 1, *command, "--layers", "all")
    pruning = {"p_prune", "p_bern", "granularity", "criterion", "scope", "seed", "norm", "passes"}
    weights = {"layers", "include", "exclude", "calibration_images"}
    images = {"data", "dummy", "image_size", "mean", "std", "skip_bad_images", "images"}
    assert set(settings) == pruning | weights | images | {"device", "amp", "networks", "versions"}
    assert settings["layers"] == ["Conv2d"]
    assert settings["exclude"] == []


def test_a_file_without_a_callable_lists_those_there_are(
    nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets.write_text(f"{NETS}\ndef needs(width):\n    return width\n")
    for arch in (f"{nets}", f"{nets}:absent"):
        error = error_of(capsys, 1, "inspect", "-a", arch)
        assert f"write {nets}:tiny or {nets}:number" in error
        assert "''" not in error
        assert "needs" not in error.replace("names", "")
    nets.write_text("width = 3\n")
    assert "there is none" in error_of(capsys, 1, "inspect", "-a", nets)


def test_an_interrupted_command_says_what_is_saved_where_something_is(nets: Path, tmp_path: Path) -> None:
    code = (
        "import signal, os\nfrom torch import nn\nimport torch\n"
        "class Net(nn.Module):\n"
        "    calls = 0\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 3, 1)\n"
        "    def forward(self, x):\n"
        "        Net.calls += 1\n"
        "        if Net.calls > LIMIT: os.kill(os.getpid(), signal.SIGINT)\n"
        "        return self.conv(x).mean((2, 3))\n"
    )
    command = [sys.executable, "-m", "prunus", "sweep", "-a", f"{nets}:Net", "--dummy", "--image-size", "8"]
    nothing = "Interrupted. Nothing was saved yet."
    saved = f"Interrupted. 1 of 6 points are saved in {tmp_path / 'second'}; run again to go on."
    # One call finds how many classes there are; after it comes one for every point
    for limit, output, says in ((1, "first", nothing), (2, "second", saved)):
        nets.write_text(code.replace("LIMIT", str(limit)))
        done = subprocess.run(
            [*command, "--p-prune", "0,0.5,0.9", "-j", "0", "-o", str(tmp_path / output)],
            capture_output=True,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert done.returncode == 130
        assert done.stderr.strip().splitlines()[-1] == says


def test_fractions_by_name_and_coupled_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image = digits.load_network("residual"), digits.load_images()[0][:1]
    named = ["-a", "digits:residual", "--p-prune", "0.5", "--p-prune-of", "0=0,3.*=0.25"]
    coupled = ["-a", "digits:residual", "--p-prune", "0.5", "--granularity", "filter", "--coupled"]
    wanted = {
        tuple(named): prunus.make_masks(model, {"0": 0, "3.*": 0.25, "*": 0.5}),
        tuple(coupled): prunus.make_masks(
            model, 0.5, granularity="filter", coupled=True, example_inputs=image
        ),
    }
    for number, (arguments, masks) in enumerate(wanted.items()):
        more = [] if number else ["--granularity", "weight"]
        assert main(["inspect", *arguments, *more, "--json"]) == 0
        [told] = json.loads(capsys.readouterr().out)
        found = {layer["name"]: (layer["pruned"], layer["weights"]) for layer in told["layers"]}
        assert found == masks.counts
        folder = str(tmp_path / str(number))
        assert main(["sweep", *arguments, *more, "-o", folder]) == 0
        first = capsys.readouterr().out
        [row] = list(csv.DictReader((tmp_path / str(number) / "results.csv").open()))
        assert int(row["pruned"]) == masks.pruned
        assert main(["sweep", *arguments, *more, "-o", folder]) == 0  # shown again
        assert capsys.readouterr().out == first
    for wrong in ("0=2", "=0.5", "0", "0=x"):
        assert main(["inspect", "--p-prune-of", wrong]) == 2
        assert "is not PATTERN=FRACTION" in capsys.readouterr().err
    for command in ("sensitivity", "find"):
        assert main([command, "--p-prune-of", "0=0.5"]) == 2


def test_inspect_counts_multiplications_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-a", "digits:plain", "--p-prune", "0.5", "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)
    model, sides = digits.load_network("plain"), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, _, out, name=name: sides.update({name: out[0, 0].numel()}))
    model(digits.load_images()[0][:1])
    masks = prunus.make_masks(model, 0.5)
    assert told["network"] == "digits:plain"
    for layer, (name, mask) in zip(told["layers"], masks.items(), strict=True):
        positions = sides[name.removesuffix(".weight")]
        assert layer == {
            "name": name,
            "shape": list(mask.shape),
            "weights": mask.numel(),
            "pruned": int((~mask).sum()),
            "bytes": 4 * mask.numel(),
            "macs": positions * mask.numel(),
            "pruned_macs": positions * int((~mask).sum()),
        }
    assert main(["inspect", "-a", "digits:plain", "--p-prune", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    total = sum(layer["macs"] for layer in told["layers"])
    assert f"{total:,}" in lines[-1]


def test_a_network_that_takes_no_image_is_inspected_without_multiplications(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nets.py"
    file.write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(7, 7))\n")
    assert main(["inspect", "-a", f"{file}:net", "--layers", "all"]) == 0
    told = capsys.readouterr()
    assert "MACs are not counted, as it does not run" in told.err
    assert "MACs" not in told.out
    assert "49" in told.out
