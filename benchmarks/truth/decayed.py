"""What a sweep of decaying rates says: at which horizon each setting ends at a loss, and what the best one takes.

A setting is a batch size and a peak rate. Its ladder are the mean log losses at the ends of its horizons, over seeds.
A ladder may end before it reaches the loss: where its rate diverged, or because it was far behind another rate.

A horizon has 16 steps at least. A batch size whose shortest run is at the loss already takes fewer examples than any
that was run; it is left out of the trade-off, whose fewest steps are not resolved where they are as few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from batchopt import StepCost
from batchopt.errors import EvidenceError
from truth.curves import FOLDER, Run, unpack
from truth.decaying import BEHIND, LEAST_STEPS, arrived, ends_of
from truth.problems import PROBLEMS, Problem
from truth.tradeoff import Floats, Tradeoff, best_of_sizes, over_rates, seed_spread, tradeoff_through

Ladder = dict[int, float]
Setting = tuple[int, float]
RESOLVED_STEPS = 1.25 * LEAST_STEPS
"""A fitted S_min below this is set by the shortest horizons that were run."""


class Cheapest(NamedTuple):
    """The setting that reaches a loss at the least cost."""

    cost: float
    batch_size: int
    learning_rate: float
    examples: float


class DecayedSweep:
    """The runs of one problem whose learning rate decays, of shape "wsd".

    Args:
        name: of the problem.
        runs: those packed in the repository if None.
    """

    def __init__(self, name: str, runs: Sequence[Run] | None = None) -> None:
        self.problem: Problem = PROBLEMS[name]
        every = unpack(FOLDER / f"{name}-decaying.npz") if runs is None else runs
        self.runs = [run for run in every if run.shape == "wsd" and not run.rescaled]

    @cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        """Those that were run: of dear problems not all."""
        return tuple(sorted({size for size, _ in self.ladders}))

    @cached_property
    def ladders(self) -> dict[Setting, Ladder]:
        """Mean log losses at the ends of horizons; no horizon at all where the stable run diverged before the first."""
        return _ladders(self.runs)

    @cached_property
    def diverged(self) -> set[Setting]:
        """Settings of which a run diverged."""
        return {(run.batch_size, run.learning_rate) for run in self.runs if run.outcome == "diverged"}

    @cached_property
    def _ladders_of_seeds(self) -> list[dict[Setting, Ladder]]:
        return [_ladders([run for run in self.runs if run.seed == seed]) for seed in {run.seed for run in self.runs}]

    def floored(self, loss: float) -> tuple[int, ...]:
        """Batch sizes of which some rate is at the loss by the end of its shortest horizon."""
        target = math.log(loss)
        at_once = {size for (size, _), ends in self.ladders.items() if ends and ends[min(ends)] <= target}
        return tuple(sorted(at_once))

    def log_examples(self, loss: float) -> dict[Setting, float]:
        """Log of the horizon at whose end each setting is at a loss.

        At most the shortest horizon where that is at the loss already. A ladder that ended before the loss without
        diverging counts as just as far behind as it must be; one that diverged as infinite.
        """
        found = {setting: horizon_to(ends, loss) for setting, ends in self.ladders.items()}
        fewest = dict(zip(*best_of_sizes(found)[:2], strict=True))
        for setting, log_examples in found.items():
            size, ends = setting[0], self.ladders[setting]
            if math.isinf(log_examples) and setting not in self.diverged and size in fewest and ends:
                found[setting] = max(fewest[size] + math.log(BEHIND), math.log(2.0 * max(ends)))
        return found

    def tradeoff(self, loss: float, *, seed: int = 0) -> Tradeoff | None:
        """The trade-off of runs that end at a loss; None where fewer than three batch sizes tell of it."""
        floored = self.floored(loss)
        means = {key: value for key, value in self.log_examples(loss).items() if key[0] not in floored}
        try:
            return tradeoff_through(loss, means, self._errors(means, loss), seed=seed)
        except EvidenceError:
            return None

    def is_resolved(self, tradeoff: Tradeoff) -> bool:
        """Whether the fewest steps were not set by the shortest horizon, of 16 steps."""
        return tradeoff.fit.law.steps_min >= RESOLVED_STEPS and not self.floored(tradeoff.loss)

    def _errors(self, means: dict[Setting, float], loss: float) -> dict[Setting, float]:
        """Standard errors of log examples, from the seeds of settings near the best of their batch size: others scatter
        more, and decide nothing. A closed form has none."""
        fewest, seeds = dict(zip(*best_of_sizes(means)[:2], strict=True)), self._ladders_of_seeds
        near = [key for key, value in means.items() if value <= fewest.get(key[0], -math.inf) + math.log(BEHIND)]
        spread = seed_spread([
            np.exp([horizon_to(own[key], loss) for own in seeds]) for key in near if all(key in own for own in seeds)
        ])  # fmt: skip
        return {key: spread / math.sqrt(sum(key in own for own in seeds)) for key in means}

    def examples(self, batch_size: int, learning_rate: float, loss: float) -> float:
        """The horizon at whose end a setting is at a loss, interpolated over log rates; infinite beyond the grid."""
        table = {key: value for key, value in self.log_examples(loss).items() if key[0] == batch_size}
        value = over_rates(table, batch_size, learning_rate) if table else math.inf
        return math.exp(value) if math.isfinite(value) else math.inf

    def cheapest(self, loss: float, price: StepCost, batch_size: int | None = None) -> Cheapest:
        """The cheapest setting, of one batch size if given.

        Raises:
            EvidenceError: none reaches the loss.
        """
        found = [
            Cheapest(math.exp(value) / size * price(size), size, rate, math.exp(value))
            for (size, rate), value in self.log_examples(loss).items()
            if math.isfinite(value) and batch_size in (None, size)
        ]
        if not found:
            raise EvidenceError(f"no run of batch size {batch_size} ends at the loss {loss:g}")
        return min(found)

    def held_out(self, batch_size: int, learning_rate: float, horizon: float) -> float | None:
        """Held-out loss at the end of a setting's runs, interpolated over horizons; None where it is not finite."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            if (run.batch_size, run.learning_rate) == (batch_size, learning_rate) and run.horizon and run.held_out:
                found.setdefault(run.horizon, []).append(math.log(run.held_out[-1]))
        logs = [float(np.mean(found[each])) for each in sorted(found)]
        value = float(np.interp(math.log(horizon), np.log(sorted(found)), logs))
        return math.exp(value) if math.isfinite(value) else None

    def excess(self, batch_size: int, learning_rate: float, horizon: float) -> float:
        """Log loss at the end of a run above that of the best rate of its batch size and horizon; infinite beyond.

        A horizon outside of those to which every rate was followed counts as the nearest. A rate that was given up
        counts with its last loss, which is too high.
        """
        ladders = {rate: ends for (size, rate), ends in self.ladders.items() if size == batch_size}
        last = min(arrived(self.problem, ladders), max((h for ends in ladders.values() for h in ends), default=0))
        first = min((h for ends in ladders.values() for h in ends), default=0)
        at = min(max(horizon, first), last)
        known = {rate: _end_at(ends, at, (batch_size, rate) in self.diverged) for rate, ends in ladders.items()}
        rates = sorted(rate for rate, end in known.items() if math.isfinite(end))
        if len(rates) < 2 or not rates[0] * 0.999 <= learning_rate <= rates[-1] * 1.001:
            return math.inf
        ends = [known[rate] for rate in rates]
        # Monotone between rates and level at the best of them: a straight line would lie above a minimum.
        curve = PchipInterpolator(np.log(rates), ends)
        at_rate = min(max(learning_rate, rates[0]), rates[-1])
        return float(curve(math.log(at_rate))) - min(ends)


def horizon_to(ends: Ladder, loss: float) -> float:
    """Log of the horizon that ends at a loss, interpolated between log losses at the end; infinite beyond the last."""
    horizons = sorted(horizon for horizon, end in ends.items() if math.isfinite(end))
    if not horizons:
        return math.inf
    logs: Floats = np.minimum.accumulate([ends[horizon] for horizon in horizons])
    if logs[-1] > math.log(loss):
        return math.inf
    return float(np.interp(-math.log(loss), -logs, np.log(horizons)))


def _end_at(ends: Ladder, horizon: float, diverged: bool) -> float:
    """Log loss at the end of a horizon, interpolated; beyond the last infinite if that diverged, else level."""
    horizons = sorted(each for each, end in ends.items() if math.isfinite(end))
    if not horizons or horizon < horizons[0] * 0.999 or (diverged and horizon > horizons[-1] * 1.001):
        return math.inf
    return float(np.interp(math.log(horizon), np.log(horizons), [ends[each] for each in horizons]))


def _ladders(runs: Sequence[Run]) -> dict[Setting, Ladder]:
    found: dict[Setting, Ladder] = {}
    for size in {run.batch_size for run in runs}:
        own = [run for run in runs if run.batch_size == size]
        ends = ends_of(own)
        found |= {(size, rate): ends.get(rate, {}) for rate in {run.learning_rate for run in own}}
    return dict(sorted(found.items()))


def has_decays(name: str) -> bool:
    """Whether runs of a problem that decay are in the repository."""
    return (FOLDER / f"{name}-decaying.npz").exists()


@cache
def decayed_sweep_of(name: str) -> DecayedSweep:
    """The decayed runs of a problem, as they are packed in the repository."""
    return DecayedSweep(name)


@cache
def decayed_tradeoffs_of(name: str) -> list[Tradeoff]:
    """The trade-offs of a problem's decayed runs, of the losses that have one; none where nothing decays."""
    if not has_decays(name):
        return []
    found = [decayed_sweep_of(name).tradeoff(loss) for loss in PROBLEMS[name].losses]
    return [each for each in found if each is not None]
