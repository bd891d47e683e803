"""What plans bring in training, told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kept
import pytest
from live import Live, key_of
from schedule_training import compared, is_held, summary
from truth.decayed import decayed_sweep_of
from truth.design import PRICE


def row(way: str, seed: int, cost: float | None, **others: Any) -> dict[str, Any]:
    told = {"reached": False} if cost is None else {"reached": True, "cost": cost, "examples": 5.0}
    return {"problem": "digits_mlp", "loss": 0.01, "seed": seed, "way": way, **told, **others}


def test_runs_that_miss_count_in_the_median() -> None:
    found = compared([row("schedule", 0, 90.0), row("schedule", 1, 110.0), row("schedule", 2, None)], 100.0)
    assert (found["runs"], found["arrived"]) == (3, 2)
    assert found["median"] == pytest.approx(1.1)
    assert found["geometric_mean_of_arrived"] == pytest.approx(0.9949874)
    assert found["ratios"] == [0.9, 1.1, None]
    assert compared([row("schedule", 0, None)], 100.0)["median"] is None
    assert compared([], 100.0)["median"] is None


def test_decays_gone_back_on_are_paid() -> None:
    assert compared([row("adaptive", 0, 90.0, spent=120.0)], 100.0)["median"] == pytest.approx(1.2)


def test_the_target_is_of_the_better_schedule_of_a_plan() -> None:
    oracle = decayed_sweep_of("digits_mlp").cheapest(0.01, PRICE)
    rows = [row("schedule", 0, None), row("adaptive", 0, 1.1 * oracle.cost), row("constant rate", 0, oracle.cost)]
    found = summary(rows)
    told = found["problems"]["digits_mlp"]
    assert is_held(told)
    assert found["held_on"] == ["digits_mlp"]
    assert not found["target_held"]
    assert told["oracle"]["cost"] == oracle.cost
    assert told["batch 32 tuned"] >= 1.0
    told["contestants"]["adaptive"]["median"] = 1.2
    assert not is_held(told)


def test_rows_are_kept_even_after_an_interruption(tmp_path: Path) -> None:
    file = tmp_path / "out" / "rows.jsonl"
    assert kept.read(file) == []
    kept.add(file, row("schedule", 3, 1.0))
    with file.open("a", encoding="utf-8") as half:
        half.write('{"problem": "digits_ml')
    kept.add(file, row("adaptive", 4, None))
    found = [key_of(each) for each in kept.read(file)]
    assert found == [Live("digits_mlp", 3, "schedule"), Live("digits_mlp", 4, "adaptive")]
    assert found[0].loss == 0.01
    assert [live.probe_seed for live in found] == [13, 14]
