"""Which network? A torchvision name, `timm:NAME`, `FILE.py:callable` or `digits:NAME`."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from prunus.compaction.blocks import skip
from prunus.compaction.checkpoints import blocks_out, is_compact, shrink
from prunus.extras import need
from prunus.inputs import digits
from prunus.inputs.checkpoints import fitted, read_state_dict
from prunus.selection.arrays import alias


@dataclass(frozen=True)
class Preprocessing:
    """How images become inputs where the network brings no preprocessing of its own.

    Args:
        size: the shorter side is resized to it and the central square cut out; default as it is.
        mean: subtracted from each channel in [0, 1], one number for each or one for all; default 0.
        std: by which each channel is then divided; default 1.
    """

    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def transform(self) -> Callable[[Any], Tensor]:
        """From a PIL image to a float tensor (channels, height, width), 3 channels unless it is grey."""
        transforms = need("torchvision.transforms", "eval")
        square = [transforms.Resize(self.size), transforms.CenterCrop(self.size)] if self.size else []
        scale = [transforms.Normalize(self.mean or (0.0,), self.std or (1.0,))]
        steps = [*square, transforms.ToTensor(), *(scale if self.mean or self.std else ())]
        composed: Callable[[Any], Tensor] = transforms.Compose(steps)
        return composed


@dataclass(frozen=True)
class Network:
    """A network in eval mode.

    Args:
        name: that it goes by.
        model: the network itself.
        transform: from a PIL image to its input; None where it takes pixels in [0, 1] as they are.
        code: the file that it was built by.
        bundled: reads the data set that comes with the network, its training split or the other.
        unwrapped: what was done to its weights file so that it fits, in words; "" where nothing was.
        build: makes it anew, untrained, from a seed.
    """

    name: str
    model: nn.Module
    transform: Callable[[Any], Tensor] | None = None
    code: bytes = b""
    bundled: Callable[[bool], Dataset[Any]] | None = None
    unwrapped: str = ""
    build: Callable[[int], nn.Module] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its code, where that is a file, and its state_dict: the same network, or another."""
        digest = hashlib.sha256(self.code)
        for name, tensor in self.model.state_dict().items():
            flat = alias(tensor.detach().cpu().contiguous().reshape(-1))
            digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_network(
    arch: str, weights: str | None = None, preprocessing: Preprocessing | None = None
) -> Network:
    """Build a network and load its weights.

    Args:
        arch: a torchvision name, `timm:NAME`, `FILE.py:callable` or `digits:NAME`.
        weights: a torchvision enum name, a state_dict file (.pth, read without running code, or
            .safetensors), or "none"; default the pretrained ones, and for FILE.py:callable
            whatever the callable returns. A training checkpoint is read at its key "state_dict", "model" or
            the like, without the prefixes of wrappers (`module.`, `_orig_mod.`, Lightning's `model.`), and
            with the masks of torch.nn.utils.prune multiplied in.
        preprocessing: in place of that of the network; default its own.

    Returns:
        The network; its `.unwrapped` says what was done to the weights file.

    Raises:
        ValueError: no such network or weights, or weights that do not fit.
        ImportError: a library that is not installed, with the extra that brings it.
    """
    source, name = _source(arch)

    def build(seed: int) -> nn.Module:
        with _seeded(seed):
            return source(name, "none").model

    path = Path(weights) if weights and weights != "none" else None
    is_file = path is not None and (path.suffix in (".pth", ".pt", ".bin", ".safetensors") or path.exists())
    with _seeded(0):  # weights that are not loaded are the same in every run
        network = replace(source(name, "none" if is_file else weights), build=build)
    if is_file and path is not None:
        network = replace(network, unwrapped=_load_weights(network.model, path, arch))
    if preprocessing is not None and preprocessing != Preprocessing():
        network = replace(network, transform=preprocessing.transform(), bundled=None)
    network.model.eval()
    return network


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of this seed, and none of them missing from others' afterwards."""
    with torch.random.fork_rng(devices=[]):  # no GPU is touched
        torch.default_generator.manual_seed(seed)
        yield


def load_networks(
    arch: Sequence[str], weights: Sequence[str] | None = None, preprocessing: Preprocessing | None = None
) -> list[Network]:
    """Several networks, with weights for each of them or one for all.

    Raises:
        ValueError: as `load_network`; another number of weights; two networks of one name.
    """
    each: list[str | None] = [*weights] if weights else [None]
    each *= len(arch) if len(each) == 1 else 1
    if len(each) != len(arch):
        raise ValueError(f"{len(each)} weights for {len(arch)} networks: give one for each, or one for all")
    networks = [load_network(a, w, preprocessing) for a, w in zip(arch, each, strict=True)]
    names = [network.name for network in networks]
    if len(set(names)) < len(names):
        raise ValueError(
            f"networks must have different names, got {', '.join(names)}: measure them one by one"
        )
    return networks


def _source(arch: str) -> tuple[Callable[[str, str | None], Network], str]:
    """Who builds a network, and the name that it knows it by."""
    prefix, _, name = arch.partition(":")
    if prefix in SOURCES and name:
        return SOURCES[prefix], name
    return (_from_file if ".py:" in arch or arch.endswith(".py") else _from_torchvision), arch


def _check_weights(arch: str, weights: str | None) -> None:
    """Where a network comes with no choice of weights."""
    if weights not in (None, "DEFAULT", "none"):
        raise ValueError(f"{arch} takes weights DEFAULT, none or a file; got {weights!r} (no such file)")


def _from_torchvision(arch: str, weights: str | None) -> Network:
    models = need("torchvision.models", "eval")
    if arch not in models.list_models(module=models):
        raise ValueError(
            f"no torchvision classifier {arch!r}; write timm:NAME or FILE.py:callable for other networks"
        )
    enum = models.get_model_weights(arch)
    names = ["DEFAULT", *enum.__members__]
    if weights not in (None, "none", *names):
        raise ValueError(f"{arch} has weights {', '.join(names)}, none, or a file; got {weights!r}")
    chosen = None if weights == "none" else enum[weights or "DEFAULT"]
    return Network(arch, models.get_model(arch, weights=chosen), (chosen or enum.DEFAULT).transforms())


def _from_timm(arch: str, weights: str | None) -> Network:
    timm = need("timm", "timm")
    _check_weights(f"timm:{arch}", weights)
    try:
        model = timm.create_model(arch, pretrained=weights != "none")
    except RuntimeError as error:  # timm's word for an unknown name
        raise ValueError(f"timm:{arch}: {error}") from error
    config = timm.data.resolve_model_data_config(model)
    return Network(f"timm:{arch}", model, timm.data.create_transform(**config, is_training=False))


def _from_transferattack(arch: str, weights: str | None) -> Network:
    """Inception as that benchmark has it: scaled to [-1, 1] before the network does so, too, by itself."""
    if arch != "inception_v3":
        raise ValueError(f"transferattack: only inception_v3 differs there; write {arch} for the same")
    half = Preprocessing(299, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    network = _from_torchvision(arch, weights)
    return replace(network, name=f"transferattack:{arch}", transform=half.transform())


def _from_digits(arch: str, weights: str | None) -> Network:
    if arch not in digits.NETWORKS:
        raise ValueError(f"digits: networks are {', '.join(digits.NETWORKS)}; got {arch!r}")
    _check_weights(f"digits:{arch}", weights)
    model = digits.NETWORKS[arch]() if weights == "none" else digits.load_network(arch)
    return Network(f"digits:{arch}", model, bundled=_digits)


def _digits(train: bool) -> Dataset[Any]:
    need("sklearn", "eval")
    return TensorDataset(*digits.load_images(train))


def _from_file(arch: str, weights: str | None) -> Network:
    _check_weights(arch, weights)
    path, name = (arch, "") if arch.endswith(".py") else arch.rsplit(":", 1)
    with _running(path, arch) as module:
        build = getattr(module, name, None)
        model = build() if callable(build) and not isinstance(build, nn.Module) else build
    if build is None:
        lacks = f"{path} has no callable {name!r}" if name else f"{path} is a file with no network named"
        raise ValueError(f"{lacks}; {_callables(path, module)}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{arch} returned {type(model).__name__}, expected a torch.nn.Module")
    return Network(name, model, Preprocessing().transform(), Path(path).read_bytes())


SOURCES = {"timm": _from_timm, "digits": _from_digits, "transferattack": _from_transferattack}


def _callables(path: str, module: ModuleType) -> str:
    """What can be named after the file: networks, and what was defined there and may build one."""
    names = [name for name, value in vars(module).items() if _may_be_a_network(value, module.__name__)]
    return f"write {' or '.join(f'{path}:{name}' for name in names)}" if names else "there is none"


def _may_be_a_network(value: object, home: str) -> bool:
    if isinstance(value, nn.Module):
        return True
    builds = isinstance(value, FunctionType) or (isinstance(value, type) and issubclass(value, nn.Module))
    if not builds or value.__module__ != home:
        return False
    parameters = inspect.signature(value).parameters.values()  # type: ignore[arg-type]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in kinds for p in parameters)


@contextmanager
def _running(path: str, arch: str) -> Iterator[ModuleType]:
    """The module that a file makes. What goes wrong in the block is said to come from `arch`."""
    if not Path(path).is_file():
        raise ValueError(f"no file {path!r}")
    spec = importlib.util.spec_from_file_location(f"prunus_{Path(path).stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(Path(path).resolve().parent))  # as `python FILE.py` would find its neighbours
    try:
        spec.loader.exec_module(module)
        yield module
    except (Exception, SystemExit) as error:  # a script's exit is not ours
        raise ValueError(f"{arch} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def _load_weights(model: nn.Module, path: Path, arch: str) -> str:
    """What had to be done to the file for that, in words."""
    held, steps = read_state_dict(path)
    try:
        if is_compact(path):
            skip(model, blocks_out(path))
        state, more = fitted(held, model.state_dict())
        if is_compact(path):
            shrink(model, state, keep_dtypes=True)
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit {arch}: {reason[:300]}") from error
    return f"{path}: {', '.join([*steps, *more])}" if steps or more else ""
