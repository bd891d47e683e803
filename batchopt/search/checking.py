"""The check that an objective makes before it spends any compute."""

from __future__ import annotations

import optuna

from batchopt.forecasting.forecast import Forecast
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.goal import Goal
from batchopt.search.judgement import DECISION_KEY, Decision, decide
from batchopt.search.naming import warn_of_missing
from batchopt.search.observations import CONSTRAINT
from batchopt.search.parameters import Log2
from batchopt.search.pruner import TradeoffPruner
from batchopt.search.settings import Given, find, remember


def check(
    trial: optuna.trial.BaseTrial,
    forecast: Forecast | None = None,
    *,
    goal: Goal | None = None,
    batch_size: str | Log2 | None = None,
    learning_rate: str | None = None,
    learning_rate_schedule: Shape | None = None,
    horizon: int | str | None = None,
    warmup_examples: int | None = None,
) -> None:
    """Prune a trial before any compute, where the trade-off says that it cannot win.

    Call it in the objective after batch size and learning rate were suggested. Works with one objective and with two,
    under `optimize` and under ask/tell. What was decided is kept with the trial as the user attribute
    `batchopt:decision`, and as the constraint `batchopt` (how badly it missed; zero or less where it was accepted),
    from which Optuna's samplers learn. A trial that has run out of memory should call
    `trial.set_constraint("batchopt:memory", 1.0)` and then raise TrialPruned; batches as large are not tried again.

    Args:
        trial: a running trial; for a FixedTrial or a FrozenTrial nothing is done.
        forecast: read from the study where it is left out; without one the law is learned from the trials alone.
        goal: read from the study where it is left out.
        batch_size: name of the parameter, or `Log2` of it; read from the study where it is left out.
        learning_rate: name of the parameter; read from the study where it is left out.
        learning_rate_schedule: as for `TradeoffSampler`; read from the study where it is left out.
        horizon: likewise. Where a user attribute holds it, set that before.
        warmup_examples: likewise.

    Raises:
        optuna.TrialPruned: even an optimistic prediction is beaten by what is known.
        EvidenceError: goal or names are found nowhere, or the study contradicts the goal.
    """
    given = Given(forecast, goal, batch_size, learning_rate, learning_rate_schedule, horizon, warmup_examples)
    if not isinstance(trial, optuna.trial.Trial):
        return
    if isinstance(trial.study.pruner, TradeoffPruner):
        trial.study.pruner.remember(trial.study)
    remember(trial.study, given)
    known = find(trial.study, given)
    decision = decide(trial.study, known, trial)
    if not all(name in trial.params for name in known.settings.names):
        warn_of_missing(trial.study, known.settings, trial, decision.reason)
    _keep(trial, decision)
    if decision.rejected:
        raise optuna.TrialPruned(decision.reason)


def _keep(trial: optuna.trial.Trial, decision: Decision) -> None:
    if DECISION_KEY not in trial.user_attrs:
        trial.set_user_attr(DECISION_KEY, decision.to_json())
    # Optuna keeps the first value of a constraint. Before 5.0 there are none.
    if hasattr(trial, "set_constraint") and CONSTRAINT not in trial.constraints:
        trial.set_constraint(CONSTRAINT, decision.excess if decision.rejected else min(0.0, decision.excess))
