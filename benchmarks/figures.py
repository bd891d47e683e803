"""Figures that several benchmarks tell: intervals, errors as factors, regrets. JSON types only; None is infinite."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from batchopt.uncertainty import Estimate


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return float(value) if math.isfinite(value) else None


def interval_of(estimate: Estimate) -> list[float | None]:
    """Value, and the ends of its 90 % interval."""
    return [estimate.value, finite(estimate.low), finite(estimate.high)]


def is_inside(interval: Sequence[float | None], truth: float) -> bool:
    """Whether a truth lies in an interval."""
    _, low, high = interval
    return (-math.inf if low is None else low) <= truth <= (math.inf if high is None else high)


def factor(a: float, b: float) -> float:
    """How many times one positive number is the other, at least 1."""
    return max(a / b, b / a)


def geometric_mean(values: Sequence[float]) -> float | None:
    """None of none."""
    return math.exp(float(np.mean(np.log(values)))) if len(values) else None


def share(holds: Sequence[bool]) -> float | None:
    """Of cases in which something holds; None of none."""
    return float(np.mean(holds)) if len(holds) else None


def errors_of(told: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Geometric-mean error over problems (of each problem's own), and the worst.

    Args:
        told: problem, prediction, truth.
    """
    by_problem: dict[str, list[float]] = defaultdict(list)
    for problem, prediction, truth in told:
        by_problem[problem].append(factor(prediction, truth))
    own = {name: geometric_mean(errors) for name, errors in by_problem.items()}
    return {
        "geometric_mean": geometric_mean([error for error in own.values() if error is not None]),
        "worst": max((max(errors) for errors in by_problem.values()), default=None),
        "by_problem": own,
    }


def regrets_of(values: Sequence[float | None]) -> dict[str, Any]:
    """Median, 90th percentile and worst regret, and how many never arrive."""
    known = [math.inf if value is None else value for value in values]
    if not known:
        return {"median": None, "90th_percentile": None, "worst": None, "never": 0, "cases": 0}
    # By order, since infinities can't be interpolated between.
    high = sorted(known)[math.ceil(0.9 * (len(known) - 1))]
    return {
        "median": finite(float(np.median(known))),
        "90th_percentile": finite(high),
        "worst": finite(max(known)),
        "never": sum(value is None for value in values),
        "cases": len(known),
    }


def number(value: float | None) -> str:
    """As shown."""
    return "-" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """As shown."""
    return "inf" if value is None else f"{value:.0%}"
