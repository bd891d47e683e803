"""The trials of studies, of ours and of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from batchopt.errors import EvidenceError
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.runs.read import read_runs
from batchopt.search import TradeoffSampler

LOSSES = {0: 2.3, 80: 1.5, 160: 1.1, 400: 0.8, 800: 0.6}
OURS: dict[str, Any] = {"batch_size": "bs", "learning_rate": "lr"}


def trained(study: optuna.Study, *, ends: dict[int, float] = LOSSES, pruned: bool = False, **attributes: Any) -> None:
    """A trial that reported losses."""
    distributions = {
        "bs": optuna.distributions.IntDistribution(1, 1024),
        "lr": optuna.distributions.FloatDistribution(1e-5, 1.0),
    }
    study.add_trial(
        optuna.trial.create_trial(
            params={"bs": 8, "lr": 0.1},
            distributions=distributions,
            intermediate_values=ends,
            user_attrs=attributes,
            value=None if pruned else 800.0,
            state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
        )
    )


def test_any_study_is_read_once_it_is_said_what_its_steps_count() -> None:
    study = optuna.create_study()
    trained(study)
    trained(study, ends={0: 2.3, 80: float("nan")})
    first, second = read_runs(study, columns={"examples": "step"})
    assert (first.batch_size, first.learning_rate, first.outcome) == (8, 0.1, "finished")
    assert first.curve.examples == tuple(LOSSES)
    assert second.outcome == "diverged"
    assert read_runs(study, columns={"steps": "step"})[0].curve.examples[-1] == 6_400
    with pytest.raises(EvidenceError, match=r"does not say what the step of trial.report counts"):
        read_runs(study)


def test_a_pruned_trial_needs_the_horizon_of_its_decay() -> None:
    study = optuna.create_study()
    trained(study, pruned=True, horizon=4_000)
    told = {"columns": {"examples": "step"}, "settings": {"learning_rate_schedule": "cosine"}}
    (run,) = read_runs(study, **told)
    assert run.outcome == "stopped"
    assert run.learning_rate_schedule is not None
    assert run.learning_rate_schedule.examples[-1] == 4_000
    trained(study, pruned=True)
    with pytest.raises(EvidenceError, match="run 'trial 1': the run was stopped before its rate had decayed"):
        read_runs(study, **told)


def test_a_study_of_ours_says_itself_how_it_is_read() -> None:
    sampler = TradeoffSampler(goal=ReachLoss(0.5), **OURS, learning_rate_schedule="wsd", horizon="total", seed=0)
    study = optuna.create_study(sampler=sampler)
    study.ask()  # writes the settings
    trained(study, total=1_000)
    (run,) = read_runs(study)
    assert run.curve.examples == tuple(LOSSES)
    assert run.falls == (800, 1_000)


def test_a_budget_is_the_horizon() -> None:
    goal = LowestLoss(800, of="examples")
    study = optuna.create_study(sampler=TradeoffSampler(goal=goal, **OURS, learning_rate_schedule="linear", seed=0))
    study.ask()
    trained(study, pruned=True)
    (run,) = read_runs(study)
    assert run.outcome == "stopped"
    assert run.falls is not None
    assert run.falls[1] == 800


def test_a_file_of_one_study(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with pytest.raises(EvidenceError, match=r"study.db: there is no such file"):
        read_runs(path, columns={"examples": "step"})
    assert not path.exists()
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name="first")
    trained(study)
    assert read_runs(path, columns={"examples": "step"})[0].batch_size == 8
    assert read_runs(f"sqlite:///{path}", columns={"examples": "step"})[0].batch_size == 8
    optuna.create_study(storage=f"sqlite:///{path}", study_name="second")
    with pytest.raises(EvidenceError, match=r"one study is needed and it holds 'first', 'second': give optuna.load_st"):
        read_runs(path, columns={"examples": "step"})
    (tmp_path / "other.db").write_text("no database")
    with pytest.raises(EvidenceError, match="it cannot be opened as an Optuna storage"):
        read_runs(tmp_path / "other.db", columns={"examples": "step"})
