"""The noise scale of optimizers that step by the sign of the gradient: (|sigma|_1 / |g|_1)^2 (arXiv 2602.03001).

Signum, Lion and Rprop take such steps, and Adam nearly. sigma_i is the standard deviation of coordinate i over single
examples, g_i its mean. Both norms come from the sums of J groups of examples:

    |sigma|_1   the standard deviation over groups of each coordinate, freed of its bias for normal noise
    |g|_1       between two ends: the norm of the measured mean, which noise makes too large; and the mean of each
                group along the sign of the mean of all others, which noise makes too small, and zero where there is
                only noise

The interval holds both ends, so it is wide until most coordinates' signs are known: it takes many more examples than
the plain noise scale, about as many as this one itself says. Do not trust it where gradients have heavy tails in single
coordinates (rare tokens): their standard deviation is then not that of normal noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchopt.noise_scale import SignalAndNoise
from batchopt.probing.moments import GradientSums
from batchopt.uncertainty import Estimate, t_quantile

BLOCK = 2**18
"""Coordinates at a time."""
FEWEST_GROUPS = 3
"""Without one of them, two show how they vary."""


@dataclass(frozen=True, slots=True)
class _Norms:
    """Norms over all coordinates; (J + 1,): of all groups, then without each of them.

    Attributes:
        deviation: |sigma|_1, of units.
        mean: |mean|_1.
        crossed: of every group's mean along the signs of the others' mean, (J,).
    """

    deviation: Tensor
    mean: Tensor
    crossed: Tensor


def sign_noise_scale(groups: Sequence[GradientSums], *, group_size: int, left: float) -> SignalAndNoise:
    """|g|_1^2, |sigma|_1^2 and their ratio.

    Args:
        groups: sums of gradients; fewer than three say nothing.
        group_size: examples per unit.
        left: share of the population that was not drawn; 1 for an infinite one.
    """
    if len(groups) < FEWEST_GROUPS:
        return SignalAndNoise(0.0, 0.0, Estimate(0.0, 0.0, math.inf, False))
    units = torch.tensor([float(group.units) for group in groups], dtype=torch.float64)
    weights = torch.tensor([group.weights for group in groups], dtype=torch.float64)
    norms = _norms(groups, units, weights)
    z = t_quantile(len(groups) - 1)
    deviation, upper = float(norms.deviation[0]) * math.sqrt(group_size), float(norms.mean[0])
    share = weights / weights.sum()
    # Where the whole population was drawn its mean is known.
    lower = upper - left * (upper - float(share @ norms.crossed))
    deviation_error = _jackknife(norms.deviation) * math.sqrt(group_size)
    upper_error = _jackknife(norms.mean) * math.sqrt(left)
    lower_error = float(norms.crossed.std()) * math.sqrt(_shared_signs(len(groups)) / len(groups) * left)
    low = (max(0.0, deviation - z * deviation_error) / (upper + z * upper_error)) ** 2 if upper > 0 else 0.0
    least = lower - z * lower_error
    resolved = least > 0 and deviation > 0
    signal = upper * max(lower, 0.0)
    high = ((deviation + z * deviation_error) / least) ** 2 if resolved else math.inf
    value = deviation**2 / signal if resolved else low
    return SignalAndNoise(signal, deviation**2, Estimate(value, min(low, value), max(high, value), resolved))


def _norms(groups: Sequence[GradientSums], units: Tensor, weights: Tensor) -> _Norms:
    count, size = len(groups), len(groups[0].total)
    deviation, mean = torch.zeros(count + 1, dtype=torch.float64), torch.zeros(count + 1, dtype=torch.float64)
    crossed = torch.zeros(count, dtype=torch.float64)
    for begin in range(0, size, BLOCK):
        sums = torch.stack([group.total[begin : begin + BLOCK] for group in groups]).double().cpu()
        block = _norms_of_block(sums, units, weights)
        deviation += block.deviation
        mean += block.mean
        crossed += block.crossed
    return _Norms(deviation, mean, crossed)


def _norms_of_block(sums: Tensor, units: Tensor, weights: Tensor) -> _Norms:
    """Norms over some coordinates.

    Args:
        sums: weighted sums of gradients, (J, coordinates).
        units: in each group, (J,).
        weights: sums of weights, (J,).
    """
    count = len(units)
    mean = sums.sum(0) / weights.sum()
    of_others = (sums.sum(0) - sums) / (weights.sum() - weights)[:, None]
    # A group's residual, in units whose weights have mean 1; its variance is that of a unit times the units in it.
    residuals = (sums - weights[:, None] * mean) / (weights.sum() / units.sum())
    squares = residuals.square() / units[:, None]
    without = squares.sum(0) - squares * (units.sum() / (units.sum() - units))[:, None]
    every = (squares.sum(0) / (count - 1)).sqrt() / _normal_bias(count)
    each = (without.clamp_min(0.0) / (count - 2)).sqrt() / _normal_bias(count - 1)
    return _Norms(
        deviation=torch.cat((every.sum()[None], each.sum(1))),
        mean=torch.cat((mean.abs().sum()[None], of_others.abs().sum(1))),
        crossed=(of_others.sign() * sums / weights[:, None]).sum(1),
    )


def _shared_signs(count: int) -> float:
    """By how much the variance of the mean of crossed means is above that of as many independent numbers.

    Any two of them take each other's group into their signs. Where there is only noise, with R the sum of all other
    groups and z normal, their correlation is E[(E[z sign(R + z) | R])^2] = (2 / pi) / sqrt(2 count - 3); where signs
    are known it is zero, and the error is then overstated.
    """
    correlation = 2.0 / math.pi / math.sqrt(2.0 * count - 3.0)
    return (1.0 + (count - 1) * correlation) / (1.0 - correlation)


def _normal_bias(count: int) -> float:
    """Mean of the standard deviation of `count` normal numbers, over the true one."""
    return math.sqrt(2.0 / (count - 1)) * math.exp(math.lgamma(count / 2.0) - math.lgamma((count - 1) / 2.0))


def _jackknife(values: Tensor) -> float:
    """Standard error of the first value, given those without each group."""
    left_out = values[1:]
    count = len(left_out)
    return math.sqrt((count - 1) / count * float((left_out - left_out.mean()).square().sum()))
