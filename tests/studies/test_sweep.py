"""Sweeps by brute force in reinforcement learning."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from batchopt.cli.task_file import load_task

STUDIES = Path(__file__).parents[2] / "studies"
sys.path.insert(0, str(STUDIES))

import rollout_sweep  # noqa: E402

GRID = rollout_sweep.Grid(
    learning_rates={4: (0.1,), 16: (0.2, 0.4), 64: (0.4, 0.8)},
    seeds=(0, 1),
    most_steps=1_000,
    most_examples=1_000,
    scores=(2.0, 3.0),
)


def row(batch_size: int, rate: float, seed: int, examples: float | None) -> dict[str, Any]:
    return {"batch_size": batch_size, "learning_rate": rate, "seed": seed, "reached": {"2": examples, "3": None}}


def test_every_batch_size_gets_a_run_before_any_gets_a_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rollout_sweep, "_run", lambda task, grid, *setting: row(*setting, None))
    path = tmp_path / "sweep.jsonl"
    path.write_text(json.dumps(row(16, 0.2, 0, 7.0)) + "\n")
    rows = rollout_sweep.sweep(None, GRID, path)
    made = [(each["batch_size"], each["learning_rate"], each["seed"]) for each in rows]
    first = [(16, 0.2, 0), (4, 0.1, 0), (64, 0.4, 0), (16, 0.4, 0), (64, 0.8, 0)]
    assert made == [*first, (4, 0.1, 1), (16, 0.2, 1), (64, 0.4, 1), (16, 0.4, 1), (64, 0.8, 1)]
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert rows[0]["reached"]["2"] == 7.0, "a run that is kept is not made again"


def test_scores_are_read_from_the_first_evaluation_on() -> None:
    pytest.importorskip("gymnasium")
    task = load_task(f"{STUDIES / 'classic_control' / 'problem.py'}:task")
    grid = rollout_sweep.Grid(
        learning_rates={4: (3e-3,)},
        seeds=(0,),
        most_steps=30,
        most_examples=1_000,
        scores=(400.0,),
        evaluation_ratio=1.5,
        first_evaluation=37,
    )
    found = rollout_sweep._run(task, grid, 4, 3e-3, 0)
    assert [examples for examples, _ in found["scores"]] == [0, 40, 60, 92, 140]
    assert found["best"] == pytest.approx(max(score for _, score in found["scores"]), abs=1e-3)
    assert found["reached"] == {"400": None}


def test_the_hyperbola_goes_through_the_best_rate_of_every_batch_size() -> None:
    law = {size: 10.0 * size * (1.0 + 40.0 / size) for size in (4, 16, 64)}
    rows = [row(size, 0.2, seed, law[size]) for size in law for seed in (0, 1)]
    rows += [row(size, 0.4, seed, 3.0 * law[size]) for size in law for seed in (0, 1)]
    rows += [row(4, 0.1, 0, None), row(4, 0.1, 1, None), row(4, 0.05, 0, None)]
    fits = rollout_sweep.critical_batch_sizes(rows, GRID.scores)
    assert list(fits) == [2.0], "no run reached 3"
    assert fits[2.0].critical_batch_size.value == pytest.approx(40.0, rel=1e-6)
    assert fits[2.0].steps_min.value == pytest.approx(10.0, rel=1e-6)


def test_a_batch_size_of_which_most_seeds_did_not_arrive_is_left_out() -> None:
    rows = [row(16, 0.2, seed, examples) for seed, examples in enumerate((50.0, None, None))]
    assert rollout_sweep.fewest_examples(rows, 2.0) == {}
