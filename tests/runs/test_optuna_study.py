"""The trials of studies, of ours and of others."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

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


def test_attributes_are_settings_and_no_points() -> None:
    study = optuna.create_study()
    trained(study, loss=0.1, step=9, value=3.0, best_val_loss=0.5, examples=7, seed=3)
    (run,) = read_runs(study, columns={"examples": "step"})
    assert run.curve.losses == tuple(LOSSES.values())
    assert run.seed == 3


def another(study: optuna.Study, state: optuna.trial.TrialState, last: float, **others: float) -> None:
    """A trial with further parameters."""
    params = {"bs": 8, "lr": 0.1, **others}
    anything = optuna.distributions.FloatDistribution(0.0, 1024.0)
    value = 1.0 if state == optuna.trial.TrialState.COMPLETE else None
    reports = {**LOSSES, 900: last}
    distributions = dict.fromkeys(params, anything)
    made = optuna.trial.create_trial(
        params=params, distributions=distributions, intermediate_values=reports, value=value, state=state
    )
    study.add_trial(made)


def test_trials_that_differ_in_more_than_settings_must_be_picked() -> None:
    study = optuna.create_study()
    for decay in (0.1, 0.2):
        another(study, optuna.trial.TrialState.COMPLETE, 0.5, weight_decay=decay, dropout=0.1)
    with pytest.raises(
        EvidenceError, match=r"the trials differ in 'weight_decay': .* pick trials .* read_runs\(\[trial"
    ):
        read_runs(study, columns={"examples": "step"})
    picked = [trial for trial in study.trials if trial.params["weight_decay"] == 0.1]
    assert len(read_runs(picked, columns={"examples": "step"})) == 1
    with pytest.raises(TypeError, match="must hold FrozenTrials of an Optuna study, got int"):
        read_runs([3], columns={"examples": "step"})  # type: ignore[list-item]
    with pytest.raises(TypeError, match="runs are read from a path, a URL, an Optuna study or its trials, got 3"):
        read_runs(3)  # type: ignore[arg-type]


def test_a_trial_that_failed_in_no_number_has_diverged() -> None:
    study = optuna.create_study()
    another(study, optuna.trial.TrialState.FAIL, float("nan"))
    another(study, optuna.trial.TrialState.FAIL, 0.5)
    assert [run.outcome for run in read_runs(study, columns={"examples": "step"})] == ["diverged"]


def test_a_study_that_maximises_is_refused() -> None:
    study = optuna.create_study(direction="maximize")
    trained(study)
    with pytest.raises(EvidenceError, match="a study of losses must minimise, got direction maximize: report a loss"):
        read_runs(study, columns={"examples": "step"})


def test_a_pruned_trial_needs_the_horizon_of_its_decay() -> None:
    study = optuna.create_study()
    trained(study, pruned=True, horizon_examples=4_000)
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
    path = tmp_path / "a study #1%20.db"
    url = sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()
    with pytest.raises(EvidenceError, match=r"a study #1%20.db: there is no such file"):
        read_runs(path, columns={"examples": "step"})
    assert not path.exists()
    study = optuna.create_study(storage=url, study_name="first")
    with pytest.raises(EvidenceError, match=r"none of 0 trials has reported a loss by trial.report"):
        read_runs(path, columns={"examples": "step"})
    trained(study)
    path.chmod(0o444)
    assert read_runs(path, columns={"examples": "step"})[0].batch_size == 8
    assert read_runs(url, columns={"examples": "step"})[0].batch_size == 8
    path.chmod(0o644)
    optuna.create_study(storage=url, study_name="second")
    with pytest.raises(EvidenceError, match=r"one study is needed and it holds 'first', 'second': give optuna.load_st"):
        read_runs(path, columns={"examples": "step"})
    with pytest.raises(EvidenceError, match=r"there is no such file"):
        read_runs(f"sqlite:///{tmp_path}/none.db", columns={"examples": "step"})
    assert not (tmp_path / "none.db").exists()
    with sqlite3.connect(tmp_path / "mine.sqlite") as mine:
        mine.execute("CREATE TABLE mine (x)")
    before = (tmp_path / "mine.sqlite").read_bytes()
    for place in (tmp_path / "mine.sqlite", f"sqlite:///{tmp_path}/mine.sqlite"):
        with pytest.raises(EvidenceError, match="it holds no table of studies"):
            read_runs(place, columns={"examples": "step"})
    assert (tmp_path / "mine.sqlite").read_bytes() == before
    (tmp_path / "other.db").write_text("no database")
    with pytest.raises(EvidenceError, match="it cannot be opened as an Optuna storage"):
        read_runs(tmp_path / "other.db", columns={"examples": "step"})
