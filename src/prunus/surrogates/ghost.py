"""Ghost networks: dropout where there was none."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunus.checks import check_fraction
from prunus.randomness import Seed, number_of, stream
from prunus.selection.draw import bernoulli
from prunus.surrogates.recomputed import Drawn
from prunus.surrogates.surrogate import Surrogate
from prunus.weights import Layers, Patterns, find_weights


class Ghost(Surrogate):
    """Dropout after every layer while gradients are asked for (Li et al. 2020, arXiv 1812.03413).

    Args:
        model: the network.
        rate: chance that a value is dropped, in [0, 1).
        seed: of all draws, as in `Diversified`.
        layers: whose outputs; likewise `include` and `exclude`. See `prunus.rank`.
    """

    def __init__(
        self,
        model: nn.Module,
        rate: float,
        *,
        seed: Seed = 0,
        layers: Layers = (nn.Conv2d,),
        include: Patterns | None = None,
        exclude: Patterns | None = (),
    ) -> None:
        super().__init__(model)
        if check_fraction("rate", rate) == 1:
            raise ValueError("rate must be below 1, or nothing is left")
        owners = [owner for w in find_weights(model, layers, include, exclude).values() for owner in w.owners]
        names = [name for name, module in model.named_modules() if module in owners]
        self.draws, self._rate, self._seed, self._layers = 0, rate, number_of(seed), names
        self._drawn = Drawn[int]()

    def _changed(self, *args: Any, **kwargs: Any) -> Any:
        generator, copy = stream(self._seed, self._drawn.once(self._next)), self._copy()

        def drop(module: nn.Module, args: object, output: Tensor) -> Tensor:
            dropped = bernoulli(output.numel(), self._rate, generator).view(output.shape).to(output.device)
            return output.masked_fill(dropped, 0) / (1 - self._rate)

        for name in self._layers:
            copy.get_submodule(name).register_forward_hook(drop, prepend=True)
        return copy(*args, **kwargs)

    def _next(self) -> int:
        self.draws += 1
        return self.draws
