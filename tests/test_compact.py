"""Cut networks give what the pruned ones give, and what cannot be cut is kept, and said."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.cli.main import main
from prunus.inputs import digits
from prunus.inputs.networks import load_network
from tests.conftest import everything, same

torchvision = pytest.importorskip("torchvision")


def lively(model: nn.Module) -> nn.Module:
    """Batch norms as of a trained network, and no last layer of zeros."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, 0, 0.02)
    return model.eval()


def apart(one: nn.Module, other: nn.Module, x: Any) -> float:
    with torch.no_grad():
        a, b = one(x), other(x)
    return float((a - b).abs().max() / a.abs().max())


FAMILIES = {  # how many channels that are empty stay
    "resnet18": 0,
    "vgg11_bn": 0,
    "mobilenet_v2": 0,
    "mobilenet_v3_small": 0,
    "densenet121": 0,
    "efficientnet_b0": 0,
    "regnet_x_400mf": 0,
    "googlenet": 0,
    "squeezenet1_1": 0,
    "mnasnet0_5": 0,
    "shufflenet_v2_x0_5": None,
    "convnext_tiny": None,
    "swin_t": None,
    "vit_b_16": None,
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_families_of_torchvision(name: str) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = lively(torchvision.models.get_model(name, weights=None, **options))
    side = 224 if name == "vit_b_16" else 64
    x = torch.randn(2, 3, side, side)
    layers = "all" if name in ("convnext_tiny", "swin_t", "vit_b_16") else "Conv2d"
    prunus.prune(model, 0.25, granularity="filter", coupled=True, example_inputs=x[:1], layers=layers)
    before = everything(model)
    made = prunus.compact(model, x[:1])
    assert same(before, everything(model))
    assert apart(model, made.model, x) < 1e-5
    assert made.macs[1] < 0.95 * made.macs[0]
    assert made.weights == tuple(sum(p.numel() for p in m.parameters()) for m in (model, made.model))
    if FAMILIES[name] == 0:
        assert not made.spared
        convolutions = [m for m in made.model.modules() if isinstance(m, nn.Conv2d)]
        assert all(module.weight.flatten(1).any(1).all() for module in convolutions)
    else:
        assert sum(made.spared.values()) > 0
        assert "empty channels stayed: they" in str(made)


@pytest.mark.parametrize(
    "name", ["resnet14t", "ghostnet_050", "tinynet_e", "repvgg_a0", "mobilenetv3_small_050"]
)
@pytest.mark.filterwarnings("ignore")
def test_families_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model, x = lively(timm.create_model(name, pretrained=False)), torch.randn(1, 3, 64, 64)
    prunus.prune(model, 0.25, granularity="filter", coupled=True, example_inputs=x)
    made = prunus.compact(model, x)
    assert apart(model, made.model, x) < 1e-5
    assert made.weights[1] < 0.95 * made.weights[0]


@pytest.mark.filterwarnings("ignore")
def test_language_models() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 16}
    bert = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    for model in (
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**small)).eval(),
        transformers.BertForSequenceClassification(bert).eval(),
    ):
        x = {"input_ids": torch.randint(50, (2, 8))}
        prunus.prune(model, 0.3, granularity="filter", coupled=True, example_inputs=x, layers="all")
        made = prunus.compact(model, x)
        with torch.no_grad():
            a, b = model(**x).logits, made.model(**x).logits
        assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))
        assert made.weights[1] < made.weights[0]


class Wired(nn.Module):
    """A sum, a concatenation, depthwise and grouped convolutions, a scale of channels, and a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.slope = nn.PReLU(8)
        self.side = nn.Conv2d(3, 4, 3, padding=1)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.head = nn.Linear(6 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        y = y + self.slope(self.point(self.deep(y)))
        y = self.grouped(torch.cat([y, self.side(x)], 1))
        return self.head((self.up(F.max_pool2d(y, 2)) * self.scale).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.rnn: Any = kind(6, 8, batch_first=True, **options)
        self.head = nn.Linear(16 if options.get("bidirectional") else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.rnn(x)[0][:, -1])
        return made


@pytest.mark.filterwarnings("ignore")
def test_every_way_that_channels_are_joined_and_read() -> None:
    torch.manual_seed(1)
    model, x = Wired().eval(), torch.randn(2, 3, 6, 6)
    model.norm.running_mean.normal_()
    prunus.prune(model, 0.5, granularity="filter", coupled=True, example_inputs=x, layers="all")
    made = prunus.compact(model, x)
    assert apart(model, made.model, x) < 1e-5
    small = made.model
    assert (
        small.deep.groups == small.deep.in_channels == small.deep.out_channels == len(small.stem.weight) < 8
    )
    assert small.norm.num_features == len(small.norm.running_var) == small.stem.out_channels
    assert small.slope.num_parameters == small.stem.out_channels
    assert small.head.in_features == 36 * len(small.scale) == 36 * small.up.out_channels < 6 * 36
    x = torch.randn(3, 3, 6, 6)
    assert apart(model, small, x) < 1e-5
    assert torch.equal(copy.deepcopy(small)(x), small(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [
    {}, {"kind": nn.GRU}, {"kind": nn.RNN}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False},
    {"num_layers": 2, "bidirectional": True, "kind": nn.GRU},
], ids=str)  # fmt: skip
def test_units_of_recurrent_networks_go(options: dict[str, Any], tmp_path: Path) -> None:
    model, x = Recurrent(**options).eval(), torch.randn(2, 4, 6)
    prunus.prune(model, 0.5, granularity="filter", coupled=True, example_inputs=x, layers="all")
    made = prunus.compact(model, x)
    assert made.model.rnn.hidden_size < 8
    assert made.macs[1] < 0.75 * made.macs[0]
    other = torch.randn(3, 7, 6)
    assert apart(model, made.model, other) < 1e-5
    assert apart(copy.deepcopy(made.model), made.model, other) == 0
    prunus.save_compact(made.model, tmp_path / "small.safetensors")
    again = prunus.load_compact(lambda: Recurrent(**options), tmp_path / "small.safetensors").eval()
    assert apart(again, made.model, other) == 0
    made.model.train()(other).sum().backward()


def test_layers_of_a_recurrent_network_stay_as_wide_as_each_other() -> None:
    model, x = Recurrent(num_layers=2).eval(), torch.randn(2, 4, 6)
    with torch.no_grad():
        for name, units in (("l0", [1, 2, 5]), ("l1", [0, 3])):
            rows = [gate * 8 + unit for gate in range(4) for unit in units]
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(model.rnn, f"{kind}_{name}")[rows] = 0
    made = prunus.compact(model, x)
    assert made.model.rnn.hidden_size == 6
    assert made.spared == {"are more than other layers of theirs lose": 1}
    assert apart(model, made.model, torch.randn(2, 4, 6)) < 1e-6


class Attending(nn.Module):
    """Queries of one kind, keys and values of another, and masks."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, **options)

    def forward(self, x: Tensor, need_weights: bool = False, **masks: Tensor) -> Any:
        memory = x[..., : self.attention.kdim] * 2
        made = self.attention(x, memory, memory, need_weights=need_weights, **masks)
        return made if need_weights else made[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [
    {}, {"batch_first": True}, {"bias": False}, {"kdim": 8, "vdim": 8}, {"add_bias_kv": True},
], ids=str)  # fmt: skip
def test_heads_of_torchs_attention_go(options: dict[str, Any], tmp_path: Path) -> None:
    model, x = Attending(**options).eval(), torch.randn(5, 5, 16)
    with torch.no_grad():
        for weight in model.attention.parameters():
            weight.add_(torch.randn_like(weight))
    prunus.prune(model, 0.5, granularity="filter", coupled=True, example_inputs=x, layers="all")
    made = prunus.compact(model, x)
    if "add_bias_kv" in options:  # keys of every head, which no narrower one has
        assert made.spared
        return
    heads = made.model.attention.num_heads
    assert heads == 2
    prunus.save_compact(made.model, tmp_path / "small.safetensors")
    again = prunus.load_compact(lambda: Attending(**options), tmp_path / "small.safetensors").eval()
    causal, padded = torch.ones(5, 5).triu(1).bool(), torch.zeros(5, 5).bool()
    padded[2, 3:] = True
    for small in (made.model, copy.deepcopy(made.model), again):
        for masks in ({}, {"attn_mask": causal}, {"key_padding_mask": padded},
                      {"attn_mask": torch.randn(5, 5), "key_padding_mask": padded}):  # fmt: skip
            wanted, found = model(x, **masks), small(x, **masks)
            assert torch.allclose(wanted, found, atol=1e-5 * float(wanted.abs().max()))
        weights = small(x, need_weights=True, average_attn_weights=False)[1]
        assert weights.shape == (5, heads, 5, 5)
        alone = x[:, 0]
        assert torch.allclose(model(alone), small(alone), atol=1e-5 * float(model(alone).abs().max()))
        with pytest.raises(ValueError, match="attn_mask has one for each head"):
            small(x, attn_mask=torch.zeros(20, 5, 5))
    made.model.train()(x).sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_heads_of_encoders_and_of_others_go() -> None:
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
    layer = nn.TransformerEncoderLayer(48, 4, 64, batch_first=True)
    words, image = {"input_ids": torch.randint(50, (2, 8))}, torch.randn(1, 3, 32, 32)
    gpt2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 16, "eos_token_id": 0}
    vit = {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8, "num_classes": 5}
    for model, inputs, weight in (
        (nn.TransformerEncoder(layer, 2), torch.randn(2, 5, 48), "layers.0.self_attn.in_proj_weight"),
        (timm.models.VisionTransformer(**vit), image, "blocks.0.attn.qkv.weight"),
        (transformers.BertModel(transformers.BertConfig(hidden_size=48, **sizes)), words, "query.weight"),
        (transformers.GPT2Model(transformers.GPT2Config(**gpt2, bos_token_id=0)), words, "c_attn.weight"),
        (transformers.LlamaModel(transformers.LlamaConfig(hidden_size=48, num_key_value_heads=2, **sizes)),
         words, "q_proj.weight"),
    ):  # fmt: skip
        model.eval()
        prunus.prune(model, 0.5, granularity="filter", coupled=True, example_inputs=inputs, layers="all")
        made = prunus.compact(model, inputs)
        cut = next(sizes for name, sizes in made.shapes.items() if name.endswith(weight))
        assert 0.5 * max(cut[0]) in {float(side) for side in cut[1]}
        assert not any("counted on by the forward" in why for why in made.spared)
        with torch.no_grad():
            given = inputs if isinstance(inputs, dict) else {}
            wanted, found = (m(**given)[0] if given else m(inputs) for m in (model, made.model))
        assert torch.allclose(wanted, found, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("reader", "stays"),
    [
        (nn.Conv2d(8, 4, 3), 0),
        (nn.Conv2d(8, 4, 3, padding="valid"), 0),
        (nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"), 0),
        (nn.Conv2d(8, 4, 3, padding=1), 1),
        (nn.Conv2d(8, 4, 3, padding="same"), 1),
        (nn.Conv2d(8, 4, 1, bias=False), 1),
        (nn.ConvTranspose2d(8, 4, 3, stride=2), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5)), 0),
        (nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5, bias=False)), 1),
        (nn.Sequential(nn.BatchNorm2d(8), nn.Hardsigmoid(), nn.Conv2d(8, 4, 3, padding=1)), 1),
    ],
)
def test_constants_of_empty_channels_are_folded(reader: nn.Module, stays: int) -> None:
    """Zero filters with biases, of which half are zeros after the activation."""
    x = torch.randn(2, 3, 8, 8)
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), reader))
    with torch.no_grad():
        model[0].weight[1:6], model[0].bias[1:6] = 0, torch.tensor([0, 0.5, -0.5, 0, 2.0])
    before = everything(model)
    made = prunus.compact(model, x)
    assert same(before, everything(model))
    assert made.model[0].out_channels == 3 + stays
    assert made.folded > 0
    assert sum(made.spared.values()) == stays
    assert "constants are folded" in str(made)
    for scale in (1, 100):
        assert apart(model, made.model, scale * torch.randn(3, 3, 8, 8)) < 1e-6
    with pytest.raises(ValueError, match="constants were folded"):
        made.state(model.state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_batch_norms_of_filters_that_fell_alone(name: str) -> None:
    """Within blocks nothing that is empty stays, but for one channel of a layer that pads or has no bias."""
    model, x = lively(torchvision.models.get_model(name)), torch.randn(2, 3, 64, 64)
    within = ["*conv1.weight", "*conv2.weight"]
    prunus.prune(model, 0.5, granularity="filter", include=within)
    made = prunus.compact(model, x[:1])
    assert apart(model, made.model, x) < 1e-5
    readers = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert all("carry a constant" in why for why in made.spared)
    assert sum(made.spared.values()) < readers
    assert made.macs[1] < 0.6 * made.macs[0]


def test_what_nobody_reads_goes() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    prunus.prune(model, 0.5, granularity="channel", scope="layer", include=["3.weight"])
    made = prunus.compact(model, x)
    assert (made.model[0].out_channels, made.model[1].num_features, made.spared) == (4, 4, {})
    assert apart(model, made.model, 100 * x) < 1e-6

    shared = Branch(lambda h, y: y + h.pow(2).sum(1, keepdim=True))
    with torch.no_grad():
        shared.a.bias.fill_(1.0), shared.b.weight[:, :4].zero_()
    made = prunus.compact(shared, torch.randn(4, 6))
    assert made.model.a.out_features == 8  # another looks at them


@pytest.mark.filterwarnings("ignore")
def test_blocks_that_add_nothing_are_taken_out(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return lively(torchvision.models.resnet18())

    model, x = build(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for block in (model.layer1[1], model.layer3[1]):
            for parameter in block.bn2.parameters():
                parameter.zero_()
        (
            model.layer2[0].bn2.weight.zero_(),
            model.layer2[0].bn2.bias.zero_(),
        )  # which has a shortcut of its own
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model.train()(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for block in (model.layer1[1], model.layer3[1]):
            block.bn2.weight.zero_(), block.bn2.bias.zero_()
    made = prunus.compact(model.eval(), x)
    assert made.skipped == ["layer1.1", "layer3.1"]
    assert "layer3.1 is gone: it gave back what it was given" in str(made)
    assert apart(model, made.model, 10 * torch.randn(2, 3, 64, 64)) < 1e-6
    gone = sum(p.numel() for block in (model.layer1[1], model.layer3[1]) for p in block.parameters())
    assert made.weights[1] <= made.weights[0] - gone
    prunus.save_compact(made.model, tmp_path / "small.safetensors")
    again = prunus.load_compact(build, tmp_path / "small.safetensors").eval()
    assert torch.equal(again(x), made.model(x))
    assert torch.equal(load_network("resnet18", f"{tmp_path}/small.safetensors").model(x), again(x))
    with pytest.raises(ValueError, match=r"there is no block layer1\.1"):
        prunus.load_compact(torchvision.models.squeezenet1_1, tmp_path / "small.safetensors")
    carried = made.carry(optimizer, model)
    assert len(carried.param_groups[0]["params"]) == len(list(made.model.parameters()))
    made.model.train()(x).sum().backward()
    carried.step()
    assert made.folded == 0
    assert made.state(model.state_dict()).keys() == made.model.state_dict().keys()


def test_a_block_that_gives_back_only_what_it_saw_is_kept() -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(max=5) + self.scale * x  # random inputs at ten times reach it

    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)
            nn.init.constant_(self.inner.bias, -1e4)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.inner(x))  # zero by chance, and no weight is

    for block in (Clipped(), Dead()):
        model = nn.Sequential(nn.Linear(6, 6), block, nn.Linear(6, 2))
        assert prunus.compact(model, torch.rand(2, 6)).skipped == []


@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_widths_that_kernels_like(round_to: int) -> None:
    model, x = Wired().eval(), torch.randn(2, 3, 6, 6)
    wide = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 12, 3),
                         nn.Flatten(), nn.Linear(48, 30), nn.ReLU(), nn.Linear(30, 2)).eval()  # fmt: skip
    for net, fraction in ((model, 0.4), (wide, 0.3)):
        prunus.prune(net, fraction, granularity="filter", coupled=True, example_inputs=x, layers="all")
        made = prunus.compact(net, x, round_to=round_to)
        assert apart(net, made.model, x) < 1e-5
        for name, (old, new) in made.shapes.items():
            if name.endswith("weight") and len(new) > 1 and new[0] != old[0]:
                assert new[0] % round_to == 0
    assert [made.model[place].weight.shape[0] for place in (0, 3, 5)] == {
        1: [28, 9, 21], 4: [28, 12, 24], 8: [32, 12, 24]}[round_to]  # fmt: skip
    stayed = {1: 0, 4: 3 + 3, 8: 4 + 3 + 3}[round_to]
    assert sum(made.spared.values()) == stayed
    assert set(made.spared) <= {f"make widths multiples of {round_to}"}


def test_in_place_and_what_cannot_be_restored() -> None:
    x = torch.randn(2, 3, 8, 8)

    def build() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    model = build()
    prunus.prune(model, 0.5, granularity="filter", coupled=True, example_inputs=x)
    wanted, copied = model(x), prunus.compact(model, x)
    assert torch.equal(copied.model(x), copied.model(x))
    made = prunus.compact(model, x, inplace=True)
    assert made.model is model
    assert model[0].out_channels == 4
    assert torch.allclose(model(x), wanted, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copied.model.parameters(), strict=True))
    for cut in (model, copied.model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match="was cut by compact"):
            prunus.restore(cut)
    before = model[0].weight.clone()
    prunus.prune(model, 0.5)
    assert torch.equal(prunus.restore(model)[0].weight, before)
    failing = Branch(lambda h, y: y)
    weights = everything(failing)
    with pytest.raises(RuntimeError):
        prunus.compact(failing, torch.randn(2, 5), inplace=True)
    assert same(weights, everything(failing))


def test_masks_of_the_backward_pass_cut_nothing() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    wanted = model(x)
    prunus.gradient_prune(model, 0.5, granularity="filter")
    made = prunus.compact(model, x)
    assert made.weights[0] == made.weights[1]
    assert torch.equal(made.model(x), wanted)


def test_the_report_counts_every_layer() -> None:
    model, x = lively(torchvision.models.resnet18()), torch.randn(1, 3, 64, 64)
    prunus.prune(model, 0.25, granularity="filter", coupled=True, example_inputs=x)
    made = prunus.compact(model, x)
    told = json.loads(json.dumps(made.report()))
    for kind in ("weights", "macs"):
        assert [sum(layer[kind][side] for layer in told["layers"]) for side in (0, 1)] == told[kind]
    assert {layer["name"] for layer in told["layers"]} >= {"conv1", "layer4.1.bn2", "fc"}


def test_normalizations_and_whole_layers_are_kept() -> None:
    x = torch.randn(2, 3, 8, 8)
    grouped = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        grouped[0].weight[:4], grouped[1].weight[:4], grouped[1].bias[:4] = 0, 0, 0
    made = prunus.compact(grouped, x)
    assert made.spared == {"are normalized together with others": 4}
    assert apart(grouped, made.model, x) == 0

    dead = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        dead[0].weight.zero_(), dead[0].bias.zero_()
    with pytest.warns(UserWarning, match="the outputs are the same for other inputs"):
        made = prunus.compact(dead, x)
    assert made.model[0].out_channels == 1
    assert made.spared == {"are all that a layer has": 1}


class Chunked(nn.Module):
    """What halves its channels by number, and so counts on all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(4, 2, 1)
        self.three = nn.Conv2d(3, 6, 1, bias=False)
        self.four = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.one(x).chunk(2, 1)
        return self.two(first) + 2 * self.two(second.flip(1)) + self.four(self.three(x))


def test_only_what_changes_nothing_goes() -> None:
    model, x = Chunked(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        model.one.weight[:2], model.three.weight[::2] = 0, 0
    made = prunus.compact(model, x)
    assert apart(model, made.model, x) < 1e-6
    assert made.model.three.out_channels == 3
    assert made.model.one.out_channels == 8


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.AdamW(p, 0.01),
])  # fmt: skip
def test_training_goes_on_with_the_cut_network(make: Callable[..., torch.optim.Optimizer]) -> None:
    images, labels = digits.load_images(train=True)
    model = digits.load_network("residual")
    optimizer = make(model.parameters())

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model.train()(images[:64]), labels[:64]).backward()
        optimizer.step()

    step(model, optimizer)
    options: dict[str, Any] = {"granularity": "filter", "coupled": True, "example_inputs": images[:1]}
    prunus.Gradual(model, 0.5, [1], optimizer=optimizer, **options).step()
    made = prunus.compact(model, images[:1])
    assert all(module.training for module in made.model.modules())
    carried = made.carry(optimizer, model)
    assert type(carried) is type(optimizer)
    for _ in range(2):
        step(model, optimizer)
        step(made.model, carried)
    wanted = made.state(model.state_dict())
    assert wanted.keys() == made.model.state_dict().keys()
    for name, value in made.model.state_dict().items():
        assert torch.allclose(value, wanted[name], atol=1e-5), name
    with pytest.raises(ValueError, match="not of the model"):
        made.carry(make(digits.load_network("plain").parameters()), model)


@pytest.mark.filterwarnings("ignore")
def test_files_of_cut_networks(tmp_path: Path) -> None:
    path, x = tmp_path / "small.safetensors", torch.randn(1, 3, 64, 64)

    def build(name: str = "mobilenet_v2") -> Any:
        return lively(torchvision.models.get_model(name, weights=None))

    model = build()
    prunus.prune(model, 0.5, granularity="filter", coupled=True, example_inputs=x)
    small = prunus.compact(model, x).model
    prunus.save_compact(small, path)
    again = prunus.load_compact(build, path)
    assert torch.equal(again.eval()(x), small(x))
    assert str(again) == str(small)
    assert torch.equal(load_network("mobilenet_v2", str(path)).model(x), small(x))
    assert torch.equal(prunus.load_compact("mobilenet_v2", path).eval()(x), small(x))
    assert path.stat().st_size < 1.05 * 4 * sum(p.numel() for p in small.parameters()) + 100_000
    for other, message in (
        ("resnet18", "is of another network"),
        ("mobilenet_v3_small", "is of another network"),
    ):
        with pytest.raises(ValueError, match=message):
            prunus.load_compact(lambda other=other: build(other), path)
    larger = digits.load_network("residual")
    prunus.save_compact(larger, path)
    with pytest.raises(ValueError, match=r"0.weight has shape"):
        prunus.load_compact(digits.NETWORKS["plain"], path)
    prunus.Masks({"w": torch.ones(2, dtype=torch.bool)}).save(path)
    with pytest.raises(ValueError, match="is no file of save_compact"):
        prunus.load_compact(build, path)


def test_accuracy_is_the_same_to_the_image(shared: Path, cifar_folder: Path) -> None:
    from prunus.inputs.images import Source, open_images
    from prunus.inputs.networks import Preprocessing

    how = Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network = load_network(f"{shared}/models/cifar_resnet.py:resnet20", f"{shared}/models/resnet20.pth", how)
    images = open_images(network, Source(cifar_folder, batch_size=500))
    x = torch.randn(1, 3, 32, 32)
    with prunus.prune(network.model, 0.1, granularity="filter", coupled=True, example_inputs=x):
        made = prunus.compact(network.model, x)
        assert made.macs[1] < 0.9 * made.macs[0]
        # Its shortcuts fill up with as many channels as they were written for
        assert set(made.spared) <= {"are counted on by the forward, which fails without (RuntimeError)"}
        for batch, _ in images:
            with torch.no_grad():
                assert torch.equal(network.model(batch).argmax(1), made.model(batch).argmax(1))


def test_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, small = tmp_path / "trained", tmp_path / "small.safetensors"
    train = ["train", "-a", "digits:plain", "--weights", "DEFAULT", "--schedule", "gradual", "--to", "0.5"]
    train += ["--granularity", "filter", "--coupled", "--epochs", "2"]
    assert main([*train, "-o", str(trained)]) == 0
    [network] = (trained / "networks").glob("*gradual*.pth")
    compact = ["compact", "-a", "digits:plain", "--weights", str(network), "-o", str(small)]
    assert main(compact) == 0
    assert "16x1x3x3 -> 8x1x3x3" in capsys.readouterr().out
    assert main([*compact[:-2], "--json", "--round-to", "16"]) == 0
    [told] = json.loads(capsys.readouterr().out)
    assert (told["network"], told["weights"][0], told["spared"]["make widths multiples of 16"] > 0) == (
        "digits:plain", sum(p.numel() for p in digits.load_network("plain").parameters()), True)  # fmt: skip
    results = [
        prunus.evaluate(load_network("digits:plain", str(path)).model, [digits.load_images()])
        for path in (network, small)
    ]
    assert results[0].correct == results[1].correct
    assert small.stat().st_size < network.stat().st_size / 2
    assert main([*compact, "-a", "digits:plain,digits:residual"]) == 2
    assert "give one --arch" in capsys.readouterr().err


class Branch(nn.Module):
    """Two layers, and something done with what is between them."""

    def __init__(self, between: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between
        with torch.no_grad():
            self.a.weight[1::2], self.a.bias[1::2] = 0, 0

    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        return self.between(h, self.b(h))


@dataclass
class Output:
    y: Tensor


@pytest.mark.parametrize(
    ("between", "cuts"),
    [
        (lambda h, y: y, True),
        (lambda h, y: y + h.sum(1, keepdim=True), True),
        (lambda h, y: Output(y + h.sum(1, keepdim=True)), True),
        (lambda h, y: Output(y - h.mean(1, keepdim=True)), False),
        (lambda h, y: y + torch.relu(h.mean(1, keepdim=True) - 100), False),
        (lambda h, y: y * (30 + h.abs()).amax(1, keepdim=True), False),
        (lambda h, y: y * h.softmax(1).amax(1, keepdim=True), False),
        (lambda h, y: (y, float(h.mean())), False),
        (lambda h, y: (y, h.shape[1]), False),
        (lambda h, y: (y, h.var(1)), False),
        (lambda h, y: y * h.topk(5, 1)[0].sum(1, keepdim=True), False),
    ],
)
def test_zeros_that_count_stay(between: Callable[[Tensor, Tensor], Any], cuts: bool) -> None:
    made = prunus.compact(Branch(between), torch.randn(4, 6))
    assert (made.model.a.out_features == 4) == cuts
    assert bool(made.spared) != cuts


def test_what_inputs_beside_the_example_are_like() -> None:
    torch.manual_seed(0x5EED)  # whatever a user's own seed is
    model, x = Branch(lambda h, y: y), torch.randn(2, 6)
    assert prunus.compact(model, x).model.a.out_features == 4  # and nothing is warned of

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Embedding(10, 8), nn.Linear(8, 16), nn.Linear(16, 3)
            with torch.no_grad():
                self.a.weight[:4], self.a.bias[:4] = 0, 0

        def forward(self, words: Tensor) -> Tensor:
            h = self.a(self.table(words))
            shared = torch.where((words == 2)[..., None], h.std(-1, keepdim=True), 0 * h[..., :1])
            return self.b(h) + shared

    assert prunus.compact(Words(), torch.tensor([[0, 1, 3]])).model.a.out_features == 16
    prunus.compact(Words(), torch.tensor([[2, 2]]))  # of which there are no others, nor is it warned of


def test_every_kind_of_tensor_and_module() -> None:
    tied = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False))
    tied[1].weight = tied[0].weight
    with torch.no_grad():
        tied[0].weight[:, ::2] = 0
    made = prunus.compact(tied, torch.tensor([[1, 2]]))
    assert made.model[0].weight is made.model[1].weight
    assert tuple(made.model[0].weight.shape) == (10, 4)
    made.model.load_state_dict(made.state(tied.state_dict()))
    averaged = torch.optim.swa_utils.AveragedModel(tied)
    small = torch.optim.swa_utils.AveragedModel(made.model)
    small.load_state_dict(made.state(averaged.state_dict()))
    with pytest.raises(ValueError, match="'other' is none of the network's"):
        made.state({"other": torch.ones(1)})

    last = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(
        memory_format=torch.channels_last  # type: ignore[call-overload]
    )
    with torch.no_grad():
        last[0].weight[:4], last[0].bias[:4] = 0, 0
    small_last = prunus.compact(last, torch.randn(1, 3, 8, 8)).model
    assert small_last[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_layers_that_only_train_are_told_of() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.aux = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
            with torch.no_grad():
                self.a.weight[:4], self.a.bias[:4] = 0, 0

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h) + self.aux(h) if self.training else self.b(h)

    with pytest.warns(UserWarning, match="does not use 1 modules, such as 'aux'"):
        made = prunus.compact(Auxiliary(), torch.randn(2, 6))
    assert made.model.b.in_features == 4


def test_optimizers_that_cannot_be_cut_and_rates_in_tensors() -> None:
    model, x = Branch(lambda h, y: y), torch.randn(2, 6)
    made = prunus.compact(model, x)
    rate = torch.tensor(0.01)
    carried = made.carry(torch.optim.AdamW(model.parameters(), lr=rate), model)
    carried.param_groups[0]["lr"].fill_(1.0)
    assert float(rate) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="LBFGS"):
        made.carry(torch.optim.LBFGS(model.parameters()), model)
    adafactor = torch.optim.Adafactor(model.parameters())
    model(x).sum().backward()
    adafactor.step()
    with pytest.raises(ValueError, match=r"row_var of \w\.weight has shape"):
        made.carry(adafactor, model)


def test_wrong_arguments(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    for model, options, error, message in (
        (3, {}, TypeError, "model must be a torch.nn.Module, got int"),
        (nn.ReLU(), {}, ValueError, "has no parameters"),
        (nn.Conv2d(3, 8, 3, device="meta"), {}, ValueError, "on the meta device"),
        (net, {"tolerance": -1.0}, ValueError, "tolerance must be 0 or more"),
        (net, {"tolerance": float("nan")}, ValueError, "tolerance must be"),
    ):
        with pytest.raises(error, match=message):
            prunus.compact(model, x, **options)  # type: ignore[arg-type]
    import torch.nn.utils.prune as old

    old.random_unstructured(net[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"call its prune\.remove first"):
        prunus.compact(net, x)
    path = tmp_path / "small.safetensors"
    with pytest.raises(ValueError, match="no file"):
        prunus.load_compact(lambda: net, path)
    cut = nn.Sequential(nn.Conv2d(3, 4, 3)).double()
    prunus.save_compact(cut, path)
    again = prunus.load_compact(lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), path)
    assert torch.equal(again[0].weight, cut[0].weight)
    assert again[0].weight.dtype == torch.float64
    with pytest.raises(ValueError, match=r"in 0 groups|has shape"):
        prunus.load_compact(lambda: nn.Sequential(nn.Conv2d(6, 16, 3, groups=2)), path)
