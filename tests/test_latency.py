"""Networks and runtimes are timed side by side, and what does not run says why."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.cli.main import main
from prunus.inputs import digits
from tests.conftest import everything, same, small_net

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

X = torch.randn(2, 3, 8, 8)


class Deciding(nn.Module):
    """No graph holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x if float(x.sum()) > 0 else -x)


def test_every_network_in_every_runtime() -> None:
    dense, pruned = small_net(), prunus.global_prune(small_net().train(), 0.5)
    before, random = everything(pruned), torch.get_rng_state()
    threads = torch.get_num_threads()
    masks = prunus.masks_of(pruned)
    made = prunus.latency({"dense": dense, "pruned": pruned}, X, threads=threads + 1, rounds=3)
    assert torch.get_num_threads() == threads
    assert torch.equal(random, torch.get_rng_state())
    assert same(before, everything(pruned))
    assert all(torch.equal(mask, masks[name]) for name, mask in prunus.masks_of(pruned).items())
    names = ["eager", "compile", "onnxruntime", "openvino"]
    assert [(row.model, row.runtime) for row in made.rows] == [
        (model, runtime) for model in ("dense", "pruned") for runtime in names
    ]
    size = sum(p.numel() for p in dense.parameters())
    for row in made.rows:
        assert not row.reason
        assert 0 < row.low <= row.ms <= row.high  # type: ignore[operator]
        assert row.apart is not None
        assert row.apart < 1e-5
        assert row.weights == size
        assert row.macs == 2 * (8 * 27 * 64 + 12 * 72 * 9 + 120)
        assert row.bytes == 4 * size + 4 * 16 + 8
        assert row.memory is None if sys.platform != "linux" else row.memory >= 0  # type: ignore[operator]
    zeros = sum(int((p == 0).sum()) for p in pruned.parameters())
    assert {row.nonzero for row in made.rows if row.model == "pruned"} == {size - zeros}
    lines = str(made).splitlines()
    assert len(lines) == 1 + 8 + 1
    assert lines[-1] == f"3 rounds in turns, {threads + 1} threads"
    assert len({len(line) for line in lines[:-1]}) == 1
    columns = json.loads(json.dumps(made.columns()))
    assert [column["ms"] for column in columns] == [row.ms for row in made.rows]
    assert {column["threads"] for column in columns} == {threads + 1}


def test_memory_of_a_call_is_that_of_its_activations() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells")
    model = nn.Sequential(nn.Conv2d(1, 64, 1), nn.ReLU())
    one = 64 * 64 * 64 * 4
    for _ in range(3):  # though what was freed before may still be held
        row = prunus.latency(model, torch.randn(1, 1, 64, 64), runtimes=["eager"], rounds=1).rows[0]
        assert row.memory is not None
        assert one <= row.memory < 3.5 * one


def test_what_no_graph_holds_is_a_row_with_the_reason() -> None:
    made = prunus.latency(Deciding(), torch.rand(2, 8), runtimes=["onnxruntime", "eager"], rounds=1)
    graph, eager = made.rows
    assert (graph.ms, graph.low, graph.high, graph.memory, graph.apart) == (None,) * 5
    assert graph.reason
    assert graph.weights == eager.weights == 27
    assert eager.ms
    assert not eager.reason
    assert graph.reason in str(made)


def test_a_missing_library_is_a_row_and_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    row = prunus.latency(small_net(), X, runtimes=["openvino"], rounds=1).rows[0]
    assert 'pip install "prunus[export]"' in row.reason


def test_wrong_arguments() -> None:
    net, threads = small_net(), torch.get_num_threads()
    for options, message in (
        ({"runtimes": ["tvm"]}, "runtimes must be one of eager, compile, onnxruntime, openvino; got 'tvm'"),
        ({"rounds": 0}, "rounds must be a whole number from 1"),
        ({"threads": 0}, "threads must be a whole number from 1"),
        ({"runtimes": []}, "runtimes is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            prunus.latency(net, X, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="runtimes must be a list of names, got 'eager'"):
        prunus.latency(net, X, runtimes="eager")
    with pytest.raises(ValueError, match="models is empty"):
        prunus.latency({}, X)
    with pytest.raises(TypeError, match=r"must be torch\.nn\.Modules, 'a' is Tensor"):
        prunus.latency({"a": X}, X)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="small does not run on these inputs"):
        prunus.latency({"small": net}, torch.randn(1, 2), threads=threads + 1)
    with pytest.raises(TypeError, match="did you mean 'rounds'"):
        prunus.latency(net, X, round=3)  # type: ignore[call-arg]
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    made = prunus.latency(small_net().cuda(), X, rounds=2)
    assert [row.runtime for row in made.rows] == ["eager", "compile"]
    assert all(row.ms and row.memory is not None for row in made.rows)
    row = prunus.latency(small_net().cuda(), X, runtimes=["openvino"], rounds=2).rows[0]
    assert "openvino runs on the CPU here, and the network is on cuda:0" in row.reason


def test_bench_from_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prunus", "bench", "--p-prune", "0.5", "--coupled"]
    command += ["--batch-sizes", "1,4", "--runtimes", "eager,onnxruntime", "--rounds", "2"]
    command += ["--threads", "1", "--json", "-o", "speed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert [(row["batch_size"], row["model"], row["runtime"]) for row in rows] == [
        (size, model, runtime)
        for size in (1, 4)
        for model in ("dense", "pruned", "compact")
        for runtime in ("eager", "onnxruntime")
    ]
    dense, pruned, cut = rows[0], rows[2], rows[4]
    assert dense["network"] == "digits:residual"
    assert dense["macs"] == pruned["macs"] > 3 * cut["macs"]
    assert dense["nonzero"] > pruned["nonzero"] > cut["nonzero"]
    assert rows[6]["macs"] == 4 * dense["macs"]
    names = ["bench.csv", "bench.json", "bench.png", "bench.svg", "config.toml"]
    assert sorted(path.name for path in (tmp_path / "speed").iterdir()) == names
    assert json.loads((tmp_path / "speed" / "bench.json").read_text()) == rows
    lines = list(csv.DictReader((tmp_path / "speed" / "bench.csv").open()))
    assert [float(line["ms"]) for line in lines] == [row["ms"] for row in rows]


def test_bench_of_single_weights_and_of_networks_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["bench", "-a", "digits:plain", "--runtimes", "eager", "--rounds", "1"]
    assert main([*options, "--p-prune", "0.3", "--granularity", "weight", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    weights = sum(p.numel() for p in digits.load_network("plain").parameters())
    assert [row["model"] for row in rows] == ["dense", "pruned"]
    assert [row["weights"] for row in rows] == [weights, weights]
    assert main(options) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "digits:plain, inputs 1x1x8x8, cpu"
    assert len(printed) == 4
    assert main([*options, "--coupled"]) == 2
    assert "prune nothing without --p-prune" in capsys.readouterr().err
    assert main([*options, "--batch-sizes", "0"]) == 2
    assert main([*options, "--runtimes", "tvm"]) == 2
    assert "'tvm' is not one of eager, compile, onnxruntime, openvino" in capsys.readouterr().err
