"""Convolutions with a sparse matrix of weights on a CPU, as operators that torch.compile leaves whole."""

from __future__ import annotations

import hashlib
import importlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.files import whole_file

# Of the arguments of `csr_conv2d`
Convolution: TypeAlias = Callable[
    [
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        "Tensor | None",
        Sequence[int],
        Sequence[int],
        Sequence[int],
        Sequence[int],
    ],
    Tensor,
]

_LOCK = threading.Lock()  # an operator is registered once in a process
# By what torch says of the processor, so that what is built on one is not run on another
FLAGS = {"AVX512": ["-mavx512f", "-mfma"], "AVX2": ["-mavx2", "-mfma"]}


@torch.library.custom_op("prunus::csr_conv2d", mutates_args=())
def csr_conv2d(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """By torch's product of CSR matrices, which MKL makes where torch has it.

    Args:
        x: (N, in_channels, H, W).
        rows, columns, values: CSR matrix of (out_channels, in_channels times the size of the kernel), with
            indices in int32.
        bias: (out_channels,), or None.
        kernel, stride, dilation: down and right.
        padding: by zeros above, below, left and right.

    Returns:
        (N, out_channels, H', W').
    """
    top, bottom, left, right = padding
    padded = F.pad(x, (left, right, top, bottom)) if any(padding) else x
    high, wide = _empty(x, rows, columns, values, bias, kernel, stride, padding, dilation).shape[2:]
    taps = [
        padded[
            :,
            :,
            i * dilation[0] : i * dilation[0] + (high - 1) * stride[0] + 1 : stride[0],
            j * dilation[1] : j * dilation[1] + (wide - 1) * stride[1] + 1 : stride[1],
        ]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    slices = torch.stack(taps, 2).flatten(1, 2) if len(taps) > 1 else taps[0]
    shape = (len(rows) - 1, slices.shape[1])
    matrix = torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False)
    shift = values.new_zeros(shape[0], 1) if bias is None else bias[:, None]
    items = [torch.addmm(shift, matrix, item) for item in slices.flatten(2)]
    made = items[0] if len(items) == 1 else torch.stack(items) if items else x.new_empty(0)
    return made.reshape(len(x), shape[0], high, wide)


def _empty(x: Tensor, rows: Tensor, *rest: Any) -> Tensor:
    """What the product with these arguments is as large as."""
    *_, kernel, stride, padding, dilation = rest
    high, wide = (
        (x.shape[2 + i] + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1)
        // stride[i]
        + 1
        for i in range(2)
    )
    return x.new_empty(x.shape[0], rows.shape[0] - 1, high, wide)


csr_conv2d.register_fake(_empty)


def compiled_conv2d() -> Convolution:
    """The same by a kernel in C++, which is compiled when it is first asked for, and kept beside torch's hub.

    Raises:
        ImportError: there is no ninja.
        RuntimeError, OSError: there is no C++ compiler, or it fails.
    """
    with _LOCK:
        if not hasattr(torch.ops.prunus, "sparse_conv2d"):  # which a process can have once
            _load()
            torch.library.register_fake("prunus::sparse_conv2d", _empty)
    convolution: Convolution = torch.ops.prunus.sparse_conv2d.default
    return convolution


def _load() -> None:
    source, processor = Path(__file__).with_name("products.cpp"), torch.backends.cpu.get_cpu_capability()
    about = f"{torch.__version__} {processor}".encode()
    key = hashlib.sha256(source.read_bytes() + about).hexdigest()[:16]
    path = Path(torch.hub.get_dir()) / f"prunus_{key}.so"
    if path.is_file():
        load: Any = torch.ops.load_library
        load(path)
    else:
        flags = ["-O3", "-fopenmp", "-ffp-contract=fast", *FLAGS.get(processor, [])]
        _build(f"prunus_{key}", source, flags, path)


def _build(name: str, source: Path, flags: list[str], path: Path) -> None:
    """Compile and load it; in a folder of its own, as torch waits for ever for a build that was killed."""
    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # it warns of a missing GPU
        extensions: Any = importlib.import_module("torch.utils.cpp_extension")
    finally:
        log.setLevel(level)
    if not extensions.is_ninja_available():
        raise ImportError('ninja is not on the PATH: pip install "prunus[sparse]"')
    with tempfile.TemporaryDirectory() as folder:
        extensions.load(
            name,
            [str(source)],
            extra_cflags=flags,
            extra_ldflags=["-fopenmp"],
            build_directory=folder,
            is_python_module=False,
        )
        with suppress(OSError):  # it is loaded, and may be built anew the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial:
                shutil.copyfile(next(Path(folder).glob(f"{name}*.*o")), partial)
