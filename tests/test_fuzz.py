"""Whatever a file holds: what was meant, or one clear refusal that names it. Nothing else happens.

A hundred files for each reader with every run of the tests, or as many as you like:

    python -m tests.test_fuzz 100000

where an argument more is another seed. A file that fails is made again from what is printed about it.
"""

from __future__ import annotations

import copy
import faulthandler
import io
import json
import pickle
import re
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

import prunus
from prunus.evaluation.evaluate import Result
from prunus.evaluation.points import Point, Setting
from prunus.evaluation.rows import SweepRow
from prunus.inputs.checkpoints import KEYS, fitted, read_state_dict
from prunus.inputs.images import ImageFolder, Images, ListedImages
from prunus.inputs.networks import Preprocessing
from prunus.results.curves import SWEEP
from prunus.results.folder import Layout, ResultsFolder
from prunus.results.tables import table
from prunus.results.transfers import TRANSFER, transfer_tables
from prunus.transfer.pixels import load_png
from prunus.transfer.rows import TransferRow
from prunus.transfer.summaries import summary_lines
from tests.conftest import small_net

resource = pytest.importorskip("resource")  # POSIX
SEED = 20260101
MEMORY = 2**30  # bytes that small files may take, at most


# ----------------------------------------------------------------------------------- how files are damaged


def damaged(valid: Sequence[bytes], chance: Random) -> bytes:
    """One of these files, after one to three accidents."""
    content = chance.choice(valid)
    for _ in range(chance.randint(1, 3)):
        content = chance.choice(ACCIDENTS)(content, chance.choice(valid), chance)
    return content


def _place(content: bytes, chance: Random) -> int:
    """Anywhere, but often near the beginning, where lengths are."""
    return (
        min(int(chance.expovariate(1 / 40)), len(content)) if chance.random() < 0.5 else _any(content, chance)
    )


def _any(content: bytes, chance: Random) -> int:
    return chance.randint(0, len(content))


def _truncate(content: bytes, other: bytes, chance: Random) -> bytes:
    return content[: _any(content, chance)]


def _flip(content: bytes, other: bytes, chance: Random) -> bytes:
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        if made:
            made[min(_place(content, chance), len(made) - 1)] ^= 1 << chance.randrange(8)
    return bytes(made)


def _swap_headers(content: bytes, other: bytes, chance: Random) -> bytes:
    at = _place(content, chance)
    return other[:at] + content[at:]


def _splice(content: bytes, other: bytes, chance: Random) -> bytes:
    first, last = sorted((_any(other, chance), _any(other, chance)))
    at = _any(content, chance)
    return content[:at] + other[first:last] + content[at + chance.choice((0, last - first)) :]


def _number(content: bytes, other: bytes, chance: Random) -> bytes:
    """A number of four or eight bytes that is far too large, or negative, or zero."""
    at, kind = _place(content, chance), chance.choice(("<I", ">I", "<Q", ">Q"))
    number = chance.choice((0, 2**31, 2**32 - 1, 2**24, 2**40, 2**63, 2**64 - 1, len(content)))
    packed = struct.pack(kind, number & (2 ** (8 * struct.calcsize(kind)) - 1))
    return content[:at] + packed + content[at + len(packed) :]


def _noise(content: bytes, other: bytes, chance: Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 8, 100, 1000)))


ACCIDENTS = (_truncate, _flip, _flip, _flip, _swap_headers, _splice, _number, _noise)


def edited(held: Any, chance: Random) -> Any:
    """Something that JSON can hold, after one to three edits by hand."""
    root = [copy.deepcopy(held)]
    for _ in range(chance.randint(1, 3)):
        place, key = chance.choice(list(_places(root)))
        value = place[key]
        if chance.random() < 0.2 and place is not root:
            del place[key]
        elif isinstance(place, dict) and chance.random() < 0.2:
            place[chance.choice(("", "weight", "é\0", str(key) + "x", "__metadata__"))] = place.pop(key)
        else:
            place[key] = copy.deepcopy(chance.choice((chance.choice(VALUES), _near(value, chance))))
    return root[0]


def _places(held: Any) -> Iterator[tuple[Any, Any]]:
    keys: Any = held if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ()
    for key in keys:
        yield held, key
        yield from _places(held[key])


def _near(value: Any, chance: Random) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return [value] if chance.random() < 0.5 else {"a": value}
    if abs(value) > 1e300:
        return 0
    return chance.choice((value + 1, -value, value * 2, float(value), str(value)))


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, 10**400),
    *("", "a", "BOOL", "F4", "C64", "I64", "é", "\0", "magnitude", "plain", "dwp", "ff" * 8, "x" * 10**5),
    *([], [[]], [0], [-1, 2], [2**62, 4], [0, 2**62], [0, 8], [2**64], {}, {"a": 1}, {"1": 2}),
)


def edited_json(content: bytes, chance: Random) -> bytes:
    made = json.dumps(edited(json.loads(content), chance)).encode()
    if chance.random() < 0.05:
        deep = b"[" * 10**5
        made = chance.choice((deep, made.replace(b"null", b"1" * 5000, 1), made + made, made[:-1] + deep))
    return made


def edited_header(content: bytes, chance: Random) -> bytes:
    """A safetensors file, its header changed."""
    [size] = struct.unpack("<Q", content[:8])
    header = edited_json(content[8 : 8 + size], chance)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def edited_zip(content: bytes, chance: Random) -> bytes:
    """A zip file whose check sums are right, and one of its files damaged."""
    if not content.startswith(b"PK"):
        return damaged([content], chance)
    held, made = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    target = chance.choice((*held.namelist(), *[n for n in held.namelist() if n.endswith("data.pkl")] * 4))
    with zipfile.ZipFile(made, "w") as archive:
        for name in held.namelist():
            data = held.read(name)
            if name == target and chance.random() < 0.1:
                continue
            archive.writestr(name, damaged([data], chance) if name == target else data)
    return made.getvalue()


def odd_checkpoint(content: bytes, chance: Random) -> bytes:
    """What training code, or nobody, would write: anything in anything, at names that are known."""

    def thing(depth: int) -> Any:
        if depth and chance.random() < 0.6:
            keys = chance.choices((*KEYS, "weight", "epoch", 1, ("a",), None), k=chance.randint(0, 3))
            made = {key: thing(depth - 1) for key in keys}
            if chance.random() < 0.1:
                made[chance.choice(KEYS)] = made  # itself
            return chance.choice((made, made, made, [made]))
        return chance.choice(
            (1, "a", None, torch.ones(3), torch.ones(()), torch.ones(0), [torch.ones(1)], {})
        )

    file = io.BytesIO()
    held = thing(chance.randint(1, 4))
    if chance.random() < 0.05:
        for _ in range(500):
            held = {"model": held}
    try:
        torch.save(held, file, _use_new_zipfile_serialization=chance.random() < 0.7)
    except RecursionError:
        return pickle.dumps(1)
    return file.getvalue()


# ------------------------------------------------------------------------------------------- what is read


@dataclass(frozen=True)
class Reader:
    """Files of one kind.

    Args:
        file: under which name they stand.
        valid: files that are all right.
        read: reads the file and does with it what commands do.
        edits: ways to damage one beside accidents of bytes.
    """

    file: str
    valid: Sequence[bytes]
    read: Callable[[Path], object]
    edits: Sequence[Callable[[bytes, Random], bytes]] = ()

    def make(self, chance: Random) -> bytes:
        """A file that may be all wrong."""
        edit = chance.choice((None, *self.edits, *self.edits))
        return edit(chance.choice(self.valid), chance) if edit else damaged(self.valid, chance)


def _read_masks(path: Path) -> None:
    masks = prunus.Masks.load(path)
    assert all(int(mask.view(torch.uint8).max()) <= 1 for mask in masks.values() if mask.numel())
    assert 0 <= masks.pruned <= masks.total
    repr(masks)


def _read_weights(path: Path) -> None:
    state, _ = read_state_dict(path)
    assert all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items())
    for tensor in state.values():
        if tensor.layout is torch.strided and not tensor.is_quantized:
            tensor.clone()  # reads every byte
    with suppress(RuntimeError, ValueError):  # which become a line that names the file
        fitted(state, small_net().state_dict())


def _results(layout: Layout[Any], use: Callable[[Any], object]) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        rows = ResultsFolder(path.parent, {"a": [1, 2]}, layout).rows
        {row.item for row in rows}
        [row.columns() for row in rows]
        use(rows)

    return read


def _use_transfer(rows: Sequence[TransferRow]) -> None:
    list(transfer_tables(rows))
    summary_lines(rows)


def _read_image(path: Path) -> None:
    dataset = ImageFolder(path.parents[1], Preprocessing(8).transform())
    for images, labels in Images(dataset, batch_size=4):
        assert images.shape == (1, 3, 8, 8)
        assert labels.tolist() == [0]


def _read_list(path: Path) -> None:
    (path.parent / "images").mkdir(exist_ok=True)
    for _ in Images(ListedImages(path.parent, Preprocessing(8).transform()), batch_size=4):
        pass


def _masks() -> Sequence[bytes]:
    nets = small_net(), torch.nn.Conv2d(2, 2, 1)
    return [save(dict(prunus.make_masks(net, 0.5))) for net in nets]


def _weights() -> Sequence[bytes]:
    kinds = (torch.float16, torch.int64, torch.bool, torch.bfloat16, torch.complex64)
    mixed = {str(kind): torch.ones(2, 3).to(kind) for kind in kinds}
    return [save(small_net().state_dict()), save(mixed)]


def _checkpoints() -> Sequence[bytes]:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    whole = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    made = []
    for held, is_zip in ((net.state_dict(), True), (whole, True), (net.state_dict(), False), (whole, False)):
        file = io.BytesIO()
        torch.save(held, file, _use_new_zipfile_serialization=is_zip)
        made.append(file.getvalue())
    return made


def _stored(layout: Layout[Any], *rows: Any) -> Sequence[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        ResultsFolder(Path(folder), {"a": [1, 2]}, layout).add(*rows)
        return [(Path(folder) / "results.json").read_bytes()]


def _sweep() -> Sequence[bytes]:
    point = Point(Setting(0.5), Result(90, 99, 100, 0.1), {"a": (5, 10), "b": (0, 3)})
    return _stored(SWEEP, SweepRow("one", point), SweepRow("two", point))


def _transfer() -> Sequence[bytes]:
    methods = (("plain", None), ("dwp", 0.7), ("random", 0.7))
    return _stored(
        TRANSFER,
        *[
            TransferRow("one", kind, p, target, False, 0.0625, 0, 12, "fff0", 0.1, 0.2, 0.3, {1: 6, 10: 12})
            for kind, p in methods
            for target in ("one", "two")
        ],
    )


def _images(*formats: str) -> Sequence[bytes]:
    made = []
    for kind in formats:
        for shape in ((9, 12, 3), (8, 8)):
            file = io.BytesIO()
            Image.fromarray(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)).save(file, kind)
            made.append(file.getvalue())
    return made


LIST = b"\xef\xbb\xbfImageId,TrueLabel,TargetClass\r\na,1,2\r\nb,7,3\r\n"

READERS: dict[str, Callable[[], Reader]] = {
    "masks": lambda: Reader("m.safetensors", _masks(), _read_masks, [edited_header]),
    "safetensors": lambda: Reader("w.safetensors", _weights(), _read_weights, [edited_header]),
    "checkpoints": lambda: Reader("w.pth", _checkpoints(), _read_weights, [edited_zip, odd_checkpoint]),
    "sweep": lambda: Reader("results.json", _sweep(), _results(SWEEP, table), [edited_json]),
    "transfer": lambda: Reader(
        "results.json", _transfer(), _results(TRANSFER, _use_transfer), [edited_json, edited_json]
    ),
    "images": lambda: Reader("val/ant/i.png", _images("png", "jpeg", "gif", "bmp", "webp"), _read_image),
    "lists": lambda: Reader("images.csv", [LIST, LIST.replace(b"7", b"9" * 18)], _read_list),
    "adversarial": lambda: Reader("00000.png", _images("png"), lambda path: load_png([path, path])),
}


def failure(reader: Reader, path: Path, content: bytes) -> BaseException | str | None:
    """What is wrong with how this file is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        reader.read(path)
    except (ValueError, FileNotFoundError) as error:
        if not any(str(place) in str(error) for place in (path, path.parent)):
            return error
        if len(str(error)) > 2000:
            return f"a message of {len(str(error))} letters"
    except Exception as error:
        return error
    if path.read_bytes() != content:
        return "the file has changed"
    files = {each for each in path.parent.iterdir() if each.is_file()}
    return f"there is more: {files}" if files != {path} else None


def failures(name: str, count: int, seed: int = SEED) -> Iterator[tuple[int, BaseException | str]]:
    """Numbers of the files that fail, of so many, and how."""
    reader = READERS[name]()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, reader.file)
        assert not [found for content in reader.valid if (found := failure(reader, path, content))]
        for number in range(count):
            faulthandler.dump_traceback_later(120, exit=True)  # a file that hangs
            wrong = failure(reader, path, reader.make(Random(f"{seed} {name} {number}")))
            if wrong is not None:
                yield number, wrong
        faulthandler.cancel_dump_traceback_later()


def _forget_most_memory() -> None:
    """Or where another test of this process took more before, no file could take too much."""
    with suppress(OSError):  # not Linux
        Path("/proc/self/clear_refs").write_text("5")


def _most_memory() -> int:
    with suppress(OSError):
        [most] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(most)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@pytest.mark.parametrize("name", READERS)
def test_any_file_is_read_or_refused_by_name(name: str) -> None:
    _forget_most_memory()
    before = _most_memory()
    assert list(failures(name, 100)) == []
    assert _most_memory() - before < MEMORY


def main(count: int, seed: int = SEED) -> None:
    """So many files, divided among the readers; what failed, and how long it took."""
    for name in READERS:
        _forget_most_memory()
        began, found = time.perf_counter(), 0
        for number, wrong in failures(name, count // len(READERS), seed):
            found += 1
            if found <= 20:
                print(f"{seed} {name} {number}: {wrong!r:.300}", flush=True)
        seconds = time.perf_counter() - began
        print(
            f"{name}: {count // len(READERS):,} files, seed {seed}, {found} failures, {seconds:.0f} s, "
            f"{_most_memory() / 2**20:.0f} MiB at most",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
