"""Actor and critic in one model: how its policy acts, advantages, and the losses of A2C and PPO, one value an example.

The model gives (policy, values) for k observations: values (k,), and a policy of one row each. For discrete actions the
row is their logits; for actions of d numbers it is d means and d logarithms of standard deviations.

A batch's `counts`, (batch, steps), if it has them, are 1 for steps that count and 0 for what fills up shorter episodes.
A loss then gives weights as well, the steps of each example, so that a batch's loss is a mean over steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchopt.errors import NonFiniteLossError, TaskError

Batch = Mapping[str, Tensor]


def actor_critic_loss(
    model: nn.Module, batch: Batch, *, value_weight: float = 0.5, entropy_weight: float = 0.01
) -> Tensor | tuple[Tensor, Tensor]:
    """The loss of A2C (Mnih et al. 2016), a mean over the steps of each example, (batch,).

    Args:
        model: actor and critic.
        batch: as `GymnasiumEnvironments` and `GymnasiumEpisodes` collect it.
        value_weight: of the critic's squared error.
        entropy_weight: of the policy's entropy, which is wanted.
    """
    policy, values = _of_steps(model, batch["observations"], batch["returns"])
    log_probabilities, entropy = log_probabilities_of(policy, batch["actions"])
    errors = (batch["returns"] - values).square()
    losses = -batch["advantages"] * log_probabilities + value_weight * errors - entropy_weight * entropy
    return _over_steps(losses, batch)


def ppo_loss(
    model: nn.Module, batch: Batch, *, clip: float = 0.2, value_weight: float = 0.5, entropy_weight: float = 0.0
) -> Tensor | tuple[Tensor, Tensor]:
    """The clipped loss of PPO (Schulman et al. 2017), a mean over the steps of each example, (batch,).

    Args:
        model: actor and critic.
        batch: as `GymnasiumEnvironments` and `GymnasiumEpisodes` collect it.
        clip: share by which the probability of an action may change before it counts no more.
        value_weight: of the critic's squared error.
        entropy_weight: of the policy's entropy, which is wanted.
    """
    policy, values = _of_steps(model, batch["observations"], batch["returns"])
    log_probabilities, entropy = log_probabilities_of(policy, batch["actions"])
    ratio = (log_probabilities - batch["log_probabilities"]).exp()
    gains = torch.minimum(ratio * batch["advantages"], ratio.clamp(1.0 - clip, 1.0 + clip) * batch["advantages"])
    errors = (batch["returns"] - values).square()
    return _over_steps(-gains + value_weight * errors - entropy_weight * entropy, batch)


def policy_and_values(model: nn.Module, observations: Tensor) -> tuple[Tensor, Tensor]:
    """What the model gives for k observations: a policy, (k, ...), and values, (k,).

    Raises:
        TaskError: it gives something else.
    """
    found = model(observations)
    k = len(observations)
    parts = found if isinstance(found, tuple) else (found,)
    are_tensors = len(parts) == 2 and all(isinstance(part, Tensor) for part in parts)
    if not (are_tensors and parts[0].ndim == 2 and parts[1].shape == (k,)):
        got = " and ".join(str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts)
        raise TaskError(
            f"the model must give (policy, values) for {k} observations, of shapes ({k}, ...) and ({k},), got {got}"
        )
    return parts[0].float(), parts[1].float()  # under autocast they are of its dtype


def acted(model: nn.Module, observations: Tensor, *, discrete: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A policy, values, and actions that are drawn by the policy.

    Raises:
        NonFiniteLossError: the policy is NaN or infinite.
    """
    policy, values = policy_and_values(model, observations)
    if not bool(policy.isfinite().all()):
        raise NonFiniteLossError(
            "the policy became NaN or infinite: lower the learning rate, or look for what is not finite in observations"
        )
    return policy, values, sample(policy, discrete=discrete)


def sample(policy: Tensor, *, discrete: bool) -> Tensor:
    """Actions by a policy, (k,) of whole numbers or (k, d), drawn from torch's own generator."""
    if discrete:
        return torch.multinomial(policy.softmax(dim=1), 1)[:, 0]
    mean, log_deviation = policy.chunk(2, dim=1)
    return mean + log_deviation.exp() * torch.randn_like(mean)


def log_probabilities_of(policy: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities (densities) of actions, and the entropies of the policy; in nats.

    Args:
        policy: (..., m).
        actions: (...) of whole numbers, or (..., d).
    """
    if not actions.is_floating_point():
        logs = policy.log_softmax(dim=-1)
        return logs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(logs.exp() * logs).sum(dim=-1)
    mean, log_deviation = policy.chunk(2, dim=-1)
    constant = 0.5 * math.log(2.0 * math.pi)
    logs = -0.5 * ((actions - mean) / log_deviation.exp()).square() - log_deviation - constant
    return logs.sum(dim=-1), (log_deviation + constant + 0.5).sum(dim=-1)


def advantages_of(
    rewards: Sequence[Tensor], values: Sequence[Tensor], goes_on: Sequence[Tensor], *, discount: float, trace: float
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16), (k, steps).

    Args:
        rewards: of each step, (k,).
        values: before each step and after the last, (k,).
        goes_on: of each step, 1 or, where the episode ends with it, 0; (k,).
        discount: of later rewards, gamma.
        trace: lambda.
    """
    advantages, later = [], torch.zeros_like(values[-1])
    for k in reversed(range(len(rewards))):
        surprise = rewards[k] + discount * goes_on[k] * values[k + 1] - values[k]
        later = surprise + discount * trace * goes_on[k] * later
        advantages.append(later)
    return torch.stack(advantages[::-1], dim=1)


def is_discrete(space: Any) -> bool:
    """Whether actions are whole numbers; else they are d numbers.

    Raises:
        TaskError: the space is neither `Discrete` nor a `Box` of one dimension.
    """
    kind = type(space).__name__
    if kind == "Discrete":
        return True
    if kind == "Box" and len(space.shape) == 1:
        return False
    raise TaskError(
        f"actions must be of a Discrete space or of a Box of one dimension, got {space}: wrap the environment "
        "(gymnasium.wrappers), or give environments of your own with collect and play"
    )


def as_tensor(observations: NDArray[Any], model: nn.Module) -> Tensor:
    """Observations where the model is; numbers with a fraction in its precision."""
    parameter = next(model.parameters())
    found = torch.from_numpy(np.asarray(observations))
    return found.to(parameter.device, parameter.dtype if found.is_floating_point() else None)


def check_shares(**shares: float) -> None:
    """Raise unless all are from 0 to 1."""
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} must be from 0 to 1, got {share!r}")


def _over_steps(losses: Tensor, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
    """The mean of each example, and where steps are counted how many it is of."""
    if "counts" not in batch:
        return losses.mean(dim=1)
    counts = batch["counts"]
    steps = counts.sum(dim=1)
    return (losses * counts).sum(dim=1) / steps, steps


def _of_steps(model: nn.Module, observations: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Policy, (batch, steps, m), and values, (batch, steps)."""
    policy, values = policy_and_values(model, observations.flatten(0, 1))
    return policy.view(*like.shape, -1), values.view(like.shape)
