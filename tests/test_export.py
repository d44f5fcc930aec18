"""What is exported gives what the network gives, at any batch size, or there is no file."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.cli.main import main
from prunus.compaction.comparing import apart
from prunus.compaction.export import FORMATS
from prunus.compaction.graphs import tensor_leaves
from prunus.compaction.runtimes import RUNTIMES, installed
from prunus.inputs import digits
from tests.conftest import everything, same, small_net

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")


def by_onnxruntime(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path))
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def by_openvino(path: Path, x: Tensor) -> Tensor:
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled([x.numpy()])[0])


def by_torch(path: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.export.load(path).module()(x)


READERS = {".onnx": by_onnxruntime, ".xml": by_openvino, ".pt2": by_torch}
PASSES = ("both", "backward", "forward")


def differ(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def masked() -> nn.Module:
    return prunus.prune(digits.load_network("residual"), 0.5, granularity="weight").model


def cut() -> nn.Module:
    model, x = digits.load_network("residual"), digits.load_images()[0][:1]
    prunus.prune(model, 0.3, granularity="filter", coupled=True, example_inputs=x)
    return prunus.compact(model, x).model


def test_readers_are_of_all_formats() -> None:
    assert READERS.keys() == FORMATS.keys()
    assert installed() == list(RUNTIMES) == ["eager", "compile", "onnxruntime", "openvino"]


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("make", [masked, cut])
def test_files_give_what_the_network_gives(make: Any, suffix: str, tmp_path: Path) -> None:
    model, images = make().train(), digits.load_images()[0]
    before, masks, random = everything(model), prunus.masks_of(model), torch.get_rng_state()
    made = prunus.export(model, tmp_path / f"net{suffix}", images[:1])
    assert same(before, everything(model))
    assert model.training
    assert all(torch.equal(mask, masks[name]) for name, mask in prunus.masks_of(model).items())
    assert torch.equal(random, torch.get_rng_state())
    model.eval()
    for size in (1, 5):
        with torch.no_grad():
            assert differ(model(images[:size]), READERS[suffix](made.files[0], images[:size])) < 1e-5
    assert made.apart < 1e-5
    assert made.batches == (1, 3)
    assert sorted(tmp_path.iterdir()) == sorted(made.files)
    assert made.bytes == sum(file.stat().st_size for file in made.files)


@pytest.mark.parametrize("passes", PASSES)
def test_what_is_pruned_in_one_pass_is_exported_as_its_forward_is(passes: str, tmp_path: Path) -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    whole = model(x).detach()
    prunus.prune(model, 0.5, passes=passes)
    made = prunus.export(model, tmp_path / "net.pt2", x)
    given = by_torch(made.files[0], x)
    assert differ(model(x).detach(), given) < 1e-5
    assert (differ(whole, given) < 1e-5) == (passes == "backward")


def test_what_is_pruned_in_the_backward_pass_alone_is_not_cut() -> None:
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    prunus.prune(model, 0.5, passes="backward", granularity="filter", coupled=True, example_inputs=x)
    made = prunus.compact(model, x)
    assert not made.shapes
    assert torch.equal(model(x), made.model(x))


class Several(nn.Module):
    """Keywords, several outputs, one of which is an input, and no batch in a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 3), nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor, *, scale: Tensor) -> dict[str, Any]:
        return {"one": self.one(a) * scale, "two": [self.two(b), b]}


@pytest.mark.parametrize("suffix", READERS)
def test_keywords_and_several_outputs(suffix: str, tmp_path: Path) -> None:
    model = Several().eval()
    given = {"b": torch.randn(4, 4), "scale": torch.randn(1), "a": torch.randn(4, 8)}
    made = prunus.export(model, tmp_path / f"net{suffix}", given)
    assert made.batches == (4, 1, 12)
    assert made.apart < 1e-5


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_take_keywords_in_any_order_and_keep_what_they_gave(runtime: str) -> None:
    model = Several().eval()
    given = {"scale": torch.randn(1), "b": torch.randn(4, 4), "a": torch.randn(4, 8)}
    other = {"a": torch.randn(4, 8), "b": torch.randn(4, 4), "scale": torch.randn(1)}
    run = RUNTIMES[runtime](model, (), given)
    first = run(**given)
    held = [output.clone() for output in first]
    with torch.no_grad():
        assert apart(tensor_leaves(model(**other)), run(**other)) < 1e-5
        assert apart(tensor_leaves(model(**given)), first) < 1e-5
    assert all(map(torch.equal, first, held))


def test_more_networks_of_one_kind_than_torch_compiles() -> None:
    import torch._dynamo.utils

    x = torch.randn(2, 4)
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (2, 3):
            model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
            before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            run = RUNTIMES["compile"](model, (x,), {})
            assert apart([model(x).detach()], run(x)) < 1e-5
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


class OneImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(1, 8))


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x - 1


class Alternating(nn.Module):
    """Not what it was when it was exported."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("suffix", READERS)
def test_a_network_of_one_image(suffix: str, tmp_path: Path) -> None:
    x = torch.randn(1, 8)
    with pytest.raises(ValueError, match=r"no batches of any size.*give dynamic_batch=False"):
        prunus.export(OneImage(), tmp_path / f"net{suffix}", x)
    assert not list(tmp_path.iterdir())
    made = prunus.export(OneImage(), tmp_path / f"net{suffix}", x, dynamic_batch=False)
    assert made.batches == (1,)


@pytest.mark.parametrize(
    ("suffix", "old"), [(".onnx", b""), (".xml", b"what was there"), (".pt2", b"what was there")]
)
def test_nothing_is_left_of_what_goes_wrong(suffix: str, old: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    if old:
        path.write_bytes(old)
    before = sorted(tmp_path.iterdir())
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match="cannot export the network"):
        prunus.export(Deciding(), path, x)
    with pytest.raises(ValueError, match="of the largest one apart"):
        prunus.export(Alternating(), path, x)
    if suffix != ".pt2":
        with pytest.raises(ValueError, match="apart from the network's, and tolerance is 0"):
            prunus.export(nn.Sequential(nn.Linear(3, 500), nn.Softmax(1)), path, x, tolerance=0)
    assert sorted(tmp_path.iterdir()) == before
    assert not old or path.read_bytes() == old


def test_wrong_arguments(tmp_path: Path) -> None:
    model, x = small_net(), torch.randn(1, 3, 8, 8)
    for name in ("net.pth", "net"):
        with pytest.raises(ValueError, match=r"suffix of path must be one of \.onnx, \.xml, \.pt2"):
            prunus.export(model, tmp_path / name, x)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        prunus.export(model.state_dict(), tmp_path / "net.onnx", x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance must be 0 or more"):
        prunus.export(model, tmp_path / "net.onnx", x, tolerance=-1)
    with pytest.raises(ValueError, match="example_inputs must hold a tensor"):
        prunus.export(model, tmp_path / "net.onnx", (3,))
    with pytest.raises(ValueError, match="no batch: give dynamic_batch=False"):
        prunus.export(model, tmp_path / "net.onnx", torch.tensor(1.0))
    with pytest.raises(TypeError, match="did you mean 'dynamic_batch'"):
        prunus.export(model, tmp_path / "net.onnx", x, dynamic_batches=True)  # type: ignore[call-arg]
    with pytest.raises(FileNotFoundError, match="none"):
        prunus.export(model, tmp_path / "none" / "net.onnx", x)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r'openvino is not installed: pip install "prunus\[export\]"'):
        prunus.export(small_net(), tmp_path / "net.xml", torch.randn(1, 3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_difference_of_outputs() -> None:
    one = torch.tensor([1.0, -4.0, float("nan"), float("inf")])
    other = one.clone()
    assert apart([one], [other]) == 0
    other[0] = 3
    assert apart([one], [other]) == 0.5
    assert apart([one], [one[:2]]) == apart([one], []) == float("inf")
    assert apart([torch.tensor([1000])], [torch.tensor([1001])]) == float("inf")
    other[1] = float("nan")
    assert apart([one], [other]) == float("inf")


def test_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.safetensors"
    model = cut()
    prunus.save_compact(model, small)
    command = [sys.executable, "-m", "prunus", "export", "--weights", str(small), "-o", "net.xml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("net.xml and net.bin: ")
    assert "apart at batch sizes 1, 3" in done.stdout
    assert done.stderr == ""
    images = digits.load_images()[0][:5]
    with torch.no_grad():
        assert differ(copy.deepcopy(model)(images), by_openvino(tmp_path / "net.xml", images)) < 1e-5
    assert main(["export", "-a", "digits:plain,digits:residual", "-o", str(tmp_path / "net.onnx")]) == 2
    assert "--output takes one network" in capsys.readouterr().err
    assert main(["export", "-o", str(tmp_path / "net.pdf")]) == 1
    assert "suffix of path must be one of .onnx, .xml, .pt2; got '.pdf'" in capsys.readouterr().err
