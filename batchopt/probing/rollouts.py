"""Data that the model makes by acting: reinforcement learning.

An example is what one copy of the environment went through in a stretch of steps: an episode, or so many steps of one.
Steps of one stretch are correlated, stretches of different copies are not, so per-example gradients, noise scales and
batch sizes mean what they mean for a data set, and are counted in stretches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from batchopt._checks import check_count, check_finite, check_positive
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing.state import evaluating

PLAYED = 1
"""Tells the seed of environments that are played in from that of those that are learned from."""


class Rollout(NamedTuple):
    """What a model did.

    Attributes:
        batch: one row an example, in any nesting of tuples, lists and dicts of tensors; the task's loss gets it.
        scores: of the episodes that ended, each the sum of its rewards; may be empty.
    """

    batch: Any
    scores: Sequence[float]


@runtime_checkable
class Environments(Protocol):
    """Copies of an environment.

    Where their episodes go on from one batch to the next they have a `state_dict`, of tensors, numbers, strings and
    lists and dicts of these, and a `load_state_dict`; then a run opens them once. Without, they are opened anew for
    every batch, with another seed.
    """

    def collect(self, model: nn.Module, count: int) -> Rollout:
        """Let the model act in `count` copies: the first `count` ones, where they go on."""
        ...

    def play(self, model: nn.Module, episodes: int) -> Sequence[float]:
        """The scores of whole episodes, from their beginning, in copies of their own."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """Data of a `TrainingTask` that its model makes by acting in environments.

    What is learned is told by the score, the larger the better. Forecasts, plans and goals are about losses, which fall
    and are positive: here the loss is `best_score` minus the score (`loss_of`, `score_of`). The task's own loss, one
    value an example, is what is differentiated.

    Attributes:
        environments: seed -> `Environments`; the same seed gives the same episodes to the same actions. What is drawn
            from the process-wide generators (torch, numpy, random) is reproducible too.
        best_score: a score that lies above every one that is ever reached. Losses are modelled by their logarithm, so
            it matters near the end of learning: take the best known score and a little more.
        passes: optimizer steps on every batch, as PPO takes several. They count as one step.
        episodes: that are played where the model is evaluated.
        episode_examples: examples that an episode fills, about: what an evaluation costs is counted by it.
    """

    environments: Callable[[int], Environments]
    best_score: float
    passes: int = 1
    episodes: int = 32
    episode_examples: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.environments):
            raise TypeError(
                f"environments must be a function from a seed to environments, got {type(self.environments).__name__}"
            )
        check_finite("best_score", self.best_score)
        check_count("passes", self.passes)
        check_count("episodes", self.episodes)
        check_positive("episode_examples", self.episode_examples)

    def loss_of(self, score: float) -> float:
        """How far a score is from the best.

        Raises:
            NonFiniteLossError: it is NaN or infinite.
            TaskError: it is not below `best_score`.
        """
        if not math.isfinite(score):
            raise NonFiniteLossError(f"a score is {score}: lower the learning rate, or look at the rewards")
        if score >= self.best_score:
            raise TaskError(
                f"best_score must lie above every score, and {score:g} reaches it (best_score={self.best_score:g}): "
                "raise it"
            )
        return self.best_score - score

    def score_of(self, loss: float) -> float:
        """The score that leaves a loss."""
        return self.best_score - loss

    @property
    def evaluation_examples(self) -> int:
        """Examples in one evaluation."""
        return math.ceil(self.episodes * self.episode_examples)

    def open(self, *key: int) -> Environments:
        """Environments with a seed that is drawn from `key`.

        Raises:
            TaskError: the function gives something else.
        """
        found = self.environments(int(np.random.SeedSequence(key).generate_state(1)[0]))
        if not isinstance(found, Environments):
            raise TaskError(
                "environments must give an object with the methods collect(model, count) and play(model, episodes), "
                f"got {type(found).__name__}"
            )
        return found

    def evaluate(self, model: nn.Module, *, seed: int, device: torch.device, autocast: torch.dtype | None) -> float:
        """The loss by the mean score of whole episodes, at frozen weights and in evaluation mode.

        Args:
            model: acts.
            seed: of the episodes.
            device: of the model.
            autocast: dtype of mixed precision, or None.

        Raises:
            NonFiniteLossError: a score is NaN or infinite.
            TaskError: there are not as many as asked for, or one is not below `best_score`.
        """
        with acting(model, device, autocast):
            scores = list(self.open(seed, 0, PLAYED).play(model, self.episodes))
        if len(scores) != self.episodes:
            raise TaskError(f"play must give the scores of {self.episodes} episodes, got {len(scores) or 'none'}")
        return self.mean_loss(scores)

    def mean_loss(self, scores: Sequence[float]) -> float:
        """Of several scores."""
        return math.fsum(self.loss_of(float(score)) for score in scores) / len(scores)


@contextmanager
def acting(model: nn.Module, device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """The model in evaluation mode, without gradients, in the precision that it is trained in."""
    with evaluating(model), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        yield


def collect(
    environments: Environments, model: nn.Module, count: int, device: torch.device, autocast: torch.dtype | None
) -> Rollout:
    """A batch of `count` examples, on a device; the model acts in evaluation mode and without gradients.

    Raises:
        TaskError: the environments give no `Rollout`, or another number of examples.
    """
    with acting(model, device, autocast):
        rollout = environments.collect(model, count)
    if not isinstance(rollout, tuple) or len(rollout) != 2:
        raise TaskError(f"collect must return a batchopt.Rollout(batch, scores), got {type(rollout).__name__}")
    batch = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().to(device), rollout[0])
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)}
    if lengths != {count}:
        got = " and ".join(map(str, sorted(lengths))) or "no tensor"
        raise TaskError(
            f"collect must give one row for each of the {count} examples that it was asked for, in every tensor, got "
            f"{got}"
        )
    return Rollout(batch, rollout[1])


class Collector:
    """Where a run gets its batches from.

    Args:
        rollouts: of the task.
        seed: of the run.
        device: where batches go.
        autocast: dtype of mixed precision, or None.
    """

    def __init__(self, rollouts: Rollouts, seed: int, device: torch.device, autocast: torch.dtype | None) -> None:
        self.rollouts, self._seed = rollouts, seed
        self._device, self._autocast = device, autocast
        self._environments: Environments | None = None
        self._loss: float | None = None

    def batch(self, model: nn.Module, count: int, *, at: int) -> tuple[Any, float]:
        """A batch and its loss: by the scores of the episodes that ended in it, or in the last one where some did.

        Args:
            model: acts.
            count: examples.
            at: examples that the run has seen.
        """
        place = self._device, self._autocast
        if self._environments is None:
            opened = self.rollouts.open(self._seed, at)
            rollout = collect(opened, model, count, *place)
            self._environments = opened if hasattr(opened, "state_dict") else None
        else:
            rollout = collect(self._environments, model, count, *place)
        if len(rollout.scores):
            self._loss = self.rollouts.mean_loss(rollout.scores)
        elif self._loss is None:  # none has ended yet
            self._loss = self.rollouts.evaluate(model, seed=self._seed, device=self._device, autocast=self._autocast)
        return rollout.batch, self._loss

    def state_dict(self) -> dict[str, Any]:
        """What the run needs to go on.

        Raises:
            TaskError: the environments' state is not of plain values.
        """
        state: Any = None
        if self._environments is not None:
            state = self._environments.state_dict()  # type: ignore[attr-defined]  # it has one, or it is not kept
            _check_plain(state)
        return {"loss": self._loss, "environments": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._loss, self._environments = state["loss"], None
        if state["environments"] is not None:
            self._environments = self.rollouts.open(self._seed, 0)
            self._environments.load_state_dict(state["environments"])  # type: ignore[attr-defined]


def _check_plain(state: object) -> None:
    """Raise unless a state can be read again without running code."""
    if isinstance(state, dict):
        for key, value in state.items():
            _check_plain(key)
            _check_plain(value)
    elif isinstance(state, list | tuple):
        for value in state:
            _check_plain(value)
    elif type(state) not in (Tensor, int, float, str, bool, type(None)):  # numpy's floats are floats too
        raise TaskError(
            "the environments' state_dict must hold tensors, numbers, strings, and lists and dicts of these, got "
            f"{type(state).__name__}"
        )
