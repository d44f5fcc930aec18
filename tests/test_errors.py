"""Bad arguments are refused in one clear line, and nothing has changed."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import prunus
from prunus import digits
from tests.conftest import small_net
from tests.test_faults import assert_same, weights_of

BAD_FRACTIONS: list[tuple[Any, type[Exception]]] = [
    (-0.1, ValueError),
    (1.1, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    ("0.3", TypeError),
    (None, TypeError),
    (True, TypeError),
]


@pytest.mark.parametrize(("value", "error"), BAD_FRACTIONS)
@pytest.mark.parametrize("argument", ["p_prune", "p_bern"])
def test_fractions(argument: str, value: Any, error: type[Exception]) -> None:
    model = prunus.global_prune(small_net(), 0.2)
    before = weights_of(model)
    arguments = {"p_prune": 0.5, argument: value}
    for verb in (prunus.global_prune, prunus.gradient_prune, prunus.prune, prunus.make_masks):
        with pytest.raises(error, match=rf"{argument} must be .*\[0, 1\], got"):
            verb(model, **arguments)
    assert_same(model, before)


@pytest.mark.parametrize("argument", ["granularity", "criterion", "scope", "norm", "passes"])
def test_unknown_names(argument: str) -> None:
    model = prunus.global_prune(small_net(), 0.2)
    before = weights_of(model)
    with pytest.raises(ValueError, match=f"{argument} must be one of .*; got 'wieght'"):
        prunus.prune(model, 0.5, **{argument: "wieght"})
    assert_same(model, before)


@pytest.mark.filterwarnings("ignore:Linear layers hold only")
def test_scales_are_taken_by_their_whole_name_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert list(prunus.make_masks(model, 0.5, include="*.weight")) == ["0.weight"]
    assert list(prunus.make_masks(model, 0.5, include=["*.weight", "1.weight"])) == ["0.weight", "1.weight"]
    assert list(prunus.make_masks(model, 0.5, include="*.bias")) == ["0.bias", "1.bias"]
    assert list(prunus.make_masks(model, 0.5, layers=nn.BatchNorm2d, criterion="random")) == ["1.weight"]


def test_layer_types_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    named = (
        ("Linear", ["1.weight"]),
        (("Conv2d", nn.Linear), ["0.weight", "1.weight"]),
        (nn.Conv2d, ["0.weight"]),
        (["all"], ["0.weight", "1.weight"]),
    )
    assert list(prunus.rank(nn.Sequential(model, nn.PReLU()), layers=("all", nn.PReLU)).partitions) == [
        "0.0.weight",
        "0.1.weight",
        "1.weight",
    ]
    for layers, names in named:
        assert list(prunus.rank(model, layers=layers, exclude=None).partitions) == names
    with pytest.raises(
        ValueError,
        match=r"layers must be one of all, Conv1d, .*Linear, Embedding, RNN, LSTM, .*, Conv1D; got 'Dense'",
    ):
        prunus.make_masks(model, 0.5, layers="Dense")
    for wrong in (3, [], ["Linear", 3], nn.ReLU()):
        with pytest.raises(TypeError, match=r"layers must be torch\.nn\.Module types or their names, got"):
            prunus.make_masks(model, 0.5, layers=wrong)  # type: ignore[arg-type]


def test_what_is_printed_of_each_public_thing() -> None:
    model = digits.load_network("plain")
    masks = prunus.make_masks(model, 0.5)
    assert repr(masks) == "Masks(3 tensors, 2,952 of 5,904 weights pruned)"
    assert repr(prunus.rank(model, granularity="kernel")) == (
        "Ranking(656 pieces of 3 tensors; magnitude, kernel, global)"
    )
    [point] = prunus.sweep(model, [digits.load_images()], p_prune=0.5)
    assert (
        repr(point) == "Point(p_prune=0.5, p_bern=1, 'weight': 2,952 of 5,904 weights pruned, top-1 92.99%)"
    )
    surrogate = prunus.Diversified(model, 0.7)
    assert repr(surrogate) == (
        "Diversified(Sequential, p_bern=0.5, passes='both', seed=0, draws=0, no mask yet)"
    )
    pruning = prunus.prune(model, 0.5, passes="backward")
    assert repr(pruning) == f"Pruning({masks!r}, passes='backward', p_bern=1)"
    prunus.restore(model)
    assert repr(pruning).endswith(", ended)")


DATA = [(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))]
VERBS: dict[str, Any] = {
    "rank": prunus.rank,
    "make_masks": lambda model, **given: prunus.make_masks(model, 0.5, **given),
    "prune": lambda model, **given: prunus.prune(model, 0.5, **given),
    "global_prune": prunus.global_prune,
    "gradient_prune": prunus.gradient_prune,
    "sweep": lambda model, **given: prunus.sweep(model, DATA, p_prune=0.5, **given),
    "Diversified": lambda model, **given: prunus.Diversified(model, 0.5, **given),
    "MUP": prunus.MUP,
    "evidence": lambda model, **given: prunus.evidence(model, DATA, **given),
    "fill_gradients": lambda model, **given: prunus.fill_gradients(model, DATA, **given),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelled_keyword(verb: str) -> None:
    """In the name of the verb that was called, with what was meant."""
    model = prunus.global_prune(small_net(), 0.2)
    before = weights_of(model)
    meant = {"excludes": "exclude", "layer": "layers"}
    meant |= {} if verb in ("evidence", "fill_gradients") else {"granularty": "granularity"}
    for wrong, right in meant.items():
        with pytest.raises(
            TypeError, match=rf"^{verb}\(\) has no keyword '{wrong}': did you mean '{right}'\?"
        ):
            VERBS[verb](model, **{wrong: "kernel"})
    with pytest.raises(TypeError, match=rf"^{verb}\(\) has no keyword 'xyzzy': it has model, .*exclude"):
        VERBS[verb](model, xyzzy=1)
    assert_same(model, before)


def test_keywords_of_what_measures_and_applies() -> None:
    with pytest.raises(TypeError, match=r"^evaluate\(\) has no keyword 'metrics': did you mean 'metric'\?"):
        prunus.evaluate(small_net(), DATA, metrics=None)  # type: ignore[call-arg]
    with pytest.raises(
        TypeError, match=r"^apply_masks\(\) has no keyword 'p_prune': it has model, masks, passes"
    ):
        prunus.apply_masks(small_net(), prunus.Masks({}), p_prune=0.5)  # type: ignore[call-arg]


SEEDED: dict[str, Any] = {
    "rank": lambda net, **how: next(prunus.rank(net, **how).candidates([0.5])).draw(),
    "draw": lambda net, **how: next(prunus.rank(net).candidates([0.5])).draw(0.5, seed=how["seed"]),
    "make_masks": lambda net, **how: prunus.make_masks(net, 0.5, 0.5, **how),
    "prune": lambda net, **how: prunus.prune(net, 0.5, p_bern=0.5, **how).redraw(),
    "global_prune": lambda net, **how: prunus.masks_of(prunus.global_prune(net, 0.5, 0.5, **how)),
    "for good": lambda net, **how: prunus.Masks.from_zeros(
        prunus.global_prune(net, 0.5, 0.5, keep_original=False, **how)
    ),
    "gradient_prune": lambda net, **how: prunus.masks_of(prunus.gradient_prune(net, 0.5, 0.5, **how)),
    "sweep": lambda net, **how: prunus.sweep(net, DATA, p_prune=0.5, p_bern=0.5, **how),
    "find": lambda net, **how: prunus.find(net, DATA, 0, tolerance=0.4, **how).masks,
    "Diversified": lambda net, **how: prunus.Diversified(net, 0.5, **how).redraw(),
    "SET": lambda net, **how: prunus.SET(net, 0.5, [1], optimizer=_sgd(net), seed=how["seed"]).masks,
    "Gradual": lambda net, **how: _cut(prunus.Gradual(net, 0.5, [1], **how)),
}


def _sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1)


def _cut(gradual: prunus.Gradual) -> prunus.Masks:
    gradual.step()
    return gradual.masks


@pytest.mark.parametrize("call", SEEDED)
def test_one_way_to_seed(call: str) -> None:
    """A number or a generator, in every call that draws, which takes nothing from torch's global one."""
    net = small_net()
    before = torch.get_rng_state()

    def found(seed: Any) -> Any:
        return SEEDED[call](copy.deepcopy(net), criterion="random", seed=seed)

    assert found(3) == found(3) == found(np.int64(3)) != found(4)
    if call not in ("sweep", "Diversified"):  # which record, or number their draws by, a number
        assert found(torch.Generator().manual_seed(3)) == found(3)
    generator = torch.Generator().manual_seed(3)
    assert found(generator) == found(torch.Generator().manual_seed(3)) != found(generator)
    assert torch.equal(torch.get_rng_state(), before)
    for wrong in (-1, 0.5, "0", True):
        with pytest.raises(ValueError, match=f"^seed must be a whole number from 0, got {wrong!r}"):
            found(wrong)
    with pytest.raises(ValueError, match=r"^seed must be below 2\*\*64, got"):
        found(2**64)


def test_scores_and_draws_of_one_seed_are_not_the_same_numbers() -> None:
    """Each piece falls at random and is then drawn: as independently as one generator gives them."""
    masks = prunus.make_masks(nn.Conv2d(32, 32, 3), 0.5, 0.5, criterion="random", seed=0)
    assert 0.23 < masks.sparsity < 0.27


def test_former_names_of_seed() -> None:
    net = small_net()
    with pytest.warns(
        DeprecationWarning, match=r"^make_masks\(generator=\) is now make_masks\(seed=\)"
    ) as told:
        masks = prunus.make_masks(net, 0.5, 0.5, generator=torch.Generator().manual_seed(3))  # type: ignore[call-arg]
    assert told[0].filename == __file__
    assert masks == prunus.make_masks(net, 0.5, 0.5, seed=3)
    with pytest.warns(DeprecationWarning, match=r"^sweep\(seeds=\) is now sweep\(seed=\)"):
        points = prunus.sweep(net, DATA, p_prune=0.5, p_bern=0.5, seeds=(3, 4))  # type: ignore[call-arg]
    assert points == prunus.sweep(net, DATA, p_prune=0.5, p_bern=0.5, seed=(3, 4))
    with pytest.raises(TypeError, match=r"^prune\(\) got 'generator' and 'seed'"):
        prunus.prune(net, 0.5, seed=1, generator=None)  # type: ignore[call-arg]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_nothing(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument}='layer9\.\*' matches nothing; .*'0\.weight'"):
        prunus.make_masks(small_net(), 0.5, **{argument: ("0", "layer9.*")})


def test_patterns_that_leave_nothing() -> None:
    with pytest.raises(ValueError, match=r"nothing to prune: include=None, exclude='\*'"):
        prunus.make_masks(small_net(), 0.5, exclude="*")


def test_a_pattern_may_match_layers_that_are_not_pruned_anyway() -> None:
    assert list(prunus.make_masks(small_net(), 0.5, exclude=("7", "0"))) == ["3.weight"]
    assert len(prunus.make_masks(small_net(), 0.5, exclude=None)) == 2


def test_patterns_name_weights_and_modules() -> None:
    model = nn.Sequential(small_net(), nn.Conv2d(10, 4, 1))
    assert list(prunus.make_masks(model, 0.5, exclude="0")) == ["1.weight"]
    assert list(prunus.make_masks(model, 0.5, exclude="0.0.weight")) == ["0.3.weight", "1.weight"]
    assert list(prunus.make_masks(model, 0.5, include=("0.?",))) == ["0.0.weight", "0.3.weight"]


def test_a_model_with_nothing_to_prune() -> None:
    with pytest.raises(
        ValueError, match=r'Conv2d layers hold 0% of the model\'s 6 weights; Linear .*; layers="all"'
    ):
        prunus.global_prune(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="nothing to prune"):
        prunus.global_prune(nn.ReLU())
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got str"):
        prunus.global_prune("resnet18")  # type: ignore[arg-type]


def test_a_model_whose_chosen_layers_hold_little_of_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(9, 9))
    with pytest.warns(UserWarning, match=r'hold only 1\.1% .* layers="all"') as caught:
        prunus.make_masks(model, 0.5)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_cannot_be_ranked(value: float) -> None:
    model = small_net()
    with torch.no_grad():
        model[3].weight[1, 2, 0, 1] = value
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"3\.weight has values or scores that are NaN or infinite"):
        prunus.global_prune(model, 0.5)
    assert all(torch.equal(v.nan_to_num(), before[n].nan_to_num()) for n, v in model.state_dict().items())


def test_masks_of_another_network() -> None:
    model = small_net()
    before = weights_of(model)
    other = prunus.make_masks(nn.Sequential(nn.Conv2d(3, 9, 3)), 0.5)
    with pytest.raises(ValueError, match=r"another network: mask of '0\.weight' has shape \(9, 3, 3, 3\)"):
        prunus.apply_masks(model, other)
    elsewhere = prunus.make_masks(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 3)), 0.5)
    with pytest.raises(ValueError, match="it has no weight"):
        prunus.apply_masks(nn.Conv2d(3, 8, 3), elsewhere)
    with pytest.raises(TypeError, match=r"must be prunus\.Masks, got dict"):
        prunus.apply_masks(model, dict(other))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another network"):
        other & elsewhere
    assert_same(model, before)


def test_no_masks_at_all(tmp_path: Path) -> None:
    model = prunus.global_prune(small_net(), 0.2)
    before = weights_of(model)
    prunus.Masks({}).save(tmp_path / "masks.safetensors")
    for masks in (prunus.Masks({}), prunus.Masks.load(tmp_path / "masks.safetensors")):
        with pytest.raises(ValueError, match="masks is empty"):
            prunus.apply_masks(model, masks)
    assert_same(model, before)


@pytest.mark.parametrize("byte", [2, 255])
def test_booleans_that_are_neither_0_nor_1(byte: int, tmp_path: Path) -> None:
    """torch counts them as true, but weights are masked by their bits."""
    from safetensors.torch import save_file

    wrong = torch.tensor([[1, 0], [byte, 1]], dtype=torch.uint8).view(torch.bool)
    for mask in (wrong, wrong.t(), wrong[1:].expand(3, 2)):
        with pytest.raises(
            ValueError, match=rf"'0\.weight' has bytes that are not 0 or 1, such as {byte}: give"
        ):
            prunus.Masks({"1.weight": torch.ones(2).bool(), "0.weight": mask})
    save_file({"0.weight": wrong}, tmp_path / "masks.safetensors")
    with pytest.raises(ValueError, match=r"not a file of masks: mask of '0\.weight' has bytes"):
        prunus.Masks.load(tmp_path / "masks.safetensors")
    assert prunus.Masks({"0.weight": wrong != 0}).pruned == 1  # as the message advises


def test_masks_of_what_a_network_wraps_and_of_a_wrapper() -> None:
    """The message says what to do, and that works."""
    bare = small_net()
    masks = prunus.make_masks(bare, 0.5)
    for wrapper, prefix in (
        (nn.DataParallel(bare), "module."),
        (torch.compile(bare), "_orig_mod."),
        (nn.DataParallel(torch.compile(bare)), "module._orig_mod."),  # type: ignore[type-var]
        (nn.Sequential(nn.Identity(), nn.ModuleDict({"body": bare})), "1.body."),
    ):
        assert isinstance(wrapper, nn.Module)
        with pytest.raises(
            ValueError, match=rf"no weight '0\.weight'.*'{prefix}': apply them to (.*)"
        ) as caught:
            prunus.apply_masks(wrapper, masks)
        advised = eval(str(caught.value).rpartition("apply them to ")[2], {"model": wrapper})
        prunus.restore(prunus.apply_masks(advised, masks))
        assert advised is bare
        of_wrapper = prunus.make_masks(wrapper, 0.5)
        with pytest.raises(ValueError, match=rf"'{prefix}', which those of the masks have: apply ") as caught:
            prunus.apply_masks(bare, of_wrapper)
        renamed = str(caught.value).rpartition("have: apply ")[2]
        assert eval(renamed, {"prunus": prunus, "masks": of_wrapper}) == masks


def test_masks_that_two_parts_of_a_network_could_have_or_that_fit_in_part() -> None:
    masks = prunus.make_masks(small_net(), 0.5)
    twins = nn.ModuleDict({"a": small_net(), "b": small_net()})
    with pytest.raises(ValueError, match=r"'a\.' or 'b\.': apply them to model\.a or model\.b$"):
        prunus.apply_masks(twins, masks)
    with pytest.raises(ValueError, match=r"it has no weight '0\.weight'$"):
        prunus.apply_masks(nn.ModuleDict({"a": small_net()[:1]}), masks)
    with pytest.raises(ValueError, match=r"it has no weight 'a\.0\.weight'$"):
        prunus.apply_masks(small_net(), prunus.make_masks(twins, 0.5))
    with pytest.raises(ValueError, match=r"it has no weight '0\.weight'$"):
        masks & prunus.make_masks(twins, 0.5)


@pytest.mark.parametrize("criterion", ["gradient", "taylor"])
def test_gradient_criteria_without_gradients(criterion: str) -> None:
    with pytest.raises(ValueError, match=r"0\.weight has no gradients.*its \.grad is None; .*fill_grad"):
        prunus.global_prune(small_net(), 0.5, criterion=criterion)


def test_computed_and_lazy_weights() -> None:
    model = small_net()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match=r"0\.weight is not a parameter of its"):
        prunus.global_prune(model, 0.5)
    assert list(prunus.make_masks(model, 0.5, exclude="0")) == ["3.weight"]
    with pytest.raises(ValueError, match="lazy"):
        prunus.global_prune(nn.Sequential(nn.LazyConv2d(3, 3)), 0.5)


def test_a_criterion_of_the_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"scores of shape \(216,\) for 0\.weight; expected \(216, 1\)"):
        prunus.make_masks(small_net(), 0.5, criterion=lambda groups: groups.values.abs()[:, 0])


def test_layers_without_a_weight_and_weights_that_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="nothing to prune: ReLU layers"):
        prunus.global_prune(small_net(), layers=(nn.ReLU,))
    with torch.inference_mode():
        model = small_net()
    with pytest.raises(ValueError, match=r"0\.weight was made in inference mode"):
        prunus.global_prune(model, 0.5)
    model = small_net()
    prunus.global_prune(model, 0.5)
    before = weights_of(model)
    model[3].weight = nn.Parameter(torch.ones(12, 8, 1, 1).expand(12, 8, 3, 3))
    with pytest.raises(ValueError, match=r"3\.weight is expanded"):
        prunus.global_prune(model, 0.2)
    assert torch.equal(model[0].weight, before["0.weight"])  # pruned as before


def test_a_layer_without_entries_is_no_hindrance() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(torch.empty(0, 4))
    for granularity in ("weight", "filter"):
        masks = prunus.make_masks(model, 0.5, granularity=granularity, layers="all")
        assert masks.pruned == 54


def test_an_error_inside_the_context_restores() -> None:
    model = small_net()
    before = weights_of(model)
    with pytest.raises(ZeroDivisionError), prunus.prune(model, 0.5):
        raise ZeroDivisionError
    assert_same(model, before)


class TestMaskFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        masks = prunus.make_masks(small_net(), 0.5)
        masks.save(tmp_path / "masks.safetensors")
        loaded = prunus.Masks.load(tmp_path / "masks.safetensors")
        assert loaded == masks != prunus.make_masks(small_net(), 0.4)
        assert [path.name for path in tmp_path.iterdir()] == ["masks.safetensors"]

    def test_missing_truncated_or_no_masks(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        path = tmp_path / "masks.safetensors"
        with pytest.raises(FileNotFoundError, match=r"masks\.safetensors"):
            prunus.Masks.load(path)
        with pytest.raises(FileNotFoundError, match="no folder"):
            prunus.make_masks(small_net(), 0.5).save(tmp_path / "absent" / "masks.safetensors")
        prunus.make_masks(small_net(), 0.5).save(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match="is not a file of masks"):
            prunus.Masks.load(path)
        save_file({"weight": torch.ones(3)}, path)
        with pytest.raises(ValueError, match=r"not a file of masks: .*torch\.bool"):
            prunus.Masks.load(path)

    def test_a_failed_save_leaves_the_old_file(self, tmp_path: Path) -> None:
        import subprocess
        import sys

        pytest.importorskip("resource")  # POSIX
        path = tmp_path / "masks.safetensors"
        prunus.make_masks(small_net(), 0.5).save(path)
        before = path.read_bytes()
        code = (
            "import sys, resource, signal, prunus, torch\n"
            "masks = prunus.make_masks(torch.nn.Conv2d(64, 64, 3), 0.5)\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"  # the disk is full
            "masks.save(sys.argv[1])\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
        assert done.returncode != 0
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["masks.safetensors"]


def test_and_or() -> None:
    model = small_net()
    few, many = prunus.make_masks(model, 0.2), prunus.make_masks(model, 0.6)
    assert (few & many).counts == many.counts
    assert (few | many).counts == few.counts
    random = prunus.make_masks(model, 0.5, criterion="random")
    both = random & many
    assert both.pruned + (random | many).pruned == random.pruned + many.pruned


def test_weights_that_are_not_plain_dense_tensors() -> None:
    kinds = {
        "TwoTensor, made of other tensors": TwoTensor(torch.ones(4, 4), torch.ones(4, 4)),
        "torch.sparse_coo; only dense": torch.eye(4).to_sparse(),
        "quantized .*: prune before": torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8),
    }
    masks = prunus.make_masks(nn.Linear(4, 4), 0.5, layers="all")
    for message, values in kinds.items():
        model = nn.Linear(4, 4)
        model.weight = nn.Parameter(values, requires_grad=False)
        for verb in (
            lambda model: prunus.make_masks(model, 0.5, layers="all"),
            lambda model: prunus.apply_masks(model, masks),
        ):
            with pytest.raises(ValueError, match=f"^weight is (a )?{message}"):
                verb(model)
            assert not vars(model).keys() - vars(nn.Linear(4, 4)).keys()
