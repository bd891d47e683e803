"""What to look at in a study, as its trials show, in lines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from batchopt.planning.goal import LowestLoss
from batchopt.search.judgement import CHANCE, HARDLY, PROPOSAL_KEY
from batchopt.search.misreading import AT_ONCE, reached_at_once
from batchopt.search.naming import maybe_exponents, names_differ, trained_without
from batchopt.search.parameters import Axis, batch_size_axis, learning_rate_axis
from batchopt.search.search_space import last_distributions
from batchopt.search.surrogate import Surrogate

if TYPE_CHECKING:
    import optuna

    from batchopt.search.fit import Thin
    from batchopt.search.settings import StudySettings

SEVERAL = 3
"""Trials that ran and did not complete, from which on a goal is doubted."""
EDGE = 0.03
"""Share of a range, in logarithms, within which a value lies at its end."""


def advice(study: optuna.Study, settings: StudySettings, surrogate: Surrogate | Thin) -> list[str]:
    """What to look at: names, exponents, a goal that is too easy, ranges too narrow, and whether to stop."""
    lines = [*_names(study, settings), *_at_once(study, settings)]
    if isinstance(surrogate, Surrogate) and surrogate.incumbent is not None and not surrogate.two_objectives:
        lines += [*_edges(study, settings, surrogate), *_little_left(study)]
    return lines


def none_completed(study: optuna.Study, settings: StudySettings) -> list[str]:
    """How near the trials of a study came that has none completed, and what that says of the goal."""
    goal, decay, metric = settings.goal, settings.decay, settings.metric
    ran = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and t.last_step is not None]
    if isinstance(goal, LowestLoss):
        what = "loss" if metric is None else metric.goal.metric
        end = "the budget" if decay is None or decay.horizon is None else "its horizon"
        told = f"has completed: with this goal a trial that is not pruned returns its {what} at the end of {end}"
        return [f"None of {len(ran)} trials that ran {told}."] if len(ran) >= SEVERAL else []
    losses = [
        (loss, trial.number, trial.state.is_finished())
        for trial in study.get_trials(deepcopy=False)
        for loss in settings.in_losses(trial).intermediate_values.values()
        if 0 < loss < math.inf
    ]
    if not losses:
        return []
    lowest, number, ended = min(losses)
    best, wanted = (loss if metric is None else metric.value_at(loss) for loss in (lowest, goal.loss))
    told = "lowest loss" if metric is None else f"best {metric.goal.metric}"
    line = f"The {told} that was reported is {best:.4g}, by trial {number}; the goal is {wanted:.4g}."
    if lowest > goal.loss and len(ran) >= SEVERAL:
        within = "within what a trial may spend" if decay is None else "over these horizons"
        told = f"has reached the goal: it may be beyond reach in these ranges, or {within}"
        return [line, f"None of {len(ran)} trials that ran {told}."]
    if lowest <= goal.loss and ended:
        what = "its cost there" if decay is None else "the cost of the horizon of a trial that ends there or below"
        return [line, f"It was reached, and yet no trial has completed: the objective must return {what}."]
    return [line]


def _names(study: optuna.Study, settings: StudySettings) -> list[str]:
    trial, ranges = trained_without(study, settings), last_distributions(study, settings)
    doubt = None if ranges is None else maybe_exponents(settings, ranges[0])
    told = doubt if trial is None else names_differ(settings, trial.params)
    return [] if told is None else [f"{told[0].upper()}{told[1:]}"]


def _at_once(study: optuna.Study, settings: StudySettings) -> list[str]:
    goal = settings.goal
    reported = [
        settings.in_losses(trial)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.intermediate_values
    ]
    count = sum(reached_at_once(trial, goal) for trial in reported)
    if not count or isinstance(goal, LowestLoss) or 2 * count < len(reported):
        return []
    return [f"{count} of {len(reported)} completed trials were at the goal's loss at their first report. {AT_ONCE}"]


def _edges(study: optuna.Study, settings: StudySettings, surrogate: Surrogate) -> list[str]:
    best, ranges = surrogate.incumbent, last_distributions(study, settings)
    if best is None or ranges is None:
        return []
    sizes, rates = batch_size_axis(ranges[0], exponent=settings.exponent), learning_rate_axis(ranges[1])
    at_size, at_rate = _end(sizes, best.batch_size), _end(rates, best.learning_rate)
    fits = surrogate.largest_batch_size is None or surrogate.largest_batch_size > sizes.sizes[-1]
    lines = []
    if (at_size == "upper" and fits) or (at_size == "lower" and sizes.sizes[0] > 1):
        lines.append(_edge_line("batch size", f"{best.batch_size}", at_size, sizes))
    from_zero = isinstance(ranges[1], FloatDistribution) and ranges[1].low == 0
    if at_rate == "upper" or (at_rate == "lower" and not from_zero):
        lines.append(_edge_line("learning rate", f"{best.learning_rate:.3g}", at_rate, rates))
    return lines


def _end(axis: Axis, value: float) -> str | None:
    """Which end of its range a value lies at; None for neither, for a range of one value, and for one beyond it."""
    low, high = axis.sizes[0], axis.sizes[-1]
    if not low < high or not low <= value <= high:
        return None
    at = math.log(value / low) / math.log(high / low)
    return "upper" if at >= 1 - EDGE else "lower" if at <= EDGE else None


def _edge_line(what: str, value: str, end: str, axis: Axis) -> str:
    low, high = axis.sizes[0], axis.sizes[-1]
    return f"The best {what}, {value}, is at the {end} end of its range {low:.6g} to {high:.6g}: widen it."


def _little_left(study: optuna.Study) -> list[str]:
    proposed = [str(trial.user_attrs.get(PROPOSAL_KEY, "")) for trial in study.get_trials(deepcopy=False)]
    weighed = [reason for reason in proposed if CHANCE in reason]
    if not weighed or f"{HARDLY} {CHANCE}" not in weighed[-1]:
        return []
    return [
        f"The latest proposal had {HARDLY} {CHANCE}: further trials are predicted to gain next to nothing, and you can "
        "stop."
    ]
