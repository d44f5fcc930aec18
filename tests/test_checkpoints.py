"""Weights files as training code leaves them: real wrappers write them, and what they held comes back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from prunus.cli.main import main
from prunus.inputs.networks import load_network

NETS = """
from torch import nn
from torch.nn.utils import prune

def bare():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))

class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = bare()

def pruned():
    network = bare()
    prune.l1_unstructured(network[0], "weight", 0.5)
    return network
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return f"{tmp_path}/nets.py"


@pytest.fixture
def trained(nets: str) -> nn.Module:
    torch.manual_seed(7)
    network = load_network(f"{nets}:bare").model
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randint(1, 9, tensor.shape))
    return network


class Holder(nn.Module):
    """As Lightning modules hold their network."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        setattr(self, name, network)


class Buffered(Holder):
    """With a tensor of its own beside the network."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__(network, name)
        self.register_buffer("steps", torch.zeros(()))


def compiled(network: nn.Module) -> nn.Module:
    made = torch.compile(network)
    assert isinstance(made, nn.Module)
    return made


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "DataParallel": (nn.DataParallel, "module."),
    "compile": (compiled, "_orig_mod."),
    "both": (lambda network: nn.DataParallel(compiled(network)), "module._orig_mod."),
    "both, turned": (lambda network: compiled(nn.DataParallel(network)), "_orig_mod.module."),
    "model": (lambda network: Holder(network, "model"), "model."),
    "net": (lambda network: Holder(compiled(network), "net"), "net._orig_mod."),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_prefixes_of_wrappers(wrapper: str, nets: str, trained: nn.Module, tmp_path: Path) -> None:
    wrap, prefix = WRAPPERS[wrapper]
    state = wrap(trained).state_dict()
    assert all(name.startswith(prefix) for name in state)
    torch.save(state, tmp_path / "a.pth")
    network = load_network(f"{nets}:bare", f"{tmp_path}/a.pth")
    assert_holds(network.model, trained.state_dict())
    assert network.unwrapped == f"{tmp_path}/a.pth: took {prefix!r} off its names"


def assert_holds(network: nn.Module, state: dict[str, Tensor]) -> None:
    held = network.state_dict()
    assert held.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in held.items())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model_state", "model", "net"])
def test_keys_of_training_checkpoints(key: str, nets: str, trained: nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9)
    held = {"epoch": 3, "optimizer": optimizer.state_dict(), key: nn.DataParallel(trained).state_dict()}
    torch.save(held, tmp_path / "a.pth")
    network = load_network(f"{nets}:bare", f"{tmp_path}/a.pth")
    assert_holds(network.model, trained.state_dict())
    said = f"{tmp_path}/a.pth: read at its key {key!r}, took 'module.' off its names"
    assert network.unwrapped == said


def test_nothing_is_said_of_a_plain_file_and_a_network_keeps_its_own_prefixes(
    nets: str, trained: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Holder(trained, "model").state_dict()
    torch.save(state, tmp_path / "a.pth")
    network = load_network(f"{nets}:Holder", f"{tmp_path}/a.pth")
    assert_holds(network.model, state)
    assert network.unwrapped == ""
    torch.save(nn.DataParallel(Holder(trained, "model")).state_dict(), tmp_path / "a.pth")
    assert_holds(load_network(f"{nets}:Holder", f"{tmp_path}/a.pth").model, state)
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    assert main(["inspect", "-a", f"{nets}:bare", "--weights", f"{tmp_path}/a.pth"]) == 0
    warned, *told = capsys.readouterr().err.splitlines()
    assert warned == "warning: bare is run on an image of 3x224x224: give its --image-size, or --data"
    assert [line.split(",")[0] for line in told] == ["bare: MACs are not counted"]  # it takes other images


def test_what_was_taken_off_is_one_line_of_standard_error(
    nets: str, trained: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": nn.DataParallel(trained).state_dict()}, tmp_path / "a.pth")
    command = ["inspect", "-a", f"{nets}:bare", "--weights", f"{tmp_path}/a.pth", "--image-size", "8"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if not line.startswith("bare: MACs are not counted")]
    assert told == [f"{tmp_path}/a.pth: read at its key 'model', took 'module.' off its names"]
    assert "took" not in out


def test_an_average_of_the_weights_is_named_and_not_chosen(
    nets: str, trained: nn.Module, tmp_path: Path
) -> None:
    average = {name: tensor + 1 for name, tensor in trained.state_dict().items()}
    torch.save({"state_dict_ema": average, "state_dict": trained.state_dict()}, tmp_path / "a.pth")
    network = load_network(f"{nets}:bare", f"{tmp_path}/a.pth")
    assert_holds(network.model, trained.state_dict())
    assert network.unwrapped.endswith("read at its key 'state_dict' (and not at 'state_dict_ema')")
    torch.save({"state_dict_ema": average, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="found the keys 'state_dict_ema', 'epoch'"):
        load_network(f"{nets}:bare", f"{tmp_path}/a.pth")


def test_pairs_of_torch_prune_are_multiplied(nets: str, trained: nn.Module, tmp_path: Path) -> None:
    torch_prune.l1_unstructured(trained[0], "weight", 0.5)
    torch_prune.random_unstructured(trained[3], "bias", 0.5)
    torch.save({"model": nn.DataParallel(trained).state_dict()}, tmp_path / "a.pth")
    network = load_network(f"{nets}:bare", f"{tmp_path}/a.pth")
    assert network.unwrapped.endswith("multiplied 0.weight_orig with its mask and 1 more")
    torch_prune.remove(trained[0], "weight")
    torch_prune.remove(trained[3], "bias")
    assert int((trained[0].weight == 0).sum()) == 54
    assert_holds(network.model, trained.state_dict())


def test_a_network_that_torch_pruned_keeps_its_pairs(nets: str, trained: nn.Module, tmp_path: Path) -> None:
    torch_prune.l1_unstructured(trained[0], "weight", 0.25)
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    network = load_network(f"{nets}:pruned", f"{tmp_path}/a.pth")
    assert network.unwrapped == ""
    assert_holds(network.model, trained.state_dict())


def test_a_checkpoint_of_lightning(nets: str, trained: nn.Module, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = trained

        def training_step(self, batch: Tensor) -> Tensor:
            return self.model(batch).square().sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-9)

    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(4), torch.utils.data.DataLoader(torch.rand(2, 3, 3, 3), 2))
    trainer.save_checkpoint(tmp_path / "a.pth")
    network = load_network(f"{nets}:bare", f"{tmp_path}/a.pth")
    assert_holds(network.model, trained.state_dict())
    assert network.unwrapped.endswith("read at its key 'state_dict', took 'model.' off its names")


def test_wrappings_that_are_not_understood(nets: str, trained: nn.Module, tmp_path: Path) -> None:
    state, path = trained.state_dict(), tmp_path / "a.pth"

    def refused(held: object, message: str) -> None:
        torch.save(held, path)
        with pytest.raises(ValueError, match=message):
            load_network(f"{nets}:bare", str(path))

    refused({"generator": state, "epoch": 1}, "'state_dict', 'model_state_dict'.*keys 'generator', 'epoch'$")
    refused({"model": {"weights": state}}, "not a state_dict at its key 'model'.*keys 'weights'$")
    refused({"model": state, "state_dict": state}, "at 'state_dict', 'model': save the one that is meant")
    refused({"model": "bare", "epoch": 3}, "keys 'model', 'epoch'$")
    refused({"args": argparse.Namespace(lr=1), "model": state}, r"holds argparse\.Namespace, and no code")
    refused(Buffered(trained, "model").state_dict(), "does not fit.*Unexpected.*steps")
    two = {**Holder(trained, "model").state_dict(), "0.weight": state["0.weight"]}
    refused(two, r"does not fit.*Missing.*\"0\.bias\"")  # which of the two weights is not for us to say
    refused({**state, "0.weight_mask": torch.ones(2), "0.weight_orig": state["0.weight"]}, "0.weight_orig")
