"""CartPole and Acrobot by A2C, which McCandlish et al. 2018 ran on Atari games.

An example is 16 steps of one copy of the game. Needs `pip install gymnasium`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import gymnasium
import torch
from torch import Tensor, nn

import batchopt
from batchopt.integrations.gymnasium import GymnasiumEnvironments, actor_critic_loss

STEPS = 16


class ActorCritic(nn.Module):
    """A network for the policy and one for the value, of two hidden layers each."""

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.policy, self.value = (
            nn.Sequential(nn.Linear(observations, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, width))
            for width in (actions, 1)
        )

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (k, actions) and values (k,)."""
        return self.policy(observations), self.value(observations)[:, 0]


def environments(game: str, age: int, seed: int) -> GymnasiumEnvironments:
    """Copies of a game."""
    make = partial(gymnasium.make, game, disable_env_checker=True)
    return GymnasiumEnvironments(make, seed=seed, steps=STEPS, age=age)


def make_task(game: str, *, best_score: float, age: int) -> batchopt.TrainingTask:
    """A game by A2C.

    Args:
        game: its name in Gymnasium.
        best_score: above what is ever reached.
        age: steps that a copy plays before it is learned from, at most: the longest episode.
    """
    space = gymnasium.make(game)
    observations, actions = space.observation_space.shape[0], int(space.action_space.n)
    return batchopt.TrainingTask(
        model=lambda: ActorCritic(observations, actions),
        data=batchopt.Rollouts(
            environments=partial(environments, game, age), best_score=best_score, episodes=16, episode_examples=8.0
        ),
        loss=actor_critic_loss,
        optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
        prior=(16, 3e-3),
        device="cpu",
    )


task = make_task("CartPole-v1", best_score=505.0, age=500)  # an episode ends after 500 steps, each a reward of 1
acrobot = make_task("Acrobot-v1", best_score=-50.0, age=500)  # a reward of -1 a step; the best known end after 60

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from flow import Settings, run_study

    PAPER = "Atari games, in frames: 100 to 1,000, 400 to 8,000; 100 to 1,000, 1,000 to 20,000"
    run_study(
        __file__,
        full={
            "task": Settings(examples=12_000, loss=task.data.loss_of(350.0), paper=PAPER, unit=STEPS),
            "acrobot": Settings(examples=12_000, loss=acrobot.data.loss_of(-120.0), paper=PAPER, unit=STEPS),
        },
        smoke=Settings(examples=2_000),
    )
