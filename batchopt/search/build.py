"""The surrogate of a study as it stands: its space, price and law put together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from batchopt.errors import EvidenceError
from batchopt.forecasting.decayed_law import DecayedLaw, Ends
from batchopt.forecasting.decaying import DecayingForecast
from batchopt.forecasting.law import LawPosterior
from batchopt.forecasting.paced_fit import PacedLaw
from batchopt.planning.goal import LossGoal, ReachLoss
from batchopt.search.decay import horizons_in
from batchopt.search.fit import Thin, law_of, least_of, paced_by, unstable_in, usable_law
from batchopt.search.latest_paces import with_latest_paces
from batchopt.search.ledger import Seen, seen_in
from batchopt.search.naming import warn_of_exponents
from batchopt.search.observations import check_objective, reading_of
from batchopt.search.parameters import Axis, Space
from batchopt.search.places import Places
from batchopt.search.price import price_of
from batchopt.search.prospects import Candidates
from batchopt.search.saying import tell_once
from batchopt.search.search_space import last_distributions, middle_of, others_of, space_of
from batchopt.search.settings import Known
from batchopt.search.surrogate import Surrogate
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    import optuna


def build_surrogate(
    study: optuna.Study, known: Known, *, without: int | None = None, asking: int | None = None
) -> Surrogate | Thin:
    """The surrogate from what the study holds now, running trials included.

    Args:
        study: whatever stand-in of it a pruner's bracket shows.
        known: what it is about.
        without: number of a trial to leave out.
        asking: number of a running trial that is fitted, however many others are.

    Raises:
        EvidenceError: the study contradicts the goal (direction, number of objectives).
    """
    settings = known.settings
    ranges = last_distributions(study, settings)
    if ranges is not None:
        check_objective(study, settings)
        warn_of_exponents(study, settings, ranges[0])
        tell_once(f"Study {study.study_name}: {reading_of(settings)}.")
    seen = seen_in(study, settings, without=without, asking=asking)
    law = law_of(known.forecast, _any_ends(known))
    try:
        space = space_of(study, settings, law)
    except EvidenceError as error:
        return Thin(str(error))
    if space is None:
        return Thin("no trial has suggested both parameters yet")
    measured = None if known.forecast is None else known.forecast.step_cost
    price = price_of(settings.goal, measured, law, seen.told, middle_of(space.batch_sizes))
    two = isinstance(settings.goal, ReachLoss) and isinstance(settings.goal.least, tuple)
    if price is None and not two:
        return Thin("no step cost was measured, and no completed trial shows one")
    surrogate = _surrogate(known, seen, space, price)
    if isinstance(surrogate, Thin):
        return surrogate
    surrogate = with_latest_paces(surrogate)
    return replace(surrogate, misfit=_misfit(surrogate))


def _surrogate(known: Known, seen: Seen, space: Space, price: StepCost | None) -> Surrogate | Thin:
    """The surrogate, with every trial at the pace that it showed all along."""
    settings, forecast, observations = known.settings, known.forecast, seen.told
    ends, lengths = None, list[float]()
    if settings.decay is not None:
        held = [o.horizon for o in observations]
        lengths = horizons_in(settings.decay, held, settings.goal, price, space.batch_sizes.sizes)
        if not lengths:
            return Thin("no trial has told its horizon yet")
        ends = settings.decay.ends(lengths)
    places = Places(others_of(seen, settings))
    paced, fitted = paced_by(known, seen.fitted, price, space, places, ends)
    if isinstance(paced, Thin):
        return paced
    if isinstance(settings.goal, ReachLoss) and settings.goal.loss >= paced.law.initial_loss:
        return Thin(f"the goal's loss is not below the initial loss, {paced.law.initial_loss:.4g}")
    paced = replace(paced, law=replace(paced.law, unstable=unstable_in(paced.law, observations)))
    largest = memory_limit(known, seen)
    return Surrogate(
        paced=paced,
        goal=settings.goal,
        price=price or StepCost(1.0, 0.0, unit="steps"),
        space=Space(space.batch_sizes.up_to(largest), space.learning_rates),
        places=places,
        largest_batch_size=largest,
        observations=observations,
        fitted=fitted,
        latest=paced.log_paces,
        trends=np.zeros_like(paced.log_paces),
        informed=usable_law(known, ends) is not None,
        expected=_expected(law_of(forecast, ends), settings.goal, price, space.batch_sizes),
        decay=settings.decay,
        metric=settings.metric,
        usual_horizon=math.exp(float(np.mean(np.log(lengths)))) if lengths else math.inf,
    )


def _any_ends(known: Known) -> Ends | None:
    """Ends about those of a forecast's runs: where to look before there are ranges, and what steps cost."""
    decay, forecast = known.settings.decay, known.forecast
    return None if decay is None or not isinstance(forecast, DecayingForecast) else decay.ends([forecast.law.longest])


def _expected(law: LawPosterior | DecayedLaw | None, goal: LossGoal, price: StepCost | None, sizes: Axis) -> float:
    if law is None or price is None or not isinstance(goal, ReachLoss):
        return math.inf
    steps_min, examples_min = least_of(law, goal.loss)
    return min((steps_min + examples_min / size) * price(size) for size in sizes.sizes)


def memory_limit(known: Known, seen: Seen) -> int | None:
    """The largest batch size that is not known to exceed memory; None where nothing is known."""
    goal, forecast = known.settings.goal, known.forecast
    costs = [
        forecast.step_cost if forecast is not None else None,
        goal.least if isinstance(goal, ReachLoss) else goal.of,
    ]
    limits = [cost.largest_batch_size for cost in costs if isinstance(cost, StepCost)]
    return min((limit for limit in (seen.largest_batch_size, *limits) if limit is not None), default=None)


def _misfit(surrogate: Surrogate) -> float:
    """How far completed trials lie from the law without their own paces, as a factor's logarithm."""
    done = [o for o in surrogate.observations if o.values is not None]
    if not done:
        return 0.0
    sizes = np.array([float(o.batch_size) for o in done])
    rates = np.array([o.learning_rate for o in done])
    others = np.array([surrogate.places.of_others(o.params) for o in done])
    alone = replace(
        surrogate,
        paced=PacedLaw.without_runs(surrogate.law.row(0), surrogate.places.n_dimensions, surrogate.paced.spread),
    )
    held = surrogate.horizons_of([o.params for o in done])
    own = [o.horizon for o in done]
    horizons = None if held is None else np.array([h if o is None else o for h, o in zip(held, own, strict=True)])
    predicted = alone.paced_scores(Candidates(sizes, rates, others, horizons))[0][0]
    observed = np.array([surrogate.value_of(o) for o in done])
    both = np.isfinite(predicted)
    if 2 * np.count_nonzero(both) < len(done):
        return math.inf  # The law denies what most completed trials did.
    return float(np.sqrt(np.mean(np.log(observed[both] / predicted[both]) ** 2)))
