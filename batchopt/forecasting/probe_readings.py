"""What a forecast takes from a probe's report, beside its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchopt.evidence import Branch, ProbeReport
from batchopt.forecasting.misfit import NoiseReading
from batchopt.forecasting.noise_trend import NoiseTrend, fit_noise_trend, log_standard_error
from batchopt.noise_scale import evidence_among

FURTHER = 2
"""Plans use batch sizes up to this factor beyond those that ran, unless told otherwise. On the digits twelve of twelve
runs by plans from logs reached their loss at twice the largest batch, and three of nine at four times; of twenty demos,
both that planned four times it diverged. Where stability ends in larger batches, no run has told."""


def noise_readings(report: ProbeReport) -> list[NoiseReading]:
    """Resolved noise scales of all kinds."""
    readings = []
    for scale in report.noise_scales:
        if scale.resolved and scale.at is not None and scale.at.loss > 0:
            error = log_standard_error(scale.batch_size)
            readings.append(NoiseReading(scale.kind, scale.at.loss, math.log(scale.batch_size.value), error))
    return readings


def batch_size_limit(runs: Sequence[Branch], report: ProbeReport | None) -> int:
    """Twice the largest batch that was tried, within memory and the data set as far as a probe knows them."""
    largest = FURTHER * max(branch.batch_size for branch in runs)
    return largest if report is None else round(min(largest, largest_possible(report)))


def largest_possible(report: ProbeReport) -> float:
    """The largest batch size that memory and the data set allow; infinite where neither is known."""
    memory = None if report.step_cost is None else report.step_cost.largest_batch_size
    return min(math.inf if limit is None else limit for limit in (memory, report.provenance.population))


def noise_trend(report: ProbeReport) -> NoiseTrend | None:
    """The noise scales that are evidence over the loss; None where fewer than two were resolved."""
    return fit_noise_trend(evidence_among(report.noise_scales))
