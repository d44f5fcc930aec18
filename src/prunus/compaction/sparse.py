"""State dicts of many zeros in small files: safetensors of one bit an entry, and of what is not zero.

A tensor NAME that is smaller so is stored as NAME.bitmask (uint8, lowest bit first) and NAME.values, any
other as it is. What is zero is told by its bits, so that -0.0 is not, and everything comes back as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunus.checks import knows_keywords
from prunus.extras import need
from prunus.files import whole_file

FORMAT = "prunus sparse 1"
ZSTD = bytes.fromhex("28b52ffd")  # what a file begins with
HEADER = 100_000_000  # bytes at most, as safetensors has it
PIECE = 1 << 20

# The names that safetensors has; what has none is stored as bytes
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file.

    Args:
        name: in the file.
        kind: the safetensors name of its dtype.
        shape: of it.
        size: bytes.
        write: gives them.
    """

    name: str
    kind: str
    shape: Sequence[int]
    size: int
    write: Callable[[], bytes]


@knows_keywords()
def save_sparse(
    model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str], *, compress: int | None = None
) -> None:
    """Write a small file of a network's state, whole or not at all; one tensor at a time is in memory twice.

    Args:
        model: a network, or a state_dict. Of a pruned network, pruned weights are the zeros that are saved.
        path: of the file.
        compress: level of zstd, from 1 to 22; default not compressed, and for any reader of safetensors.

    Raises:
        TypeError: something in it that is no plain tensor.
        ImportError: `compress` without the library zstandard.
        OSError: the file cannot be written.

    Example:
        >>> import prunus, tempfile
        >>> net = prunus.global_prune(nn.Conv2d(64, 64, 3), 0.9)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prunus.save_sparse(net, f"{folder}/net.safetensors")
        ...     state = prunus.load_sparse(f"{folder}/net.safetensors")
        ...     size = Path(f"{folder}/net.safetensors").stat().st_size
        >>> torch.equal(state["weight"], net.weight), size < 4 * 64 * 64 * 9 / 6
        (True, True)
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(state, Mapping):
        raise TypeError(f"model must be a torch.nn.Module or a state_dict, got {type(model).__name__}")
    tensors, aliases = distinct(state)
    recipe = {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }
    entries = [entry for name, tensor in tensors.items() for entry in _entries(name, tensor, state)]
    entries.sort(key=lambda entry: -_width(entry.kind))  # so that each begins at a multiple of its width
    header = _header(
        entries, {"format": FORMAT, "tensors": json.dumps(recipe), "aliases": json.dumps(aliases)}
    )
    zstd = None if compress is None else need("zstandard", "zstd").ZstdCompressor(level=compress, threads=-1)
    with whole_file(path) as partial, partial.open("wb") as plain:
        file = zstd.stream_writer(plain, size=len(header) + sum(e.size for e in entries)) if zstd else plain
        file.write(header)
        for entry in entries:
            file.write(entry.write())
        if zstd:
            file.close()


def distinct(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, each once, and the names of those that are one of these again."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in state.items():
        if (
            type(tensor) not in (Tensor, nn.Parameter)
            or tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.is_meta
        ):
            raise TypeError(f"{name} is no plain tensor, and cannot be saved so: {type(tensor).__name__}")
        bits = tensor.is_conj(), tensor.is_neg()
        place = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), bits
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
        else:
            seen[place] = name
            tensors[name] = tensor.detach()
    return tensors, aliases


def _entries(name: str, tensor: Tensor, state: Mapping[str, Any]) -> list[Entry]:
    """How it is stored: as it is, or if that is smaller, as bits and values."""
    kind, size = NAMES.get(tensor.dtype, "U8"), tensor.numel() * tensor.itemsize
    kept, bits = int(np.count_nonzero(_nonzero(tensor))), -(-tensor.numel() // 8)
    names = f"{name}.bitmask", f"{name}.values"
    if bits + kept * tensor.itemsize >= size or any(one in state for one in names):
        shape = list(tensor.shape) if tensor.dtype in NAMES else [size]
        return [Entry(name, kind, shape, size, lambda: _array(tensor).tobytes())]
    held = kept * tensor.itemsize
    return [
        Entry(
            names[0], "U8", [bits], bits, lambda: np.packbits(_nonzero(tensor), bitorder="little").tobytes()
        ),
        Entry(
            names[1],
            kind,
            [kept if tensor.dtype in NAMES else held],
            held,
            lambda: _array(tensor)[_nonzero(tensor)].tobytes(),
        ),
    ]


def _array(tensor: Tensor) -> NDArray[Any]:
    """Its entries as bytes, shape (count, width), or as whole numbers of that width."""
    flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
    width = tensor.itemsize
    return flat.view(f"u{width}") if width in (1, 2, 4, 8) else flat.reshape(-1, width)


def _nonzero(tensor: Tensor) -> NDArray[np.bool_]:
    array = _array(tensor)
    return np.asarray(array != 0 if array.ndim == 1 else array.any(1))


def _width(kind: str) -> int:
    return next((dtype.itemsize for dtype, name in NAMES.items() if name == kind), 1)


def _header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with."""
    told: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for entry in entries:
        told[entry.name] = {"dtype": entry.kind, "shape": entry.shape, "data_offsets": [at, at + entry.size]}
        at += entry.size
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def load_sparse(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state_dict that `save_sparse` wrote, bit for bit, onto the CPU.

    Raises:
        ValueError: another file, one that is truncated, or one whose sizes do not go together; no more memory
            has been taken then than the file is long, unpacked.
        ImportError: it is compressed, and the library zstandard is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {os.fspath(path)!r}")
    with _reading(path), _opened(path) as file:
        header = _read_header(file)
        recipe = json.loads(header["__metadata__"]["tensors"])
        aliases = json.loads(header["__metadata__"]["aliases"])
        held = dict(_read(path, file, header))
        state = {name: _tensor(name, told, header, held) for name, told in recipe.items()}
        if held:
            raise ValueError(f"tensors that belong to none: {min(held)!r}")
        if twice := state.keys() & aliases.keys():
            raise ValueError(f"{min(twice)!r} is there twice")
        return state | {name: state[of] for name, of in aliases.items()}


def is_sparse(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as `save_sparse` writes them."""
    try:
        with _opened(Path(path)) as file:
            _read_header(file)
    except ImportError:
        return True  # for `load_sparse` to say what is missing
    except Exception:  # whatever another file makes of itself
        return False
    return True


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:  # damaged files make for nearly any
        raise ValueError(f"{path} is not a whole file of save_sparse: {error!s:.300}") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        compressed = file.read(4) == ZSTD
        file.seek(0)
        if not compressed:
            yield file
            return
        with need("zstandard", "zstd").ZstdDecompressor().stream_reader(file) as reader:
            yield reader


def _exactly(file: IO[bytes], size: int) -> bytearray:
    """So many bytes, taken piece by piece: a size that is a lie takes no memory."""
    data = bytearray()
    while len(data) < size:
        piece = file.read(min(PIECE, size - len(data)))
        if not piece:
            raise ValueError(f"truncated: {len(data):,} bytes where {size:,} should be")
        data += piece
    return data


def _read_header(file: IO[bytes]) -> dict[str, Any]:
    length = int.from_bytes(_exactly(file, 8), "little")
    if length > HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    header: dict[str, Any] = json.loads(bytes(_exactly(file, length)))
    if header["__metadata__"]["format"] != FORMAT:
        raise ValueError(f"its format is {header['__metadata__']['format']!r:.40}, not {FORMAT!r}")
    return header


def _read(path: Path, file: IO[bytes], header: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The bytes of every entry."""
    entries = {name: told for name, told in header.items() if name != "__metadata__"}
    at = 0
    for name, told in sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"]):
        begin, end = told["data_offsets"]
        if begin != at or end - begin != int(np.prod(told["shape"], dtype=object)) * _width(told["dtype"]):
            raise ValueError(f"{name!r} is said to be {told}, and not to begin at {at}")
        yield name, np.frombuffer(_exactly(file, end - begin), np.uint8)
        at = end
    if file.read(1):
        raise ValueError("more bytes than it says")


def _tensor(
    name: str, told: Mapping[str, Any], header: Mapping[str, Any], held: dict[str, NDArray[np.uint8]]
) -> Tensor:
    dtype, shape = DTYPES[told["dtype"]], [int(size) for size in told["shape"]]
    if any(size < 0 for size in shape):
        raise ValueError(f"{name!r} is said to have shape {shape}")
    count = int(np.prod(shape, dtype=object))
    entry = header[name if name in held else f"{name}.values"]
    as_is = name not in held or dtype not in NAMES or entry["shape"] == shape
    if entry["dtype"] != NAMES.get(dtype, "U8") or not as_is:
        raise ValueError(f"{name!r} is said to be {told}, and there is {entry}")
    if name in held:
        data = held.pop(name)
        if data.size != count * dtype.itemsize:
            raise ValueError(f"{name!r} of shape {shape} has {data.size:,} bytes")
    else:
        data = _expanded(name, count, dtype.itemsize, held.pop(f"{name}.bitmask"), held.pop(f"{name}.values"))
    return torch.from_numpy(data).view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def _expanded(
    name: str, count: int, width: int, bitmask: NDArray[np.uint8], values: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The bytes of all entries."""
    if bitmask.size != -(-count // 8):
        raise ValueError(f"{name!r} has {count:,} entries, and bits of {8 * bitmask.size:,}")
    bits = np.unpackbits(bitmask, bitorder="little")
    kept = int(np.count_nonzero(bits))
    if bits[count:].any() or kept * width != values.size:
        raise ValueError(f"{name!r} has {kept:,} bits set, and values of {values.size:,} bytes")
    made = np.zeros((count, width), np.uint8)
    made[bits[:count].view(bool)] = values.reshape(-1, width)
    return made.reshape(-1)
