"""Which setting to try next: the one with the best chance to succeed for what it costs (`prospects`).

Parallel workers differ: each weighs the posterior's draws at random, and keeps away from what is running.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from batchopt._wording import number as number_in_words
from batchopt.search.candidates import candidates_of, draw
from batchopt.search.judgement import CHANCE, FILLS_SPACE, acceptable, percent
from batchopt.search.parameters import Axis, Space
from batchopt.search.prospects import away_from_others, prospects_of
from batchopt.search.surrogate import Surrogate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FIRST_SPREAD, SPREAD_EVERY = 3, 8
"""The first trials (without a forecast), and every so many later, fill the space."""
PRIMES = (2, 3)
"""Bases of the sequences of batch size and learning rate."""
WIDEST_EXCHANGE = 2.5
"""Half the range of the log exchange rate between steps and examples, in a study of both."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Values of the parameters as Optuna holds them, the setting that they stand for, and why it is proposed."""

    batch_value: Any
    rate_value: Any
    batch_size: int
    learning_rate: float
    others: Mapping[str, Any]
    reason: str


def propose(surrogate: Surrogate, chosen: Mapping[str, Any], number: int, rng: np.random.Generator) -> Proposal | None:
    """The most promising setting of the surrogate's space; None where the law knows none.

    Args:
        surrogate: with the space held at one value where batch size or learning rate is already chosen.
        chosen: other parameters that the trial already has.
        number: of the trial.
        rng: of this trial alone, so that the proposal does not depend on what other threads drew.
    """
    first = 0 if surrogate.informed else FIRST_SPREAD
    if number < first:
        return _spread(surrogate, chosen, number, rng)
    if number % SPREAD_EVERY == SPREAD_EVERY - 1:
        return _spread(surrogate, chosen, first + number // SPREAD_EVERY, rng)
    exchange = math.exp(float(rng.uniform(-WIDEST_EXCHANGE, WIDEST_EXCHANGE)))
    believed = surrogate.scalarised(exchange) if surrogate.two_objectives else surrogate
    candidates, drawn, which = candidates_of(believed, chosen, rng)
    prospects = prospects_of(believed, candidates)
    if prospects is None:
        return None
    weights = rng.exponential(size=len(prospects.bar))
    index = prospects.log_index(weights) + np.log(away_from_others(surrogate, candidates, prospects))
    index[~acceptable(believed, candidates, prospects.success())] = -np.inf
    best = int(np.argmax(index))
    sizes, rates = surrogate.space.batch_sizes, surrogate.space.learning_rates
    at = sizes.nearest(candidates.batch_sizes[best]), rates.nearest(candidates.learning_rates[best])
    p, cost = float(prospects.success()[best]), math.exp(float(np.median(prospects.log_costs[:, best])))
    reason = (
        f"{percent(p)} {CHANCE}, for {number_in_words(cost)} {believed.price.unit}: no other setting has a better "
        "chance for its cost."
    )
    return _at(surrogate.space, *at, rng, drawn[int(which[best])], reason)


def _spread(surrogate: Surrogate, chosen: Mapping[str, Any], count: int, rng: np.random.Generator) -> Proposal:
    """A setting that fills the space, whatever the law says: it may have been misled, and soon ends if it was not."""
    axes = (surrogate.space.batch_sizes, surrogate.space.learning_rates)
    at = [spread_index(axis, count, base) for axis, base in zip(axes, PRIMES, strict=True)]
    free = [(name, kind) for name, kind in surrogate.places.others if name not in chosen]
    others = {name: draw(kind, None, rng) for name, kind in free}
    return _at(surrogate.space, at[0], at[1], rng, others, FILLS_SPACE)


def spread_index(axis: Axis, count: int, base: int) -> int:
    """A candidate that depends only on how many came before, so that trials fill the axis evenly."""
    return min(int(_van_der_corput(count, base) * len(axis.values)), len(axis.values) - 1)


def first_value(axis: Axis, number: int, base: int, rng: np.random.Generator) -> Any:
    """A value of one parameter before anything is known: the middle, then spread over the axis.

    Args:
        axis: candidates.
        number: of the trial.
        base: another prime for each parameter.
        rng: of this trial.
    """
    return axis.jittered(spread_index(axis, number, base), rng)[0]


def _van_der_corput(index: int, base: int) -> float:
    """A sequence in (0, 1) that fills it evenly, turned so that it begins in the middle."""
    value, part = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * part
        part /= base
    return (value + 0.5) % 1.0


def _at(
    space: Space, size_index: int, rate_index: int, rng: np.random.Generator, others: Mapping[str, Any], reason: str
) -> Proposal:
    batch_value, batch_size = space.batch_sizes.jittered(size_index, rng)
    rate_value, learning_rate = space.learning_rates.jittered(rate_index, rng)
    return Proposal(batch_value, rate_value, int(batch_size), learning_rate, others, reason)


def within(surrogate: Surrogate, *, batch_sizes: Axis | None = None, learning_rates: Axis | None = None) -> Surrogate:
    """The surrogate over other candidates, cut to what fits in memory."""
    space = surrogate.space
    sizes = (batch_sizes or space.batch_sizes).up_to(surrogate.largest_batch_size)
    return replace(surrogate, space=Space(sizes, learning_rates or space.learning_rates))
