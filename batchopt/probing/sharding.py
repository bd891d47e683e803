"""Models whose parameters are sharded over the processes of a training, as FSDP2 (`fully_shard`) does it.

Every process holds a part of every parameter, of its gradient and of what an optimizer keeps for it. A forward pass
needs all of them, so all processes must take it; the same goes for putting a whole together, or taking one apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any of them is."""
    return any(hasattr(tensor, "device_mesh") for tensor in tensors)


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor; all of it where that is whole."""
    return cast("Any", value).to_local() if is_sharded([value]) else value


def whole(state: Any) -> Any:
    """A state, in any nesting of dicts and lists, with every sharded tensor put together."""
    return pytree.tree_map(lambda leaf: leaf.full_tensor() if is_sharded([leaf]) else leaf, state)


def whole_on_cpu(state: Any, *, is_kept: bool) -> Any:
    """The same, one tensor after another, in the memory of the host; nothing of them where it is not kept."""

    def moved(leaf: Any) -> Any:
        if not is_sharded([leaf]):
            return leaf
        tensor = leaf.full_tensor()
        return tensor.cpu() if is_kept else None

    return pytree.tree_map(moved, state)


def shard_like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor taken apart as another of its shape is; as it was where the other is whole or of another shape."""
    if not is_sharded([other]) or value.shape != other.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    apart = cast("Any", other)
    return distribute_tensor(value.to(other.device), apart.device_mesh, apart.placements)


def shard_model_state(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A model's whole state, taken apart as the model is; what the model does not have stays as it is."""
    own = model.state_dict()
    return {name: shard_like(value, own[name]) if name in own else value for name, value in state.items()}


def shard_optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state, taken apart as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    apart = {
        index: {
            name: shard_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in entries.items()
        }
        for index, entries in state["state"].items()
    }
    return {**state, "state": apart}


def reshard(model: nn.Module) -> None:
    """Let every process hold no more than its part: a forward pass leaves the outermost module whole."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            cast("Any", module).reshard()
