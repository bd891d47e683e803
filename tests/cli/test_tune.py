"""What a trial of `batchopt tune` trains, and what it returns."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from forecasting.known_law import known_forecast
from torch import nn

from batchopt.cli.console import Console
from batchopt.cli.study import Search, objective, run_study
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.probing.task import TrainingTask
from batchopt.search.settings import Given, find, remember
from batchopt.step_cost import StepCost

pytestmark = pytest.mark.optuna
PRICE = StepCost(10.0, 1.0, unit="$")
HORIZON, SIZE = 3_200, 8


def task_of(**given: Any) -> TrainingTask:
    x = torch.linspace(-1, 1, 64)[:, None]
    return TrainingTask(
        model=lambda: nn.Linear(1, 1),
        data=(x, 2 * x[:, 0] + 1 + 0.1 * torch.sin(50 * x[:, 0])),
        loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
        **given,
    )


def search_for(goal: ReachLoss | LowestLoss, **given: Any) -> Search:
    plan: Any = SimpleNamespace(goal=goal, price=PRICE)
    return Search(plan, (SIZE, SIZE), (0.1, 0.2), max_examples=HORIZON, trials=1, **given)


def tried(task: TrainingTask, loss: float) -> optuna.trial.FrozenTrial:
    """One trial towards a loss."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=optuna.pruners.NopPruner())
    search = search_for(ReachLoss(loss, least=PRICE))

    def unchecked(trial: optuna.Trial) -> float:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("batchopt.cli.study.check", lambda trial: None)
            return objective(trial, task, search)

    study.optimize(unchecked, n_trials=1)
    return study.trials[0]


def test_a_decaying_trial_costs_its_horizon_and_another_its_crossing() -> None:
    whole = PRICE.of_run(batch_size=SIZE, steps=HORIZON / SIZE)
    decaying, constant = tried(task_of(learning_rate_schedule="linear"), 0.3), tried(task_of(), 0.3)
    assert decaying.value == pytest.approx(whole)
    assert decaying.last_step == HORIZON
    assert constant.value is not None
    assert constant.value < 0.5 * whole


def test_a_decaying_trial_that_ends_above_the_loss_is_pruned() -> None:
    trial = tried(task_of(learning_rate_schedule="linear"), 1e-4)
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.last_step == HORIZON


@pytest.mark.parametrize(("shape", "horizon"), [("wsd", HORIZON), ("constant", None), (None, None)])
def test_the_study_is_told_of_the_tasks_own_decay(shape: Any, horizon: int | None, tmp_path: Any) -> None:
    search = search_for(ReachLoss(0.3, least=PRICE))
    forecast = replace(known_forecast(), warmup_examples=160)
    console, file = Console(as_json=True), str(tmp_path / "study.db")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(optuna.Study, "optimize", lambda study, *_, **__: remember(study, study.sampler._given))
        study = run_study(task_of(learning_rate_schedule=shape), forecast, search, console, study=file)
    decay = find(study, Given()).settings.decay
    assert (None if decay is None else decay.schedule) == (shape if horizon else None)
    assert (None if decay is None else decay.horizon) == horizon
    assert decay is None or decay.warmup_examples == 0, "the task's own, not the probe's"
