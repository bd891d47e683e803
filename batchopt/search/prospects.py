"""How likely settings are to be worth their cost: what the sampler maximises and the pruner compares.

A setting succeeds if it costs no more than 15 % above the least that any setting costs, and 10 % less than the best
trial did. Under a draw of the posterior that is certain but for what the law does not know about the setting; over the
draws it is a probability, p. What counts is p per cost: the next trial has the largest, and a running trial goes on
while its own p per cost *that is left* is not beaten by starting anew elsewhere.

Notation
    e    log cost of a setting above the least, under a draw; of `LowestLoss`, the loss converted by how steep it falls
    p    P(e <= log 1.15, and e below the incumbent's by 10 %)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from batchopt.planning.goal import ReachLoss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.search.observations import Observation
    from batchopt.search.surrogate import Surrogate

    Floats = NDArray[np.float64]

HORIZON = 3.0 * math.log(2.0)
"""How far beyond what was seen settings are compared, in log examples: further ahead the curve is not known, and all
that is compared would be its guesses."""
NEAR_BEST = math.log(1.15)
IMPROVEMENT = 0.1
OWN_SD = 0.03
"""What the law and the paces of other trials never know about one: standard deviation of its log cost."""
RUNNING_SD = 0.07
"""The same for a trial that runs, whose own pace has been seen."""
AHEAD_SD = 0.12
"""And for every octave of cost beyond the longest run: which setting is ahead changes on the way."""
RUNNING_AHEAD_SD = 0.08
"""The same for a trial that runs, beyond what it has spent."""
TREND_DOUBT = 0.5
"""And this share of how much its pace is yet to change."""
DIVERGES = 0.95
"""Chance that a trial diverges at the very place where another did."""
STALE = 0.5
"""The uncertainty about settings that were not tried grows by this share with every completed trial that is no better
than the incumbent: what was expected of them was wrong."""
LEAST_LEFT = 0.03
"""A trial has at least this share of its cost before it, as far as decisions go."""
FARTHEST = 50.0
"""An infinite cost is this far above the least, in logarithms."""
FIRST_SHARE = 0.25
"""A trial of a new setting that fails is pruned after this share of its cost, more or less."""
TILT, FIRST_SHARE_ENDS = 1.0, (0.08, 0.8)
"""It falls by this power of the learning rate over the best, between these ends."""
RUNNING_SHARE = 0.4
"""The same of what a running trial still has before it."""
APART = 0.5
"""Distance of places within which one trial tells what another would."""


SAME = 0.3
"""Distance of places within which a trial is not repeated."""
TOLD_AT, TOLD_AT_OF_OTHERS = 1.0, 0.25
"""A pruned one counts as tried when it has spent this share of what the setting costs; the latter where trials differ
in more than batch size and learning rate, of which the law knows nothing."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Settings that may be tried.

    Attributes:
        batch_sizes: (k,).
        learning_rates: (k,).
        others: places of the other parameters, (k, n).
        horizons: examples of their learning-rate schedules, (k,); None where the rate does not decay, or the horizon is
            the goal's budget.
    """

    batch_sizes: Floats
    learning_rates: Floats
    others: Floats
    horizons: Floats | None = None

    def chosen(self, indices: NDArray[np.int_]) -> Candidates:
        """Some of them."""
        horizons = None if self.horizons is None else self.horizons[indices]
        return Candidates(self.batch_sizes[indices], self.learning_rates[indices], self.others[indices], horizons)

    def followed_by(self, other: Candidates) -> Candidates:
        """These and then others, of the same study: either both have horizons, or neither."""
        horizons = None
        if self.horizons is not None and other.horizons is not None:
            horizons = np.append(self.horizons, other.horizons)
        return Candidates(
            np.append(self.batch_sizes, other.batch_sizes),
            np.append(self.learning_rates, other.learning_rates),
            np.concatenate([self.others, other.others]),
            horizons,
        )


@dataclass(frozen=True, slots=True)
class Prospects:
    """What the surrogate says of candidates.

    Attributes:
        excess: e of the candidates, (n_rows, k).
        log_costs: what each would cost until it ends, (n_rows, k).
        bar: e below which a setting succeeds, (n_rows,).
        incumbent: e of the best completed trial, (n_rows,); None before there is one.
        sd: standard deviation of what is unknown of each log cost, (k,).
        alive: chance that the loss stays finite, near 0 where a trial diverged, (k,).
        trial_share: share of its cost that a candidate takes to show that it fails, (k,).
    """

    excess: Floats
    log_costs: Floats
    bar: Floats
    incumbent: Floats | None
    sd: Floats
    alive: Floats
    trial_share: Floats

    def success(self, weights: Floats | None = None) -> Floats:
        """p of the candidates, (k,), over the rows by their weights."""
        return chance(self.excess, self.bar, self.sd, weights) * self.alive

    def log_index(self, weights: Floats | None = None) -> Floats:
        """log(p / expected cost) of the candidates, (k,): a trial that fails is pruned on the way."""
        p = self.success(weights)
        expected = p + (1.0 - p) * self.trial_share
        return np.asarray(np.log(p + 1e-300) - np.log(expected) - np.median(self.log_costs, axis=0))


def chance(excess: Floats, bar: Floats, sd: Floats | float, weights: Floats | None = None) -> Floats:
    """P(e <= bar) where e has the given standard deviation, over rows, (k,) for e of shape (n_rows, k)."""
    return np.asarray(np.average(special.ndtr((bar[:, None] - excess) / sd), axis=0, weights=weights))


def prospects_of(surrogate: Surrogate, candidates: Candidates) -> Prospects | None:
    """What the surrogate says of candidates; None where no draw of the law says which of them get there."""
    return _prospects(surrogate, candidates, None)[0]


@dataclass(frozen=True, slots=True)
class Running:
    """What the surrogate says of a running trial, beside starting another.

    Attributes:
        success: p of the trial.
        total: typical cost until its end, or until `HORIZON` where that is nearer.
        whole: typical score at its end; infinite where the law says never.
        spent: cost so far.
        elsewhere: p of the trial elsewhere with the largest p per expected cost.
        elsewhere_cost: what it costs.
        elsewhere_index: its p per expected cost.
        others_spent: cost of all other trials so far.
        pruned_early: number of trials since the last one that completed that were pruned before half of what a trial
            elsewhere costs.
        blind: whether there is neither a forecast nor a completed trial.
        first: whether there is a forecast and no completed trial.
        expected: the least cost by the forecast alone.
        beats_incumbent: chance to be better than the best completed trial; None before there is one.
    """

    success: float
    total: float
    whole: float
    spent: float
    elsewhere: float
    elsewhere_cost: float
    elsewhere_index: float
    others_spent: float
    pruned_early: int
    blind: bool
    first: bool
    expected: float
    beats_incumbent: float | None

    @property
    def index(self) -> float:
        """p per expected cost that is left."""
        return self.success / (self.left * (self.success + (1.0 - self.success) * RUNNING_SHARE))

    @property
    def left(self) -> float:
        """Cost that is still to be paid."""
        return max(self.total - self.spent, LEAST_LEFT * self.total)


def prospects_of_running(surrogate: Surrogate, run: Observation, candidates: Candidates) -> Running | None:
    """What the surrogate, which has fitted the run, says of it; None where it cannot say."""
    prospects, own = _prospects(surrogate, candidates, run)
    if prospects is None or own is None:
        return None
    own_excess, own_costs, excess_so_far = own
    index = prospects.log_index() + np.log(away_from_others(surrogate, candidates, prospects))
    best = int(np.argmax(index))
    elsewhere_cost = math.exp(float(np.median(prospects.log_costs[:, best])))
    others = [o for o in surrogate.observations if o.number != run.number]
    last_completed = max((o.number for o in others if o.values is not None), default=-1)
    pruned = [o for o in others if o.values is None and not o.running and o.number > last_completed]
    spent = spent_by(surrogate, run)
    total = math.exp(float(np.median(own_costs)))
    whole = float(np.median(surrogate.log_scores_of_run(run)))
    trend = TREND_DOUBT * float(np.median(np.abs(surrogate.trends[:, surrogate.fitted.index(run.number)])))
    ahead = RUNNING_AHEAD_SD * octaves_ahead(total, spent)
    sd = math.hypot(RUNNING_SD, ahead, trend)

    def below(bar: Floats) -> float:
        """Chance that e of the run is below, as it is above what the run has cost so far."""
        so_far = float(chance(own_excess[:, None], excess_so_far, sd)[0])
        return max(0.0, float(chance(own_excess[:, None], bar, sd)[0]) - so_far) / max(1.0 - so_far, 1e-6)

    bar = prospects.bar
    if prospects.incumbent is not None:  # the less is left to pay, the less it need gain
        bar = np.minimum(NEAR_BEST, prospects.incumbent - IMPROVEMENT * max(0.0, 1.0 - spent / total))
    return Running(
        success=below(bar),
        blind=prospects.incumbent is None and not surrogate.informed,
        first=prospects.incumbent is None and surrogate.informed,
        expected=surrogate.expected,
        beats_incumbent=None if prospects.incumbent is None else below(prospects.incumbent),
        total=total,
        whole=math.exp(whole) if math.isfinite(whole) else math.inf,
        spent=spent,
        elsewhere=float(prospects.success()[best]),
        elsewhere_cost=elsewhere_cost,
        elsewhere_index=math.exp(float(index[best])),
        others_spent=sum(spent_by(surrogate, o) for o in others),
        pruned_early=sum(spent_by(surrogate, o) < 0.5 * elsewhere_cost for o in pruned),
    )


def octaves_ahead(total: float, spent: float) -> float:
    """Doublings of what was spent until the total, no more than ten."""
    return min(10.0, max(0.0, math.log2(total / spent))) if spent > 0 else 10.0


def trial_share(surrogate: Surrogate, candidates: Candidates, costs: Floats) -> Floats:
    """Share of its cost that each candidate takes to show that it fails, (k,).

    Where a trial has already been, only what comes after its end is news.
    """
    shares = first_share(surrogate, candidates)
    for trial in surrogate.observations:
        if not trial.running:
            near = nearness(surrogate, candidates, trial)
            shares = np.maximum(shares, np.minimum(1.0, shares + near * spent_by(surrogate, trial) / costs))
    return shares


def first_share(surrogate: Surrogate, candidates: Candidates) -> Floats:
    """The same for settings where no trial has been, (k,): a rate that is too high shows early, one too low late."""
    octaves = np.log2(candidates.learning_rates / surrogate.best_rates(candidates.batch_sizes))
    return np.asarray(np.clip(FIRST_SHARE * np.exp2(-TILT * octaves), *FIRST_SHARE_ENDS))


def nearness(surrogate: Surrogate, candidates: Candidates, trial: Observation, *, within: float = APART) -> Floats:
    """How near candidates are to a trial, from 1 at its place to 0, (k,)."""
    settings = surrogate.places.of_settings(candidates.batch_sizes, candidates.learning_rates)
    places = np.concatenate([settings, candidates.others], axis=1)
    apart = places - surrogate.places.of(trial.batch_size, trial.learning_rate, trial.params)
    return np.asarray(np.exp(-0.5 * np.sum(apart**2, axis=1) / within**2))


def away_from_others(surrogate: Surrogate, candidates: Candidates, prospects: Prospects) -> Floats:
    """A factor for every candidate, near zero beside a trial that runs and where one has spent what it costs, (k,)."""
    costs = np.exp(np.median(prospects.log_costs, axis=0))
    told_at = TOLD_AT if surrogate.places.n_dimensions == 2 else TOLD_AT_OF_OTHERS
    factor = np.ones(len(costs))
    for other in surrogate.observations:
        if other.running:
            factor *= 1.0 - 0.999 * nearness(surrogate, candidates, other)
        else:
            known = np.ones_like(costs) if other.values is not None else spent_by(surrogate, other) / (told_at * costs)
            same = nearness(surrogate, candidates, other, within=SAME)
            factor *= 1.0 - 0.999 * same * np.minimum(known, 1.0)
    return factor


def spent_by(surrogate: Surrogate, trial: Observation) -> float:
    """What a trial has cost by its last report."""
    return surrogate.price(trial.batch_size) * max(trial.curve.examples, default=0) / trial.batch_size


def _stale(surrogate: Surrogate) -> int:
    """Completed trials since the incumbent."""
    incumbent = surrogate.incumbent
    if incumbent is None:
        return 0
    return sum(o.values is not None and o.number > incumbent.number for o in surrogate.observations)


def _prospects(
    surrogate: Surrogate, candidates: Candidates, run: Observation | None
) -> tuple[Prospects | None, tuple[Floats, Floats, Floats] | None]:
    """Prospects of candidates; excess, log costs and excess of its cost so far of a running trial, (n_rows,) each."""
    scores, sd = surrogate.paced_scores(candidates, beyond=HORIZON)
    with np.errstate(divide="ignore"):
        log_scores = np.log(scores)
    rows = np.any(np.isfinite(log_scores), axis=1)
    if not np.any(rows):
        return None, None
    best = np.argmin(log_scores, axis=1)
    steepness = surrogate.steepness(candidates, best)[rows]
    log_scores = log_scores[rows]
    least = np.min(log_scores, axis=1)

    def excess(logs: Floats) -> Floats:
        return np.asarray(np.minimum((logs - least[:, None]) / steepness[:, None], FARTHEST))

    def log_costs(logs: Floats, settings: Candidates) -> Floats:
        return np.asarray(np.minimum(surrogate.log_costs_of(logs, settings), least.max() + FARTHEST))

    bar, of_incumbent = np.full(len(least), NEAR_BEST), None
    incumbent = surrogate.incumbent
    if incumbent is not None:
        of_incumbent = (math.log(surrogate.value_of(incumbent)) - least) / steepness
        bar = np.minimum(bar, of_incumbent - IMPROVEMENT)
    longest = max((spent_by(surrogate, o) for o in surrogate.observations), default=0.0)
    ahead = AHEAD_SD * octaves_ahead(_typical_cost(surrogate, candidates, best[rows], least), longest)
    sd = np.sqrt((sd * (1.0 + STALE * _stale(surrogate))) ** 2 + OWN_SD**2 + ahead**2)
    own_costs = log_costs(log_scores, candidates)
    alive = np.ones(len(sd))
    for trial in surrogate.observations:
        if trial.diverged:
            alive *= 1.0 - DIVERGES * nearness(surrogate, candidates, trial)
    shown = trial_share(surrogate, candidates, np.exp(np.median(own_costs, axis=0)))
    prospects = Prospects(excess(log_scores), own_costs, bar, of_incumbent, sd, alive, shown)
    if run is None:
        return prospects, None
    own = surrogate.log_scores_of_run(run, beyond=HORIZON)[rows][:, None]
    so_far = np.full(len(least), -np.inf)
    # Where the rate decays, what a run has cost says nothing of where it ends.
    if isinstance(surrogate.goal, ReachLoss) and not surrogate.decays and spent_by(surrogate, run) > 0:
        so_far = math.log(spent_by(surrogate, run)) - least
    setting = surrogate.one(run.batch_size, run.learning_rate, run.params, horizon=run.horizon)
    return prospects, (excess(own)[:, 0], log_costs(own, setting)[:, 0], so_far)


def _typical_cost(surrogate: Surrogate, candidates: Candidates, best: NDArray[np.int_], least: Floats) -> float:
    """What the best candidates cost, in the middle of the rows."""
    logs = surrogate.log_costs_of(np.broadcast_to(least[:, None], (len(least), len(best))), candidates.chosen(best))
    return math.exp(float(np.median(np.diagonal(logs))))
