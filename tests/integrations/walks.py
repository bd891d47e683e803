"""A small environment with Gymnasium's interface, and a model for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Discrete:
    n, start = 2, 3


class Box:
    low, high, shape = np.full(2, -1.0), np.ones(2), (2,)


class MultiBinary:
    n = 2


class Walk:
    """A random walk that an action pushes; it ends beyond 2, and a time limit of 12 steps cuts it off."""

    def __init__(self, *, discrete: bool = True) -> None:
        self.action_space: Any = Discrete() if discrete else Box()
        self.discrete = discrete

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.rng, self.taken = np.random.default_rng(seed), 0
        self.at = self.rng.normal(size=3).astype(np.float32)
        return self.at.copy(), {}

    def close(self) -> None:
        """Nothing."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.discrete:
            assert action in (3, 4)
            push = 0.3 * (int(action) - 3.5)
        else:
            assert np.all(np.abs(action) <= 1.0)
            push = float(0.3 * action.sum())
        self.at = (self.at + push + 0.3 * self.rng.normal(size=3)).astype(np.float32)
        self.taken += 1
        ends = bool(np.abs(self.at).max() > 2.0)
        return self.at.copy(), float(self.at[0]), ends, self.taken >= 12, {}


class ActorCritic(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.policy, self.value = nn.Linear(3, width), nn.Linear(3, 1)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(observations), self.value(observations)[:, 0]


def model_of(width: int = 2) -> ActorCritic:
    torch.manual_seed(1)
    return ActorCritic(width)
