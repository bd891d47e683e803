"""CartPole and Acrobot by A2C, which McCandlish et al. 2018 ran on Atari games.

An example is 16 steps of one copy of the game. Needs `pip install gymnasium`.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import gymnasium
import torch
from torch import Tensor, nn

import batchopt
from batchopt.integrations.gymnasium import GymnasiumEnvironments, actor_critic_loss

HERE = Path(__file__).parent
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
        age: steps that a copy plays before it is learned from, at most: an episode of the first policy.
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


task = make_task("CartPole-v1", best_score=505.0, age=32)  # an episode ends after 500 steps, each a reward of 1
acrobot = make_task("Acrobot-v1", best_score=-50.0, age=500)  # a reward of -1 a step; the best known end after 60

if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    from rollout_sweep import Grid, sweep

    GRIDS = {
        "cartpole": Grid(
            batch_sizes=(4, 16, 64, 256),
            learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
            seeds=(0, 1, 2, 3, 4, 5),
            most_steps=4_000,
            most_examples=30_000,
            scores=(50.0, 100.0, 200.0, 350.0),
        ),
        "acrobot": Grid(
            batch_sizes=(4, 16, 64, 256),
            learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
            seeds=(0, 1),
            most_steps=2_000,
            most_examples=30_000,
            scores=(-300.0, -200.0, -120.0, -95.0),
        ),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--games", nargs="*", default=list(GRIDS))
    args = parser.parse_args()
    for name in args.games:
        chosen = {"cartpole": task, "acrobot": acrobot}[name]
        rows = sweep(chosen, GRIDS[name], HERE / "out" / f"{name}.jsonl", workers=args.workers)
        print(name, len(rows), "runs", json.dumps(rows[-1]["reached"]))
