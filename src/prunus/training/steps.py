"""At which steps of a training is something done?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunus.checks import check_whole


class Counter:
    """Counts steps from 1, and the cuts among them from 0.

    Args:
        steps: at which there is a cut, rising.
        generator: of what is drawn at them, whose state belongs to that of the counter.

    Raises:
        TypeError: not a sequence.
        ValueError: none, not whole numbers from 1, or not rising.

    Example:
        >>> counter = Counter(range(2, 5, 2))
        >>> [(counter.next, counter.step())[0] for _ in range(5)]
        [None, 0, None, 1, None]
    """

    def __init__(self, steps: Sequence[int], generator: torch.Generator | None = None) -> None:
        if not isinstance(steps, Sequence):
            raise TypeError(f"steps must be numbers of steps, such as range(100, 900, 10), got {steps!r}")
        self.steps = [check_whole("steps", step, 1) for step in steps]
        if not self.steps or self.steps != sorted(set(self.steps)):
            raise ValueError(f"steps must be one or more rising numbers, got {steps!r}")
        self._cuts = {step: cut for cut, step in enumerate(self.steps)}
        self.now, self.generator = 0, generator

    @property
    def cuts(self) -> int:
        """How many there are."""
        return len(self.steps)

    @property
    def next(self) -> int | None:
        """The number of the cut at the next step, if that is one."""
        return self._cuts.get(self.now + 1)

    def step(self) -> None:
        """One more."""
        self.now += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        random = {"generator": self.generator.get_state()} if self.generator else {}
        return {"now": self.now, "steps": list(self.steps), **random}

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of one of other steps, or one that knows nothing of a generator that is there.

        Raises:
            ValueError: it is.
        """
        check_whole("now", state["now"])
        if self.generator and "generator" not in state:
            raise ValueError("the state is of one without a generator, and this one has one")
        if list(state["steps"]) != self.steps:
            raise ValueError(
                f"the state is of other steps: {len(state['steps'])} up to {state['steps'][-1]}, here "
                f"{len(self.steps)} up to {self.steps[-1]}"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.now = state["now"]
        if self.generator:
            self.generator.set_state(state["generator"])
