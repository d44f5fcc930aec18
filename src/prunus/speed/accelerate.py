"""A pruned network by what runs it fastest on this CPU: other runtimes, or layers of sparse weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from prunus.checks import check_number, check_whole, choose, knows_keywords
from prunus.compaction.comparing import apart
from prunus.compaction.forgood import for_good
from prunus.coupling.trace import arguments, tensors_in
from prunus.speed.choosing import Choice, in_turns, with_sparse_layers
from prunus.speed.graphs import cloned
from prunus.speed.runtimes import RUNTIMES, Run

SPARSE = ("eager", "compile")  # runtimes that know layers of sparse weights


@dataclass(frozen=True)
class Candidate:
    """One way to run a network.

    Args:
        name: of a runtime, after "sparse" where layers have sparse weights.
        milliseconds: of one call, the median; None where it was dropped.
        why: it was dropped; "" where it was not.
    """

    name: str
    milliseconds: float | None
    why: str = ""


class Accelerated:
    """A network as `accelerate` found that it runs fastest. Call it like the network; without gradients.

    Attributes:
        kept: the name of the candidate that runs it.
        why: in words.
        candidates: all that there were, the fastest first.
        layers: by module path, what was timed of each layer with zeros.
        model: the network that `kept` runs, for inputs of other shapes than the example's.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        example: Example,
        candidates: Iterable[Candidate],
        layers: Mapping[str, Choice],
    ) -> None:
        self.model = model
        self.layers = layers
        dropped = float("inf")
        self.candidates = sorted(
            candidates, key=lambda one: dropped if one.milliseconds is None else one.milliseconds
        )
        self.kept = self.candidates[0].name
        self._run = run
        self._example = example

    @property
    def why(self) -> str:
        """Beside what it was kept."""
        first, *others = [one for one in self.candidates if one.milliseconds is not None]
        told = f"{self.kept} is the fastest: {first.milliseconds:.2f} ms a call"
        dense = next((one for one in others if not one.name.startswith("sparse")), None)
        if not self.kept.startswith("sparse") or dense is None:
            return told
        times = (dense.milliseconds or 0) / (first.milliseconds or 1)
        return f"{told}, {times:.2f} times as fast as {dense.name}, the best with dense weights"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives; inputs of other shapes than the example's run in eager mode."""
        if not self.kept.endswith("eager") and self._example.alike(args, kwargs):
            return self._example.output(self._run(*args, **kwargs))
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def __reduce__(self) -> Any:
        raise TypeError("what accelerate gives cannot be copied or pickled: call accelerate there")

    def __repr__(self) -> str:
        return f"Accelerated({self.why})"

    def __str__(self) -> str:
        width = max(len(one.name) for one in self.candidates)
        lines = [
            f"{one.name:{width}}  "
            + (f"{one.milliseconds:9.2f} ms" if one.milliseconds is not None else f"dropped: {one.why}")
            for one in self.candidates
        ]
        sparse = [path for path, choice in self.layers.items() if choice.kept != "dense"]
        lines.append(f"sparse weights pay in {len(sparse)} of {len(self.layers)} layers with zeros")
        return "\n".join([*lines, self.why])


class Example:
    """What a network is called with, and what it gives then.

    Args:
        model: the network.
        args, kwargs: what it is called with.

    Raises:
        ValueError: it gives no tensors, or has them where they cannot be put back.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._given = args, kwargs
        self._kind = _kind(args, kwargs)
        args, kwargs = self.given()
        with torch.no_grad():
            output = model(*args, **kwargs)
        self.wanted = [tensor.clone() for tensor in tensors_in(output)]
        leaves, self._spec = tree_flatten(output)
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.others = {type(leaf).__name__ for leaf in self._leaves if leaf is not None}
        self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if not self.wanted:
            raise ValueError(f"model gives no tensors, but {type(output).__name__}")
        if len(self._places) != len(self.wanted):
            raise ValueError(
                f"model gives {type(output).__name__}, which does not tell where its tensors are: expected "
                "tensors in tuples, lists, dicts or what torch.utils._pytree knows"
            )

    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the arguments and keywords, as a network may write to them."""
        args, kwargs = cloned(self._given)
        return args, dict(kwargs)

    def alike(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether inputs have the shapes and types of the example's, and what is no tensor is the same."""
        (spec, leaves), (spec_held, held) = _kind(args, kwargs), self._kind
        return spec == spec_held and all(map(_same, leaves, held))

    def output(self, tensors: list[Tensor]) -> Any:
        """With these in their places."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, self._spec)


def _kind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[TreeSpec, list[Any]]:
    leaves, spec = tree_flatten((args, dict(kwargs)))
    return spec, [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in leaves]


def _same(one: Any, other: Any) -> bool:
    """Whether these are equal, and neither 2 and 2.0 nor what does not say so at once, as arrays."""
    return one is other or (type(one) is type(other) and (one == other) is True)


@knows_keywords()
def accelerate(
    model: nn.Module,
    example_inputs: Any,
    *,
    runtimes: Iterable[str] | None = None,
    tolerance: float = 1e-4,
    rounds: int = 9,
) -> Accelerated:
    """Find out what runs a network fastest on this CPU, and keep that; for inference.

    Zeros by themselves make nothing faster. Layers that have enough of them are timed with sparse weights,
    by torch's CSR products and by a kernel that is compiled when first needed (it takes a C++ compiler and
    ninja, and about 20 seconds once). Those that win become sparse in a copy of the network, and that copy,
    in eager mode and under torch.compile, is timed against the network in each runtime, in turns. So what is
    kept was never slower than the best of these. Time it on the machine, and with as many threads, as it is
    going to run: `torch.set_num_threads`.

    Args:
        model: a network on the CPU, pruned or with zeros of its own. It is left as it is; masks of it become
            zeros of the copy, which is in eval mode.
        example_inputs: what it is called with: a tensor, a tuple of arguments or a dict of keywords. Inputs
            of other shapes run in eager mode, with sparse layers where those were kept.
        runtimes: names of those that are tried, of which eager and compile run sparse layers too; by default
            all: eager, compile, onnxruntime, openvino. One that is not installed, or fails, is dropped.
        tolerance: how far outputs on the example may be from those of the network in eager mode, as a part of
            the largest. What is farther is dropped.
        rounds: of timing, of which the median counts; each call that is timed follows one that is not.

    Returns:
        What is called like the network; `print` shows what was tried.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value; a model on another device than the CPU;
            outputs that are not tensors in containers.
        RuntimeError: every candidate was dropped.

    Example:
        >>> import prunus
        >>> net, x = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)), torch.randn(64, 512)
        >>> net = prunus.global_prune(net, 0.98, layers="all")
        >>> fast = prunus.accelerate(net, x, runtimes=["eager"])
        >>> torch.allclose(fast(x), net(x), atol=1e-4), [one.name for one in sorted(fast.candidates, key=str)]
        (True, ['eager', 'sparse eager'])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(runtimes, str):
        raise TypeError(f"runtimes must be several names, such as [{runtimes!r}], got {runtimes!r}")
    names = list(dict.fromkeys(RUNTIMES if runtimes is None else runtimes))
    for name in names:
        choose("runtimes", name, RUNTIMES)
    if not names:
        raise ValueError(f"runtimes is empty: expected some of {', '.join(RUNTIMES)}")
    if not check_number("tolerance", tolerance) >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance!r}")
    check_whole("rounds", rounds, 1)
    args, kwargs = arguments(example_inputs, torch.device("cpu"))
    _check_cpu(model)
    whole = for_good(model).eval().requires_grad_(False)
    with torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what exports and compilers make of a network
        example = Example(whole, args, kwargs)
        sparse, layers, missing = with_sparse_layers(whole, *example.given())
        networks = dict.fromkeys(names, whole)
        if any(choice.kept != "dense" for choice in layers.values()):
            networks |= {f"sparse {name}": sparse for name in names if name in SPARSE}
        runs, dropped = _built(networks, example, tolerance)
        dropped += [Candidate(f"sparse by {product}", None, why) for product, why in missing.items()]
        if not runs:
            raise RuntimeError("; ".join(f"{one.name} was dropped: {one.why}" for one in dropped))
        given, named = example.given()
        times = in_turns({name: partial(run, *given, **named) for name, run in runs.items()}, rounds)
    timed = [Candidate(name, 1000 * seconds) for name, seconds in times.items()]
    fastest = min(times, key=times.__getitem__)
    return Accelerated(runs[fastest], networks[fastest], example, [*timed, *dropped], layers)


def _built(
    networks: Mapping[str, nn.Module], example: Example, tolerance: float
) -> tuple[dict[str, Run], list[Candidate]]:
    """What runs each of the networks, by name of the candidate, and the candidates that do not."""
    runs, dropped = {}, []
    for name, network in networks.items():
        if example.others and not name.endswith("eager"):
            kinds = ", ".join(sorted(example.others))
            dropped.append(Candidate(name, None, f"the network gives {kinds}, which eager alone makes anew"))
            continue
        try:
            run = RUNTIMES[name.removeprefix("sparse ")](network, *example.given())
            args, kwargs = example.given()
            off = apart(example.wanted, run(*args, **kwargs))
        except Exception as error:  # whatever a runtime makes of a network
            dropped.append(
                Candidate(name, None, f"{type(error).__name__}: {' '.join(str(error).split()):.200}")
            )
            continue
        if off <= tolerance:
            runs[name] = run
        else:
            dropped.append(Candidate(name, None, f"its outputs are {off:.0e} of the largest apart"))
    return runs, dropped


def _check_cpu(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type not in ("cpu", "meta"):
            raise ValueError(f"accelerate is for CPUs, and {name} of the model is on {tensor.device}")
