"""An Optuna pruner that extrapolates a running trial on the shared law."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from optuna.pruners import BasePruner, HyperbandPruner, WilcoxonPruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from batchopt._wording import number
from batchopt.forecasting.forecast import Forecast
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.goal import Goal, LossGoal, LowestLoss, ReachLoss
from batchopt.search.build import build_surrogate
from batchopt.search.candidates import candidates_of
from batchopt.search.judgement import CHANCE, DECISION_KEY, ENDED_KEY, Decision, decide, percent, write_once
from batchopt.search.naming import warn_of_names
from batchopt.search.observations import Observation, observe_one
from batchopt.search.parameters import Log2
from batchopt.search.prospects import Running, prospects_of_running, spent_by
from batchopt.search.sampler import TradeoffSampler, unwrapped
from batchopt.search.saying import warn_once
from batchopt.search.settings import Given, find, remember
from batchopt.search.surrogate import Surrogate

if TYPE_CHECKING:
    from optuna import Study

    from batchopt.search.settings import Known

_REFUSED = {
    HyperbandPruner: "which finds its brackets only as the study's own pruner: give it to the study, without this one",
    WilcoxonPruner: "which compares problem instances at equal steps, not losses along a run",
}
LEAST_REPORTS = 3
LEAST_STEPS = 16
"""No trial ends before so many steps and reports, unless it has cost what the best one did: until then every setting
looks like any other."""
LEAST_SHARE, LEAST_SHARE_OF_OTHERS = 0.2, 0.25
"""Nor before it has spent this share of what the best trial elsewhere costs; the latter where another sampler proposes,
which does not come back to a setting that was given up too early."""
HYSTERESIS = 0.7
"""A trial goes on while its chance per cost that is left is at least this share of the best one elsewhere."""
OF_THE_FIRST = 0.2
"""Times that, for the first trials after a forecast: one that completes is worth more than a slightly better one."""
MANY = 8
"""That share is halved when so many trials were pruned early since one completed."""
MOST_BLIND, NEAR_END = 1.5, 0.3
"""With no forecast and before any trial has completed, none spends more than this many times what all others did,
unless what is left is no more than this share of what it has spent."""
MOST_EXPECTED = 2.0
"""After a forecast and before any trial has completed, none spends more than what all others did and this many times
what the forecast expects of the best: a wrong learning rate stalls for ever, and what a curve costs is less often
wrong."""
AT_ITS_END = 0.99
"""A trial goes on from this share of its schedule or of the goal's budget on: nothing is left to be saved."""
LOST = 0.05
"""Where another sampler proposes, a trial ends that has no more than this chance to beat the incumbent."""


class TradeoffPruner(BasePruner):
    """Prunes a trial that is not worth what it still costs, by the shared law at the trial's own pace.

    Before the first report it decides as `check` does. Later a trial ends when its chance to be among the best, for the
    cost that is left, falls below what a new trial at another setting promises; the more trials have ended so without
    any better coming of it, the less that counts. So short runs come first, before any trial has completed, and no
    trial spends more than what would be a gain on the best that has. Where another sampler than `TradeoffSampler`
    proposes, a trial ends when it has next to no chance to beat the best completed one. A loss that is not finite ends
    it at once. Reports may be at any number of examples; no trial ends within its first three reports or 16 steps. Why
    one ended is its user attribute `batchopt:ended`. A trial whose learning rate decays is judged by the loss that is
    predicted at the end of its decay, not by what it has: the study must be told the schedule, here or by the sampler.

    Args:
        forecast: read from the study where it is left out; without one the law is learned from the trials alone.
        goal: read from the study where it is left out (a `TradeoffSampler` writes it there).
        batch_size: name of the parameter, or `Log2` of it; read from the study where it is left out.
        learning_rate: name of the parameter; read from the study where it is left out.
        learning_rate_schedule: read from the study where it is left out, as a `TradeoffSampler` writes it there.
        horizon: likewise.
        warmup_examples: likewise.
        inner: another pruner that may end a trial as well: Median, Percentile, Threshold, SuccessiveHalving, Patient.

    Raises:
        ValueError: as for `TradeoffSampler`; `inner` is a Hyperband pruner, which would lose its brackets in here, or a
            Wilcoxon pruner, which compares values and not losses.
        EvidenceError: the goal is given as `ReachMetric`, and no forecast is.
    """

    def __init__(
        self,
        forecast: Forecast | None = None,
        *,
        goal: Goal | None = None,
        batch_size: str | Log2 | None = None,
        learning_rate: str | None = None,
        learning_rate_schedule: Shape | None = None,
        horizon: int | str | None = None,
        warmup_examples: int | None = None,
        inner: BasePruner | None = None,
    ) -> None:
        self._given = Given(forecast, goal, batch_size, learning_rate, learning_rate_schedule, horizon, warmup_examples)
        self._given.check()
        if inner is not None and not isinstance(inner, BasePruner):
            raise TypeError(f"inner must be an Optuna pruner or None, got {inner!r}")
        for refused, reason in _REFUSED.items():
            if isinstance(inner, refused):
                raise ValueError(f"inner must not be a {refused.__name__}, {reason}")
        self._inner = inner

    def remember(self, study: Study) -> None:
        """Write what was given to the study, where it does not hold it yet."""
        remember(study, self._given)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should end here.

        Raises:
            EvidenceError: goal or names are found nowhere, or the study contradicts the goal.
        """
        self.remember(study)
        known = find(study, self._given)
        if trial.last_step is not None and not all(name in trial.params for name in known.settings.names):
            warn_of_names(study, known.settings, trial.params)
        decision = decide(study, known, trial) if trial.last_step is None else _decide_running(study, known, trial)
        if decision is not None and decision.rejected:
            key = DECISION_KEY if trial.last_step is None else ENDED_KEY
            write_once(study, trial._trial_id, key, decision.to_json())
            return True
        return bool(self._inner is not None and self._inner.prune(study, trial))


def _decide_running(study: Study, known: Known, trial: FrozenTrial) -> Decision | None:
    run = observe_one(known.settings.in_losses(trial), known.settings, study.study_name)
    if run is None:
        return None
    metric = known.settings.metric
    name = "loss" if metric is None else metric.goal.metric
    if run.diverged:
        return Decision("pruned while running", f"The {name} is no longer finite.")
    if not run.curve.examples:  # a loss of zero, of which the law can say nothing
        return None
    latest = next(reversed(trial.intermediate_values))
    if latest < run.curve.examples[-1]:
        warn_once(
            f"Study {study.study_name}: trial {trial.number} reported the {name} at {latest} examples after that "
            f"at {run.curve.examples[-1]}: report at the examples seen since the beginning, which only grow. Reports "
            "are read in the order of examples.",
            about=f"{study.study_name} {study._study_id} backward",
        )
    surrogate = build_surrogate(study, known, asking=trial.number)
    if not isinstance(surrogate, Surrogate):
        return None
    return decide_running(surrogate, run, chosen_by_us=_chosen_by_us(study.sampler))


def _chosen_by_us(sampler: BaseSampler) -> bool:
    return isinstance(unwrapped(sampler)[0], TradeoffSampler)


def decide_running(surrogate: Surrogate, run: Observation, *, chosen_by_us: bool) -> Decision | None:
    """Whether a run that the surrogate has fitted goes on; None where that is not known.

    Args:
        surrogate: after the run's reports.
        run: with reports.
        chosen_by_us: whether the next trial will be where the surrogate has it.
    """
    goal = surrogate.goal
    if _has_arrived(run, goal) or _is_over(surrogate, run):
        return None
    if _costs_more_than_the_incumbent(surrogate, run):
        return _ended_by_the_incumbent(surrogate, run)
    young = len(run.curve.losses) < LEAST_REPORTS or run.curve.examples[-1] < LEAST_STEPS * run.batch_size
    if young or run.number not in surrogate.fitted:
        return None
    elsewhere, _, _ = candidates_of(surrogate, {}, np.random.default_rng(run.number))
    seen = prospects_of_running(surrogate, run, elsewhere)
    least = LEAST_SHARE if chosen_by_us else LEAST_SHARE_OF_OTHERS
    if seen is None or seen.spent < least * seen.elsewhere_cost:
        return None
    ends = _is_beaten(seen) if chosen_by_us else seen.beats_incumbent is not None and seen.beats_incumbent < LOST
    if not ends:
        return None
    unit = surrogate.price.unit
    needed = f"{number(seen.whole)} {unit} predicted in all" if math.isfinite(seen.whole) else "no end in sight"
    if isinstance(goal, LowestLoss):
        needed = f"{surrogate.in_words(seen.whole)} predicted at the end"
    other = (
        f"Another setting has {percent(seen.elsewhere)}, for {number(seen.elsewhere_cost)} {unit}."
        if chosen_by_us or surrogate.incumbent is None
        else f"It has next to no chance to beat trial {surrogate.incumbent.number}."
    )
    return Decision(
        "pruned while running",
        f"{number(seen.spent)} {unit} spent, {needed}: {percent(seen.success)} {CHANCE}. {other}",
        predicted=seen.whole,
        limit=seen.elsewhere_cost,
        incumbent=None if surrogate.incumbent is None else surrogate.incumbent.number,
        spent=seen.spent,
        unit="loss" if isinstance(goal, LowestLoss) else surrogate.price.unit,
    )


def _costs_more_than_the_incumbent(surrogate: Surrogate, run: Observation) -> bool:
    incumbent = surrogate.incumbent
    if incumbent is None or surrogate.two_objectives or isinstance(surrogate.goal, LowestLoss):
        return False
    return spent_by(surrogate, run) >= surrogate.value_of(incumbent)


def _ended_by_the_incumbent(surrogate: Surrogate, run: Observation) -> Decision:
    incumbent, spent = surrogate.incumbent, spent_by(surrogate, run)
    assert incumbent is not None
    return Decision(
        "pruned while running",
        f"{number(spent)} {surrogate.price.unit} spent, and not at the goal: trial {incumbent.number} took "
        f"{number(surrogate.value_of(incumbent))} to get there.",
        limit=surrogate.value_of(incumbent),
        incumbent=incumbent.number,
        spent=spent,
        unit=surrogate.price.unit,
    )


def _has_arrived(run: Observation, goal: LossGoal) -> bool:
    """Whether a run is at the goal, though it may take the objective another evaluation to be sure of it."""
    return isinstance(goal, ReachLoss) and (
        run.curve.losses[-1] <= goal.loss or run.curve.examples_to(goal.loss) is not None
    )


def _is_over(surrogate: Surrogate, run: Observation) -> bool:
    """Whether a run has used up its schedule or the budget: what it came to counts, and ending it saves nothing."""
    goal = surrogate.goal
    if isinstance(goal, LowestLoss) and spent_by(surrogate, run) >= AT_ITS_END * goal.within:
        return True
    return run.curve.examples[-1] >= AT_ITS_END * surrogate.horizon_of_run(run)


def _is_beaten(seen: Running) -> bool:
    """Whether a new trial elsewhere is the better use of what this one still costs."""
    if seen.first and seen.spent > MOST_EXPECTED * seen.expected + seen.others_spent:
        return True
    near_end = seen.left <= NEAR_END * seen.spent
    if (seen.first or seen.blind) and near_end:
        return False
    if seen.blind and seen.spent > MOST_BLIND * seen.others_spent:
        return True
    # What was pruned for the sake of something better, and nothing better came of it, was hoped for too much.
    hoped = 1.0 + (seen.pruned_early / MANY) ** 2
    return seen.index < HYSTERESIS * (OF_THE_FIRST if seen.first else 1.0) * seen.elsewhere_index / hoped
