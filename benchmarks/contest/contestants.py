"""Who takes part: batchopt, and what Optuna has to offer, each with the form of the objective that suits it best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna import pruners, samplers
from truth.design import PRICE

import batchopt
from batchopt import Forecast, ReachLoss
from contest.replay import BATCH_SIZE, LEARNING_RATE, UNITS, Arena, Trace

FIRST_OF_RIVALS = 0.25


class Plain:
    """The form for Optuna's own: the logarithm of the cost, a penalty where the loss is not reached.

    The penalty begins at the largest cost and grows with how far the loss is away. Reports are log losses at steps that
    are costs, the same for all trials, from a quarter of the best configuration's cost on: of quarters, eighths,
    sixteenths and 32nds that served Optuna's pruners best, which cannot tell how early a loss is.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def report(self, trial: optuna.Trial, trace: Trace, index: int) -> None:
        """The log loss at a cost; a diverged one far above."""
        report = trace.reports[index]
        if report.cost < 0.999 * FIRST_OF_RIVALS * self._arena.best:
            return
        loss = math.log(report.loss) if math.isfinite(report.loss) else 10.0
        trial.report(loss, step=max(1, round(UNITS * report.cost / self._arena.best)))

    def value(self, trace: Trace) -> float:
        """Log cost in units of the best, or the penalty."""
        if trace.reached:
            return math.log(trace.end / self._arena.best)
        return math.log(10.0) + max(0.0, math.log(trace.last_loss / self._arena.loss))

    def refuses(self, trial: optuna.Trial) -> bool:
        """Never."""
        return False


class Ours:
    """The form for batchopt: the cost itself, losses at examples seen, and the check before any compute."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def report(self, trial: optuna.Trial, trace: Trace, index: int) -> None:
        """The loss at the examples seen."""
        report = trace.reports[index]
        trial.report(report.loss, step=report.examples)

    def value(self, trace: Trace) -> float | None:
        """The cost; None where the loss is not reached."""
        return trace.end if trace.reached else None

    def refuses(self, trial: optuna.Trial) -> bool:
        """What the check says."""
        try:
            batchopt.check(trial)
        except optuna.TrialPruned:
            return True
        return False


@dataclass(frozen=True, slots=True)
class Rival:
    """A sampler and a pruner of Optuna's; the sampler by seed."""

    sampler: Callable[[int], samplers.BaseSampler]
    pruner: Callable[[], pruners.BasePruner] = pruners.NopPruner


def _halving() -> pruners.BasePruner:
    # The first rung is at the first report.
    return pruners.SuccessiveHalvingPruner(min_resource=round(FIRST_OF_RIVALS * UNITS), reduction_factor=4)


def _hyperband() -> pruners.BasePruner:
    return pruners.HyperbandPruner(
        min_resource=round(FIRST_OF_RIVALS * UNITS), max_resource=4 * UNITS, reduction_factor=3
    )  # fmt: skip


def _median() -> pruners.BasePruner:
    return pruners.MedianPruner(n_startup_trials=1)


def _gp(seed: int) -> samplers.BaseSampler:
    return samplers.GPSampler(seed=seed)


RIVALS = {
    "Random": Rival(lambda seed: samplers.RandomSampler(seed=seed)),
    "TPE": Rival(lambda seed: samplers.TPESampler(seed=seed)),
    "TPE + Median": Rival(lambda seed: samplers.TPESampler(seed=seed), _median),
    "TPE + Hyperband": Rival(lambda seed: samplers.TPESampler(seed=seed), _hyperband),
    "TPE + SuccessiveHalving": Rival(lambda seed: samplers.TPESampler(seed=seed), _halving),
    "Random + SuccessiveHalving": Rival(lambda seed: samplers.RandomSampler(seed=seed), _halving),
    "GP": Rival(_gp),
    "GP + SuccessiveHalving": Rival(_gp, _halving),
    "CMA-ES": Rival(lambda seed: samplers.CmaEsSampler(seed=seed)),
    "QMC": Rival(lambda seed: samplers.QMCSampler(seed=seed, scramble=True)),
}


def rival_study(name: str, seed: int) -> optuna.Study:
    """A study of one rival's."""
    rival = RIVALS[name]
    return optuna.create_study(
        study_name=f"{name}-{seed}", sampler=rival.sampler(seed), pruner=rival.pruner()
    )  # fmt: skip


def our_study(arena: Arena, seed: int, forecast: Forecast | None = None) -> optuna.Study:
    """A study of ours: every name, and the forecast where there is one, by the sampler."""
    return optuna.create_study(
        sampler=batchopt.TradeoffSampler(
            forecast,
            goal=ReachLoss(arena.loss, least=PRICE),
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            seed=seed,
        ),
        pruner=batchopt.TradeoffPruner(),
    )
