"""Attention: its products of activations run over all examples at once, its projections are linear maps."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt.probing.gradient_norms.examples import Examples
from batchopt.probing.gradient_norms.interception import Recorder, Rule


def scaled_dot_product_attention(
    recorder: Recorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Any:
    """`F.scaled_dot_product_attention` with the examples as one more batch dimension, for its fast kernels."""
    examples = recorder.examples
    operands = (query, key, value)
    same_batch = len({operand.shape[:-3] for operand in operands}) == 1 and query.ndim >= 3
    if not same_batch or any(recorder.tape.key(operand) is not None for operand in operands):
        return NotImplemented
    mask = None if attn_mask is None else recorder.expanded(attn_mask, reason="mask of attention")
    if mask is not None and mask.ndim > query.ndim:
        return NotImplemented
    with examples.together():
        together = [examples.all_of(operand) for operand in operands]
        q, k, v = (operand.reshape(-1, *operand.shape[-3:]) for operand in together)
        output = F.scaled_dot_product_attention(
            q, k, v, _mask_of_all(examples, mask, query.shape), dropout_p=dropout_p, is_causal=is_causal, **settings
        )
        output = output.view(*together[0].shape[:-1], value.shape[-1])
    return examples.one_of(output)


def _mask_of_all(examples: Examples, mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """A mask for the queries of all examples, (examples * batch, heads, L, S) or broadcastable to it.

    Args:
        examples: in whose `together` this is called.
        mask: of one example, broadcastable to (*batch, heads, L, S).
        shape: of one example's query, (*batch, heads, L, features).
    """
    if mask is None or (mask.ndim <= 2 and not examples.differ_in(mask)):
        return mask
    aligned = (1,) * (len(shape) - mask.ndim) + tuple(mask.shape)
    rows = examples.all_of(mask).reshape(examples.count, *aligned)
    rows = rows.expand(-1, *shape[:-3], *aligned[-3:])
    return rows.reshape(-1, *aligned[-3:])


def multi_head_attention_forward(recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
    """`F.multi_head_attention_forward`: its own code, in which the projections are intercepted in their turn."""
    with recorder:
        return _MULTI_HEAD_ATTENTION(*args, **kwargs)


def _without_dispatch(function: Any) -> Any:
    """A function of `torch.nn.functional` that never hands itself over to an interceptor as a whole."""
    dispatch = {"has_torch_function": lambda *_: False}
    copy = types.FunctionType(
        function.__code__, {**function.__globals__, **dispatch}, function.__name__, function.__defaults__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_MULTI_HEAD_ATTENTION = _without_dispatch(F.multi_head_attention_forward)

RULES: dict[Any, Rule] = {F.multi_head_attention_forward: multi_head_attention_forward}
ALWAYS: dict[Any, Rule] = {torch.nn.functional.scaled_dot_product_attention: scaled_dot_product_attention}
