"""The prediction benchmark: what it counts, and that the truth's own best setting has no regret."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from prediction import GOALS, baselines, live_summary, noise_at, regret, summary
from prediction_table import misses
from truth.decayed import decayed_sweep_of
from truth.table import language_models, rows_of

from batchopt.evidence import ProbeReport, Provenance
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.uncertainty import log_normal

PROBLEM, LOSS = "digits_mlp", 0.1
PRICE = GOALS["seconds at 64 + B"]


def cell(prediction: list[float | None] | None, *, counted: bool = True) -> dict[str, Any]:
    goal = {"regret": 0.1, "batch_regret": 0.0, "rate_ratio": 1.5, "rate_excess": 0.01}
    return {
        "loss": 1.0,
        "truth": 100.0,
        "counted": counted,
        "prediction": prediction,
        "noise": 400.0,
        "goals": {"64 + B": goal, "512 + B": {"failure": "too low", "regret": None}},
        "baselines": {"64 + B": {"batch 32, tuned rate": None}},
    }


def test_the_summary_counts_what_is_certain_and_resolved() -> None:
    cells = [cell([200.0, 90.0, None]), cell([50.0, 20.0, 90.0]), cell(None), cell([1e9, 1e8, 1e10], counted=False)]
    rows = [
        {"problem": "a", "failure": None, "losses": cells, "constant": [cell([300.0, 250.0, 350.0])]},
        {"problem": "b", "failure": "too small", "losses": [], "constant": []},
    ]
    found = summary(rows)
    critical = found["critical_batch_size"]
    assert (found["probes"], found["failed"], critical["cells"], critical["unanswered"]) == (2, 1, 3, 1)
    assert critical["geometric_mean"] == pytest.approx(2.0)
    assert critical["signed"] == pytest.approx(1.0)
    assert critical["coverage"] == 0.5
    assert found["constant_rates"]["worst"] == pytest.approx(3.0)
    assert found["noise_scale"]["worst"] == pytest.approx(4.0)
    assert found["regrets"]["plan"]["never"] == found["regret_by_problem"]["a"]["never"] == 3
    assert found["regrets"]["batch 32, tuned rate"]["cases"] == 3
    assert found["rate_within_2_percent"] == found["rate_within_factor_2"] == 0.5


def test_misses_are_told_with_what_the_forecast_said() -> None:
    row = {"problem": "a", "share": 1.0, "failure": None, "doubts": ["thin"], "lowest_observed": 1.5}
    hit, miss = cell([150.0, 90.0, None]), cell([700.0, 200.0, 900.0])
    assert misses([row | {"losses": [hit]}]) == []
    (line,) = misses([row | {"losses": [miss]}])
    assert line.endswith(
        "7.00 of the truth; the lowest loss seen was 1.5 times the loss; in the interval 0 of 1, doubts raised in 1"
    )


def test_live_runs_are_told_beside_what_was_said_of_them() -> None:
    fixed = {"problem": "a", "way": "schedule", "reached": True, "last_loss": 1.1, "predicted_loss": [1.0, 0.9, 1.2]}
    adaptive = {
        "problem": "a", "way": "adaptive", "reached": True, "spent": 30.0, "predicted_cost": 20.0, "examples": 30.0,
        "predicted_examples": [40.0, 30.0, 45.0], "missed_decays": 2, "spent_examples": 50.0,
    }  # fmt: skip
    lost = {"problem": "a", "way": "adaptive", "reached": False, "failure": "no plan"}
    none = {"problem": "a", "way": "schedule", "reached": False, "failure": "no plan"}
    found = live_summary([fixed, adaptive, lost, none])["all"]
    assert found["final_loss"]["median_absolute_log_error"] == pytest.approx(math.log(1.1))
    assert (found["final_loss"]["runs"], found["final_loss"]["without_a_plan"]) == (1, 1)
    assert found["final_loss"]["coverage"] == 1.0
    told = found["adaptive"]
    assert (told["runs"], told["arrived"], told["examples_in_interval"], told["missed_decays"]) == (2, 1, 0, 2)
    assert told["cost_over_predicted"] == pytest.approx([1.5] * 3)


def test_the_cheapest_setting_has_no_regret() -> None:
    sweep = decayed_sweep_of(PROBLEM)
    best = sweep.cheapest(LOSS, PRICE)
    assert regret(PROBLEM, best.batch_size, best.learning_rate, LOSS, PRICE) == pytest.approx(0.0)
    others = [regret(PROBLEM, size, rate, LOSS, PRICE) for size, rate in sweep.ladders]
    assert all(other is None or other > -1e-9 for other in others)
    assert regret(PROBLEM, best.batch_size, 1e3, LOSS, PRICE) is None


def test_baselines_are_settings_of_the_sweep() -> None:
    for price in GOALS.values():
        found = baselines(PROBLEM, LOSS, price, noise=20.0)
        assert len(found) == 5
        assert all(value is None or value > -1e-9 for value in found.values())
        assert found["largest batch, tuned rate"] is not None
    assert len(baselines(PROBLEM, LOSS, PRICE, noise=None)) == 4


def test_noise_is_carried_to_a_loss() -> None:
    def reading(loss: float) -> NoiseScale:
        at = MeasuredAt(100, loss, 32, 0.1)
        return NoiseScale("simple", 1.0, 50.0, log_normal(50.0 / loss, 0.1), 100, 1, None, "exact", "width", at)

    report = ProbeReport(
        None, (), (reading(2.0), reading(1.0)), None, (), 1_000, None, Provenance({}, "cpu", 0, None, 1)
    )
    assert noise_at(report, 0.5) == pytest.approx(100.0, rel=0.3)
    assert noise_at(replace(report, noise_scales=report.noise_scales[:1]), 0.5) is None


def test_the_table_has_every_loss_and_the_published_models() -> None:
    rows = rows_of(PROBLEM)
    assert [row["loss"] for row in rows] == [1.0, 0.3, 0.1, 0.03, 0.01]
    for row in rows:
        for told in (row["constant"], row["decaying"]):
            value, low, high = told["critical_batch_size"]
            assert low <= value <= high
            assert min(told["learning_rates"]) <= told["learning_rate"] <= max(told["learning_rates"])
            assert math.isfinite(told["residual"])
        assert row["decaying"]["examples_min"][0] < row["constant"]["examples_min"][0]
        assert row["decaying"]["held_out_loss"] > 0
    assert [row["decaying"]["resolved"] for row in rows] == [False, True, True, True, True]
    found = [row["critical_batch_size"][0] for row in language_models()]
    # Reference values of the five models.
    assert found == pytest.approx([2192, 3241, 5434, 7905, 11125], rel=2e-3)
