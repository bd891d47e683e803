"""The benchmark of noise scales as evidence: readings are compared with the law's b at their own point."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import noise_evidence
import numpy as np
import pytest

from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.schedule_law import SHAPE, Frame
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.uncertainty import Estimate

FRAME = Frame(3.0, 0.2, 2.0, np.linspace(0.0, 3.0, 7), 16.0, False)
B = 40.0


def law() -> Any:
    """One whose noise scale is always B."""
    row = np.full(len(SHAPE) + 6, -1.0)
    row[SHAPE.index("log_gradient_noise")], row[SHAPE.index("gradient_noise_growth")] = math.log(B), 0.0
    return SimpleNamespace(rows=row[None], frame=FRAME)


def reading(value: float, *, kind: str = "simple", resolved: bool = True) -> NoiseScale:
    return NoiseScale(
        kind=kind,
        signal=1.0,
        noise=value,
        batch_size=Estimate(value, 0.9 * value, 1.1 * value if resolved else math.inf, resolved=resolved),
        examples=64,
        group_size=1,
        population=None,
        method="",
        stopped="width",
        at=MeasuredAt(examples=800, loss=1.0, batch_size=8, learning_rate=0.1),
    )


def test_a_ratio_is_of_resolved_readings_over_b() -> None:
    scales = [reading(80.0), reading(20.0), reading(80.0), reading(80.0, kind="hessian"), reading(1e6, resolved=False)]
    runs = (Branch(8, 0.1, LossCurve((0, 800), (3.0, 1.0))),)
    report: Any = SimpleNamespace(noise_scales=scales, runs=runs)
    found = noise_evidence.compared(law(), [report], 0.0)
    assert found is not None
    assert found["readings"] == 3
    assert found["noise_scale_by_losses"] == pytest.approx(B)
    assert found["log_ratio"] == pytest.approx(math.log(2.0) / 3.0)
    few: Any = SimpleNamespace(noise_scales=scales[:1], runs=runs)
    assert noise_evidence.compared(law(), [few], 0.0) is None, "one reading is too few"


def test_problems_are_averaged() -> None:
    rows = [
        {"saturation_over_middle_rate": saturation, "noise_scale": {"log_ratio": ratio}}
        for ratio, saturation in ((0.5, 1.0), (-0.3, 2.0), (4.0, 50.0))
    ]
    summary = noise_evidence.summary_of([*rows, {"saturation_over_middle_rate": 1.0, "noise_scale": None}])
    found = summary["slowed"]
    assert (found["problems"], found["mean"]) == (2, pytest.approx(0.1))
    assert found["factor"] == pytest.approx(math.exp(0.4))
    assert summary["all"]["mean"] == pytest.approx(1.4)


def test_the_slope_of_noise_is_over_the_log_of_the_loss() -> None:
    at = [replace(reading(1.0), noise=3.0 * loss**1.5, at=MeasuredAt(800, loss, 8, 0.1)) for loss in (0.2, 0.7, 2.0)]
    report: Any = SimpleNamespace(noise_scales=[*at, reading(9.0, kind="hessian")])
    found = noise_evidence.slope_of_noise([report])
    assert found is not None
    assert found["slope"] == pytest.approx(1.5)
    assert found["error"] == pytest.approx(0.0, abs=1e-9)
    few: Any = SimpleNamespace(noise_scales=at[:2])
    assert noise_evidence.slope_of_noise([few]) is None
