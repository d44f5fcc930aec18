"""How many multiplications does each layer make?"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunus.modes import as_written, eval_mode, requiring_grad

aten = torch.ops.aten


def _recurrent(x: Any, inputs: Any, hidden: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Of an LSTM layer on a CPU, which torch does not count."""
    steps = int(x[0] * x[1])
    return 2 * steps * int(inputs[0]) * int(inputs[1] + hidden[1])


def macs(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, int]:
    """Multiply-accumulates of one forward, by the path of the module that makes them; "" is the network.

    What a module makes is that of the modules within it, too. Counted by torch: convolutions, matrix products
    and attention.

    Args:
        model: run once in eval mode, without gradients.
        *args, **kwargs: what it is called with, on its device.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> macs(net, torch.zeros(1, 3, 8, 8))
        {'': 10656, '0': 7776, '2': 2880}
    """
    counter = FlopCounterMode(display=False, custom_mapping={aten.mkldnn_rnn_layer: _recurrent})
    with ExitStack() as stack:
        # Torch's counter cannot take views of parameters that want gradients as inputs of a module
        for within in (eval_mode(model), as_written(), requiring_grad(model.parameters(), False)):
            stack.enter_context(within)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*global hooks on modules")  # of a model that was compiled
        with torch.random.fork_rng([]), torch.no_grad(), counter:
            model(*args, **kwargs)
    found: dict[str, int] = {}
    for key, by_operation in counter.get_flop_counts().items():
        if key != "Global":
            found[key.partition(".")[2]] = sum(by_operation.values()) // 2  # two operations make one
    return {path: count for path, count in sorted(found.items()) if count}
