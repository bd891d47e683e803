"""Which batch size and learning rate to try next: Thompson sampling on the law's posterior.

Each proposal is the best setting under one posterior draw, so parallel workers differ, and settings are tried as often
as they are believed to be best. A share goes to neighbours of the incumbent, because what the law misses shows there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from batchopt.search.judgement import bar_of, judge
from batchopt.search.observations import Observation
from batchopt.search.parameters import Axis, Space
from batchopt.search.surrogate import Surrogate

if TYPE_CHECKING:
    from collections.abc import Iterator

NEIGHBOUR_SHARE = 0.15
ANYWHERE_SHARE = 0.05
MOST_DRAWS = 3
"""Draws that are asked before the best guess."""
MOST_CANDIDATES = 6
"""Candidates of one draw that are judged."""
WIDEST_EXCHANGE = 2.5
"""Half the range of the log exchange rate between steps and examples, in a study of both."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Values for both parameters as Optuna holds them, and the setting that they stand for."""

    batch_value: Any
    rate_value: Any
    batch_size: int
    learning_rate: float


def propose(surrogate: Surrogate, rng: np.random.Generator) -> Proposal | None:
    """A setting from the surrogate's space that is neither dominated nor beyond memory; None where the law knows none.

    Args:
        surrogate: with the space held at one value where a parameter is already chosen.
        rng: of this trial alone, so that the proposal does not depend on what other threads drew.
    """
    tried = {(o.batch_size, o.learning_rate) for o in surrogate.observations}
    bar = bar_of(surrogate)
    candidate = None
    for candidate in _candidates(surrogate, rng):
        setting = (candidate.batch_size, candidate.learning_rate)
        if setting not in tried and not judge(surrogate, bar, *setting).rejected:
            return candidate
    # Nothing passed: the last candidate is the best guess's own, which is where a projection ends.
    return candidate


def _candidates(surrogate: Surrogate, rng: np.random.Generator) -> Iterator[Proposal]:
    kind = rng.uniform()
    incumbent = surrogate.incumbent
    if kind < NEIGHBOUR_SHARE and incumbent is not None:
        yield _beside(incumbent, surrogate.space, rng)
    elif kind > 1.0 - ANYWHERE_SHARE:
        space = surrogate.space
        sizes, rates = len(space.batch_sizes.values), len(space.learning_rates.values)
        yield _at(space, int(rng.integers(sizes)), int(rng.integers(rates)), rng)
    exchange = math.exp(float(rng.uniform(-WIDEST_EXCHANGE, WIDEST_EXCHANGE)))
    n_draws = len(surrogate.law.draws)
    drawn = [1 + int(rng.integers(n_draws)) for _ in range(MOST_DRAWS)] if n_draws else []
    for row in drawn:
        yield from _best_of(surrogate, row, exchange, rng, MOST_CANDIDATES)
    yield from _best_of(surrogate, 0, exchange, rng, MOST_CANDIDATES)
    yield from _best_of(surrogate, 0, exchange, rng, 1)


def _best_of(
    surrogate: Surrogate, row: int, exchange: float, rng: np.random.Generator, count: int
) -> Iterator[Proposal]:
    """The best candidates under one row of the posterior, best first."""
    believed = surrogate.row(row)
    if believed.two_objectives:
        believed = believed.scalarised(exchange)
    scores = believed.scores(*believed.grid())[0]
    n_rates = len(surrogate.space.learning_rates.values)
    for index in np.argsort(scores, kind="stable")[:count]:
        if math.isfinite(scores[index]):
            yield _at(surrogate.space, int(index) // n_rates, int(index) % n_rates, rng)


def _beside(incumbent: Observation, space: Space, rng: np.random.Generator) -> Proposal:
    """Up to an octave beside the incumbent, in batch size and in learning rate."""
    sizes, rates = space.batch_sizes, space.learning_rates
    size = sizes.nearest(incumbent.batch_size * 2.0 ** float(rng.uniform(-1.0, 1.0)))
    rate = rates.nearest(incumbent.learning_rate * 2.0 ** float(rng.uniform(-1.0, 1.0)))
    return _at(space, size, rate, rng)


def _at(space: Space, size_index: int, rate_index: int, rng: np.random.Generator) -> Proposal:
    batch_value, batch_size = space.batch_sizes.jittered(size_index, rng)
    rate_value, learning_rate = space.learning_rates.jittered(rate_index, rng)
    return Proposal(batch_value, rate_value, int(batch_size), learning_rate)


def within(surrogate: Surrogate, *, batch_sizes: Axis | None = None, learning_rates: Axis | None = None) -> Surrogate:
    """The surrogate over other candidates, cut to what fits in memory."""
    space = surrogate.space
    sizes = (batch_sizes or space.batch_sizes).up_to(surrogate.largest_batch_size)
    return replace(surrogate, space=Space(sizes, learning_rates or space.learning_rates))
