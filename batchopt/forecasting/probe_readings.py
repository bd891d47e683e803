"""What a forecast takes from a probe's report, beside its runs."""

from __future__ import annotations

import math

from batchopt.evidence import ProbeReport
from batchopt.forecasting.misfit import NoiseReading
from batchopt.forecasting.noise_trend import log_standard_error

FURTHER = 4
"""Plans use batch sizes up to this factor beyond those that were run, unless told otherwise. Set by hand: with 8 and 16
plans went where no run had been, and their fixed schedules missed the loss more often than not (`studies/digits`)."""


def noise_readings(report: ProbeReport) -> list[NoiseReading]:
    """Resolved noise scales of all kinds."""
    readings = []
    for scale in report.noise_scales:
        if scale.resolved and scale.at is not None and scale.at.loss > 0:
            error = log_standard_error(scale.batch_size)
            readings.append(NoiseReading(scale.kind, scale.at.loss, math.log(scale.batch_size.value), error))
    return readings


def batch_size_limit(report: ProbeReport) -> int:
    """`FURTHER` times the largest batch that was tried, within memory and the data set."""
    limits = [FURTHER * max(branch.batch_size for branch in report.runs)]
    if report.step_cost is not None and report.step_cost.largest_batch_size is not None:
        limits.append(report.step_cost.largest_batch_size)
    if report.provenance.population is not None:
        limits.append(report.provenance.population)
    return min(limits)
