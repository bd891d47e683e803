"""Whole episodes of Gymnasium's vector environments, which step thousands of copies at once, as data of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchopt._checks import check_count
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.integrations.actor_critic import (
    acted,
    advantages_of,
    as_tensor,
    check_shares,
    is_discrete,
    log_probabilities_of,
    policy_and_values,
)
from batchopt.probing.rollouts import Rollout


class GymnasiumEpisodes:
    """Whole episodes in copies that are opened anew for every batch: an example is an episode.

    Args:
        make: count -> a vector environment of as many copies, whose episodes begin anew one step after they end
            (autoreset mode NEXT_STEP, which is that of `gymnasium.make_vec`). Give one that need not end a time limit.
        seed: of all episodes.
        discount: of later rewards, gamma.
        trace: lambda of generalised advantage estimation.
        longest: an episode of so many steps counts as one that does not end.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        *,
        seed: int,
        discount: float = 0.99,
        trace: float = 0.95,
        longest: int = 10_000,
    ) -> None:
        check_count("seed", seed, least=0)
        check_count("longest", longest)
        check_shares(discount=discount, trace=trace)
        self._make, self._seed, self._longest = make, seed, longest
        self._discount, self._trace = discount, trace

    def collect(self, model: nn.Module, count: int) -> Rollout:
        """`count` episodes.

        Returns:
            A batch as `GymnasiumEnvironments` collect it, with as many steps as the longest episode has, and `counts`
            (count, steps), 1 for the steps of each episode and 0 after them; and the scores.
        """
        steps = list(self._steps(model, count))
        values = [step.values for step in steps]
        nothing = torch.zeros_like(values[0])  # after the last step no episode goes on
        advantages = advantages_of(
            [step.rewards for step in steps],
            [*values, nothing],
            [step.goes_on for step in steps],
            discount=self._discount,
            trace=self._trace,
        )
        actions = torch.stack([step.actions for step in steps], dim=1)
        policies = torch.stack([step.policy for step in steps], dim=1)
        batch = {
            "observations": torch.stack([step.observations for step in steps], dim=1),
            "actions": actions,
            "log_probabilities": log_probabilities_of(policies, actions)[0],
            "advantages": advantages,
            "returns": advantages + torch.stack(values, dim=1),
            "counts": torch.stack([step.counts for step in steps], dim=1),
        }
        return Rollout(batch, self._scores(steps))

    def play(self, model: nn.Module, episodes: int) -> list[float]:
        """The scores of whole episodes.

        Raises:
            TaskError: one does not end.
        """
        return self._scores(list(self._steps(model, episodes)))

    def _scores(self, steps: list[_Step]) -> list[float]:
        return [float(score) for score in np.sum([step.scores for step in steps], axis=0)]

    def _steps(self, model: nn.Module, count: int) -> Iterator[_Step]:
        """Steps until every episode has ended."""
        environment = self._make(count)
        try:
            yield from self._played(environment, model, count)
        finally:
            environment.close()

    def _played(self, environment: Any, model: nn.Module, count: int) -> Iterator[_Step]:
        _check_mode(environment)
        space = environment.single_action_space
        seen, _ = environment.reset(seed=self._seed)
        alive = np.ones(count, dtype=bool)
        for _ in range(self._longest):
            observations = as_tensor(seen, model)
            policy, values, actions = acted(model, observations, discrete=is_discrete(space))
            seen, rewards, terminated, truncated, _ = environment.step(_moves(actions, space))
            scores = np.where(alive, rewards, 0.0)
            if not np.isfinite(scores).all():
                raise NonFiniteLossError("a reward is NaN or infinite: look at its environment")
            gained = values.new_tensor(scores)
            cut_off = alive & truncated & ~terminated
            if cut_off.any():  # with what the critic expects of the rest
                _, expected = policy_and_values(model, as_tensor(seen, model))
                gained += self._discount * expected * gained.new_tensor(cut_off)
            counts, alive = gained.new_tensor(alive), alive & ~terminated & ~truncated
            yield _Step(observations, policy, values, actions, gained, scores, counts, gained.new_tensor(alive))
            if not alive.any():
                return
        raise TaskError(
            f"every episode must end, and one went on for {self._longest:,} steps: give the environment a time limit, "
            "or raise longest"
        )


class _Step(NamedTuple):
    """A step of all copies, a row each: those whose episode is over do not count."""

    observations: Tensor
    policy: Tensor
    values: Tensor
    actions: Tensor
    rewards: Tensor
    scores: NDArray[np.float64]
    counts: Tensor
    goes_on: Tensor


def _check_mode(environment: Any) -> None:
    mode = getattr(environment.metadata.get("autoreset_mode"), "value", "NextStep")
    if mode != "NextStep":
        raise TaskError(
            "the vector environment's episodes must begin anew one step after they end (AutoresetMode.NEXT_STEP), got "
            f"{mode}"
        )


def _moves(actions: Tensor, space: Any) -> NDArray[Any]:
    """Actions as the environment takes them."""
    moves = actions.cpu().numpy()
    return np.asarray(moves + space.start if is_discrete(space) else np.clip(moves, space.low, space.high))
