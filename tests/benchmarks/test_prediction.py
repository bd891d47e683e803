"""The prediction benchmark: what it counts, and that the truth's own best setting has no regret."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prediction import (
    GOALS,
    baselines,
    cheapest_config,
    errors_of,
    factor,
    misses,
    noise_at,
    regrets_of,
    summary,
    tuned_rate,
)
from truth.table import language_models, rows_of
from truth.tradeoff import Tradeoff, sweep_of, tradeoffs_of

from batchopt import StepCost
from batchopt.evidence import ProbeReport, Provenance
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.uncertainty import log_normal

PROBLEM = "digits_mlp"
PRICE = StepCost(per_step=64.0, per_example=1.0)


@pytest.fixture(scope="module")
def truth() -> Tradeoff:
    return next(found for found in tradeoffs_of(PROBLEM) if found.loss == 0.1)


def test_errors_weigh_problems_alike() -> None:
    found = errors_of([("a", 2.0, 1.0), ("a", 1.0, 2.0), ("b", 8.0, 1.0)])
    assert found["geometric_mean"] == pytest.approx(4.0)
    assert found["by_problem"] == {"a": pytest.approx(2.0), "b": pytest.approx(8.0)}
    assert found["worst"] == 8.0
    assert factor(1.0, 5.0) == factor(5.0, 1.0) == 5.0


def test_a_plan_beyond_the_grid_is_infinitely_regretted() -> None:
    found = regrets_of([0.1, 0.2, None])
    assert (found["median"], found["worst"], found["cases"]) == (0.2, None, 3)
    assert found["beyond_40_percent"] == pytest.approx(1 / 3)
    assert regrets_of([None, None, 0.1])["median"] is None


def cell(prediction: list[float | None] | None, *, certain: bool = True) -> dict[str, Any]:
    return {
        "loss": 1.0,
        "truth": 100.0,
        "certain": certain,
        "prediction": prediction,
        "lowest_observed": 1.5,
        "decaying": [50.0, 30.0],
        "examples_min": 20.0,
        "noise": {"simple": 400.0, "preconditioned": None, "hessian": 50.0},
        "goals": {"balanced": {"regret": 0.1, "rate_ratio": 1.5}},
        "baselines": {"balanced": {"batch 32, tuned rate": None}},
    }


def test_the_summary_counts_what_is_certain() -> None:
    cells = [cell([200.0, 90.0, None]), cell([50.0, 20.0, 90.0]), cell(None), cell([1e9, 1e8, 1e10], certain=False)]
    rows = [{"problem": "a", "failure": None, "losses": cells}, {"problem": "b", "failure": "too small", "losses": []}]
    found = summary(rows)
    assert (found["probes"], found["failed"], found["cells"], found["unanswered"]) == (2, 1, 3, 1)
    assert found["errors"]["forecast"]["geometric_mean"] == pytest.approx(2.0)
    assert found["errors"]["simple noise scale"]["worst"] == pytest.approx(4.0)
    assert found["errors"]["preconditioned noise scale"]["geometric_mean"] is None
    assert found["errors"]["forecast, truth with cosine decay"]["worst"] == pytest.approx(4.0)
    assert found["examples_under_decay"] == pytest.approx(1.5)
    assert found["coverage"] == 0.5
    assert found["regrets"]["plan"]["median"] == pytest.approx(0.1)
    assert found["rate_within_2"] == 1.0


def test_misses_are_told_with_what_the_forecast_said() -> None:
    row = {"problem": "a", "share": 1.0, "failure": None, "doubts": ["thin"]}
    hit, miss = cell([150.0, 90.0, None]), cell([700.0, 200.0, 900.0])
    assert misses([row | {"losses": [hit]}]) == []
    (line,) = misses([row | {"losses": [miss]}])
    assert line.endswith(
        "7.00 of the truth; the lowest loss seen was 1.5 times the loss; in the interval 0 of 1, doubts raised in 1"
    )


def test_the_cheapest_setting_has_no_regret(truth: Tradeoff) -> None:
    cost, size, rate = cheapest_config(PROBLEM, truth.loss, PRICE)
    sweep = sweep_of(PROBLEM)
    assert sweep.steps(size, rate, truth.loss) * PRICE(size) == pytest.approx(cost)
    others = [sweep.steps(b, r, truth.loss) * PRICE(b) for b, r in sweep.configs]
    assert min(others) >= cost * (1 - 1e-9)
    assert tuned_rate(truth, size) == pytest.approx(rate)


def test_baselines_are_settings_of_the_sweep(truth: Tradeoff) -> None:
    for least in GOALS.values():
        found = baselines(PROBLEM, truth, least, noise=truth.fit.law.critical_batch_size)
        assert len(found) == 5
        assert all(regret is None or regret > -1e-9 for regret in found.values())
        assert found["largest batch, tuned rate"] is not None
    assert len(baselines(PROBLEM, truth, "balanced", noise=None)) == 4
    # At balanced prices the critical batch size with its best rate is close to the best there is.
    balanced = baselines(PROBLEM, truth, "balanced", noise=truth.fit.law.critical_batch_size)["B_simple, tuned rate"]
    assert balanced is not None
    assert balanced < 0.35


def test_noise_is_carried_by_kind() -> None:
    def reading(kind: str, loss: float) -> NoiseScale:
        at = MeasuredAt(100, loss, 32, 0.1)
        return NoiseScale(kind, 1.0, 50.0, log_normal(50.0 / loss, 0.1), 100, 1, None, "exact", "width", at)  # type: ignore[arg-type]

    scales = (reading("simple", 2.0), reading("simple", 1.0), reading("hessian", 1.0))
    report = ProbeReport(None, (), scales, None, (), 1_000, None, Provenance({}, "cpu", 0, None, 1))
    assert noise_at(report, "simple", 0.5) == pytest.approx(100.0, rel=0.3)
    assert noise_at(report, "hessian", 0.5) is None
    assert noise_at(report, "preconditioned", 0.5) is None


def test_the_table_has_every_loss_and_the_published_models() -> None:
    rows = rows_of(PROBLEM)
    assert [row["loss"] for row in rows] == [1.0, 0.3, 0.1, 0.03, 0.01]
    assert all(row["critical_batch_size"][1] <= row["critical_batch_size"][2] for row in rows)
    found = [row["critical_batch_size"][0] for row in language_models()]
    # Reference values of the five models.
    assert found == pytest.approx([2192, 3241, 5434, 7905, 11125], rel=2e-3)
    assert all(math.isfinite(row["residual"]) for row in rows)
