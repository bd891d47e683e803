"""Atari games by A2C, after McCandlish et al. 2018: frames of 84 by 84, four at once, five steps an example.

Needs `pip install gymnasium ale-py`, whose wheel holds the games. A full run takes a machine of many cores or days.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

import batchopt
from batchopt.integrations.gymnasium import GymnasiumEnvironments, actor_critic_loss

gymnasium.register_envs(ale_py)

STEPS = 5
BEST_SCORES = {"Pong": 22.0, "Breakout": 900.0, "Alien": 7_200.0, "BeamRider": 17_000.0, "Qbert": 13_500.0,
               "Seaquest": 42_100.0, "SpaceInvaders": 1_700.0}  # fmt: skip
"""Above what is reached; of games without an end the scores of people (Mnih et al. 2015), with a little more."""
_CLOSED: defaultdict[str, list[Any]] = defaultdict(list)
"""Copies by their game that can be opened again."""


class Frames(gymnasium.ObservationWrapper):
    """The last four frames, each 84 by 84 and grey, (4, 84, 84) of uint8."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self._last: list[np.ndarray] = []

    def reset(self, **more: Any) -> Any:
        """Four times the first frame; without a seed, since games begin alike and a seed loads them again."""
        self._last = []
        return super().reset(**more | {"seed": None})

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Of one step."""
        grey = torch.from_numpy(observation)[None, None].float()
        small = nn.functional.interpolate(grey, (84, 84), mode="area")[0, 0].round().to(torch.uint8).numpy()
        self._last = [*self._last[-3:], small] if self._last else [small] * 4
        return np.stack(self._last)


class SignedRewards(gymnasium.RewardWrapper):
    """Rewards of -1, 0 and 1, as the paper's agents learn from."""

    def reward(self, reward: Any) -> float:
        """Its sign."""
        return float(np.sign(reward))


class Reopened(gymnasium.Wrapper):
    """A game that is kept when it is closed: loading one takes 150 ms, and all episodes begin alike."""

    def __init__(self, environment: Any, closed: list[Any]) -> None:
        super().__init__(environment)
        self._closed = closed

    def close(self) -> None:
        """To be opened again."""
        self._closed.append(self)


class ActorCritic(nn.Module):
    """The network of Mnih et al. 2016: two convolutions and a hidden layer of 256."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2592, 256), nn.ReLU(),
        )  # fmt: skip
        self.policy, self.value = nn.Linear(256, actions), nn.Linear(256, 1)
        nn.init.orthogonal_(self.policy.weight, 0.01)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (k, actions) and values (k,)."""
        hidden = self.body(frames.float() / 255.0)
        return self.policy(hidden), self.value(hidden)[:, 0]


def make(game: str) -> Any:
    """One copy: an episode ends after 27,000 steps of four frames at the latest."""
    if _CLOSED[game]:
        return _CLOSED[game].pop()
    environment = gymnasium.make(
        f"ALE/{game}-v5", obs_type="grayscale", repeat_action_probability=0.0, disable_env_checker=True
    )
    return Reopened(SignedRewards(Frames(environment)), _CLOSED[game])


def environments(game: str, seed: int) -> GymnasiumEnvironments:
    """Copies of a game, each up to 100 steps into an episode; episodes end after 27,000 steps at the latest."""
    return GymnasiumEnvironments(partial(make, game), seed=seed, steps=STEPS, age=100, longest=27_001)


def make_task(game: str) -> batchopt.TrainingTask:
    """A game by name, as Gymnasium has it: its score is the sum of the signs of its rewards."""
    actions = int(make(game).action_space.n)
    return batchopt.TrainingTask(
        model=partial(ActorCritic, actions),
        data=batchopt.Rollouts(
            environments=partial(environments, game),
            best_score=BEST_SCORES.get(game, 10_000.0),
            episodes=4,
            episode_examples=200.0,
        ),
        loss=actor_critic_loss,
        optimizer=lambda parameters, lr: torch.optim.RMSprop(parameters, lr=lr, alpha=0.99, eps=1e-5),
        before_step=lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        prior=(16, 7e-4),
    )


def __getattr__(name: str) -> batchopt.TrainingTask:
    """`batchopt probe studies/atari/problem.py:Breakout`: a task for every game."""
    return make_task(name) if name[:1].isupper() else _missing(name)


def _missing(name: str) -> batchopt.TrainingTask:
    raise AttributeError(f"module has no attribute {name!r}")


task = make_task("Pong")
breakout = make_task("Breakout")

if __name__ == "__main__":
    import argparse
    import json

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from rollout_noise import noise_along

    parser = argparse.ArgumentParser(description="Noise scales of games along some steps of training, in steps.")
    parser.add_argument("--games", nargs="*")
    parser.add_argument(
        "--updates", type=int, nargs="*", default=[0, 250, 1_250, 2_500], help="of 16 examples of five steps"
    )
    parser.add_argument("--smoke", action="store_true", help="a short run that only shows that it works")
    args = parser.parse_args()
    games = args.games or (["Pong"] if args.smoke else ["Pong", "Breakout"])
    path = Path(__file__).parent / "noise.json"
    known = json.loads(path.read_text()) if path.exists() else []
    readings = [reading for reading in known if reading["game"] not in games]
    for game in games:
        readings += noise_along(
            game,
            make_task(game),
            batch_size=16,
            rate=7e-4,
            updates=(1,) if args.smoke else args.updates,
            unit=STEPS,
            examples=24 if args.smoke else 400,
            scored=not args.smoke,
        )
    if not args.smoke:
        path.write_text(json.dumps(readings, indent=1) + "\n")
