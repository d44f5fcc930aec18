"""Small files give back every bit, and those that lie are refused before memory is taken."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import prunus
from prunus.inputs import digits
from prunus.inputs.networks import load_network

KINDS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
]  # fmt: skip


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@st.composite
def states(draw: Any) -> dict[str, Tensor]:
    made = {}
    for index in range(draw(st.integers(0, 4))):
        dtype, shape = draw(st.sampled_from(KINDS)), draw(st.lists(st.integers(0, 9), max_size=3))
        count = int(torch.tensor(shape, dtype=torch.int64).prod()) if shape else 1
        values = torch.randint(256, (count, dtype.itemsize), dtype=torch.uint8)
        if dtype == torch.bool:
            values %= 2
        values[torch.rand(count) < draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))] = 0
        made[f"layer.{index}"] = values.reshape(-1).view(dtype).view(shape)
    return made


@settings(max_examples=150, deadline=None)
@given(state=states(), compress=st.sampled_from([None, 3]))
def test_every_bit_comes_back(state: dict[str, Tensor], compress: int | None, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("sparse") / "state.safetensors"
    prunus.save_sparse(state, path, compress=compress)
    found = prunus.load_sparse(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(found[name]), bits(tensor))
    if compress is None:
        load_file(path)  # any library of safetensors reads what is in it


def test_negative_zeros_transposed_and_tied_tensors(tmp_path: Path) -> None:
    weight = torch.zeros(64, 32)
    weight[0, 0] = -0.0
    state = {"a": weight.t(), "b": weight, "c": weight, "d": weight[::2]}
    prunus.save_sparse(state, tmp_path / "a")
    found = prunus.load_sparse(tmp_path / "a")
    assert all(torch.equal(bits(found[name]), bits(tensor)) for name, tensor in state.items())
    assert found["b"] is found["c"]
    assert found["a"][0, 0].signbit()


def test_a_pruned_network_is_small_and_loads(tmp_path: Path) -> None:
    model = digits.load_network("residual")
    prunus.prune(model, 0.9)
    for compress in (None, 19):
        prunus.save_sparse(model, tmp_path / "net.safetensors", compress=compress)
        dense = sum(tensor.numel() * tensor.itemsize for tensor in model.state_dict().values())
        assert (tmp_path / "net.safetensors").stat().st_size < dense / 5
        network = load_network("digits:residual", str(tmp_path / "net.safetensors"))
        for name, tensor in network.model.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])
    assert prunus.Masks.from_zeros(network.model).pruned >= int(0.9 * 55584)


def test_the_state_is_never_held_twice(tmp_path: Path) -> None:
    state = {f"{index}": torch.zeros(2_000_000) for index in range(20)}
    for tensor in state.values():
        tensor[::20] = 1.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prunus.save_sparse(state, tmp_path / "big")
    taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert taken < 5 * 8_000_000  # five tensors of twenty


def damaged(path: Path, change: Any) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    body = change(header, data[8 + length :])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def lie(**told: Any) -> Any:
    def change(header: dict[str, Any], body: bytes) -> bytes:
        recipe = json.loads(header["__metadata__"]["tensors"])
        recipe["w"] |= told
        header["__metadata__"]["tensors"] = json.dumps(recipe)
        return body

    return change


def moved(header: dict[str, Any], body: bytes) -> bytes:
    header["w.values"]["data_offsets"][1] += 10**15
    return body


def another(header: dict[str, Any], body: bytes) -> bytes:
    header["__metadata__"]["format"] = "another"
    return body


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, body: body[:-1], "truncated"),
        (lambda header, body: body + b"1", "more bytes than it says"),
        (lie(shape=[10**12]), "has 1,000,000,000,000 entries"),
        (lie(shape=[-1, -1000]), "shape"),
        (lie(dtype="float64"), "is said to be {'dtype': 'float64'"),
        (lie(dtype="complex32x"), "complex32x"),
        (moved, "'w.values' is said to be"),
        (another, "'another'"),
        (lambda header, body: bytes([body[0] ^ 1]) + body[1:] if header else body, ""),
    ],
)
def test_what_lies_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    weight = torch.zeros(1000)
    weight[:100] = torch.arange(1.0, 101)
    path = tmp_path / "w"
    prunus.save_sparse({"w": weight}, path)
    damaged(path, change)
    if not message:  # a bit of a value: there is nothing to tell it by
        assert not torch.equal(prunus.load_sparse(path)["w"], weight)
        return
    with pytest.raises(ValueError, match=message):
        prunus.load_sparse(path)


def test_other_files_and_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        prunus.load_sparse(tmp_path / "none")
    torch.save({}, tmp_path / "pth")
    with pytest.raises(ValueError, match="is not a whole file of save_sparse"):
        prunus.load_sparse(tmp_path / "pth")
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(TypeError, match="w is no plain tensor"):
        prunus.save_sparse({"w": sparse}, tmp_path / "other")
    with pytest.raises(TypeError, match="_extra_state is no plain tensor"):
        prunus.save_sparse({"_extra_state": {"a": 1}}, tmp_path / "other")  # type: ignore[dict-item]
    assert not (tmp_path / "other").exists()
    whole = {"w": torch.zeros(1000)}
    prunus.save_sparse(whole, tmp_path / "zst", compress=3)
    data = (tmp_path / "zst").read_bytes()
    (tmp_path / "zst").write_bytes(data[:-9])
    with pytest.raises(ValueError, match="is not a whole file of save_sparse"):
        prunus.load_sparse(tmp_path / "zst")
    prunus.save_sparse(nn.Linear(2, 2), tmp_path / "zst")
    assert prunus.load_sparse(tmp_path / "zst").keys() == {"weight", "bias"}
