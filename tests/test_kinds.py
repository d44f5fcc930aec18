"""Every kind of layer: what is an output of it, and how much of a network `layers="all"` reaches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from tests.test_holds import holds

transformers = pytest.importorskip("transformers")


def conv1d() -> nn.Module:
    layer: nn.Module = transformers.pytorch_utils.Conv1D(5, 6)  # from 6 inputs to 5 outputs
    return layer


@pytest.mark.parametrize("layer", [conv1d(), nn.Embedding(6, 5)], ids=["Conv1D", "Embedding"])
def test_a_filter_is_an_output_where_the_inputs_are_the_first_axis(layer: nn.Module) -> None:
    weight = layer.get_parameter("weight").detach().clone()  # (inputs, outputs)
    masks = prunus.make_masks(layer, 0.4, granularity="filter", layers="all")
    fallen = weight.abs().sum(0).argsort()[:2]
    assert masks["weight"].all(0).tolist() == [i not in fallen for i in range(5)]
    assert (~masks["weight"]).all(0).tolist() == [i in fallen for i in range(5)]
    rows = prunus.make_masks(layer, 0.5, scope="row", layers="all")["weight"]
    assert ((~rows).sum(0) == 3).all()
    halves = prunus.make_masks(layer, 0.5, scope="1:2", layers="all")["weight"]
    assert (halves[0::2] != halves[1::2]).all()
    channels = prunus.make_masks(layer, 0.5, granularity="channel", layers="all")["weight"]
    assert sorted(channels.all(1).tolist()) == [False] * 3 + [True] * 3


def test_the_inputs_of_a_conv1d_and_of_an_embedding() -> None:
    layer, x = conv1d(), torch.randn(3, 4, 6)
    known = prunus.evidence(layer, [(x, torch.zeros(3))], criterion="wanda")
    scores = prunus.rank(layer, criterion="wanda", layers="all", evidence=known).scores["weight"].every(0, 1)
    wanted = layer.get_parameter("weight").abs() * x.flatten(0, 1).norm(dim=0)[:, None]
    torch.testing.assert_close(scores, wanted.detach().flatten())
    embedding, tokens = nn.Embedding(4, 3), torch.tensor([[0, 1, 1], [1, 3, 1]])
    known = prunus.evidence(embedding, [(tokens, torch.zeros(2))], criterion="wanda")
    scores = (
        prunus.rank(embedding, criterion="wanda", layers="all", evidence=known).scores["weight"].every(0, 1)
    )
    times = torch.tensor([1.0, 4, 0, 1]).sqrt()[:, None]  # each token is an input of 0 or 1
    torch.testing.assert_close(scores, (embedding.weight.detach().abs() * times).flatten())


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model: nn.Module = transformers.GPT2LMHeadModel(config).eval()
    return model


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_a_language_model_is_pruned_where_its_weights_are(passes: str) -> None:
    model, tokens = gpt2(), torch.randint(40, (2, 8))
    before = model(tokens).logits
    with prunus.prune(model, 0.5, layers="all", passes=passes) as pruning:
        assert {name.rpartition(".")[0].rpartition(".")[2] for name in pruning.masks} == {
            "wte",
            "wpe",
            "c_attn",
            "c_proj",
            "c_fc",
        }  # of a tied output, the embedding
        assert torch.equal(model(tokens).logits, before) == (passes == "backward")
        assert holds(model, pruning.masks) == (passes != "backward")
        model(tokens, labels=tokens).loss.backward()
    assert torch.equal(model(tokens).logits, before)


def by_output(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1)


def test_wanda_of_a_language_model_takes_as_many_of_every_output() -> None:
    model, tokens = gpt2(), torch.randint(40, (2, 8))
    known = prunus.evidence(model, [(tokens, tokens)], criterion="wanda", include="*.h.*")
    masks = prunus.make_masks(model, 0.5, criterion="wanda", layers="all", include="*.h.*", evidence=known)
    for mask in masks.values():
        assert ((~by_output(mask)).sum(1) == mask.shape[0] // 2).all()
