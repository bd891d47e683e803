"""Names of parameters that are not those that the study expects."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from landscape import GOAL, SETTINGS
from optuna.samplers import RandomSampler

from batchopt.search import TradeoffPruner, TradeoffSampler, check
from batchopt.search.naming import likely, names_differ
from batchopt.search.parameters import Log2
from batchopt.search.settings import StudySettings

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.optuna


def warned_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("batchopt")]


def study_of(name: str, **given: Any) -> optuna.Study:
    sampler = TradeoffSampler(**{"goal": GOAL, "batch_size": "batch_size", "learning_rate": "lr", "seed": 0, **given})
    return optuna.create_study(study_name=name, sampler=sampler, pruner=TradeoffPruner())


def run(study: optuna.Study, names: list[str], *, check_before: int = 9, n_trials: int = 3) -> None:
    def objective(trial: optuna.Trial) -> float:
        for place, name in enumerate(names):
            if place == check_before:
                check(trial)
            if "lr" in name or "rate" in name:
                trial.suggest_float(name, 1e-3, 1.0, log=True)
            else:
                trial.suggest_int(name, 8, 64)
        if check_before >= len(names):
            check(trial)
        trial.report(1.0, 1_000)
        trial.should_prune()
        return 3_000.0

    study.optimize(objective, n_trials=n_trials)


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (["bs", "lr"], {"batch_size": "bs"}),
        (["BatchSize", "learning_rate"], {"batch_size": "BatchSize", "lr": "learning_rate"}),
        (["batch_sise", "eta", "momentum"], {"batch_size": "batch_sise", "lr": "eta"}),
        (["log2_bs", "lr"], {"batch_size": "log2_bs"}),
        (["width", "learning_rate_decay"], {}),
        (["batch_size", "bs", "lr"], {}),
    ],
)
def test_what_is_probably_meant(names: list[str], meant: dict[str, str]) -> None:
    assert likely(SETTINGS, names) == meant


def test_one_warning_names_what_is_expected_what_there_is_and_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    run(study_of("wrong name"), ["bs", "lr"])
    (message,) = warned_of(caplog)
    assert message == (
        "Study wrong name: the study expects the parameters 'batch_size' and 'lr', but its trials have 'bs', 'lr', so "
        "the law neither proposes nor judges them. 'bs' is probably the batch size: suggest 'batch_size' in its place, "
        "or start another study with batch_size='bs'."
    )


def test_names_that_are_like_none_are_told_when_a_trial_has_trained(caplog: pytest.LogCaptureFixture) -> None:
    run(study_of("like none"), ["width", "rate"], n_trials=1)
    (message,) = warned_of(caplog)
    assert "'rate' is probably the learning rate" in message
    caplog.clear()
    study = optuna.create_study(study_name="unlike", sampler=RandomSampler(seed=0))
    for _ in range(3):
        trial = study.ask()
        trial.suggest_int("width", 8, 64)
        check(trial, goal=GOAL, batch_size="batch_size", learning_rate="lr")
        assert len(warned_of(caplog)) == min(trial.number, 1)
        study.tell(trial, 3.0)
    assert "under the names that the study expects, or start another study" in warned_of(caplog)[0]


def test_a_check_that_comes_too_early_is_told_so_once(caplog: pytest.LogCaptureFixture) -> None:
    run(study_of("early"), ["batch_size", "lr"], check_before=1)
    (message,) = warned_of(caplog)
    assert message.endswith("and the trial has suggested 'batch_size'. Call check after both were suggested.")


def test_what_later_trials_have_tells_an_early_check_from_another_name(caplog: pytest.LogCaptureFixture) -> None:
    run(study_of("early beside another"), ["momentum", "batch_size", "lr"], check_before=1, n_trials=1)
    assert warned_of(caplog) == []
    run(study_of("early beside another, again"), ["momentum", "batch_size", "lr"], check_before=1, n_trials=3)
    (message,) = warned_of(caplog)
    assert "trial 1: " in message
    assert message.endswith("Call check after both were suggested.")


def test_the_pruner_alone_tells_of_other_names(caplog: pytest.LogCaptureFixture) -> None:
    pruner = TradeoffPruner(goal=GOAL, batch_size="batch_size", learning_rate="lr")
    study = optuna.create_study(study_name="pruner alone", sampler=RandomSampler(seed=0), pruner=pruner)
    for _ in range(2):
        trial = study.ask()
        trial.suggest_int("batch", 8, 64)
        trial.report(1.0, 100)
        assert not trial.should_prune()
    (message,) = warned_of(caplog)
    assert "'batch' is probably the batch size" in message


def test_the_remedy_keeps_an_exponent() -> None:
    settings = StudySettings(GOAL, Log2("k").name, True, "lr")
    assert names_differ(settings, ["bs", "learning_rate"]).endswith(
        "suggest 'k', 'lr' in its place, or start another study with batch_size=Log2('bs') and "
        "learning_rate='learning_rate'."
    )
    assert "batch_size='log2_bs'" in names_differ(settings, ["log2_bs", "lr"])
