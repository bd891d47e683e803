"""Reports of an objective that counts epochs or steps, as reports at examples seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna


def reports_in_examples(
    objective: Callable[[optuna.Trial], Any], examples: Callable[[int, optuna.Trial], float]
) -> Callable[[optuna.Trial], Any]:
    """An objective as it is, whose trials report at examples seen in place of epochs or steps.

    Args:
        objective: that calls `trial.report(loss, step)`.
        examples: (step, trial) -> examples seen when that is reported: `lambda epoch, trial: (epoch + 1) * len(data)`
            where epochs are counted from 0 and reported at their end, `lambda step, trial: step *
            trial.params["batch_size"]` where steps are.

    Example:
        >>> def objective(trial):
        ...     for epoch in range(3):
        ...         trial.report(1.0 / (epoch + 1), epoch)
        ...     return 1.0 / 3
        >>> study = optuna.create_study()
        >>> study.optimize(reports_in_examples(objective, lambda epoch, trial: (epoch + 1) * 500), n_trials=1)
        >>> list(study.trials[0].intermediate_values)
        [500, 1000, 1500]
    """

    def reported(trial: optuna.Trial) -> Any:
        report = trial.report
        trial.report = lambda value, step: report(value, round(examples(step, trial)))  # type: ignore[method-assign]
        return objective(trial)

    return reported
