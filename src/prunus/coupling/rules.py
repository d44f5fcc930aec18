"""What each operation of a network does to the labels of channels.

A label is the number of the filter that an entry of an activation comes from, or 0. A rule is a function
from the trace and one call of an operation to the labels of its first output, or of each; to add one, write
it here under `@rule(...)`. Pointwise operations and reductions need none, since torch marks them. What has no
rule is not followed: the filters that reach it stay whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._pytree import tree_leaves, tree_map

from prunus.coupling.nodes import OPAQUE, merged, narrowed

if TYPE_CHECKING:
    from prunus.coupling.trace import Trace

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """One call of an operation, whose arguments are found by their names in its schema."""

    operation: OpOverload
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any

    def __getitem__(self, name: str) -> Any:
        for place, argument in enumerate(self.operation._schema.arguments):
            if argument.name == name:
                given = self.args[place] if place < len(self.args) else None
                return self.kwargs.get(name, argument.default_value) if given is None else given
        raise KeyError(name)

    @property
    def outputs(self) -> list[Tensor]:
        """All that come out."""
        return [leaf for leaf in tree_leaves(self.output) if isinstance(leaf, Tensor)]

    @property
    def written(self) -> list[Tensor]:
        """The arguments that are written to."""
        names = [a.name for a in self.operation._schema.arguments if a.alias_info and a.alias_info.is_write]
        return [leaf for name in names for leaf in tree_leaves(self[name]) if isinstance(leaf, Tensor)]

    @property
    def tensors(self) -> list[Tensor]:
        """All that are among the arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]


Label: TypeAlias = "Tensor | None"
Rule: TypeAlias = "Callable[[Trace, Call], Label | Sequence[Label]]"
RULES: dict[OpOverloadPacket, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a rule that of these operations, as far as this version of torch has them."""

    def know(function: Rule) -> Rule:
        RULES.update({getattr(aten, name): function for name in names if hasattr(aten, name)})
        return function

    return know


def rule_of(operation: OpOverload) -> Rule:
    """The rule of an operation; `unknown` where there is none."""
    found = RULES.get(operation.overloadpacket)
    if found:
        return found
    if torch.Tag.pointwise in operation.tags:
        return pointwise
    return reduction if torch.Tag.reduction in operation.tags else unknown


def unknown(trace: Trace, call: Call) -> Label | Sequence[Label]:
    """What goes in stays whole, and so does what meets that which comes out."""
    labels = [trace.label_of_activation(tensor) for tensor in call.tensors]
    known = [label for label in labels if label is not None]
    for label in known:
        trace.nodes.fix(narrowed(label), f"reach {call.operation.overloadpacket}, which is not followed")
    return [opaque(x) if known and (x.is_floating_point() or x.is_complex()) else None for x in call.outputs]


def opaque(tensor: Tensor) -> Tensor:
    """Labels of values of which is not known where they come from."""
    return torch.tensor(OPAQUE).expand(tensor.shape)


@rule(
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_full", "fill_", "zero_", "bernoulli_", "uniform_",
)  # fmt: skip
def nothing(trace: Trace, call: Call) -> Label:
    """New values, or none that belong to a channel."""
    return None


@rule(
    "cumsum", "tril", "triu", "clone", "_to_copy", "native_dropout", "detach", "alias", "lift_fresh",
    "contiguous",
)  # fmt: skip
def same(trace: Trace, call: Call) -> Label:
    """Each entry belongs to where the entry at its place did."""
    if trace.settles(call.output, call.tensors):
        return None
    return trace.label(call.args[0])


@rule("_softmax", "_log_softmax", "_safe_softmax")
def shared_out(trace: Trace, call: Call) -> Label:
    """Each entry stays at its place, and counts in what the others get."""
    label = trace.label(call.args[0])
    if label is not None and label.dim() and narrowed(label).shape[call["dim"]] > 1:
        trace.nodes.count(narrowed(label), "count among others in a softmax")
    return label


@rule(  # which torch does not mark as such
    "hardswish", "hardswish_", "_prelu_kernel", "rrelu_with_noise", "threshold_", "mish_", "gelu_", "rsub",
    "log_sigmoid_forward", "masked_fill_",
)  # fmt: skip
def pointwise(trace: Trace, call: Call) -> Label:
    """Operands at the same place hang together."""
    if trace.settles(call.output, call.tensors):
        return None
    return reduce(trace.at_places, map(trace.label, call.tensors), None)


@rule("glu")
def halved(trace: Trace, call: Call) -> Label:
    """One half times a function of the other."""
    label = trace.label(call.args[0])
    return None if label is None else trace.joined(*label.chunk(2, call["dim"]))


def reduction(trace: Trace, call: Call) -> Label:
    """What was the same along the axes stays. Of what was not, sums of a few hang together, as of a stack.

    A mixture of more channels than are left belongs to none of them.
    """
    label = trace.label(call.args[0])
    if label is None or not label.dim():
        return None
    small, kept = narrowed(label), _kept_axes(call, label.dim())
    rest = [axis for axis in range(label.dim()) if axis not in kept]
    found = merged(small, rest)
    if found is None:
        if call.operation.overloadpacket is not aten.sum:  # to which zeros add nothing
            trace.nodes.count(small, "count among others in a mean, or in whatever else is taken of them")
        if math.prod(small.shape[axis] for axis in kept) < math.prod(small.shape[axis] for axis in rest):
            return None
        found = small.amax(rest, keepdim=True)
        trace.nodes.join(small, found)
    output = call.outputs[0]
    if output.dim() < label.dim():
        found = found.reshape([found.shape[axis] for axis in kept])
    return trace.nodes.roots(found).expand(output.shape)


def _kept_axes(call: Call, count: int) -> list[int]:
    """Along which a reduction does not go."""
    axes = call["dim"] if any(a.name == "dim" for a in call.operation._schema.arguments) else None
    given = range(count) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    return [axis for axis in range(count) if axis not in {axis % count for axis in given}]


@rule("max", "min", "argmax", "argmin")
def compared(trace: Trace, call: Call) -> Label | Sequence[Label]:
    """Of channels that are compared with each other, all stay."""
    label = trace.label(call.args[0])
    if len(call.tensors) > 1:
        return pointwise(trace, call)
    found = reduction(trace, call)
    if label is not None and found is None:
        return unknown(trace, call)
    return found if call.outputs[0].is_floating_point() else None


@rule("as_strided_")
def restrided(trace: Trace, call: Call) -> Label | Sequence[Label]:
    """Pooling sets the order in memory anew."""
    label = trace.label_of_activation(call.args[0])
    return label if label is None or label.shape == call.output.shape else unknown(trace, call)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def reshaped(trace: Trace, call: Call) -> Label:
    """Entries in their order."""
    label = trace.label(call.args[0])
    return None if label is None else label.reshape(call.output.shape)


@rule(
    "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "select", "slice", "split", "unbind",
    "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "cat", "stack", "roll", "flip",
    "repeat", "index", "index_select", "gather", "diagonal", "unfold", "movedim", "rot90", "im2col",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "constant_pad_nd", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
)  # fmt: skip
def moved(trace: Trace, call: Call) -> Sequence[Label]:
    """Where entries go, their labels go: the same operation moves them."""
    data = call.args[0]
    several = data if isinstance(data, (list, tuple)) else [data]
    labels = [trace.label(tensor) for tensor in several]
    if all(label is None for label in labels):
        return []
    whole = [
        torch.zeros(t.shape, dtype=torch.int64) if label is None else label
        for t, label in zip(several, labels, strict=True)
    ]
    rest = _on_cpu(list(call.args[1:]))
    if call.operation.overloadpacket is aten.constant_pad_nd:
        rest = rest[:1]  # with 0, whatever the value
    if call.operation.overloadpacket in FLOATS:
        whole = [label.double() for label in whole]
    found = call.operation(whole if several is data else whole[0], *rest, **call.kwargs)
    return [leaf.long() for leaf in tree_leaves(found)]


PADS = [f"{kind}_pad{axes}d" for kind in ("reflection", "replication") for axes in (1, 2, 3)]
FLOATS = [getattr(aten, name) for name in ("im2col", *PADS)]  # which are not made for whole numbers


def _on_cpu(values: list[Any]) -> list[Any]:
    found: list[Any] = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, values)
    return found


@rule("transpose_", "t_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_")
def moved_in_place(trace: Trace, call: Call) -> Label:
    """The same of a tensor that has been moved already."""
    label = trace.label(call.args[0])
    if label is None or not trace.is_labelled(call.args[0]):
        return label
    name = call.operation.overloadpacket.__name__.removesuffix("_")
    found: Tensor = getattr(aten, name)(label, *call.args[1:])
    return found


@rule(
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d",
    "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "upsample_trilinear3d",
)  # fmt: skip
def resized(trace: Trace, call: Call) -> Label | Sequence[Label]:
    """Channels stay, positions change."""
    label = trace.label(call.args[0])
    if label is None:
        return None
    [axes] = re.findall(r"(\d)d", str(call.operation))
    small = merged(narrowed(label), range(-int(axes), 0))
    if small is None:
        return unknown(trace, call)
    output = call.output if isinstance(call.output, Tensor) else call.output[0]
    return small.expand(output.shape)


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm", "_batch_norm_with_update", "native_group_norm",
)  # fmt: skip
def normed(trace: Trace, call: Call) -> Label | Sequence[Label]:
    """Scale and shift hang together with their channel."""
    if trace.is_parameter(call.args[0]):  # which is standardized
        return unknown(trace, call)
    label = trace.label(call.args[0])
    for name in ("weight", "bias"):
        label = trace.joined(label, _of_channels(trace.label(call[name]), call.args[0].dim()))
    if label is None:
        return None
    label = label.expand(call.args[0].shape)
    if call.operation.overloadpacket is aten.native_group_norm:
        trace.nodes.count(narrowed(label), "are normalized together with others")
    else:
        for name in ("running_mean", "running_var"):
            trace.read_buffer(call[name], label)
    return label


def _of_channels(label: Label, axes: int) -> Label:
    return None if label is None else label.view(-1, *[1] * (axes - 2))


@rule("native_layer_norm", "_fused_rms_norm")
def layer_normed(trace: Trace, call: Call) -> Label:
    """The same, where they have a value for each entry of the last axes."""
    label = trace.label(call.args[0])
    for argument in call.operation._schema.arguments:
        if argument.name in ("weight", "bias"):
            label = trace.joined(label, trace.label(call[argument.name]))
    if label is None:
        return None
    trace.nodes.count(narrowed(label), "are normalized together with others")
    return label.expand(call.args[0].shape)


@rule("embedding")
def embedded(trace: Trace, call: Call) -> Label:
    """A column of the table is a filter."""
    units = trace.filters(call["weight"].t())
    return units if units is None else units.expand(call.output.shape)


@rule("convolution")
def convolved(trace: Trace, call: Call) -> Label | Sequence[Label]:
    """Filters are new labels; those of a group of channels hang together with all that it reads."""
    weight, groups = call["weight"], call["groups"]
    units = _filters_of_convolution(trace, weight, groups, bool(call["transposed"]))
    if units is None:
        return unknown(trace, call)
    label = trace.label(call["input"])
    small = None if label is None else merged(narrowed(label), [0, *range(2, label.dim())])
    if label is not None and small is None:
        trace.nodes.fix(narrowed(label), "lie along positions of a convolution")
    if groups > 1:
        of_group = units.view(groups, -1)
        trace.nodes.join(of_group[:, :1], of_group)
        if small is not None:
            read = small.flatten().expand(call["input"].shape[1]).reshape(groups, -1)
            trace.nodes.join(of_group[:, :1], read)
    elif small is not None:
        channels = small.flatten().expand(call["input"].shape[1])
        trace.read(weight, channels, axis=0 if call["transposed"] else 1)
    trace.joined(units, trace.label(call["bias"]))
    return units.view(-1, *[1] * (call.output.dim() - 2)).expand(call.output.shape)


def _filters_of_convolution(trace: Trace, weight: Tensor, groups: int, transposed: bool) -> Label:
    """The label of each output."""
    flat = weight
    while flat.dim() > 2:
        flat = flat[..., 0]  # one position of the kernel
    if not transposed:
        return trace.filters(flat, axis=1)
    inputs, outputs = flat.shape
    split = flat.view(groups, inputs // groups, outputs)
    parts = [trace.filters(part.t(), axis=0, part=groups > 1) for part in split]
    found = [part for part in parts if part is not None]
    return torch.cat(found) if len(found) == len(parts) else None


@rule("linear")
def linear(trace: Trace, call: Call) -> Label:
    """A product that was not taken apart."""
    return product(trace, call.output, call["input"], call["weight"].t(), call["bias"])


@rule("mm", "bmm", "mv", "matmul")
def multiplied(trace: Trace, call: Call) -> Label:
    """A product."""
    return product(trace, call.output, call.args[0], call.args[1])


@rule("addmm", "baddbmm", "addmv")
def added_and_multiplied(trace: Trace, call: Call) -> Label:
    """A product and a sum."""
    return product(trace, call.output, call.args[1], call.args[2], call.args[0])


def product(trace: Trace, output: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Label:
    """Of activations and a weight, or of two activations; by the rows of a and the columns of b.

    Two activations are attention: what is summed over hangs together, the channels of one head.
    """
    a, b = (a[None] if a.dim() == 1 else a), (b[:, None] if b.dim() == 1 else b)
    left, right = trace.filters(a), trace.filters(b.mT)
    added = None if bias is None else trace.label(bias)
    if left is not None and right is not None:  # a weight in two factors
        trace.nodes.fix(torch.cat([left.flatten(), right.flatten()]), "make another weight")
        return opaque(output)
    if right is not None:
        trace.read(b.mT, trace.label(a))
        label: Label = _applied(trace, trace.label(a), right, added)
        added = None
    elif left is not None:
        trace.read(a, _transposed(trace.label(b)))
        label = _transposed(_applied(trace, _transposed(trace.label(b)), left, None))
    else:
        label = _attended(trace, trace.label(a), trace.label(b))
    label = None if label is None else label.expand(_as_matrix(output, a, b)).reshape(output.shape)
    return trace.at_places(label, added)


def _as_matrix(output: Tensor, a: Tensor, b: Tensor) -> Sequence[int]:
    """The shape of the product, where vectors are matrices."""
    return (*output.shape[: max(a.dim(), b.dim()) - 2], a.shape[-2], b.shape[-1])


def _transposed(label: Label) -> Label:
    return None if label is None else label.mT


def _applied(trace: Trace, label: Label, units: Tensor, added: Label) -> Tensor:
    """Of rows of activations, filters and what is added to their outputs.

    A label that is the same along a row is one of its position, which stays.
    """
    outputs = units.unsqueeze(-2)
    trace.joined(outputs, added)
    if label is not None:
        small = narrowed(label)
        if small.shape[-1] == 1 < label.shape[-1] and small.shape[-2] > 1:
            trace.nodes.fix(units, "mix positions, whose channels stay what they are")
            return small.expand(*label.shape[:-1], units.shape[-1])
    return outputs


def _attended(trace: Trace, a: Label, b: Label) -> Label:
    """What is summed over hangs together, and then rows with columns."""
    found: list[Label] = []
    for label, axis in ((a, -1), (b, -2)):
        if label is not None:
            small = narrowed(label)
            rest = small.shape[axis] - 1
            trace.nodes.join(small.narrow(axis, 0, rest), small.narrow(axis, 1, rest))
            label = small.amax(axis, keepdim=True)
        found.append(label)
    return trace.joined(*found)


@rule("copy_")
def copied(trace: Trace, call: Call) -> Label:
    """What is written over takes the labels of what is written."""
    label = trace.label(call.args[1])
    if label is not None:
        trace.write(call.args[0], lambda place: place.copy_(label))
    return None


@rule("index_put_", "_index_put_impl_")
def put(trace: Trace, call: Call) -> Label:
    """The same at some places."""
    label = trace.label(call["values"])
    if label is not None:
        places = tree_map(
            lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, list(call["indices"])
        )
        trace.write(call.args[0], lambda place: place.index_put_(places, label))
    return None
