"""What a sweep of constant rates says: the trade-off to every loss, and the cost of any configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from batchopt.errors import EvidenceError
from batchopt.tradeoff import TradeoffFit, fit_tradeoff
from truth.curves import FOLDER, Run, unpack
from truth.problems import PROBLEMS, Problem
from truth.training import GIVEN_UP

Floats = NDArray[np.float64]
RESAMPLES = 200
CERTAIN = 1.5
"""A critical batch size whose interval reaches further than this factor from its value is not counted as known."""


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """The trade-off to one loss.

    Attributes:
        loss: the loss.
        batch_sizes: that reached it, (k,).
        examples: fewest over learning rates, geometric mean over seeds, (k,).
        learning_rates: that took the fewest, (k,).
        fit: the hyperbola through them.
        critical_batch_size: 90 % bootstrap interval (low, high).
        steps_min: likewise.
        examples_min: likewise.
    """

    loss: float
    batch_sizes: tuple[int, ...]
    examples: tuple[float, ...]
    learning_rates: tuple[float, ...]
    fit: TradeoffFit
    critical_batch_size: tuple[float, float]
    steps_min: tuple[float, float]
    examples_min: tuple[float, float]

    @property
    def is_certain(self) -> bool:
        """Whether the critical batch size is known well enough to be compared with."""
        value = self.fit.law.critical_batch_size
        low, high = self.critical_batch_size
        return value / low <= CERTAIN and high / value <= CERTAIN


class Sweep:
    """The runs of one problem at constant learning rates.

    Args:
        name: of the problem.
        runs: those packed in the repository if None.
    """

    def __init__(self, name: str, runs: Sequence[Run] | None = None) -> None:
        self.name = name
        self.problem: Problem = PROBLEMS[name]
        self.runs = unpack(FOLDER / f"{name}.npz") if runs is None else list(runs)
        self._examples_to: dict[float, dict[tuple[int, float], Floats]] = {}

    @cached_property
    def configs(self) -> dict[tuple[int, float], list[Run]]:
        """Runs by batch size and learning rate, of those that every seed has run."""
        grouped: dict[tuple[int, float], list[Run]] = {}
        for run in self.runs:
            grouped.setdefault((run.batch_size, run.learning_rate), []).append(run)
        return {key: group for key, group in sorted(grouped.items()) if len(group) >= len(self.problem.seeds)}

    def examples_to(self, loss: float) -> dict[tuple[int, float], Floats]:
        """Examples to a loss by configuration, (seeds,); inf where a seed does not reach it."""
        if loss not in self._examples_to:
            self._examples_to[loss] = {
                key: np.array([run.examples_to(loss) for run in group]) for key, group in self.configs.items()
            }
        return self._examples_to[loss]

    @cached_property
    def fewest_examples(self) -> float:
        """The fewest examples with which any configuration reaches the last loss."""
        means = [log_mean(values) for values in self.examples_to(self.problem.losses[-1]).values()]
        return math.exp(min(means))

    def tradeoff(self, loss: float, *, seed: int = 0) -> Tradeoff:
        """The trade-off to a loss, with a bootstrap over its points.

        Each resample draws every configuration's mean anew with the spread that seeds have in common, takes the best
        learning rate of each batch size again, and draws batch sizes with replacement.
        """
        found = self.examples_to(loss)
        spread = seed_spread(list(found.values())) / math.sqrt(len(self.problem.seeds))
        means = {key: log_mean(values) for key, values in found.items()}
        return tradeoff_through(loss, means, dict.fromkeys(means, spread), seed=seed)

    def steps(self, batch_size: float, learning_rate: float, loss: float) -> float:
        """Steps of any configuration to a loss, interpolated over the grid in logarithms; infinite beyond it.

        Between two batch sizes a learning rate corresponds to the same multiple of each one's best. A run that was
        stopped because it was far behind counts as just so far behind. Towards a rate that diverges the speed falls to
        zero, in proportion to the distance in log rate.
        """
        means = {key: log_mean(values) for key, values in self.examples_to(loss).items()}
        sizes, fewest, rates = best_of_sizes(means)
        best = dict(zip(map(int, sizes), map(float, rates), strict=True))
        behind = {
            int(size): log_examples + math.log(GIVEN_UP) for size, log_examples in zip(sizes, fewest, strict=True)
        }
        table = {
            (size, rate): (behind[size] if math.isinf(mean) and self._was_stopped(size, rate) else mean)
            - math.log(size)
            for (size, rate), mean in means.items()
            if size in best
        }
        if not best or not min(best) <= batch_size <= max(best):
            return math.inf
        above = min(size for size in best if size >= batch_size)
        below = max(size for size in best if size <= batch_size)
        part = 0.0 if above == below else math.log(batch_size / below) / math.log(above / below)
        multiple = learning_rate / (best[below] ** (1.0 - part) * best[above] ** part)
        ends = [over_rates(table, size, multiple * best[size]) for size in (below, above)]
        value = (1.0 - part) * ends[0] + part * ends[1] if math.isfinite(sum(ends)) else math.inf
        return math.exp(value) if math.isfinite(value) else math.inf

    def _was_stopped(self, size: int, rate: float) -> bool:
        return all(run.outcome != "diverged" for run in self.configs[size, rate])


def tradeoff_through(
    loss: float, means: dict[tuple[int, float], float], errors: dict[tuple[int, float], float], *, seed: int = 0
) -> Tradeoff:
    """The trade-off through the best rate of each batch size, with a bootstrap.

    Args:
        loss: that is reached.
        means: log examples by batch size and learning rate; infinite where the loss is not reached.
        errors: their standard errors.
        seed: of the bootstrap.

    Raises:
        EvidenceError: fewer than three batch sizes reach the loss.
    """
    sizes, logs, rates = best_of_sizes(means)
    fit = fit_tradeoff(sizes, np.exp(logs) / sizes)
    rng = np.random.default_rng(seed)
    laws = []
    while len(laws) < RESAMPLES:
        drawn = {key: mean + errors[key] * rng.standard_normal() for key, mean in means.items()}
        at, log_examples, _ = best_of_sizes(drawn)
        chosen = rng.integers(len(at), size=len(at))
        try:
            laws.append(fit_tradeoff(at[chosen], np.exp(log_examples[chosen]) / at[chosen]).law)
        except EvidenceError:
            continue  # fewer than three different batch sizes
    return Tradeoff(
        loss,
        tuple(map(int, sizes)),
        tuple(map(float, np.exp(logs))),
        tuple(map(float, rates)),
        fit,
        critical_batch_size=_interval([law.critical_batch_size for law in laws]),
        steps_min=_interval([law.steps_min for law in laws]),
        examples_min=_interval([law.examples_min for law in laws]),
    )


@cache
def sweep_of(name: str) -> Sweep:
    """The sweep of a problem, as it is packed in the repository."""
    return Sweep(name)


@cache
def tradeoffs_of(name: str) -> list[Tradeoff]:
    """The trade-off of a problem to each of its losses."""
    return [sweep_of(name).tradeoff(loss) for loss in PROBLEMS[name].losses]


def over_rates(table: dict[tuple[int, float], float], size: int, rate: float) -> float:
    """A logarithm of steps or examples at one batch size, interpolated over its rates; infinite beyond them."""
    rates = sorted(r for s, r in table if s == size)
    if not rates[0] * 0.999 <= rate <= rates[-1] * 1.001:
        return math.inf
    values = [table[size, r] for r in rates]
    k = min(int(np.searchsorted(rates, rate)), len(rates) - 1)
    low = max(k - 1, 0) if rates[k] > rate * 1.001 else k
    if low == k:
        return values[k]
    part = math.log(rate / rates[low]) / math.log(rates[k] / rates[low])
    if math.isfinite(values[low]) and math.isinf(values[k]):
        return values[low] - math.log1p(-part)
    return (1.0 - part) * values[low] + part * values[k] if math.isfinite(values[low]) else math.inf


def log_mean(values: Floats) -> float:
    """Of examples, over seeds; infinite where one does not get there."""
    return float(np.mean(np.log(np.maximum(values, 1.0)))) if np.all(np.isfinite(values)) else math.inf


def seed_spread(groups: Sequence[Floats]) -> float:
    """Standard deviation of log examples over seeds, pooled over configurations."""
    logs = [np.log(np.maximum(values, 1.0)) for values in groups if len(values) > 1 and np.all(np.isfinite(values))]
    return math.sqrt(float(np.mean([np.var(values, ddof=1) for values in logs]))) if logs else 0.0


def best_of_sizes(means: dict[tuple[int, float], float]) -> tuple[Floats, Floats, Floats]:
    """Batch sizes that reach the loss, log examples of their best learning rate, and that rate."""
    best: dict[int, tuple[float, float]] = {}
    for (size, rate), mean in means.items():
        if math.isfinite(mean):
            best[size] = min(best.get(size, (math.inf, 0.0)), (mean, rate))
    sizes = sorted(best)
    return np.array(sizes, float), *(np.array([best[size][i] for size in sizes]) for i in (0, 1))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.05, 0.95))
    return float(low), float(high)
