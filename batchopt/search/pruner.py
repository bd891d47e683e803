"""An Optuna pruner that extrapolates a running trial on the shared law."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search.judgement import DECISION_KEY, Decision, decide
from batchopt.search.observations import Observation, observe_one
from batchopt.search.outlook import outlook
from batchopt.search.parameters import Log2
from batchopt.search.settings import Given, find, remember
from batchopt.search.surrogate import Surrogate, build_surrogate

if TYPE_CHECKING:
    from optuna import Study

    from batchopt.search.settings import Known

LEAST_REPORTS = 3
EARLIEST = 0.25
"""No trial ends before this share of the cost that it, or the incumbent, takes: near-ties show no earlier."""
TOLERANCE = 0.6
"""Share of the incumbent's cost by which a trial may exceed it when it begins; falls with its progress."""
NEAR_TIE = 0.1
"""What the tolerance falls to: the rest of a near tie is cheap, and its value tells more than a stopped run."""


class TradeoffPruner(BasePruner):
    """Prunes a trial that is not going to beat the best one, by the shared law at the trial's own pace.

    Before the first report it decides as `check` does. Later a trial ends when what it spent and what it is predicted
    still to need exceed the incumbent's cost by more than 60 %, an allowance that falls to 10 % over the run; never
    with fewer than three reports, before a quarter of the run, or before any trial has completed. A loss that is not
    finite ends it at once. Reports may be at any number of examples.

    Args:
        forecast: read from the study where it is left out; without one the law is learned from the trials alone.
        goal: read from the study where it is left out (a `TradeoffSampler` writes it there).
        batch_size: name of the parameter, or `Log2` of it; read from the study where it is left out.
        learning_rate: name of the parameter; read from the study where it is left out.
        inner: another pruner that may end a trial as well. Hyperband loses its brackets inside another pruner.
    """

    def __init__(
        self,
        forecast: Forecast | None = None,
        *,
        goal: ReachLoss | LowestLoss | None = None,
        batch_size: str | Log2 | None = None,
        learning_rate: str | None = None,
        inner: BasePruner | None = None,
    ) -> None:
        self._given = Given(forecast, goal, batch_size, learning_rate)
        if inner is not None and not isinstance(inner, BasePruner):
            raise TypeError(f"inner must be an Optuna pruner or None, got {inner!r}")
        self._inner = inner

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should end here.

        Raises:
            EvidenceError: goal or names are found nowhere, or the study contradicts the goal.
        """
        remember(study, self._given)
        known = find(study, self._given)
        decision = (
            decide(study, known, trial.params) if trial.last_step is None else _decide_running(study, known, trial)
        )
        if decision is not None and decision.rejected:
            study._storage.set_trial_user_attr(trial._trial_id, DECISION_KEY, decision.to_json())
            return True
        return bool(self._inner is not None and self._inner.prune(study, trial))


def _decide_running(study: Study, known: Known, trial: FrozenTrial) -> Decision | None:
    run = observe_one(trial, known.settings)
    if run is None:
        return None
    if run.diverged:
        return Decision("pruned while running", "The loss is no longer finite.")
    surrogate = build_surrogate(study, known)
    if not isinstance(surrogate, Surrogate) or len(run.curve.losses) < LEAST_REPORTS:
        return None
    return decide_running(surrogate, run)


def decide_running(surrogate: Surrogate, run: Observation) -> Decision | None:
    """Whether a run with at least three reports goes on to beat the incumbent; None where that is not known."""
    target = surrogate.target()
    if target is None or run.curve.examples_to(target.loss) is not None:
        return None
    ahead = outlook(surrogate.law, run, target.loss)
    if ahead is None:
        return None
    per_step = surrogate.price(run.batch_size)
    spent, total = ahead.steps * per_step, ahead.total_steps * per_step
    progress = spent / total if math.isfinite(total) else 0.0
    limit = target.cost * (1.0 + max(NEAR_TIE, TOLERANCE * (1.0 - progress)))
    if spent < EARLIEST * min(total, target.cost) or total <= limit:
        return None
    needed = f"{total:.3g} {surrogate.price.unit}" if math.isfinite(total) else "no finite cost"
    return Decision(
        "pruned while running",
        f"Extrapolated to take {needed} to loss {target.loss:.4g}, against {target.cost:.3g} of trial {target.trial}.",
        predicted=total,
        optimistic=total,
        limit=limit,
        incumbent=target.trial,
        excess=min(10.0, math.log(total / limit)) if math.isfinite(total) else 10.0,
        spent=spent,
    )
