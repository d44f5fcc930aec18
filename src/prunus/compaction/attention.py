"""Attention with fewer heads: modules that say how many they have, and torch's own, which cannot say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = ("all_head_size", "attn_dim", "split_size", "inner_dim", "embed_dim")  # of all heads
COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads", "n_heads", "n_head", "heads")


def fewer_heads(module: Any, widths: Sequence[tuple[int, int]]) -> None:
    """Let a module that counts heads have as many as its layers are wide, and what it knows of widths follow.

    Args:
        module: such as `BertSelfAttention`, or one that knows nothing of heads, which stays as it is.
        widths: outputs of its layers, before and after.
    """
    counts = [name for name in COUNTS if type(getattr(module, name, None)) is int]
    sizes = {size for size in widths if size[0] != size[1]}
    if (
        isinstance(module, nn.MultiheadAttention)
        or not counts
        or not sizes
        or len({new / old for old, new in sizes}) > 1
    ):
        return
    old, new = min(sizes)
    if any(getattr(module, name) * new % old for name in counts):
        return
    wide = {old, old / 2, old / 3}  # of one of them; of keys and values; of all three
    for name in (*counts, *(name for name in SIZES if getattr(module, name, None) in wide)):
        setattr(module, name, getattr(module, name) * new // old)


class NarrowAttention(nn.MultiheadAttention):
    """An `nn.MultiheadAttention` that has lost heads, and may have inputs of another width than these are.

    Made from one by `narrow`; it is called in the same way. Masks are for all heads alike.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention`.

        Raises:
            ValueError: a mask for each head.
        """
        inputs: Sequence[Tensor] = (query, key, value)
        if query.dim() == 2:
            inputs = [x.unsqueeze(0) for x in inputs]
        elif not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = self._projected(inputs)
        mask = _added(q, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            products = (q @ k.mT) * self.head_dim**-0.5
            weights = (products if mask is None else products + mask).softmax(-1)
            found = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            found = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(found.transpose(1, 2).flatten(2))
        if query.dim() == 2:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def _projected(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Queries, keys and values as (batch, heads, length, head_dim)."""
        packed: Any = self.in_proj_weight
        apart: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = apart if packed is None else packed.chunk(3)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            F.linear(x, weight, bias).view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        ]


def _added(q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
    """What is added to the products of queries and keys."""
    total = None
    for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[..., None, None, :]):
        if mask is None:
            continue
        if mask.dim() == 3:
            raise ValueError("attn_mask has one for each head, of which some are gone: give one of two axes")
        if mask.dtype == torch.bool:  # True is what is not looked at
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
        total = mask if total is None else total + mask
    return total


def narrow(module: Any) -> None:
    """Let an `nn.MultiheadAttention` be one of as many heads as it has weights for.

    Raises:
        ValueError: that is no whole number of heads; or it adds keys of its own.
    """
    packed = module.in_proj_weight
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    rows = {len(weight) for weight in weights} if packed is None else {len(packed) // 3}
    inputs = (packed if packed is not None else weights[0]).shape[1]
    if rows == {module.embed_dim} and inputs == module.embed_dim:
        return
    if len(rows) > 1 or min(rows) % module.head_dim or module.bias_k is not None or module.add_zero_attn:
        raise ValueError(f"no attention has {min(rows)} rows of {module.head_dim} a head")
    module.__class__ = NarrowAttention
    module.num_heads, module.embed_dim = min(rows) // module.head_dim, inputs
    module._qkv_same_embed_dim = (
        False  # which keeps torch's encoders from reading the weights past its forward
    )
    out = module.out_proj
    out.out_features, out.in_features = out.weight.shape
