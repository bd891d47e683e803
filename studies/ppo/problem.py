"""PPO in very large batches, as McCandlish et al. 2018 ran it on Dota: here on CartPole, an example a whole episode.

Dota itself is not to be had. Needs `pip install gymnasium`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import torch
from torch import Tensor, nn

import batchopt
from batchopt.integrations.gymnasium import GymnasiumEpisodes, ppo_loss

BEST_SCORE = 505.0
"""An episode ends after 500 steps, each a reward of 1."""


class ActorCritic(nn.Module):
    """A network for the policy and one for the value, of two hidden layers each."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = (
            nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, width))
            for width in (2, 1)
        )

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (k, 2) and values (k,)."""
        return self.policy(observations), self.value(observations)[:, 0]


def copies(count: int) -> gymnasium.vector.VectorEnv:
    """So many CartPoles, in numpy."""
    return gymnasium.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point")


task = batchopt.TrainingTask(
    model=ActorCritic,
    data=batchopt.Rollouts(
        environments=lambda seed: GymnasiumEpisodes(copies, seed=seed), best_score=BEST_SCORE, passes=4, episodes=64
    ),
    loss=ppo_loss,
    optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    prior=(64, 3e-3),
    device="cpu",
)

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from flow import Settings, run_study

    PAPER = "Dota 1v1, in steps: 50,000, 3,000,000; 100,000, 300,000"
    run_study(
        __file__,
        full=Settings(examples=8_000, loss=task.data.loss_of(350.0), paper=PAPER),
        smoke=Settings(examples=700),
    )
