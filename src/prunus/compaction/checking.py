"""Does a network that was cut give what the whole one does?"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.compaction.comparing import apart, random_like, shorter
from prunus.coupling.trace import arguments, tensors_in
from prunus.macs import macs
from prunus.modes import as_written, eval_mode
from prunus.weights import depth_outside


class Check:
    """Whether another network gives what this one does.

    It is run on the example, on random inputs of its kind, and, where the network takes them, with random
    flags and numbers, and one row or column less.

    Args:
        model: the network, of which what a forward changes is changed.
        example_inputs: of it.
        tolerance: see `compact`.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, tolerance: float) -> None:
        generator = torch.Generator().manual_seed(0x5EED)
        self._inputs = [example_inputs]
        for scale in (1.0, 10.0):
            self._inputs.append(random_like(example_inputs, generator, scale))
        self._wanted = [self._outputs(model, inputs) for inputs in self._inputs]
        self._tolerance = max(tolerance, *(4 * _rounding(leaf) for leaf in self._wanted[0]))
        self._warn_of_constants(example_inputs)
        others = shorter(example_inputs)
        if any(
            isinstance(leaf, Tensor) and not leaf.is_floating_point() for leaf in tree_leaves(example_inputs)
        ):
            others.append(random_like(example_inputs, generator, loose=True))
        for inputs in others:
            try:
                wanted = self._outputs(model, inputs)
            except Exception:  # of inputs that it does not take
                continue
            self._inputs.append(inputs)
            self._wanted.append(wanted)

    def _warn_of_constants(self, example_inputs: Any) -> None:
        """Where no input makes a difference, nothing can be told."""
        given = tree_leaves(example_inputs)
        others = [
            wanted
            for inputs, wanted in zip(self._inputs, self._wanted, strict=True)
            if not all(map(_unchanged, given, tree_leaves(inputs)))
        ]
        pairs = [pair for wanted in others for pair in zip(self._wanted[0], wanted, strict=False)]
        if pairs and all(apart([one], [other]) == 0 for one, other in pairs):
            warnings.warn(
                "the outputs are the same for other inputs, as of a last layer of zeros: that they stay so "
                "tells nothing of what was cut",
                stacklevel=depth_outside(),
            )

    def _outputs(self, model: nn.Module, inputs: Any) -> list[Tensor]:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        args, kwargs = arguments(inputs, device)
        with eval_mode(model), as_written(), torch.no_grad(), torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would seed GPUs too
            output = model(*args, **kwargs)
        numbers = [leaf for leaf in tree_leaves(output) if isinstance(leaf, (int, float, complex))]
        return [*tensors_in(output), *map(torch.tensor, numbers)]

    def macs(self, model: nn.Module) -> dict[str, int]:
        """Of the example inputs, by module."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        args, kwargs = arguments(self._inputs[0], device)
        return macs(model, *args, **kwargs)

    def __call__(self, model: nn.Module, first: int | None = None) -> str:
        """What is wrong, on the first so many inputs; "" where nothing is."""
        for inputs, wanted in list(zip(self._inputs, self._wanted, strict=True))[:first]:
            try:
                found = self._outputs(model, inputs)
            except Exception as error:  # whatever a forward raises
                return f"are counted on by the forward, which fails without ({type(error).__name__})"
            if [leaf.shape for leaf in found] != [leaf.shape for leaf in wanted]:
                return "are in the shape of the outputs"
            if not apart(wanted, found) <= self._tolerance:
                return "change the outputs when they go"
        return ""


def _unchanged(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, Tensor) and torch.equal(one, other))


def _rounding(output: Tensor) -> float:
    """Of its dtype, as a part of a number."""
    return torch.finfo(output.dtype).eps if output.is_floating_point() else 0.0
