"""PPO in very large batches, as McCandlish et al. 2018 ran it on Dota: here on CartPole, Pendulum and LunarLander.

An example is a whole episode. Dota itself is not to be had. Needs `pip install gymnasium`, and for LunarLander
`pip install "gymnasium[box2d]"`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium
import torch
from torch import Tensor, nn
from vector_pendulum import LONGEST, VectorPendulum

import batchopt
from batchopt.integrations.gymnasium import GymnasiumEpisodes, ppo_loss

BEST_SCORE = 505.0
"""An episode ends after 500 steps, each a reward of 1."""

PER_STEP = 32.0
"""Examples that a step counts for beside its own: it takes hundreds of steps of the environment one after the other,
for one episode as for many."""


class ActorCritic(nn.Module):
    """A network for the policy and one for the value, of two hidden layers each."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = (_network(4, 64, width) for width in (2, 1))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (k, 2) and values (k,)."""
        return self.policy(observations), self.value(observations)[:, 0]


class PendulumActorCritic(nn.Module):
    """The same for a torque. It sees speeds over 4 and gives values over 20, so that all numbers are of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = (_network(3, 32, 1) for _ in range(2))
        self.log_deviation = nn.Parameter(torch.zeros(1))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation, (k, 2), and values (k,)."""
        scaled = observations * observations.new_tensor([1.0, 1.0, 0.25])
        mean = self.policy(scaled)
        return torch.cat([mean, self.log_deviation.expand_as(mean)], dim=1), 20.0 * self.value(scaled)[:, 0]


class LanderActorCritic(nn.Module):
    """The same for LunarLander's four engines. It gives values over 100."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = (_network(8, 64, width) for width in (4, 1))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (k, 4) and values (k,)."""
        return self.policy(observations), 100.0 * self.value(observations)[:, 0]


def _network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
    )


def copies(count: int) -> gymnasium.vector.VectorEnv:
    """So many CartPoles, in numpy."""
    return gymnasium.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point")


def landers(count: int) -> gymnasium.vector.VectorEnv:
    """So many LunarLanders, one after the other; 400 steps are enough to land, and one that hovers ends there."""
    return gymnasium.make_vec("LunarLander-v3", num_envs=count, vectorization_mode="sync", max_episode_steps=400)


def make_task(
    model: Callable[[], nn.Module],
    make: Callable[[int], gymnasium.vector.VectorEnv],
    *,
    best_score: float,
    discount: float = 0.99,
) -> batchopt.TrainingTask:
    """A game by PPO, four passes over every batch.

    Args:
        model: actor and critic.
        make: so many copies of the game.
        best_score: above what is ever reached.
        discount: of later rewards.
    """
    return batchopt.TrainingTask(
        model=model,
        data=batchopt.Rollouts(
            environments=lambda seed: GymnasiumEpisodes(make, seed=seed, discount=discount),
            best_score=best_score,
            passes=4,
            episodes=64,
        ),
        loss=ppo_loss,
        optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
        prior=(64, 3e-3),
        device="cpu",
    )


task = make_task(ActorCritic, copies, best_score=BEST_SCORE)
pendulum = make_task(PendulumActorCritic, VectorPendulum, best_score=1.0, discount=0.9)  # rewards are at most 0
lander = make_task(LanderActorCritic, landers, best_score=350.0)  # a good landing brings 200 to 320

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from flow import Settings, run_study

    PAPER = "Dota 1v1, in steps: 50,000, 3,000,000; 100,000, 300,000"
    run_study(
        __file__,
        full={
            "task": Settings(examples=24_000, loss=task.data.loss_of(350.0), paper=PAPER, per_step=PER_STEP),
            "pendulum": Settings(
                examples=60_000, loss=pendulum.data.loss_of(-300.0), paper=PAPER, unit=LONGEST, per_step=PER_STEP
            ),
            "lander": Settings(examples=40_000, loss=lander.data.loss_of(0.0), paper=PAPER, per_step=PER_STEP),
        },
        smoke=Settings(examples=700),
    )
