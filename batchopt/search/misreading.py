"""Whether trials report at examples seen, their values are what the goal says, and the goal is not where they begin."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from batchopt.planning.goal import LossGoal, LowestLoss, ReachLoss
from batchopt.search.observations import LEAST_COUNTED, counts_steps, diverged, end_of, returns_loss

if TYPE_CHECKING:
    from batchopt.search.decay import Decay
    from batchopt.search.settings import StudySettings

RISES = 1.5
"""A share that ends at so many times its first report has risen: one that overfits seldom goes so far."""
SCATTER = 2.0
"""A metric that ends worse by more than so many times what its reports gain in between has gone the wrong way. Of three
reports that only scatter (independent, normal) 27 % do, and a study takes more than two thirds of its trials."""
OTHER_EXAMPLES = 10.0
"""A value and a last report that are further apart are not of the same run."""
AT_ONCE = (
    "The goal is reached at once, or between reports, and costs say little of batch size and learning rate: take a "
    "lower loss, or report from the beginning on and more often."
)
"""What a goal is that trials have reached at their first report, and the remedy."""


def reached_at_once(trial: FrozenTrial, goal: LossGoal) -> bool:
    """Whether a completed trial was at the goal's loss at its first report."""
    reports = trial.intermediate_values
    if isinstance(goal, LowestLoss) or trial.state != TrialState.COMPLETE or not reports:
        return False
    return 0 < reports[min(reports)] <= goal.loss


def rises(trial: FrozenTrial, *, is_metric: bool) -> bool | None:
    """Whether what a trial reported rose while it trained, a share as errors are; None where its reports do not tell.

    Args:
        trial: as one of losses.
        is_metric: whether it reported a metric, which must be worse at the end by more than its reports get better in
            between: by more than they scatter, and not after it has improved.
    """
    reports = trial.intermediate_values
    if len(reports) < LEAST_COUNTED:
        return None
    if is_metric:
        losses = [reports[step] for step in sorted(reports)]
        if diverged(trial):
            return None
        return losses[-1] - losses[0] > SCATTER * sum(max(0.0, a - b) for a, b in pairwise(losses))
    if not all(0 <= share <= 1 for share in reports.values()):
        return False
    return reports[max(reports)] > RISES * reports[min(reports)]


def misread(trial: FrozenTrial, batch_size: int, goal: LossGoal, decay: Decay | None = None) -> str | None:
    """What does not fit in a completed trial, in words; None where all does, or nothing tells.

    Where steps are priced by seconds, or by what the trials show, or trials have horizons of their own beside a budget,
    only a last report within the first batch tells.
    """
    if trial.state != TrialState.COMPLETE or not trial.last_step or diverged(trial):
        return None
    if returns_loss(trial, goal):
        return f"its value {trial.values[0]:.4g} is a loss that it reported, not a cost"
    if (counts := counts_steps(trial, batch_size)) is not None:
        return f"its reports cannot be at examples: {counts}"
    if trial.last_step < batch_size:
        return f"its last report is at {trial.last_step:,} examples, within its first batch of {batch_size:,}"
    if isinstance(goal, LowestLoss) and decay is not None and decay.horizon is not None:
        return None
    unit = goal.least if isinstance(goal, ReachLoss) else goal.of
    if unit in ("seconds", "balanced") or isinstance(unit, tuple) or not all(0 < v < math.inf for v in trial.values):
        return None
    end = end_of(trial.values, batch_size, goal, goal.price())
    if end is None or 1.0 / OTHER_EXAMPLES < end[0] / trial.last_step < OTHER_EXAMPLES:
        return None
    reported = f"the last report is at {trial.last_step:,}"
    return f"its value {trial.values[0]:.4g} stands for {end[0]:.3g} examples, {reported}"


def the_other_way(settings: StudySettings) -> str:
    """What a study should be whose trials report what rises where it should fall, or falls where it should rise."""
    if settings.metric is None:
        return (
            "what it reports rose as it trained, as no loss does. If it is a metric that rises, the goal of the study "
            'is batchopt.BestMetric("accuracy", within=...) and its direction "maximize".'
        )
    name = settings.metric.goal.metric
    if settings.metric.values:
        return (
            f"its {name} got worse as it trained, where the forecast has it get better. Where the model overfits, take "
            "a smaller budget; where it does not, search lower learning rates, and look whether trials evaluate on "
            "the data that the probe did."
        )
    rose, verb, other = (
        ("fell", "maximises", "minimize") if settings.metric.rises else ("rose", "minimises", "maximize")
    )
    return (
        f"its {name} {rose} as it trained, and the study {verb} it. If that is the wrong way round, make another study "
        f'by optuna.create_study(direction="{other}"). If it is not, the model overfits, or the learning rates are too '
        "high."
    )
