"""Ways to run a network on this machine.

To add one, write a function here under `@runtime(name)`. It takes a plain network in eval mode, its arguments
and its keywords, and gives what runs it, on as many threads as torch has then: a function of arguments and
keywords of the same kinds, which returns the tensors among the network's outputs as a flat list, computed
without gradients.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from prunus.coupling.trace import tensors_in
from prunus.extras import need
from prunus.speed.graphs import graph_of, input_names, onnx_of, tensor_leaves
from prunus.speed.signals import own_signal_stack

Run: TypeAlias = Callable[..., list[Tensor]]
Runtime: TypeAlias = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Run]

RUNTIMES: dict[str, Runtime] = {}
LIBRARIES: dict[str, tuple[str, ...]] = {}  # beside torch, by runtime; with some it runs on the CPU alone


def runtime(name: str, *libraries: str) -> Callable[[Runtime], Runtime]:
    """Register a way to run a network, and the libraries of the extra `export` that it takes."""

    def register(function: Runtime) -> Runtime:
        RUNTIMES[name] = function
        LIBRARIES[name] = libraries
        return function

    return register


def installed() -> list[str]:
    """The runtimes whose libraries are here.

    Example:
        >>> installed()[:2]
        ['eager', 'compile']
    """
    return [name for name, libraries in LIBRARIES.items() if all(map(find_spec, libraries))]


@runtime("eager")
def eager(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """As it is."""
    return run_torch(model)


def run_torch(call: Callable[..., Any]) -> Run:
    """What runs a network of torch."""

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        with torch.no_grad():
            return tensors_in(call(*args, **kwargs))

    return run


@runtime("compile")
def compiled(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """By torch.compile, for these shapes.

    Raises:
        Exception: whatever torch.compile raises.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    # Of one piece of code torch compiles eight networks, and runs the ninth in eager: each has a piece of its
    # own, and where that does not help, as in forwards that compile in parts, it is an error
    call.__code__ = call.__code__.replace(co_name=f"call_{id(model)}")
    run = run_torch(torch.compile(call, dynamic=False))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        run(*args, **kwargs)
    return run


@runtime("onnxruntime", "onnx", "onnxscript", "onnxruntime")
def onnxruntime(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """By ONNX Runtime, from what `torch.onnx` makes of the network's graph; on the CPU.

    Raises:
        ImportError: it is not installed.
        ValueError: the network is on another device.
        Exception: whatever torch.export, torch.onnx or ONNX Runtime raise.
    """
    need("onnxruntime", "export")
    _check_cpu("onnxruntime", model)
    return run_onnx(onnx_of(graph_of(model, args, kwargs)), list(kwargs))


@runtime("openvino", "onnx", "onnxscript", "openvino")
def openvino(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """By OpenVINO, in float32, from the same ONNX; on the CPU.

    Raises:
        ImportError: it is not installed.
        ValueError: the network is on another device.
        Exception: whatever torch.export, torch.onnx or OpenVINO raise.
    """
    core = need("openvino", "export").Core()
    _check_cpu("openvino", model)
    file = onnx_of(graph_of(model, args, kwargs))
    return run_openvino(core.read_model(file), list(kwargs), input_names(file))


def run_onnx(file: bytes | str | os.PathLike[str], keywords: list[str]) -> Run:
    """What runs a network in ONNX.

    Args:
        file: what is in it, or its path.
        keywords: names of those that it is called with, in the order in which it takes them.
    """
    ort = need("onnxruntime", "export")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    held = file if isinstance(file, bytes) else os.fspath(file)
    session = ort.InferenceSession(held, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        arrays = [leaf.detach().numpy() for leaf in _in_order(args, kwargs, keywords)]
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(output) for output in outputs]

    return run


def run_openvino(model: Any, keywords: list[str], names: list[str]) -> Run:
    """What runs a model of OpenVINO, or a file of one.

    Args:
        model: that, or its path.
        keywords: as of `run_onnx`.
        names: of all tensors that the network takes, of which the model may have fewer.
    """
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # or it takes bfloat16 where the processor has that
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # to one core, whatever else runs there
    }
    with own_signal_stack():
        made = need("openvino", "export").Core().compile_model(model, "CPU", properties)
    taken = {name for port in made.inputs for name in port.get_names()}
    own = threading.local()  # a request for each thread, or they would get each other's outputs

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        if not hasattr(own, "request"):
            own.request = made.create_infer_request()
        leaves = _in_order(args, kwargs, keywords)
        given = {name: _fits(name, leaf) for name, leaf in zip(names, leaves, strict=True) if name in taken}
        outputs = own.request.infer(given, share_inputs=True).to_tuple()
        return [torch.from_numpy(array.copy()) for array in outputs]  # the request keeps their memory

    return run


def _fits(name: str, leaf: Tensor) -> Any:
    """The array, if OpenVINO has its numbers: it makes whole ones int32.

    Raises:
        ValueError: they are too large for that.
    """
    if leaf.dtype == torch.int64 and leaf.numel() and max(int(leaf.max()), -int(leaf.min()) - 1) >= 2**31:
        raise ValueError(f"{name} has whole numbers beyond int32, which OpenVINO does not take")
    return leaf.detach().numpy()


def _in_order(args: tuple[Any, ...], kwargs: Mapping[str, Any], keywords: list[str]) -> list[Tensor]:
    """The tensors among arguments and keywords, in the order in which a graph takes them."""
    return tensor_leaves(args, [kwargs[name] for name in keywords])


def _check_cpu(name: str, model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.device.type != "cpu":
            raise ValueError(f"{name} runs on the CPU here, and the network is on {parameter.device}")
