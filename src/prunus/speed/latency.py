"""How long does a network take, and in which runtime?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.checks import check_whole, choose, knows_keywords
from prunus.compaction.comparing import apart
from prunus.compaction.forgood import for_good
from prunus.coupling.trace import arguments
from prunus.macs import macs
from prunus.speed.graphs import cloned, tensor_leaves
from prunus.speed.memory import extra_memory
from prunus.speed.runtimes import LIBRARIES, RUNTIMES, installed, run_torch
from prunus.table import Table

SHORTEST = 1e-3  # seconds: what takes less is called several times in a round


@dataclass(frozen=True)
class Timing:
    """A network in a runtime.

    Args:
        model: its name.
        runtime: the name of that.
        ms: milliseconds of a call, the median over rounds; None where it does not run.
        low, high: quartiles.
        memory: bytes by which memory grew at most during the first call of what was built; None where the
            system does not tell.
        apart: the largest difference of outputs from those in eager mode, as a part of the largest output.
        macs: multiply-accumulates, as torch counts them: those by zeros too.
        weights, nonzero: entries of its parameters, and those that are not zero.
        bytes: of parameters and buffers.
        reason: why it does not run; "" where it does.
    """

    model: str
    runtime: str
    ms: float | None
    low: float | None
    high: float | None
    memory: int | None
    apart: float | None
    macs: int
    weights: int
    nonzero: int
    bytes: int
    reason: str = ""


@dataclass(frozen=True)
class Latency:
    """What `latency` measured; prints as a table.

    Args:
        rows: one for each network and runtime, network by network.
        threads: of the processor that took part.
        rounds: how often each was timed.
    """

    rows: Sequence[Timing]
    threads: int
    rounds: int

    def columns(self) -> list[dict[str, Any]]:
        """Rows as dicts, for JSON or a data frame. `apart` may be "inf", which JSON has no number for."""
        beside = {"threads": self.threads, "rounds": self.rounds}
        rows = [{**asdict(row), **beside} for row in self.rows]
        return [row | {"apart": "inf"} if row["apart"] == float("inf") else row for row in rows]

    def __str__(self) -> str:
        head = (
            "model",
            "runtime",
            "ms",
            "quartiles",
            "MACs",
            "weights",
            "not zero",
            "bytes",
            "memory",
            "apart",
        )
        lines = str(Table(head, [_cells(row) for row in self.rows], named=2)).splitlines()
        reasons = [row.reason and f"  {row.reason}" for row in self.rows]
        table = [line + why for line, why in zip(lines, ["", *reasons], strict=True)]
        return "\n".join([*table, f"{self.rounds} rounds in turns, {self.threads} threads"])


def _cells(row: Timing) -> tuple[str, ...]:
    ms = "-" if row.ms is None else f"{row.ms:.3f}"
    quartiles = "-" if row.ms is None else f"{row.low:.3f}-{row.high:.3f}"
    counts = (f"{count:,}" for count in (row.macs, row.weights, row.nonzero, row.bytes))
    memory = "-" if row.memory is None else f"{row.memory:,}"
    return (
        row.model,
        row.runtime,
        ms,
        quartiles,
        *counts,
        memory,
        "-" if row.apart is None else f"{row.apart:.0e}",
    )


class Contender:
    """A network in a runtime, built and warmed up.

    Args:
        runtime: how it is run.
        model: plain, in eval mode.
        args, kwargs: what it is called with.

    Raises:
        Exception: whatever it takes to not run.
    """

    def __init__(
        self, runtime: str, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        timed, alone = cloned((args, kwargs)), cloned((args, kwargs))  # a network may write to its inputs
        run = RUNTIMES[runtime](model, args, kwargs)
        self._call = partial(run, *timed[0], **timed[1])
        tensors = [*model.parameters(), *tensor_leaves(args, kwargs)]
        self._device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self.memory, found = extra_memory(self._call, self._device)
        self.apart = apart(run_torch(model)(*alone[0], **alone[1]), found)
        self._seconds(1)  # of which the first are slower
        self._repeats = max(1, round(SHORTEST / max(self._seconds(2), 1e-6)))

    def _seconds(self, repeats: int) -> float:
        """Of one call, as a mean over these."""
        self._wait()
        start = time.perf_counter()
        for _ in range(repeats):
            self._call()
        self._wait()
        return (time.perf_counter() - start) / repeats

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def turn(self) -> float:
        """Milliseconds of a call, after one meanwhile threads of the runtime before may still have spun."""
        self._call()
        return 1e3 * self._seconds(self._repeats)


@knows_keywords()
def latency(
    models: nn.Module | Mapping[str, nn.Module],
    inputs: Any,
    *,
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int = 20,
) -> Latency:
    """Time networks in runtimes, in turns, so that what else the machine does meets all alike.

    Networks run in eval mode without gradients, pruned ones without their masks and with the zeros that these
    make. "eager" is torch as it is, "compile" torch.compile; "onnxruntime" and "openvino", of the extra
    `export`, are in float32 on the CPU.

    Args:
        models: one, or several by name; they are left as they are.
        inputs: what they are called with: a tensor, a tuple of arguments or a dict of keywords.
        runtimes: names of them; default all that are installed, and run where the networks are.
        threads: of the processor, for each of them; default as many as torch has.
        rounds: how often each is timed; what takes less than a millisecond is called several times in each.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value; networks that do not run in eager mode.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> made = latency({"net": net}, torch.randn(1, 3, 8, 8), runtimes=["eager"], rounds=3)
        >>> made.rows[0].ms > 0, made.rows[0].weights, made.rows[0].macs
        (True, 224, 7776)
    """
    named = dict(models) if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise ValueError("models is empty: expected at least one network")
    for name, model in named.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"models must be torch.nn.Modules, {name!r} is {type(model).__name__}")
    check_whole("rounds", rounds, 1)
    threads = torch.get_num_threads() if threads is None else check_whole("threads", threads, 1)
    if isinstance(runtimes, str):
        raise TypeError(f"runtimes must be a list of names, got {runtimes!r}")
    wanted = _default(named.values()) if runtimes is None else list(runtimes)
    if not wanted:
        raise ValueError(f"runtimes is empty: expected some of {', '.join(RUNTIMES)}")
    for name in wanted:
        choose("runtimes", name, RUNTIMES)
    with _threads(threads), torch.random.fork_rng([]):
        plain = {name: for_good(model).eval() for name, model in named.items()}
        return Latency(_rows(plain, inputs, wanted, rounds), threads, rounds)


def _default(models: Any) -> list[str]:
    """What is installed, and of that what runs where the networks are."""
    elsewhere = any(p.device.type != "cpu" for model in models for p in model.parameters())
    return [name for name in installed() if not (elsewhere and LIBRARIES[name])]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _rows(models: Mapping[str, nn.Module], inputs: Any, runtimes: Sequence[str], rounds: int) -> list[Timing]:
    facts = {name: _facts(name, model, *_arguments(model, inputs)) for name, model in models.items()}
    made: dict[tuple[str, str], Contender | str] = {}
    for name, model in models.items():
        for runtime in runtimes:
            try:
                made[name, runtime] = Contender(runtime, model, *_arguments(model, inputs))
            except Exception as error:  # whatever a runtime raises
                made[name, runtime] = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
    running = {key: one for key, one in made.items() if isinstance(one, Contender)}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in running}
    for _ in range(rounds):
        for key, contender in running.items():
            times[key].append(contender.turn())
    rows = []
    for (name, runtime), one in made.items():
        if isinstance(one, str):
            rows.append(Timing(name, runtime, None, None, None, None, None, **facts[name], reason=one))
        else:
            low, ms, high = (float(part) for part in np.percentile(times[name, runtime], [25, 50, 75]))
            rows.append(Timing(name, runtime, ms, low, high, one.memory, one.apart, **facts[name]))
    return rows


def _arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies of them, on the network's device."""
    args, kwargs = arguments(inputs, next((p.device for p in model.parameters()), torch.device("cpu")))
    return cloned(args), cloned(kwargs)


def _facts(name: str, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on the runtime."""
    try:
        count = macs(model, *args, **kwargs).get("", 0)
    except Exception as error:  # whatever a forward raises
        raise ValueError(
            f"{name} does not run on these inputs: {type(error).__name__}: {error!s:.200}"
        ) from error
    parameters = list(model.parameters())
    tensors: list[Tensor] = [*parameters, *model.buffers()]
    return {
        "macs": count,
        "weights": sum(p.numel() for p in parameters),
        "nonzero": sum(int(p.count_nonzero()) for p in parameters),
        "bytes": sum(t.numel() * t.itemsize for t in tensors),
    }
