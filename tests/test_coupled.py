"""Filters that hang together: which they are, and that they fall together, with all that hangs on them."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.coupling.nodes import Unit
from prunus.coupling.trace import trace

torchvision = pytest.importorskip("torchvision")


def units_of(model: nn.Module, example: object) -> list[Unit]:
    return trace(model, dict(model.named_parameters()), example)


def free(units: Iterable[Unit]) -> dict[tuple[tuple[str, int], ...], int]:
    """How many units there are of so many filters of these weights, outputs left out."""
    return dict(
        Counter(tuple(sorted(Counter(f.name for f in u.filters).items())) for u in units if not u.why)
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.norm(x + self.b(F.relu(self.a(x)))))
        return self.head(x.flatten(1))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.squeeze, self.excite = nn.Conv2d(12, 2, 1), nn.Conv2d(2, 12, 1)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.stem(x))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(x * scale)


class Grouped(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.stem, self.grouped = nn.Conv2d(3, 8, 1), kind(8, 12, 3, padding=1, groups=4)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.stem(x)))


class Joined(nn.Module):
    """Concatenation, whose parts a later sum ties to others; a shuffle of channels; a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.cat([self.a(x), self.b(x)], 1)) + self.c(x)
        y = y.view(len(y), 2, 3, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(y[:, :3])


class Written(nn.Module):
    """Filters written into a tensor that was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), 4)
        y[:, :2], y[:, 2:] = self.a(x), self.b(x)
        return self.head(y + self.c(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = (
            nn.Embedding(7, 3),
            nn.LSTM(3, 5, batch_first=True),
            nn.Linear(5, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(3, 8), nn.Parameter(torch.randn(5, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.scale, self.head = nn.Parameter(torch.ones(8)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.places
        y = self.norm(x)
        x = x + self.scale * self.attention(y, y, y, need_weights=False)[0]
        return self.head(x.mean(1))


class Mixer(nn.Module):
    """A layer over positions, whose outputs are no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.tokens, self.channels = nn.Linear(3, 6), nn.Linear(5, 5), nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.tokens(x.mT).mT
        return self.head((x + self.channels(x)).mean(1))


class Spread(nn.Module):
    """Values of all channels, learned and computed; and one for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.act = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 1, 1), nn.PReLU()
        self.scale, self.place = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2, 2))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x)) * self.scale + self.place
        return self.head(x * torch.sigmoid(self.gate(x)))


class Made(nn.Module):
    """A forward, and what it uses."""

    def __init__(self, run: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Tensor) -> Any:
        return self.run(self, *args)


def conv(inputs: int, outputs: int, kernel: Any = 1, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **more)


def added_to_parts(net: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(len(x), 4, *x.shape[2:])
    y[:, :2] += net.a(x)
    y[:, 2:].add_(net.b(x))
    return net.head(y + net.c(x))


def in_bfloat16(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = net.b(x)
    return net.head(net.a(x) + y.to(x.dtype))


def in_inference_mode(net: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return net.head(net.a(x) + net.b(x))


def of_a_table(net: Any, x: Tensor) -> Tensor:
    return net.head(net.a(x) + net.table.weight[2 : 2 + x.shape[1]])


def of_two_factors(net: Any, x: Tensor) -> Tensor:
    return net.head(F.linear(x, net.a.weight + net.b.weight @ net.c.weight, net.a.bias))


IMAGE, TOKENS = torch.randn(1, 3, 2, 2), torch.randn(1, 5, 3)
NETWORKS: list[tuple[nn.Module, Tensor, dict[tuple[tuple[str, int], ...], int]]] = [
    (Residual(), IMAGE, {(("b.weight", 1), ("stem.weight", 1)): 6, (("a.weight", 1),): 4}),
    (
        Depthwise(),
        IMAGE,
        {(("deep.weight", 2), ("excite.weight", 2), ("stem.weight", 1)): 6, (("squeeze.weight", 1),): 2},
    ),
    (Grouped(transposed=False), IMAGE, {(("grouped.weight", 3), ("stem.weight", 2)): 4}),
    (Grouped(transposed=True), IMAGE, {(("grouped.weight", 3), ("stem.weight", 2)): 4}),
    (Joined(), IMAGE, {(("a.weight", 1), ("c.weight", 1)): 2, (("b.weight", 1), ("c.weight", 1)): 4}),
    (
        Written(),
        torch.randn(1, 3),
        {(("a.weight", 1), ("c.weight", 1)): 2, (("b.weight", 1), ("c.weight", 1)): 2},
    ),
    (
        Recurrent(),
        torch.tensor([[1, 2]]),
        {(("embed.weight", 1),): 3, (("lstm.weight_hh_l0", 4), ("lstm.weight_ih_l0", 4)): 5},
    ),
    (
        Attention(),
        TOKENS,
        {(("attention.out_proj.weight", 1), ("embed.weight", 1)): 8, (("attention.in_proj_weight", 12),): 2},
    ),
    (Spread(), IMAGE, {(("stem.weight", 1),): 6}),
    (Mixer(), TOKENS, {(("channels.weight", 1), ("embed.weight", 1)): 6}),
]
AB = {(("a.weight", 1), ("b.weight", 1)): 4}
PARTS = {(("a.weight", 1), ("c.weight", 1)): 2, (("b.weight", 1), ("c.weight", 1)): 2}
A, B, HEAD = (lambda: conv(3, 4)), (lambda: conv(3, 4)), (lambda: conv(4, 2))
MADE: dict[str, tuple[nn.Module, Tensor, dict[tuple[tuple[str, int], ...], int]]] = {
    "a sum of a stack": (
        Made(lambda net, x: net.head(torch.stack([net.a(x), net.b(x)]).sum(0)), a=A(), b=B(), head=HEAD()),
        IMAGE,
        AB,
    ),
    "the larger of two": (
        Made(lambda net, x: net.head(net.a(x).view(-1, 2, 2, 2, 2).amax(2)), a=A(), head=conv(2, 2)),
        IMAGE,
        {(("a.weight", 2),): 2},
    ),
    "the mean of all channels": (
        Made(lambda net, x: net.head(net.a(x) - net.a(x).mean(1, keepdim=True)), a=A(), head=HEAD()),
        IMAGE,
        {(("a.weight", 1),): 4},
    ),
    "added in place": (Made(added_to_parts, a=conv(3, 2), b=conv(3, 2), c=A(), head=HEAD()), IMAGE, PARTS),
    "unfolded": (
        Made(lambda net, x: net.head(F.unfold(net.a(x), 2).mT), a=A(), head=nn.Linear(16, 2)),
        IMAGE,
        {(("a.weight", 1),): 4},
    ),
    "one input, or one for each group": (
        Made(
            lambda net, x: net.head(net.c(net.b(net.a(x[:, :1])))),
            a=conv(1, 4),
            b=conv(4, 4, (2, 1), groups=4),
            c=nn.ConvTranspose2d(4, 4, 2, groups=4),
            head=HEAD(),
        ),
        IMAGE,
        {(("a.weight", 1), ("b.weight", 1), ("c.weight", 1)): 4},
    ),
    "batch first": (
        Made(lambda net, x: net.head(net.a(x)[0]), a=nn.GRU(3, 4, batch_first=True), head=nn.Linear(4, 2)),
        TOKENS,
        {(("a.weight_hh_l0", 3), ("a.weight_ih_l0", 3)): 4},
    ),
    "autocast": (Made(in_bfloat16, a=A(), b=B(), head=HEAD()), IMAGE, AB),
    "inference mode": (Made(in_inference_mode, a=A(), b=B(), head=HEAD()), IMAGE, AB),
    "a slice of a table": (
        Made(of_a_table, a=nn.Linear(3, 4), table=nn.Embedding(9, 4), head=nn.Linear(4, 2)),
        TOKENS,
        {(("a.weight", 1),): 4},
    ),
    "positions of the input": (
        Made(
            lambda net, x: net.head(net.c(net.a(x) + net.b(x.mT).mT)),
            a=nn.Linear(3, 3),
            b=nn.Linear(5, 5),
            c=nn.Linear(3, 4),
            head=nn.Linear(4, 2),
        ),
        TOKENS,
        {(("c.weight", 1),): 4},
    ),
    "not followed": (
        Made(
            lambda net, x: net.head(net.c(net.a(x) + torch.fft.fft(net.b(x)).real)),
            a=A(),
            b=B(),
            c=conv(4, 4),
            head=HEAD(),
        ),
        IMAGE,
        {(("c.weight", 1),): 4},
    ),
}
NETWORKS += [made for name, made in MADE.items() if name not in ("positions of the input", "not followed")]
IDS = [type(network).__name__ for network, _, _ in NETWORKS[: -len(MADE) + 2]]
IDS += [name for name in MADE if name not in ("positions of the input", "not followed")]


@pytest.mark.parametrize(("network", "example", "expected"), NETWORKS, ids=IDS)
def test_what_hangs_together(
    network: nn.Module, example: Tensor, expected: dict[tuple[tuple[str, int], ...], int]
) -> None:
    found = units_of(network, example)
    assert free(found) == expected
    [head] = {
        tuple(sorted({f.name for f in unit.filters})) for unit in found if "are outputs" in str(unit.why)
    }
    assert head == ("head.weight",)


@pytest.mark.parametrize(("network", "example", "expected"), NETWORKS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_falls_is_zero_and_no_constant(
    network: nn.Module, example: Tensor, expected: dict[tuple[tuple[str, int], ...], int], dtype: torch.dtype
) -> None:
    model = copy.deepcopy(network).to(dtype).eval()
    x = example.to(dtype) if example.is_floating_point() else example
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the mixer's layer over positions
        pruning = prunus.prune(model, 0.5, granularity="filter", layers="all", coupled=True, example_inputs=x)
    units = [unit for unit in units_of(network, example) if not unit.why]
    assert len(units) == sum(expected.values())
    for unit in units:
        fates = {bool(_entry(pruning.masks[f.name], network, f.name, f.place)) for f in unit.filters}
        fates |= {bool(_entry(pruning.masks[name], network, name, place)) for name, place in unit.entries}
        assert len(fates) == 1
    fallen = sum(
        not bool(_entry(pruning.masks[u.filters[0].name], network, u.filters[0].name, u.filters[0].place))
        for u in units
    )
    assert fallen == sum(count // 2 for count in expected.values())  # of each bundle by itself
    for name, mask in pruning.masks.items():
        assert not model.get_parameter(name)[~mask].any()
    with torch.no_grad():
        assert model(x).isfinite().all()
    pruning.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _entry(mask: Tensor, model: nn.Module, name: str, place: int) -> Tensor:
    """The mask at a place in the memory of a parameter."""
    assert model.get_parameter(name).is_contiguous()
    return mask.flatten()[place]


@pytest.mark.parametrize(
    "arch", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121", "regnet_y_400mf"]
)
def test_normalized_channels_that_fall_are_zero_on_networks_of_torchvision(arch: str) -> None:
    model, x = torchvision.models.get_model(arch).eval(), torch.randn(2, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)  # as if it had learned
            nn.init.normal_(module.running_mean)
    zeros: dict[str, Tensor] = {}
    with prunus.prune(model, 0.5, granularity="filter", coupled=True, example_inputs=x[:1]) as pruning:
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(
                    lambda _, args, y, name=name: zeros.update({name: y.abs().amax((0, 2, 3)) == 0})
                )
        with torch.no_grad():
            model(x)
        for name, found in zeros.items():
            assert torch.equal(found, ~pruning.masks[f"{name}.weight"])
    assert 0.3 < torch.cat(list(zeros.values())).float().mean() < 0.7


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0", "googlenet"])
def test_the_same_hangs_together_as_torch_pruning_finds(arch: str) -> None:
    pruning = pytest.importorskip("torch_pruning")
    model = torchvision.models.get_model(
        arch, **({"init_weights": False} if arch == "googlenet" else {})
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    names = {module: name for name, module in model.named_modules()}
    graph = pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    outputs = (
        pruning.prune_conv_out_channels,
        pruning.prune_linear_out_channels,
        pruning.prune_depthwise_conv_out_channels,
    )
    theirs: set[frozenset[tuple[str, int]]] = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        size = len(group[0].idxs)
        filters: list[set[tuple[str, int]]] = [set() for _ in range(size)]
        for dependency, indices in group:
            if dependency.handler in outputs:
                for filter_, index in zip(filters, indices, strict=True):
                    filter_.add((names[dependency.target.module], index))
        theirs |= {frozenset(filter_) for filter_ in filters}
    ours = {
        frozenset(
            (f.name.removesuffix(".weight"), f.place // model.get_parameter(f.name)[0].numel())
            for f in u.filters
        )
        for u in units_of(model, x)
    }
    called = {name for unit in ours for name, _ in unit}
    assert ours == {unit for unit in theirs if {name for name, _ in unit} <= called}


FAMILIES = [
    "mobilenet_v3_small", "efficientnet_v2_s", "convnext_tiny", "squeezenet1_1", "mnasnet0_5", "vgg11_bn",
    "resnext50_32x4d", "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t",
]  # fmt: skip


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_weight_of_torchvisions_families_is_followed(arch: str) -> None:
    model = torchvision.models.get_model(arch).eval()
    units = units_of(model, torch.randn(1, 3, 224, 224))
    layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert layers <= {f.name for unit in units for f in unit.filters}
    assert {why for unit in units for why in unit.why} == {"are outputs of the network"}
    outputs = {f.name for unit in units if unit.why for f in unit.filters}
    assert len(outputs) == 1  # the classifier alone


def test_heads_of_attention_are_pieces() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5).eval()
    x = torch.randn(1, 3, 32, 32)
    choice = {"granularity": "filter", "layers": "all", "coupled": True, "example_inputs": x}
    ranking = prunus.rank(model, **choice)
    assert sorted(part.count for part in ranking.partitions.values()) == [4, 4, 32, 64, 64]
    first = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
    masks = prunus.make_masks(model, {first: 0.25}, **choice)
    rows = masks[first].all(1).view(3, 4, 8)  # of queries, keys and values, by heads
    assert (~rows).sum() == 24
    assert (rows[0] == rows[1]).all()
    assert (rows[0] == rows[2]).all()
    assert rows[0].any(1).sum() == 3
    weight = model.get_parameter(first).detach().abs().view(3, 4, 8, 32)
    assert weight.sum((0, 2, 3)).argmin() == (~rows[0].any(1)).nonzero()[0, 0]
    assert torch.equal(masks[first.replace("weight", "bias")].view(3, 4, 8), rows)


@settings(max_examples=30, deadline=None)
@given(
    p=st.sampled_from([0.0, 0.1, 0.34, 0.5, 0.9, 1.0]),
    scope=st.sampled_from(["layer", "global", "uniform", "erk"]),
    norm=st.sampled_from(["l1", "mean"]),
    least=st.integers(0, 1),
    seed=st.integers(0, 5),
)
def test_a_piece_scores_what_its_filters_do(p: float, scope: str, norm: str, least: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = Residual()
    choice = {"granularity": "filter", "coupled": True, "example_inputs": IMAGE, "norm": norm, "scope": scope}
    a, b, stem = (
        model.get_parameter(f"{n}.weight").detach().double().abs().flatten(1) for n in ("a", "b", "stem")
    )
    sums = {"stem.weight +1": torch.cat([stem, b], 1), "a.weight": a}
    scores = {name: rows.sum(1) if norm == "l1" else rows.mean(1) for name, rows in sums.items()}
    ranking = prunus.rank(model, keep_at_least=least, **choice)
    for name, expected in scores.items():
        torch.testing.assert_close(ranking.scores[name].every(0, 1).double(), expected, rtol=1e-6, atol=0)
    if p > 0.8 and least:  # more than is left
        return
    [candidates] = ranking.candidates([p])
    fallen = {name: int((~kept).sum()) for name, kept in candidates.kept.items()}
    wanted = {name: int(p * len(s)) for name, s in scores.items()} if scope == "layer" else None
    assert fallen == wanted if wanted else sum(fallen.values()) == int(p * 10)
    for name, kept in candidates.kept.items():
        rest, gone = scores[name][kept], scores[name][~kept]
        assert not len(gone) or not len(rest) or gone.max() <= rest.min()


@pytest.mark.parametrize("criterion", ["fpgm", "lamp", "snip", "taylor", "random", "wanda", "synflow"])
def test_criteria_see_a_piece_as_one(criterion: str) -> None:
    model = nn.Sequential(Residual())
    data = [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))]
    known = prunus.evidence(model, data, criterion=criterion)
    masks = prunus.make_masks(
        model,
        0.5,
        criterion=criterion,
        granularity="filter",
        coupled=True,
        example_inputs=IMAGE,
        evidence=known,
        seed=0,
    )
    assert torch.equal(masks["0.stem.weight"].flatten(1).all(1), masks["0.b.weight"].flatten(1).all(1))
    assert masks["0.stem.weight"].flatten(1).any(1).sum() == 3


def test_draws_are_of_whole_pieces_and_deeper_masks_nest() -> None:
    model, generator = Residual(), torch.Generator().manual_seed(3)
    choice = {"granularity": "filter", "coupled": True, "example_inputs": IMAGE}
    pruning = prunus.prune(model, 0.7, p_bern=0.5, seed=generator, **choice)
    for _ in range(5):
        before = pruning.redraw()
        rows = [before[f"{name}.weight"].flatten(1).all(1) for name in ("stem", "b")]
        assert torch.equal(rows[0], rows[1])
        assert torch.equal(rows[0], before["norm.weight"])
    after = pruning.deepen(1.0)
    assert all((after[name] <= before[name]).all() for name in before)
    with pytest.raises(ValueError, match="less than before"):
        pruning.deepen(0.5)


@pytest.mark.parametrize("passes", ["both", "backward", "forward"])
def test_a_pruned_network_is_traced_as_the_unpruned_one(passes: str) -> None:
    model, x = torchvision.models.resnet18(num_classes=4).eval(), torch.randn(1, 3, 64, 64)
    choice = {"granularity": "filter", "coupled": True, "example_inputs": x}
    expected = prunus.make_masks(model, 0.5, **choice)
    prunus.prune(model, 0.9, passes=passes)
    assert prunus.make_masks(model, 0.5, **choice) == expected
    pruning = prunus.prune(model, 0.5, passes=passes, **choice)
    assert pruning.masks == expected
    model(x).sum().backward()
    prunus.restore(model)
    assert prunus.make_masks(model, 0.5, **choice) == expected


def test_tracing_leaves_no_trace() -> None:
    model = Attention().train()
    model.embed.weight.requires_grad_(False)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    flags = [torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()]
    flags += [torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()]
    hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    prunus.make_masks(
        model,
        0.5,
        granularity="filter",
        layers="all",
        coupled=True,
        example_inputs=TOKENS,
        criterion="magnitude",
    )
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert not model.embed.weight.requires_grad
    now = [torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()]
    assert flags == [*now, torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()]
    assert all(flags[:2])
    assert hooks == [dict(module._forward_pre_hooks) for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", MADE)
def test_what_hangs_together_however_it_is_written(name: str) -> None:
    network, example, expected = MADE[name]
    assert free(units_of(network, example)) == expected


def test_filters_of_a_table_fall_whole() -> None:
    network, example, _ = MADE["a slice of a table"]
    masks = prunus.make_masks(
        network, 0.5, granularity="filter", layers="all", coupled=True, example_inputs=example
    )
    assert torch.equal(masks["table.weight"].all(0), masks["a.weight"].all(1))
    assert torch.equal(masks["table.weight"].any(0), masks["a.weight"].all(1))
    assert masks["table.weight"].all(0).sum() == 2


@dataclass
class Output:
    logits: Tensor


@pytest.mark.parametrize(
    "of", [Output, lambda y: {"a": [Output(y)]}, lambda y: y.argmax(1), lambda y: y.max(1)]
)
def test_outputs_stay_whole_in_whatever_they_come(of: Any) -> None:
    network = Made(lambda net, x: of(net.head(F.relu(net.a(x)))), a=nn.Linear(6, 8), head=nn.Linear(8, 4))
    assert free(units_of(network, torch.randn(2, 6))) == {(("a.weight", 1),): 8}
    nowhere = Made(lambda net, x: net.a(x).tolist(), a=nn.Linear(6, 8))
    with pytest.raises(ValueError, match="cannot tell what the outputs are: a list without tensors"):
        units_of(nowhere, torch.randn(2, 6))


def test_a_weight_in_two_factors_stays_whole() -> None:
    parts = {"a": nn.Linear(6, 4), "b": nn.Linear(2, 4), "c": nn.Linear(6, 2), "head": nn.Linear(4, 2)}
    assert free(units_of(Made(of_two_factors, **parts), torch.randn(2, 6))) == {}


def test_tracing_draws_from_no_generator_of_the_users() -> None:
    network = Made(lambda net, x: net.head(F.dropout(net.a(x))), a=A(), head=HEAD())
    random = torch.get_rng_state()
    assert free(units_of(network, IMAGE)) == {(("a.weight", 1),): 4}
    assert torch.equal(random, torch.get_rng_state())


class Strange(nn.Module):
    """Filters that reach what is not followed; an auxiliary head that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.inner, self.head, self.never = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(torch.fft.fft(self.a(x)).real + self.b(x)))


def test_what_stays_whole_is_said() -> None:
    choice = {"granularity": "filter", "layers": "all", "coupled": True, "example_inputs": torch.randn(2, 4)}
    with pytest.warns(
        UserWarning,
        match=r"4 filters hang together with what is not followed; 4 .* reach aten\._fft.*; 4 .* of never",
    ):
        masks = prunus.make_masks(Strange(), 0.5, **choice)
    assert {name for name, mask in masks.items() if not mask.all()} == {"inner.weight", "inner.bias"}
    with pytest.warns(UserWarning, match=r"6 filters hang together with b\.weight, which is not chosen"):
        masks = prunus.make_masks(
            Residual(), 0.5, exclude="b", granularity="filter", coupled=True, example_inputs=IMAGE
        )
    assert {name for name, mask in masks.items() if not mask.all()} == {"a.weight", "a.bias"}
    with pytest.raises(ValueError, match=r"leaves nothing to prune: 2 filters are outputs of the network"):
        prunus.make_masks(nn.Conv2d(3, 2, 1), 0.5, granularity="filter", coupled=True, example_inputs=IMAGE)


@pytest.mark.parametrize(
    ("choice", "error", "match"),
    [
        (
            {"granularity": "weight", "example_inputs": IMAGE},
            ValueError,
            "granularity='filter', not 'weight'",
        ),
        ({"granularity": "filter"}, ValueError, "coupled=True needs example_inputs"),
        (
            {"granularity": "filter", "coupled": "yes", "example_inputs": IMAGE},
            TypeError,
            "coupled must be True",
        ),
        ({"granularity": "filter", "scope": "row", "example_inputs": IMAGE}, ValueError, "scope='row'"),
        ({"granularity": "filter", "scope": "2:4", "example_inputs": IMAGE}, ValueError, "scope='2:4'"),
    ],
)
def test_what_cannot_be_coupled_is_refused(
    choice: dict[str, object], error: type[Exception], match: str
) -> None:
    model = Residual()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match):
        prunus.prune(model, 0.5, **{"coupled": True, **choice})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not prunus.masks_of(model)


def test_inputs_by_position_and_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.a(x) + self.b(y))}

    x, y = torch.randn(1, 3), torch.randn(1, 2)
    expected = {(("a.weight", 1), ("b.weight", 1)): 4}
    assert free(units_of(Two(), (x, y))) == expected
    assert free(units_of(Two(), {"y": y, "x": x})) == expected


def test_measuring_takes_the_example_from_the_loader() -> None:
    model = prunus.digits.load_network("residual")
    images, labels = prunus.digits.load_images()
    loader = [(images[:100], labels[:100])]
    choice = {"granularity": "filter", "coupled": True}
    points = prunus.sweep(model, loader, p_prune=(0, 0.25), **choice)
    masks = prunus.make_masks(model, 0.25, example_inputs=images[:1], **choice)
    assert points[1].pruned == masks.pruned
    found = prunus.sensitivity(model, loader, p_prune=(0.25, 1.0), **choice)
    assert list(found.groups) == ["0.weight +3", "3.body.0.weight", "4.body.0.weight", "6.body.0.weight"]
    whole = [probes[-1] for probes in found.groups.values()]
    assert all(probe.pruned == probe.weights for probe in whole)
    assert (
        sum(probe.weights for probe in whole)
        == prunus.make_masks(model, 1.0, example_inputs=images[:1], **choice).pruned
    )
    best = prunus.find(model, loader, at_least=90, by=found, **choice)
    assert best.result.top1 >= 90
    assert set(best.masks) == set(masks)


def test_heads_of_a_network_that_gives_its_cache_too() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    found = free(units_of(model, torch.tensor([[1, 2, 3]])))
    assert found[(("transformer.h.0.attn.c_attn.weight", 24),)] == 2
    assert 16 in found.values()  # the stream, which is tied to the logits by its inputs alone


def test_hugging_face_networks_by_a_dict() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForSequenceClassification(config).eval()
    example = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3)}
    choice = {"granularity": "filter", "layers": "all", "coupled": True, "example_inputs": example}
    masks = prunus.make_masks(model, 0.5, **choice)
    layer = "bert.encoder.layer.0.attention.self"
    heads = [masks[f"{layer}.{name}.weight"].all(1).view(2, 8).all(1) for name in ("query", "key", "value")]
    assert heads[0].sum() == 1
    assert all(torch.equal(heads[0], other) for other in heads)
    stream = masks["bert.embeddings.word_embeddings.weight"].all(0)
    assert stream.sum() == 8
    assert torch.equal(stream, masks["bert.encoder.layer.0.output.dense.weight"].all(1))
    assert torch.equal(stream, masks["bert.embeddings.LayerNorm.weight"])
