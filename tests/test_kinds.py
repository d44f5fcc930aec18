"""Every kind of layer: what is an output of it, and how much of a network `layers="all"` reaches."""

from __future__ import annotations

import copy

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


class Experts(nn.Module):
    """Two linear maps in one tensor, (experts, outputs, inputs), as mixtures of experts keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.randn(2, 4, 6))
        self.places = nn.Parameter(torch.randn(1, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eoi->beo", x, self.maps).sum(1)


def test_experts_are_matrices_of_their_own() -> None:
    model = Experts()
    assert list(prunus.make_masks(model, 0.5, layers="all")) == ["maps"]
    filters = prunus.make_masks(model, 0.5, layers="all", granularity="filter")["maps"]
    wanted = model.maps.detach().abs().sum(2).flatten()
    assert filters.all(2).flatten().tolist() == [i not in wanted.argsort()[:4] for i in range(8)]
    rows = prunus.make_masks(model, 0.5, layers="all", scope="row")["maps"]
    assert (rows.sum(2) == 3).all()
    pruning = prunus.prune(model, 0.5, layers="all")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    assert holds(model, pruning.masks)
    assert torch.equal(model.maps_mask, pruning.masks["maps"])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_both_matrices_of_an_attention_layer_count_in_one_pass(passes: str, batched: bool) -> None:
    """The gradient of the input is that of a layer with both masks, or with neither."""
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
    x = (x if batched else x[0]).requires_grad_()
    dense = copy.deepcopy(layer)
    pruning = prunus.prune(layer, 0.5, layers="all", passes=passes)
    assert list(pruning.masks) == ["in_proj_weight", "out_proj.weight"]
    masked = copy.deepcopy(dense)
    for name, mask in pruning.masks.items():
        masked.get_parameter(name).data.mul_(mask)
    forward, backward = {"both": (masked, masked), "backward": (dense, masked), "forward": (masked, dense)}[
        passes
    ]
    output, weights = layer(x, x, x)
    wanted, wanted_weights = forward(x, x, x)
    torch.testing.assert_close((output, weights), (wanted, wanted_weights))
    seed = torch.randn_like(output)
    [found] = torch.autograd.grad(output, x, seed)
    [expected] = torch.autograd.grad(backward(x, x, x)[0], x, seed)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("passes", ["backward", "forward"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_in_one_pass(kind: type[nn.RNNBase], packed: bool, passes: str) -> None:
    """The gradients of inputs and first state are those of a layer with both masks, or with neither."""
    torch.manual_seed(0)
    layer, x = kind(4, 5, num_layers=2), torch.randn(6, 2, 4, requires_grad=True)
    state = [torch.randn(2, 2, 5, requires_grad=True) for _ in range(1 + (kind is nn.LSTM))]
    dense = copy.deepcopy(layer)
    pruning = prunus.prune(layer, 0.5, layers="all", passes=passes)
    masked = copy.deepcopy(dense)
    for name, mask in pruning.masks.items():
        masked.get_parameter(name).data.mul_(mask)
    forward, backward = (dense, masked) if passes == "backward" else (masked, dense)

    def run(module: nn.Module) -> tuple[Tensor, ...]:
        given = nn.utils.rnn.pack_padded_sequence(x, [6, 3]) if packed else x
        output, last = module(given, tuple(state) if kind is nn.LSTM else state[0])
        output = nn.utils.rnn.pad_packed_sequence(output)[0] if packed else output
        return (output, *(last if kind is nn.LSTM else [last]))

    found, wanted = run(layer), run(forward)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    seeds = [torch.randn_like(value) for value in found]
    gradients = torch.autograd.grad(found, [x, *state], seeds)
    expected = torch.autograd.grad(run(backward), [x, *state], seeds)
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value)
    only_state = torch.autograd.grad(
        layer(x.detach(), tuple(state) if kind is nn.LSTM else state[0])[0].sum(), state
    )
    assert all(gradient.any() for gradient in only_state)


@pytest.mark.parametrize("passes", ["backward", "forward"])
@pytest.mark.parametrize("include", ["bias", ["weight", "bias"]])
@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv2d(3, 4, 1)])
def test_a_bias_in_one_pass(layer: nn.Module, include: str | list[str], passes: str) -> None:
    dense, x = copy.deepcopy(layer), torch.randn(2, 3, 3, 3, requires_grad=True)
    layer = copy.deepcopy(layer)
    pruning = prunus.prune(layer, 0.5, include=include, layers="all", passes=passes)
    masked = copy.deepcopy(dense)
    for name, mask in pruning.masks.items():
        masked.get_parameter(name).data.mul_(mask)
    forward, backward = (dense, masked) if passes == "backward" else (masked, dense)
    output = layer(x)
    assert torch.equal(output, forward(x))
    seed = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, x, seed), torch.autograd.grad(backward(x), x, seed)
    )


def test_a_recurrent_layer_is_saved_loaded_exchanged_and_called_functionally() -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(4, 5), torch.randn(6, 2, 4)
    pruning = prunus.prune(model, 0.5, layers="all")
    state = copy.deepcopy(model.state_dict())
    assert not any(state[name][~mask].any() for name, mask in pruning.masks.items())
    model.load_state_dict({name: torch.randn_like(value) for name, value in state.items()})
    assert holds(model, pruning.masks)
    own = dict(model.named_parameters())
    given = {name: torch.randn_like(value) for name, value in own.items()}
    found = torch.func.functional_call(model, given, (x,))[0]
    masked = {n: v * pruning.masks[n] if n in pruning.masks else v for n, v in given.items()}
    torch.testing.assert_close(found, torch.func.functional_call(nn.LSTM(4, 5), masked, (x,))[0])
    assert all(model.get_parameter(name) is parameter for name, parameter in own.items())
    model.load_state_dict(given, assign=True)
    model(x)
    assert holds(model, pruning.masks)
    model.weight_hh_l0 = nn.Parameter(torch.randn(20, 5))
    model(x)
    assert holds(model, pruning.masks)
    assert prunus.masks_of(model) == pruning.masks
    zeros = prunus.Masks.from_zeros(
        prunus.global_prune(nn.LSTM(4, 5), 0.5, layers="all", keep_original=False)
    )
    assert set(zeros) == {"weight_ih_l0", "weight_hh_l0"}


def test_biases_go_with_their_filters_where_both_are_named() -> None:
    model = nn.Conv2d(3, 8, 3)
    masks = prunus.make_masks(model, 0.5, include=["weight", "bias"], granularity="filter")
    assert {name: pruned for name, (pruned, _) in masks.counts.items()} == {"weight": 108, "bias": 4}


def test_a_weight_under_two_names_is_refused() -> None:
    first, second = nn.LSTM(3, 3), nn.LSTM(3, 3)
    second.weight_hh_l0 = first.weight_ih_l0
    model = nn.ModuleList([first, second])
    masks = prunus.make_masks(first, 0.5, layers="all")
    with pytest.raises(ValueError, match=r"0.weight_ih_l0 is tied to 1.weight_hh_l0, under another name"):
        prunus.prune(model, 0.5, layers="all")
    named = prunus.Masks({f"0.{name}": mask for name, mask in masks.items()})
    with pytest.raises(ValueError, match=r"0.weight_ih_l0 is tied to 1.weight_hh_l0, under another name"):
        prunus.apply_masks(model, named)
    assert not prunus.masks_of(model)
    prunus.prune(model, 0.5, layers="all", exclude=["0.weight_ih_l0"])


def test_what_is_no_weight_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((4, 4)), nn.Bilinear(3, 5, 7))
    assert list(prunus.make_masks(model, 0.5, layers="all")) == ["0.weight", "2.weight"]
    assert list(prunus.make_masks(model, 0.5, layers=nn.LayerNorm, criterion="random")) == ["1.weight"]
    normed = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    with pytest.raises(ValueError, match="weight_hh_l0 is not a parameter of its"):
        prunus.make_masks(normed, 0.5, layers="all")


def test_filters_of_biases_bilinear_maps_and_bags() -> None:
    def filters(layer: nn.Module, **choice: str) -> int:
        [partition] = prunus.rank(layer, granularity="filter", layers="all", **choice).partitions.values()
        return partition.count

    assert filters(nn.ConvTranspose2d(3, 8, 3), include="bias") == 8
    assert filters(conv1d(), include="bias") == 5
    assert filters(nn.Bilinear(3, 5, 7)) == 7
    assert filters(nn.EmbeddingBag(10, 4)) == filters(nn.Embedding(10, 4)) == 4


@pytest.mark.parametrize("sparse", [False, True])
def test_evidence_of_an_attention_network_and_of_an_embedding(sparse: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4, padding_idx=0, sparse=sparse)
            self.attend = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.out = nn.Linear(4, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.attend(self.embed(tokens)).mean(1))

    model, tokens = Net(), torch.tensor([[0, 1, 1], [2, 0, 3]])
    data = [(tokens, torch.tensor([0, 2]))]
    known = prunus.evidence(model, data)
    prunus.make_masks(model, 0.5, criterion="taylor", layers="all", evidence=known)
    prunus.make_masks(model, 0.5, criterion="wanda", layers="all", include="embed", evidence=known)
    with pytest.raises(ValueError, match="in_proj_weight has no inputs"):
        prunus.make_masks(model, 0.5, criterion="wanda", layers="all", evidence=known)
    nn.functional.cross_entropy(model(tokens), data[0][1]).backward()
    prunus.make_masks(model, 0.5, criterion="gradient", layers="all")
