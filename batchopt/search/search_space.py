"""What is searched: the latest ranges of batch size, learning rate and the other parameters that every trial has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import BaseDistribution

from batchopt.forecasting.decayed_law import DecayedLaw
from batchopt.forecasting.law import LawPosterior
from batchopt.search.ledger import Seen
from batchopt.search.parameters import Axis, Space, batch_size_axis, learning_rate_axis
from batchopt.search.places import numeric_or_choice
from batchopt.search.settings import StudySettings

if TYPE_CHECKING:
    import optuna

DEFAULT_OCTAVES = 6
"""Half width of the learning rates considered while the parameter's own range is unknown."""
NEIGHBOURHOOD = 8.0
"""Batch sizes considered while the parameter's range is unknown: this factor beyond those observed."""


def space_of(study: optuna.Study, settings: StudySettings, law: LawPosterior | DecayedLaw | None) -> Space | None:
    """Candidates of batch size and learning rate: the latest ranges, before there are any those about the forecast's.

    None without either.
    """
    known = last_distributions(study, settings)
    if known is not None:
        return Space(batch_size_axis(known[0], exponent=settings.exponent), learning_rate_axis(known[1]))
    if law is None:
        return None
    smallest, largest = law.batch_sizes
    rates = np.exp2(np.arange(-DEFAULT_OCTAVES, DEFAULT_OCTAVES + 0.1, 0.25))
    middle = law.middle_rate
    sizes = [2**k for k in range(20) if smallest / NEIGHBOURHOOD <= 2**k <= largest * NEIGHBOURHOOD] or [largest]
    return Space(
        Axis(tuple(sizes), tuple(map(float, sizes))),
        Axis(tuple(map(float, middle * rates)), tuple(map(float, middle * rates)), 0.25 * math.log(2.0)),
    )


def others_of(seen: Seen, settings: StudySettings) -> tuple[tuple[str, BaseDistribution], ...]:
    """Parameters beside the two that every trial has, by their latest ranges; none that have a single value."""
    if seen.latest is None:
        return ()
    latest, names = seen.latest.distributions, seen.shared - {settings.batch_size, settings.learning_rate}
    usable = {name: latest[name] for name in names if numeric_or_choice(latest[name]) and not latest[name].single()}
    return tuple(sorted(usable.items()))


def last_distributions(
    study: optuna.Study, settings: StudySettings
) -> tuple[BaseDistribution, BaseDistribution] | None:
    """Ranges of batch size and learning rate in the latest trial that had both; None before there was one."""
    names = (settings.batch_size, settings.learning_rate)
    for trial in reversed(study._storage.get_all_trials(study._study_id, deepcopy=False)):
        if all(name in trial.distributions for name in names):
            return trial.distributions[names[0]], trial.distributions[names[1]]
    return None


def middle_of(axis: Axis) -> float:
    """The geometric middle of an axis."""
    return math.sqrt(axis.sizes[0] * axis.sizes[-1])
