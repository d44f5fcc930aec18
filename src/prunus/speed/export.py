"""Files of networks for other runtimes.

To add a format, write a function here and a line in the table below it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from prunus.checks import check_number, choose, knows_keywords
from prunus.compaction.comparing import apart, random_like
from prunus.compaction.forgood import for_good
from prunus.coupling.trace import arguments
from prunus.extras import need
from prunus.files import whole_file
from prunus.speed.graphs import cloned, graph_of, has_batch, input_names, onnx_of, tensor_leaves
from prunus.speed.runtimes import LIBRARIES, Run, run_onnx, run_openvino, run_torch

Write: TypeAlias = Callable[[ExportedProgram, Path, list[str]], Run]


def to_onnx(graph: ExportedProgram, path: Path, keywords: list[str]) -> Run:
    """ONNX, by torch's exporter."""
    path.write_bytes(onnx_of(graph))
    return run_onnx(path, keywords)


def to_openvino(graph: ExportedProgram, path: Path, keywords: list[str]) -> Run:
    """OpenVINO's intermediate representation, in two files."""
    openvino = need("openvino", "export")
    file = onnx_of(graph)
    model = openvino.Core().read_model(file)
    openvino.save_model(model, os.fspath(path), compress_to_fp16=False)
    return run_openvino(os.fspath(path), keywords, input_names(file))


def to_program(graph: ExportedProgram, path: Path, keywords: list[str]) -> Run:
    """What torch.export.load reads."""
    held = io.BytesIO()  # as its writer would end the process where a disk is full
    torch.export.save(graph, held)
    path.write_bytes(held.getvalue())
    return run_torch(torch.export.load(path).module())


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        write: writes a graph there, and gives what runs the file, with keywords of these names.
        suffixes: of its files, the one that is named last.
        runtime: by which it is checked.
    """

    write: Write
    suffixes: tuple[str, ...]
    runtime: str


FORMATS: Mapping[str, Format] = {
    ".onnx": Format(to_onnx, (".onnx",), "onnxruntime"),
    ".xml": Format(to_openvino, (".bin", ".xml"), "openvino"),
    ".pt2": Format(to_program, (".pt2",), "eager"),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how exact it is.

    Args:
        files: that were written.
        bytes: of them all.
        apart: the largest difference of outputs from the network's in eager mode that was seen, as a part of
            the largest output.
        batches: the batch sizes that it was seen at.
    """

    files: tuple[Path, ...]
    bytes: int
    apart: float
    batches: tuple[int, ...]

    def __str__(self) -> str:
        names, sizes = " and ".join(map(str, self.files)), ", ".join(map(str, self.batches))
        return f"{names}: {self.bytes:,} bytes, {self.apart:.0e} apart at batch sizes {sizes}"


@knows_keywords()
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
) -> Exported:
    """Write a network for another runtime, whole or not at all, after a look whether it gives the same there.

    It is the network in eval mode, on the CPU, with its pruned weights zero and without masks. The file is
    run beside it on the example and on random inputs of the same kind.

    Args:
        model: pruned, compact or dense; it is left as it is.
        path: .onnx; .xml of OpenVINO, with a .bin beside it; or .pt2 of torch.export.
        example_inputs: what it is called with: a tensor, a tuple of arguments or a dict of keywords.
        dynamic_batch: whether the file takes batches of any size: whatever tensors of the example are as long
            as the first one, along their first axis. It is then run on other sizes too.
        tolerance: how far outputs may be apart, as a part of the largest.

    Raises:
        ImportError: a library of the extra `export` is missing.
        ValueError: another suffix; a network that cannot be exported, or not for batches of any size; outputs
            that are too far apart.
        OSError: the file cannot be written.

    Example:
        >>> import prunus, tempfile
        >>> net = prunus.global_prune(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = prunus.export(net, f"{folder}/net.pt2", torch.randn(1, 3, 8, 8))
        ...     again = torch.export.load(made.files[0]).module()
        >>> made.batches, made.apart < 1e-6, bool((again.get_parameter("0.weight") == 0).any())
        ((1, 3), True, True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not check_number("tolerance", tolerance) >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance!r}")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or a path, got {path!r}")
    path = Path(path)
    format_ = choose("the suffix of path", path.suffix, FORMATS)
    for library in LIBRARIES[format_.runtime]:
        need(library, "export")
    args, kwargs = arguments(example_inputs, torch.device("cpu"))
    if not (tensors := tensor_leaves(args, kwargs)):
        raise ValueError(f"example_inputs must hold a tensor, got {type(example_inputs).__name__}")
    if dynamic_batch and (tensors[0].dim() == 0 or not len(tensors[0])):
        raise ValueError(
            f"the first tensor of example_inputs has shape {tuple(tensors[0].shape)}, and no batch: give "
            "dynamic_batch=False"
        )
    with ExitStack() as stack:
        targets = [path.with_suffix(suffix) for suffix in format_.suffixes]
        # The last one entered is the first to get its name
        partials = [stack.enter_context(whole_file(target)) for target in reversed(targets)][::-1]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(torch.random.fork_rng([]))
        plain = for_good(model).cpu().eval()
        graph = _graph(plain, args, kwargs, dynamic_batch)
        run = _written(format_, graph, folder / f"net{path.suffix}", list(kwargs))
        batches = _batches(tensors, dynamic_batch)
        difference = max(_difference(plain, run, (args, kwargs), tensors, size) for size in batches)
        if not difference <= tolerance:
            raise ValueError(
                f"{path.name} would give outputs that are {difference:.1e} of the largest one apart from the "
                f"network's, and tolerance is {tolerance:g}"
            )
        for target, partial in zip(targets, partials, strict=True):
            shutil.copyfile(folder / f"net{target.suffix}", partial)
    return Exported(tuple(reversed(targets)), sum(t.stat().st_size for t in targets), difference, batches)


def _graph(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: bool
) -> ExportedProgram:
    try:
        if not dynamic:
            return graph_of(model, args, kwargs)
        given, tensors = (args, kwargs), tensor_leaves(args, kwargs)
        # A size of 1 would be taken for one that is always 1
        more, keywords = _resized(given, tensors, max(2, len(tensors[0])))
        return graph_of(model, more, keywords, batched=True)
    except Exception as error:  # whatever torch.export raises
        if dynamic:
            _graph(model, args, kwargs, dynamic=False)  # or it is not for the batch that it fails
            raise ValueError(
                f"the network takes no batches of any size ({_short(error)}): give dynamic_batch=False"
            ) from error
        raise ValueError(f"torch.export cannot export the network: {_short(error)}") from error


def _written(format_: Format, graph: ExportedProgram, path: Path, keywords: list[str]) -> Run:
    try:
        return format_.write(graph, path, keywords)
    except (OSError, ImportError):
        raise
    except Exception as error:  # whatever an exporter or a runtime raises
        raise ValueError(f"a {path.suffix} file cannot hold the network: {_short(error)}") from error


def _short(error: Exception) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    return f"{type(error).__name__}: {' '.join(plain.split()):.200}"


def _batches(tensors: list[Tensor], dynamic: bool) -> tuple[int, ...]:
    """The batch sizes to look at: that of the example first."""
    size = len(tensors[0]) if tensors[0].dim() else 1
    return tuple(dict.fromkeys([size, 1, 3 * size])) if dynamic else (size,)


def _resized(given: Any, tensors: list[Tensor], size: int) -> Any:
    """The same inputs again and again, up to this batch size."""

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not has_batch(leaf, tensors):
            return leaf
        return leaf[torch.arange(size) % len(leaf)]

    return tree_map(resize, given)


def _difference(model: nn.Module, run: Run, given: Any, tensors: list[Tensor], size: int) -> float:
    """On the example and on random inputs, at this batch size."""
    example = _resized(given, tensors, size)
    plain = run_torch(model)
    found = []
    for given in (example, random_like(example, torch.Generator().manual_seed(0x5EED))):
        args, kwargs = cloned(given)
        try:
            wanted = plain(*args, **kwargs)
        except Exception:
            if given is example:
                raise
            continue  # the network does not take any numbers
        if not wanted:
            raise ValueError("the network gives no tensors that could be compared")
        args, kwargs = cloned(given)
        try:
            found.append(apart(wanted, run(*args, **kwargs)))
        except Exception as error:  # whatever a runtime raises
            raise ValueError(f"the file would not run: {_short(error)}") from error
    return max(found)
