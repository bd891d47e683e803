"""Gymnasium environments as data of a `TrainingTask`.

    def environments(seed):
        return GymnasiumEnvironments(lambda: gymnasium.make("CartPole-v1"), seed=seed, steps=16, age=200)

    task = TrainingTask(
        model=ActorCritic,  # observations (k, ...) -> logits (k, actions) and values (k,)
        data=Rollouts(environments=environments, best_score=505.0),
        loss=actor_critic_loss,
        optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    )

An example is `steps` steps of one copy. With `GymnasiumEpisodes` it is a whole episode. The losses of A2C and PPO are
here as well.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from batchopt._checks import check_count
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.integrations.actor_critic import (
    acted,
    actor_critic_loss,
    advantages_of,
    as_tensor,
    check_shares,
    is_discrete,
    log_probabilities_of,
    policy_and_values,
    ppo_loss,
)
from batchopt.integrations.gymnasium_episodes import GymnasiumEpisodes
from batchopt.probing.rollouts import Rollout

__all__ = ["GymnasiumEnvironments", "GymnasiumEpisodes", "actor_critic_loss", "ppo_loss"]

AT_ONCE = 64
"""Episodes that are played side by side for their scores: one forward pass for all, and not too many environments."""


class GymnasiumEnvironments:
    """Copies of a Gymnasium environment whose episodes go on from one batch to the next.

    A copy's state is the seed of its episode and the actions since: played again, they lead to the same point. So a run
    that was interrupted goes on as if it had not been, where the environment does the same for the same seed and
    actions (for Atari: `repeat_action_probability` draws from the seed, so it does).

    Args:
        make: makes one copy, of discrete actions or of a box of one dimension. Give one that need not end a time limit
            (`gymnasium.wrappers.TimeLimit`).
        seed: of all episodes.
        steps: of an example: what one copy goes through in one batch.
        discount: of later rewards, gamma.
        trace: lambda of generalised advantage estimation; 1 for the rewards up to the end of the example.
        age: steps that a new copy plays first, a number below this that differs from copy to copy. Noise scales are
            measured in new copies, so this decides which parts of episodes they are of: take the length of an episode
            (1 where that is not longer than `steps`).
        longest: an episode of so many steps counts as one that does not end (27,000 are enough for Atari).
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        seed: int,
        steps: int,
        age: int,
        discount: float = 0.99,
        trace: float = 0.95,
        longest: int = 10_000,
    ) -> None:
        check_count("seed", seed, least=0)
        for name, value in {"steps": steps, "age": age, "longest": longest}.items():
            check_count(name, value)
        check_shares(discount=discount, trace=trace)
        self._make, self._seed, self._steps, self._age, self._longest = make, seed, steps, age, longest
        self._discount, self._trace = discount, trace
        self._copies: list[_Copy] = []

    def collect(self, model: nn.Module, count: int) -> Rollout:
        """What the first `count` copies go through in their next steps.

        Returns:
            A batch of `observations` (count, steps, ...), `actions` (count, steps) or (count, steps, d), and, each
            (count, steps), `log_probabilities` of the actions, `advantages` and `returns`, which are the critic's
            targets; and the scores of the episodes that ended.
        """
        self._grow(model, count)
        copies, scores = self._copies[:count], []
        observations, policies, actions, rewards, values, goes_on = [], [], [], [], [], []
        for _ in range(self._steps):
            move = _act(model, copies)
            outcomes = [copy.step(action) for copy, action in zip(copies, move.as_arrays, strict=True)]
            rewards.append(self._rewards(model, outcomes, move.values))
            goes_on.append(move.values.new_tensor([float(not outcome.ended) for outcome in outcomes]))
            observations.append(move.observations)
            policies.append(move.policy)
            actions.append(move.actions)
            values.append(move.values)
            scores += [outcome.score for outcome in outcomes if outcome.ended]
        values.append(policy_and_values(model, _observations(copies, model))[1])
        advantages = advantages_of(rewards, values, goes_on, discount=self._discount, trace=self._trace)
        taken = torch.stack(actions, dim=1)
        batch = {
            "observations": torch.stack(observations, dim=1),
            "actions": taken,
            "log_probabilities": log_probabilities_of(torch.stack(policies, dim=1), taken)[0],
            "advantages": advantages,
            "returns": advantages + torch.stack(values[:-1], dim=1),
        }
        return Rollout(batch, scores)

    def play(self, model: nn.Module, episodes: int) -> list[float]:
        """The scores of whole episodes.

        Raises:
            TaskError: one does not end.
        """
        scores: list[float] = []
        while (done := len(scores)) < episodes:
            copies = [self._copy(self._longest + k) for k in range(done, min(episodes, done + AT_ONCE))]
            try:
                scores += self._played(model, copies)
            finally:
                for copy in copies:
                    copy.close()
        return scores

    def _played(self, model: nn.Module, going: list[_Copy]) -> list[float]:
        """The scores of an episode of each copy."""
        scores: list[float] = []
        for _ in range(self._longest):
            moves = zip(going, _act(model, going).as_arrays, strict=True)
            outcomes = [copy.step(action, again=False) for copy, action in moves]
            scores += [outcome.score for outcome in outcomes if outcome.ended]
            going = [copy for copy, outcome in zip(going, outcomes, strict=True) if not outcome.ended]
            if not going:
                return scores
        raise TaskError(
            f"an episode must end to have a score, and one went on for {self._longest:,} steps: wrap the environment "
            "in gymnasium.wrappers.TimeLimit, or raise longest"
        )

    def state_dict(self) -> dict[str, Any]:
        """The episodes of all copies, as seeds and actions."""
        return {"seed": self._seed, "copies": [copy.state_dict() for copy in self._copies]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Play again, to where `state_dict` was asked for."""
        self._seed = int(state["seed"])
        self._copies = [self._copy(k, each) for k, each in enumerate(state["copies"])]

    def _copy(self, number: int, state: Mapping[str, Any] | None = None) -> _Copy:
        return _Copy(self._make(), (self._seed, number), state)

    def _grow(self, model: nn.Module, count: int) -> None:
        """Make copies until there are `count`, each at an age of its own."""
        fresh = [self._copy(k) for k in range(len(self._copies), count)]
        ages = [copy.draw(self._age) for copy in fresh]
        for done in range(max(ages, default=0)):
            going = [copy for copy, age in zip(fresh, ages, strict=True) if age > done]
            for copy, action in zip(going, _act(model, going).as_arrays, strict=True):
                copy.step(action)
        self._copies += fresh

    def _rewards(self, model: nn.Module, outcomes: Sequence[_Outcome], like: Tensor) -> Tensor:
        """Of a step, (k,); where a time limit cut an episode off, with what the critic expects of the rest."""
        rewards = like.new_tensor([outcome.reward for outcome in outcomes])
        cut = [k for k, outcome in enumerate(outcomes) if outcome.cut_off is not None]
        if cut:
            _, values = policy_and_values(model, _stacked([outcomes[k].cut_off for k in cut], model))
            rewards[cut] += self._discount * values
        return rewards


class _Outcome(NamedTuple):
    """What a step of one copy led to.

    Attributes:
        reward: of the step.
        ended: whether the episode did.
        score: of the episode so far.
        cut_off: the last observation, where a time limit ended it.
    """

    reward: float
    ended: bool
    score: float
    cut_off: Any


class _Copy:
    """One copy of an environment, in an episode; closed with `close`, or when nothing refers to it any more.

    Args:
        environment: the copy.
        key: of its seeds.
        state: to begin in; None for a first episode.
    """

    def __init__(self, environment: Any, key: tuple[int, ...], state: Mapping[str, Any] | None) -> None:
        self._environment, self._key = environment, key
        self._closing = weakref.finalize(self, environment.close)
        space = environment.action_space
        self.is_discrete = is_discrete(space)
        self._first = int(getattr(space, "start", 0))
        self._bounds = None if self.is_discrete else (space.low, space.high)
        self._episode = 0 if state is None else int(state["episode"])
        self._begin()
        for action in () if state is None else state["actions"].numpy():
            self.step(action)

    def draw(self, bound: int) -> int:
        """A number below a bound, another one for every copy."""
        return int(np.random.default_rng(self._key).integers(bound))

    def step(self, action: Any, *, again: bool = True) -> _Outcome:
        """Take an action; where the episode ends, the next begins unless told otherwise."""
        self._actions.append(action)
        move = int(action) + self._first if self._bounds is None else np.clip(action, *self._bounds)
        self.observation, reward, terminated, truncated, _ = self._environment.step(move)
        if not math.isfinite(reward):
            raise NonFiniteLossError(
                f"a reward is {reward}, after {len(self._actions)} steps of an episode: look at its environment"
            )
        self._score += float(reward)
        ended = bool(terminated or truncated)
        cut_off = self.observation if truncated and not terminated else None
        outcome = _Outcome(float(reward), ended, self._score, cut_off)
        if ended and again:
            self._episode += 1
            self._begin()
        return outcome

    def close(self) -> None:
        """Give back what the environment holds."""
        self._closing()

    def state_dict(self) -> dict[str, Any]:
        """The number of the episode, and its actions."""
        return {"episode": self._episode, "actions": torch.as_tensor(np.array(self._actions))}

    def _begin(self) -> None:
        seed = int(np.random.SeedSequence((*self._key, self._episode)).generate_state(1)[0])
        self.observation, _ = self._environment.reset(seed=seed)
        self._actions: list[Any] = []
        self._score = 0.0


class _Moves(NamedTuple):
    """What a model saw, did and expected, a row for each copy."""

    observations: Tensor
    policy: Tensor
    values: Tensor
    actions: Tensor

    @property
    def as_arrays(self) -> Any:
        """Actions for the environments."""
        return self.actions.cpu().numpy()


def _act(model: nn.Module, copies: Sequence[_Copy]) -> _Moves:
    observations = _observations(copies, model)
    return _Moves(observations, *acted(model, observations, discrete=copies[0].is_discrete))


def _observations(copies: Sequence[_Copy], model: nn.Module) -> Tensor:
    return _stacked([copy.observation for copy in copies], model)


def _stacked(observations: Sequence[Any], model: nn.Module) -> Tensor:
    return as_tensor(np.stack(observations), model)
