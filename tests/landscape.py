"""A training problem with a known law, as an Optuna study would meet it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import optuna
from forecasting.known_law import forecast_with
from forecasting.synthetic import true_law

from batchopt.evidence import LossCurve
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.law import LawPosterior
from batchopt.planning.goal import ReachLoss
from batchopt.search import check, milestones
from batchopt.search.observations import Observation
from batchopt.search.settings import StudySettings
from batchopt.step_cost import StepCost

LAW = true_law()
PRICE = StepCost(64.0, 1.0, unit="example times")
LOSS = 0.9
GOAL = ReachLoss(LOSS, least=PRICE)
NAMES = {"batch_size": "batch_size", "learning_rate": "lr"}
SETTINGS = StudySettings(GOAL, "batch_size", False, "lr")
SIZES = 2.0 ** np.arange(3, 12)


def steps_needed(batch_size: float, learning_rate: float, law: LawPosterior = LAW, loss: float = LOSS) -> float:
    return float(law.steps_to([float(batch_size)], [learning_rate], loss)[0, 0])


def least_cost(law: LawPosterior = LAW, price: StepCost = PRICE) -> float:
    """The cost of the best setting there is."""
    steps = law.best_steps(SIZES, LOSS)[0][0]
    return float(min(steps * [price(size) for size in SIZES]))


BEST = least_cost()


def forecast_of(law: LawPosterior, *, spread: float = 0.1, step_cost: StepCost | None = PRICE) -> Forecast:
    """A forecast whose draws scatter around a law."""
    rng = np.random.default_rng(7)
    rows = np.array(law.best) + spread * rng.standard_normal((32, len(law.best))) * (np.arange(len(law.best)) < 7)
    wide = replace(law, draws=tuple(tuple(map(float, row)) for row in rows), batch_sizes=(32, 256))
    return forecast_with(wide, step_cost=step_cost)


def losses_of(
    batch_size: int, learning_rate: float, examples: list[int], seed: int, law: LawPosterior = LAW
) -> list[float]:
    """Losses with 2 % noise."""
    rng = np.random.default_rng(seed)
    exact = law.losses_at([float(batch_size)] * len(examples), [learning_rate] * len(examples), examples)[0]
    return [float(loss * math.exp(0.02 * rng.standard_normal())) for loss in exact]


def observation(
    number: int,
    batch_size: int,
    learning_rate: float,
    *,
    examples: list[int] | None = None,
    values: tuple[float, ...] | None = None,
    law: LawPosterior = LAW,
    diverged: bool = False,
    feasible: bool = True,
) -> Observation:
    points = [n for n in examples or [] if n >= batch_size]
    losses = losses_of(batch_size, learning_rate, points, number, law) if points else []
    curve = LossCurve(tuple(points), tuple(losses))
    return Observation(number, batch_size, learning_rate, curve, values, feasible, diverged)


class Objective:
    """Trains on the landscape: reports at milestones, returns the cost at the crossing.

    Each report is a fit of the law: `every=4` leaves four a trial, where what is tested does not depend on the number.

    Attributes:
        spent: cost of all trials so far.
    """

    def __init__(
        self, *, law: LawPosterior = LAW, cap: float = 30.0, use_check: bool = True, report: bool = True, every: int = 1
    ) -> None:
        self.law, self.cap, self.use_check, self.report, self.every = law, cap, use_check, report, every
        self.spent = 0.0

    def __call__(self, trial: optuna.Trial) -> float:
        size = trial.suggest_int("batch_size", 8, 2048, log=True)
        rate = trial.suggest_float("lr", 1e-4, 10.0, log=True)
        if self.use_check:
            check(trial)
        needed = steps_needed(size, rate, self.law)
        steps = min(needed, self.cap * BEST / PRICE(size))
        points = [n for n in milestones(math.ceil(steps * size)) if size <= n < steps * size] if self.report else []
        points = points[self.every - 1 :: self.every]
        for n, loss in zip(points, losses_of(size, rate, points, trial.number, self.law), strict=True):
            trial.report(loss, n)
            if trial.should_prune():
                self.spent += n / size * PRICE(size)
                raise optuna.TrialPruned
        self.spent += steps * PRICE(size)
        if steps < needed:
            raise optuna.TrialPruned
        return needed * PRICE(size)


def completed_values(study: optuna.Study) -> list[float]:
    """Values of completed trials (a pruned trial's value is its last report)."""
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    return [trial.value for trial in complete if trial.value is not None]


def quiet(run: Callable[[], object]) -> None:
    """Run without Optuna's line for every trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run()
