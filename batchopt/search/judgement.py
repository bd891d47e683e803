"""Whether a setting is worth any compute, before it gets any."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from scipy import special

from batchopt._codec import Record
from batchopt.errors import EvidenceError
from batchopt.search.build import build_surrogate, memory_limit
from batchopt.search.fit import Thin
from batchopt.search.ledger import seen_in
from batchopt.search.prospects import Candidates, prospects_of
from batchopt.search.surrogate import Surrogate, Target
from batchopt.uncertainty import WIDEST_RESOLVED

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna
    from numpy.typing import NDArray
    from optuna.trial import FrozenTrial, Trial

    from batchopt.search.settings import Known

    Floats = NDArray[np.float64]

DECISION_KEY, ENDED_KEY = "batchopt:decision", "batchopt:ended"
"""User attributes of a trial: what was decided before it began, and why it was ended later. Each is written once."""
PROPOSAL_KEY = "batchopt:proposal"
"""User attribute of a trial: why it was proposed, in a sentence."""
HARDLY = "under 1%"
"""A chance that rounds to none, in words."""
CHANCE = "chance of success"
"""Words after the chance of a setting, by which `advice` finds them."""
FILLS_SPACE = "Far from other trials, whatever the law says: it may be wrong."
MARGIN = 0.15
"""A setting whose optimistic cost exceeds the incumbent's by this share is not run."""
FIRST_FACTOR = 4.0
"""Before any trial has completed: not above this many times the best predicted cost."""
OPTIMISTIC = 0.10
"""The optimistic end of a prediction is this quantile over the posterior's draws."""
WORTH_A_TRY = 0.1
"""A setting is run, however it looks, if its chance to succeed is at least this share of the best one's."""
LEAST_CHANCE = 0.002
"""And at least this."""
LARGEST_EXCESS = 10.0

Kind = Literal["accepted", "pruned before compute", "pruned while running"]


@dataclass(frozen=True, slots=True)
class Decision(Record):
    """What was decided about a trial, kept with it under `batchopt:decision`, or `batchopt:ended` where it ran.

    Attributes:
        decision: what.
        reason: why, in a sentence.
        predicted: cost, or loss where that is the goal; None where nothing was predicted, infinite where the law says
            never.
        optimistic: its optimistic end; None while running, where its own curve stands for it.
        limit: what the optimistic end may not exceed; while running, what a trial at another setting costs.
        incumbent: number of the trial to beat; None before one completed.
        excess: before compute log(optimistic / limit), at most 10: how badly it missed; 0 while running.
        spent: cost that was spent when it was pruned.
        unit: of these costs; "loss" where a loss was predicted.
    """

    SCHEMA: ClassVar[str] = "batchopt.decision/1"

    decision: Kind
    reason: str
    predicted: float | None = None
    optimistic: float | None = None
    limit: float | None = None
    incumbent: int | None = None
    excess: float = 0.0
    spent: float = 0.0
    unit: str = ""

    @property
    def rejected(self) -> bool:
        """Whether the trial ends here."""
        return self.decision != "accepted"


def decide(study: optuna.Study, known: Known, trial: Trial | FrozenTrial) -> Decision:
    """What to do with a trial that has not begun to train.

    Raises:
        EvidenceError: the study contradicts its goal.
    """
    try:
        setting = known.settings.read(trial.params)
    except EvidenceError as error:
        return Decision("accepted", f"Not judged: {error}.")
    if setting is None:
        names = f"{known.settings.batch_size!r} and {known.settings.learning_rate!r}"
        has = ", ".join(map(repr, trial.params)) or "none"
        return Decision(
            "accepted", f"Not judged: the study's parameters are {names}, and the trial has suggested {has}."
        )
    surrogate = build_surrogate(study, known)
    if isinstance(surrogate, Thin):
        largest = memory_limit(known, seen_in(study, known.settings))
        return _beyond_memory(setting[0], largest) or Decision("accepted", f"Not judged: {surrogate.reason}.")
    decay = known.settings.decay
    horizon = None if decay is None else decay.held_by(trial.params, trial.user_attrs)
    decision = judge(surrogate, bar_of(surrogate), *setting, trial.params, horizon=horizon)
    fits = _beyond_memory(setting[0], surrogate.largest_batch_size) is None
    if decision.rejected and fits and _fills_space(study, trial):
        return replace(decision, decision="accepted", reason=f"Accepted: {FILLS_SPACE[0].lower()}{FILLS_SPACE[1:]}")
    return decision


def _fills_space(study: optuna.Study, trial: Trial | FrozenTrial) -> bool:
    stored = study._storage.get_trial(trial._trial_id)  # what the sampler wrote is not yet in the caller's trial
    return stored.user_attrs.get(PROPOSAL_KEY) == FILLS_SPACE


def write_once(study: optuna.Study, trial_id: int, key: str, text: str) -> None:
    """Keep a reason with a trial, unless one is kept there already."""
    if key not in study._storage.get_trial(trial_id).user_attrs:
        study._storage.set_trial_user_attr(trial_id, key, text)


@dataclass(frozen=True, slots=True)
class Bar:
    """What settings are held against.

    Attributes:
        target: what a trial must beat; None where nothing may be ruled out.
        doubt: why nothing may be ruled out.
    """

    target: Target | None
    doubt: str = ""


def bar_of(surrogate: Surrogate) -> Bar:
    """What settings are held against; nothing where the evidence is too weak to rule anything out."""
    if not math.isfinite(surrogate.misfit):
        return Bar(None, "Accepted: the law does not explain the trials that completed.")
    best = surrogate.best_predicted()
    if best is None:
        return Bar(None, "Accepted: the law does not say which settings reach the goal.")
    target = surrogate.target() or surrogate.first_target(best[2])
    incumbent = surrogate.incumbent
    others = {} if incumbent is None else incumbent.params
    costs = surrogate.costs(surrogate.one(best[0], best[1], others), target.loss)[:, 0]
    low, high = np.quantile(costs, [0.05, 0.95], method="nearest")
    if not high <= WIDEST_RESOLVED * low:
        return Bar(None, "Accepted: even the best setting's cost is unresolved, so nothing is ruled out yet.")
    return Bar(target)


def judge(
    surrogate: Surrogate,
    bar: Bar,
    batch_size: int,
    learning_rate: float,
    params: Mapping[str, Any],
    *,
    horizon: float | None = None,
) -> Decision:
    """Compare a setting's optimistic cost with what it must beat.

    The optimistic end allows for the draws' spread, for what trials near the setting leave open, and for the factor by
    which the law missed the completed trials. A horizon that no parameter holds is given.
    """
    beyond = _beyond_memory(batch_size, surrogate.largest_batch_size)
    if beyond is not None:
        return beyond
    if bar.target is None:
        return Decision("accepted", bar.doubt)
    setting = surrogate.one(batch_size, learning_rate, params, horizon=horizon)
    predicted = float(surrogate.costs(setting, bar.target.loss)[0, 0])
    optimistic = float(optimistic_costs(surrogate, setting, bar.target.loss)[0])
    if surrogate.two_objectives:
        return _against_front(surrogate, batch_size, predicted, optimistic)
    decision = _against(bar.target, surrogate, predicted, optimistic)
    if decision.rejected and _is_worth_a_try(surrogate, setting):
        return replace(decision, decision="accepted", reason="Accepted: no other setting has a better chance.")
    return decision


def optimistic_costs(surrogate: Surrogate, candidates: Candidates, loss: float) -> Floats:
    """The optimistic end of the cost to a loss, (k,)."""
    costs = surrogate.costs(candidates, loss)
    unknown = surrogate.misfit - special.ndtri(OPTIMISTIC) * surrogate.paced_scores(candidates)[1]
    return np.asarray(np.quantile(costs, OPTIMISTIC, axis=0, method="lower") / np.exp(unknown))


def acceptable(surrogate: Surrogate, candidates: Candidates, success: Floats) -> NDArray[np.bool_]:
    """Which candidates `judge` accepts, (k,); all where that would leave none.

    Args:
        surrogate: of the study.
        candidates: settings.
        success: their chances, (k,).
    """
    bar = bar_of(surrogate)
    if bar.target is None or surrogate.two_objectives:
        return np.ones(len(success), dtype=bool)
    optimistic = optimistic_costs(surrogate, candidates, bar.target.loss)
    fine = (optimistic <= _limit(bar.target)) | (success >= max(LEAST_CHANCE, WORTH_A_TRY * success.max()))
    return fine if np.any(fine) else optimistic <= np.min(optimistic)


def _limit(target: Target) -> float:
    return target.cost * (FIRST_FACTOR if target.trial is None else 1.0 + MARGIN)


def _is_worth_a_try(surrogate: Surrogate, setting: Candidates) -> bool:
    """Whether a setting that looks beaten succeeds about as likely as any: what the sampler proposes is not refused."""
    prospects = prospects_of(surrogate, surrogate.grid().followed_by(setting))
    if prospects is None:
        return True
    success = prospects.success()
    return bool(success[-1] >= max(LEAST_CHANCE, WORTH_A_TRY * success.max()))


def _beyond_memory(batch_size: int, largest: int | None) -> Decision | None:
    if largest is None or batch_size <= largest:
        return None
    return Decision(
        "pruned before compute",
        f"Batch size {batch_size} does not fit in memory; the largest that is not known to exceed it is {largest}.",
        excess=math.log(batch_size / max(largest, 0.5)),
    )


def _against(target: Target, surrogate: Surrogate, predicted: float, optimistic: float) -> Decision:
    limit, unit = _limit(target), surrogate.price.unit
    rival = "the best predicted setting" if target.trial is None else f"trial {target.trial}"
    rejected = optimistic > limit
    return Decision(
        "pruned before compute" if rejected else "accepted",
        f"{'Predicted' if rejected else 'Accepted: predicted'} to take at best {_number(optimistic)} {unit} to "
        f"{surrogate.in_words(target.loss)}, against {_number(target.cost)} of {rival}.",
        predicted=predicted,
        optimistic=optimistic,
        limit=limit,
        incumbent=target.trial,
        excess=_excess(optimistic, limit),
        unit=unit,
    )


def _against_front(surrogate: Surrogate, batch_size: int, predicted: float, optimistic: float) -> Decision:
    """Pruned where one completed trial is better by the margin in both steps and examples."""
    rivals = []
    for rival in surrogate.observations:
        if rival.values is not None and rival.feasible:
            steps, examples = rival.values
            limit = (1.0 + MARGIN) * max(steps, examples / batch_size)
            rivals.append((_excess(optimistic, limit), rival.number, limit))
    if not rivals:
        return Decision("accepted", "Accepted: no trial has completed that it would have to beat.")
    excess, number, limit = max(rivals)
    rejected = excess > 0
    return Decision(
        "pruned before compute" if rejected else "accepted",
        f"Predicted to take at best {_number(optimistic)} steps: trial {number} needs fewer steps and fewer examples."
        if rejected
        else "Accepted: no completed trial is predicted to be better in both steps and examples.",
        predicted=predicted,
        optimistic=optimistic,
        limit=limit,
        incumbent=number,
        excess=excess,
    )


def _excess(optimistic: float, limit: float) -> float:
    if math.isinf(optimistic):
        return LARGEST_EXCESS
    return float(np.clip(math.log(optimistic / limit), -LARGEST_EXCESS, LARGEST_EXCESS))


def percent(chance: float) -> str:
    """A chance in words: none is zero."""
    return HARDLY if chance < 0.005 else f"{chance:.0%}"


def _number(value: float) -> str:
    return "infinitely many" if math.isinf(value) else f"{value:.3g}"
