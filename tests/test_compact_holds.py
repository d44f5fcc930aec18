"""Cut networks hold for inputs that were not tried, and where others have their hands on them."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus


class Net(nn.Module):
    """Some layers, half of the first's outputs empty but for its biases, and any forward."""

    def __init__(
        self, call: Callable[..., Any], *, values: tuple[float, ...] = (1.0, 0.5, 2, 0.1), **layers: Any
    ):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)
        with torch.no_grad():
            self.a.weight[:4], self.a.bias[:4] = 0, torch.tensor(values)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self, *args, **kwargs)


def linear(call: Callable[..., Any], **layers: Any) -> Net:
    return Net(call, a=nn.Linear(6, 8), b=nn.Linear(8, 3), **layers).eval()


def images(call: Callable[..., Any], reader: nn.Module) -> Net:
    return Net(call, a=nn.Conv2d(3, 8, 3, padding=1), b=reader, c=nn.Conv2d(8, 3, 1)).eval()


def padded(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.c(torch.relu(m.b(F.pad(h, (0, -h.shape[3] % 4, 0, -h.shape[2] % 4)))))


def masked(m: Any, x: Tensor, mask: Tensor) -> Tensor:
    return m.b(torch.relu(m.a(x)).masked_fill(~mask[..., None], 0))


def token(m: Any, x: Tensor, mask: Tensor) -> Tensor:
    return m.b(torch.where(mask[..., None], m.token, m.a(x)))


x, flags = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(1)), torch.ones(2, 10).bool()
some = torch.arange(20).view(2, 10) % 3 == 0
CALLS: dict[str, tuple[Callable[[], Net], tuple[Any, ...], list[tuple[Any, ...]]]] = {
    "a sum over places": (
        lambda: linear(lambda m, x: m.b(torch.relu(m.a(x)).sum(1))), (x,), [(x[:, :5],), (x.repeat(1, 3, 1),)]
    ),
    "a cumulative sum": (
        lambda: linear(lambda m, x: m.b(torch.relu(m.a(x)).cumsum(1)[:, -1])), (x,), [(x[:, :4],)]
    ),
    "padded to a multiple": (
        lambda: images(padded, nn.Conv2d(8, 8, 4, stride=4)),
        (torch.randn(1, 3, 32, 32),),
        [(torch.randn(1, 3, 64, 64),), (torch.randn(1, 3, 33, 33),), (torch.randn(1, 3, 32, 37),)],
    ),
    "a mask of padding": (lambda: linear(masked), (x, flags), [(x, some)]),
    "a token for what is masked": (
        lambda: linear(token, values=(0,) * 4, token=nn.Parameter(torch.randn(8))), (x, ~flags), [(x, some)]
    ),
    "a step of time": (
        lambda: linear(lambda m, x, t: m.b(torch.relu(m.a(x)) * (1 + t.float()[:, None, None] / 1000))),
        (x, torch.tensor([500, 500])),
        [(x, torch.tensor([3, 900]))],
    ),
    "a weight that a function takes": (
        lambda: linear(
            lambda m, x: F.linear(torch.relu(m.a(x)), m.w),
            values=(1e-4,) * 4,
            w=nn.Parameter(torch.ones(3, 8)),
        ),
        (x,),
        [(0 * x,)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_constants_that_are_none_for_other_inputs_stay(name: str) -> None:
    make, example, others = CALLS[name]
    model = make()
    made = prunus.compact(model, example)
    for args in (example, *others):
        with torch.no_grad():
            wanted, found = model(*args), made.model(*args)
        assert torch.allclose(wanted, found, rtol=1e-5, atol=1e-5 * float(wanted.abs().max())), args[0].shape
    assert made.spared


class Unet(nn.Module):
    """Branches that are padded to one size, and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(8, 2, 1)
        self.conv, self.bn = nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.inc(x))
        b = self.up(F.relu(self.down(F.max_pool2d(a, 2))))
        high, wide = a.shape[2] - b.shape[2], a.shape[3] - b.shape[3]
        b = F.pad(b, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        made: Tensor = self.out(F.relu(self.bn(self.conv(torch.cat([a, b], 1)))))
        return made


def test_images_of_other_sizes() -> None:
    model = Unet().eval()
    nn.init.normal_(model.inc.bias)
    nn.init.normal_(model.up.bias)
    prunus.prune(
        model, 0.5, granularity="filter", layers=("Conv2d", "ConvTranspose2d"), scope="layer",
        include=["inc.weight", "down.weight", "up.weight"],
    )  # fmt: skip
    made = prunus.compact(model, torch.randn(1, 3, 32, 32))
    assert made.macs[1] < made.macs[0]
    for size in ((32, 32), (64, 64), (33, 33), (47, 32)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert torch.allclose(model(image), made.model(image), atol=1e-5)


class Block(nn.Module):
    """Adds nothing, unless it is told to do something else."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.f, self.h = nn.Linear(width, width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        added = x + self.scale * self.f(x)
        return added if mask is None else torch.where(mask[..., None], self.h(x), added)


class Remembering(Block):
    """Fills a cache, which others count."""

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        cache.append(x)
        return super().forward(x)


def test_blocks_that_do_something_beside_stay() -> None:
    for call, example in (
        (lambda m, x, mask: m.b(m.block(m.a(x), mask)), (x, ~flags)),
        (lambda m, x: m.b(m.remembering(m.a(x), [])), (x,)),
    ):
        net = linear(call, block=Block(), remembering=Remembering())
        assert prunus.compact(net, example).skipped == []
    assert prunus.compact(linear(lambda m, x: m.b(m.block(m.a(x))), block=Block()), x).skipped == ["block"]


def test_what_a_forward_changes_is_not_in_the_copy() -> None:
    class Observed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("most", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.most = torch.maximum(self.most, x.abs().max())
            return x

    model = nn.Sequential(Observed(), nn.Linear(6, 8), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[1].weight[:4], model[1].bias[:4] = 0, 0
    made = prunus.compact(model, x)
    assert made.model[1].out_features == 4
    assert float(made.model[0].most) == float(model[0].most) == 0


def test_generators_modes_and_hooks_are_left_alone() -> None:
    model = linear(lambda m, x: m.b(m.a(x) + torch.randn(1)))
    before = torch.get_rng_state()
    prunus.compact(model.train(), x)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_within_inference_mode() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[:4] = 0
    with torch.inference_mode():
        made = prunus.compact(model, x)
    made.model(x).sum().backward()
    assert made.model[0].weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).to(
        dtype
    )
    prunus.prune(model, 0.5, granularity="filter", coupled=True, example_inputs=x.to(dtype), layers="all")
    made = prunus.compact(model, x.to(dtype))
    assert [made.model[place].out_features for place in (0, 2)] == [16, 16]


def test_outputs_that_are_infinite() -> None:
    model = linear(
        lambda m, x: m.b(torch.relu(m.a(x))).masked_fill(torch.tensor([True, False, False]), -torch.inf)
    )
    assert prunus.compact(model, x).model.a.out_features == 4


def test_models_that_were_compiled() -> None:
    for _ in range(3):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
        with torch.no_grad():
            model[0].weight[:4], model[0].bias[:4] = 0, torch.tensor([0, 1, -1, 0.5])
        compiled: Any = torch.compile(model, backend="eager")
        image = torch.randn(1, 3, 8, 8)
        compiled(image)
        cut: Any = prunus.compact(compiled, image).model
        assert cut._orig_mod[0].out_channels == 5  # one carries a constant


@pytest.mark.filterwarnings("ignore")
def test_encoders_that_nest_what_is_padded() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    text, pad = torch.randn(2, 6, 32), torch.zeros(2, 6).bool()
    pad[1, 4:] = True
    prunus.prune(model, 0.5, granularity="filter", coupled=True, example_inputs=text, layers="all")
    for example in (text, {"src": text, "src_key_padding_mask": pad}):
        made = prunus.compact(model, example)
        assert made.model.layers[0].self_attn.num_heads == 2
        with torch.no_grad():
            wanted, found = (m(text, src_key_padding_mask=pad) for m in (model, made.model))
        assert torch.allclose(wanted[~pad], found[~pad], atol=1e-5)
        told = made.report()["layers"]
        assert sum(layer["macs"][1] for layer in told) <= made.macs[1]


@pytest.mark.filterwarnings("ignore")
def test_heads_that_are_as_many_as_their_parts() -> None:
    """Sizes of heads that are a half or a third of all heads are no sizes of all."""
    hf = pytest.importorskip("transformers")
    for width, heads in ((128, 2), (192, 3), (128, 4)):
        sizes = {
            "num_hidden_layers": 1,
            "num_attention_heads": heads,
            "intermediate_size": 64,
            "vocab_size": 50,
        }
        model = hf.BertModel(hf.BertConfig(hidden_size=width, **sizes)).eval()
        own = model.encoder.layer[0].attention.self
        with torch.no_grad():
            for layer in (own.query, own.key, own.value):
                layer.weight[: width // heads], layer.bias[: width // heads] = 0, 0
        made = prunus.compact(model, {"input_ids": torch.randint(50, (2, 8))})
        assert made.model.encoder.layer[0].attention.self.query.out_features == width - width // heads

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.longest = 4, 32
            self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Any:
            x = x[:, -self.longest :]
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net, text = Attention().eval(), torch.randn(2, 8, 32)
    prunus.prune(net, 0.5, granularity="filter", coupled=True, example_inputs=text, layers="all")
    made = prunus.compact(net, text)
    assert (made.model.num_heads, made.model.longest) == (2, 32)


def test_what_knows_parameters_is_refused_or_follows(tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(
        "import prunus, torch, torch.distributed as dist\n"
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=0, world_size=1)\n"
        "net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))\n"
        "try:\n    prunus.compact(net, torch.randn(1, 4))\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert "give its .module" in done.stdout

    class Rho(torch.optim.SGD):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, 0.1, momentum=0.9)
            self.rho = 0.05

        def step(self, closure: Any = None) -> Any:
            assert self.rho == 0.05
            return super().step(closure)

    model = nn.Sequential(nn.Linear(6, 8), Block(), nn.Linear(8, 3))
    rho, named = Rho(model.parameters()), torch.optim.AdamW(model.named_parameters())
    made = prunus.compact(model, x)
    assert made.skipped == ["1"]
    made.model(x).sum().backward()
    made.carry(rho, model).step()
    [group] = made.carry(named, model).param_groups
    if "param_names" in group:  # of torch from 2.7
        assert group["param_names"] == [name for name, _ in made.model.named_parameters()]


def test_extra_state_and_buffers_that_are_not_saved() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"epoch": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.randn(8), persistent=False)
            self.register_buffer("var", torch.ones(8), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.mean, self.var)

    model = nn.Sequential(Extra(6, 8), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[:4], model[0].bias[:4] = 0, 0
    made = prunus.compact(model, x)
    assert made.state(model.state_dict())["0._extra_state"] == {"epoch": 3}

    normed = nn.Sequential(nn.Conv2d(3, 8, 3), Norm(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        normed[0].weight[:4], normed[0].bias[:4] = 0, 0
    assert list(prunus.compact(normed, torch.randn(1, 3, 8, 8)).spared) == [
        "are read in a buffer that state_dicts are without"
    ]


def test_widths_are_multiples_of_what_is_left_too() -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        made: Tensor = m.b(h[:, :8]) + m.c(h[:, 8:])
        return made

    model = nn.ModuleDict({"a": nn.Conv2d(3, 16, 1), "b": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(8, 4, 1)})
    net = Net(call, values=(0, 0, 0, 0), **model).eval()
    with torch.no_grad():
        net.a.weight[:4] = torch.randn(4, 3, 1, 1)
        for place in (0, 1, 2, 10, 11, 12):
            net.a.weight[place], net.a.bias[place] = 0, 0
    made = prunus.compact(net, torch.randn(2, 3, 8, 8), round_to=4)
    assert made.model.a.out_channels % 4 == 0


def test_restore_of_what_was_loaded_or_holds_a_cut_network(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    small = prunus.compact(prunus.global_prune(build(), 0.5, layers="all"), x).model
    prunus.save_compact(small, tmp_path / "net.safetensors")
    loaded = prunus.load_compact(build, tmp_path / "net.safetensors")
    for cut in (small, loaded, nn.Sequential(copy.deepcopy(small))):
        with pytest.raises(ValueError, match="was cut by compact"):
            prunus.restore(cut)
