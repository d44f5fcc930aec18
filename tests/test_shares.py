"""Where little of a network is pruned, or nothing, the call says how little and what holds the rest."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import prunus


class Twice(nn.Module):
    """Its output layer is its embedding, and what lies between is of another type."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 10)
        self.mix = nn.Bilinear(10, 10, 3, bias=False)
        self.out = nn.Linear(10, 10, bias=False)
        self.out.weight = self.embed.weight


def said(model: nn.Module, **choice: Any) -> str:
    """The one warning of a call."""
    with pytest.warns(UserWarning, match="layers hold only") as caught:
        prunus.make_masks(model, 0.5, **choice)
    assert caught[0].filename == __file__
    return str(caught[0].message)


def refused(model: nn.Module, **choice: Any) -> str:
    with pytest.raises(ValueError, match=r"^nothing to prune: ") as caught:
        prunus.make_masks(model, 0.5, **choice)
    return str(caught.value).removeprefix("nothing to prune: ")


def test_few_layers_and_tied_weights_once() -> None:
    assert said(Twice(), layers="Linear") == (
        "Linear layers hold only 25.0% of the model's 400 weights; Bilinear holds 75.0%; "
        'layers="all" takes every layer that has weights'
    )


def test_the_rest_largest_first() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(9, 9), nn.Embedding(20, 5), nn.LayerNorm(1))
    assert said(model) == (
        "Conv2d layers hold only 0.5% of the model's 194 weights; Embedding holds 51.5%, Linear 46.4%, "
        'LayerNorm 1.0%; layers="all" takes every layer that has weights'
    )


class Places(nn.Module):
    """Few weights beside a table of places."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 9, 9))
        self.scale = nn.Parameter(torch.ones(9, 1, 1))
        self.linear = nn.Linear(3, 3)


def test_what_no_layer_type_takes_is_taken_by_name() -> None:
    model = Places()
    assert said(model, layers="all") == (
        "all layers hold only 8.8% of the model's 102 weights; Places holds 88.2% (as places …), "
        'Linear 2.9% (as bias); others can be taken by name, as include="places"'
    )
    masks = prunus.make_masks(model, 0.5, include="places", criterion="random")
    assert list(masks) == ["places"]
    assert masks.pruned == 40


@pytest.mark.parametrize(("columns", "warned"), [(9, False), (10, True)])
def test_half_is_enough(columns: int, warned: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 9, 3, bias=False), nn.Linear(columns, 9, bias=False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prunus.make_masks(model, 0.5)
    assert bool(caught) is warned


def test_layers_that_keep_their_weights_under_other_names() -> None:
    assert list(prunus.make_masks(nn.LSTM(4, 8), 0.5, layers="LSTM")) == ["weight_ih_l0", "weight_hh_l0"]
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    message = said(encoder, layers=(nn.MultiheadAttention,))
    assert message.startswith("MultiheadAttention layers hold only 32.0% of the model's 600 weights; Linear")
    assert list(prunus.make_masks(encoder, 0.5, layers="all")) == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]


def test_an_lstm_beside_other_layers() -> None:
    model = nn.Sequential(nn.LSTM(40, 80), nn.Linear(8, 8))
    assert said(model, layers="Linear") == (
        "Linear layers hold only 0.2% of the model's 39,112 weights; LSTM holds 99.8% (as weight_hh_l0 …); "
        'layers="all" takes every layer that has weights'
    )


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_quantized_layers_have_no_parameters() -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})
    assert refused(model, layers="all") == (
        "the model has no parameters; the weights of DynamicQuantizedLinear are packed, not parameters: "
        "prune before quantizing"
    )


def test_a_computed_weight_is_held_by_the_layer_that_computes_it() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))
    message = said(nn.Sequential(normed, nn.Conv2d(3, 3, 1), nn.Linear(20, 9)), exclude="0")
    assert message.startswith("Conv2d layers hold only 31.2% of the model's 288 weights; Linear holds 65.6%")
    assert "Parametrization" not in message
