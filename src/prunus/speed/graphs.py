"""A network as a graph that other runtimes read."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection, export
from torch.utils._pytree import tree_leaves, tree_map

from prunus.extras import need

_LOCK = threading.RLock()  # neither torch.export nor what is printed meanwhile is of one thread alone


def cloned(tree: Any) -> Any:
    """The same containers, with copies of their tensors."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)


def input_names(file: bytes) -> list[str]:
    """Of the tensors that an ONNX file takes, in their order."""
    made = need("onnx", "export").load_from_string(file)
    return [given.name for given in made.graph.input]


def tensor_leaves(*trees: Any) -> list[Tensor]:
    """The tensors in containers, in order."""
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]


def graph_of(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batched: bool = False
) -> ExportedProgram:
    """What a network computes for arguments of these shapes.

    Args:
        model: without masks, in eval mode.
        args, kwargs: what it is called with.
        batched: whether the first axis of each tensor that is as long as the first tensor's may be of any
            length; it must be at least 2 in these.
    """
    # Or one tensor that is there twice would be one input, and what the network writes to would be written to
    args, kwargs = cloned((args, dict(kwargs)))
    shapes: Any = None
    if batched:
        shapes = ShapesCollection()  # type: ignore[no-untyped-call]
        batch, tensors = Dim("batch"), tensor_leaves(args, kwargs)
        for tensor in tensors:
            shapes[tensor] = {0: batch} if has_batch(tensor, tensors) else {}
    with _LOCK, torch.no_grad(), _quietly():
        return export(model, args, dict(kwargs), dynamic_shapes=shapes, strict=False)


def has_batch(tensor: Tensor, tensors: list[Tensor]) -> bool:
    """Whether its first axis is as long as that of the first tensor, and so is taken for the batch's."""
    return tensor.dim() > 0 and tensors[0].dim() > 0 and len(tensor) == len(tensors[0])


def onnx_of(graph: ExportedProgram) -> bytes:
    """The same in ONNX.

    Raises:
        ImportError: what torch needs for that is not installed.
        ValueError: it would have more than 2 GB.
    """
    need("onnx", "export")
    need("onnxscript", "export")
    with _LOCK, _quietly():
        made = torch.onnx.export(graph, dynamo=True, verbose=False)
    assert made is not None
    try:
        return bytes(made.model_proto.SerializeToString())
    except Exception as error:  # of protobuf, of several kinds
        raise ValueError(f"no ONNX file can hold the network: {error!s:.200}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch tells of its steps, on standard output and in its log."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
