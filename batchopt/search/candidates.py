"""The settings that are compared: all pairs of batch size and learning rate, and draws of the other parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from batchopt.search.places import share
from batchopt.search.prospects import Candidates

if TYPE_CHECKING:
    from batchopt.search.surrogate import Surrogate

N_OTHERS = 48
"""Draws of the other parameters: a third anywhere, the others near the best trials."""
N_JOINT = 1500
"""Candidates of everything together."""
NEAR = 0.15
"""Standard deviation of a draw near a trial, as a share of the range; a choice changes with this probability."""
MODELS = 3
"""Best trials that draws are taken near."""

Params = Mapping[str, Any]


def candidates_of(
    surrogate: Surrogate, chosen: Params, rng: np.random.Generator
) -> tuple[Candidates, Sequence[Params], np.ndarray]:
    """The candidates of one trial.

    Args:
        surrogate: whose space and other parameters are searched.
        chosen: other parameters that the trial already has.
        rng: of the draws.

    Returns:
        The candidates, the draws of the other parameters, and which of them each candidate has, (k,).
    """
    grid = surrogate.grid()
    free = [(name, kind) for name, kind in surrogate.places.others if name not in chosen]
    if not free:
        others = np.tile(surrogate.places.of_others(chosen), (len(grid.batch_sizes), 1))
        lengths = surrogate.horizons_of([chosen])
        horizons = None if lengths is None else np.repeat(lengths, len(grid.batch_sizes))
        return replace(grid, others=others, horizons=horizons), [{}], np.zeros(len(grid.batch_sizes), int)
    drawn = _drawn(free, _models(surrogate), rng)
    pairs = rng.integers(len(grid.batch_sizes), size=N_JOINT)
    which = rng.integers(len(drawn), size=N_JOINT)
    every = [{**chosen, **params} for params in drawn]
    places, lengths = np.array([surrogate.places.of_others(params) for params in every]), surrogate.horizons_of(every)
    horizons = None if lengths is None else lengths[which]
    return replace(grid.chosen(pairs), others=places[which], horizons=horizons), drawn, which


def _models(surrogate: Surrogate) -> list[Params]:
    """Parameters of the best trials: completed ones by their value, then those that are predicted best."""
    done = sorted(
        (o for o in surrogate.observations if o.values is not None and o.feasible),
        key=lambda o: (surrogate.value_of(o), o.number),
    )
    if len(done) < MODELS:
        fitted = [o for o in surrogate.observations if o.number in surrogate.fitted and o.values is None]
        done += sorted(fitted, key=lambda o: (float(np.median(surrogate.log_scores_of_run(o))), o.number))
    whole = [o for o in done if all(name in o.params for name, _ in surrogate.places.others)]
    return [o.params for o in whole[:MODELS]]


def _drawn(
    free: Sequence[tuple[str, BaseDistribution]], models: Sequence[Params], rng: np.random.Generator
) -> list[Params]:
    drawn: list[Params] = [{name: model[name] for name, _ in free} for model in models]
    for i in range(N_OTHERS - len(drawn)):
        model = models[i % len(models)] if models and i % 3 else None
        drawn.append({name: draw(kind, None if model is None else model[name], rng) for name, kind in free})
    return drawn


def draw(kind: BaseDistribution, near: Any, rng: np.random.Generator) -> Any:
    """A value anywhere, or near another, as Optuna holds it."""
    if isinstance(kind, CategoricalDistribution):
        keep = near is not None and rng.uniform() > NEAR
        return near if keep else kind.choices[int(rng.integers(len(kind.choices)))]
    assert isinstance(kind, FloatDistribution | IntDistribution)
    at = rng.uniform() if near is None else share(kind, near) + NEAR * rng.standard_normal()
    at = float(np.clip(at, 0.0, 1.0))
    low, high = float(kind.low), float(kind.high)
    value = low * (high / low) ** at if kind.log else low + (high - low) * at
    if kind.step is not None and not kind.log:
        value = low + round((value - low) / kind.step) * kind.step
    value = min(max(value, low), high)
    return round(value) if isinstance(kind, IntDistribution) else value
