"""Studies whose trials report and return a metric: read as losses, they go as a study of those losses does."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landscape import BEST, LAW, NAMES, PRICE, forecast_of, losses_of, steps_needed
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from batchopt.errors import EvidenceError, UnreachableGoalError
from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.metric_curve import fit_metric_curves
from batchopt.planning.goal import BestMetric, Goal, LowestLoss, ReachLoss, ReachMetric
from batchopt.runs.read import read_runs
from batchopt.search import TradeoffPruner, TradeoffSampler, check, explain, milestones
from batchopt.search.metric_reading import MetricReading
from batchopt.search.settings import Given, StudySettings, find
from batchopt.visualization.trials import study_data

optuna.logging.set_verbosity(optuna.logging.WARNING)
BUDGET = LowestLoss(within=1.5 * BEST, of=PRICE)
METRIC = BestMetric("accuracy", BUDGET.within, PRICE)
REACHED = 0.8
ERROR = MetricReading(METRIC, rises=True)
SPACE = {"batch_size": IntDistribution(8, 2048, log=True), "lr": FloatDistribution(1e-4, 10.0, log=True)}


def accuracy_at(loss: float) -> float:
    """Nine tenths of it are wrong at the initial loss."""
    return 1.0 - 0.25 * loss


def _forecast() -> Forecast:
    losses = np.geomspace(0.3, 3.0, 12)
    curve = LossCurve(
        tuple(range(100, 1300, 100)),
        tuple(map(float, losses[::-1])),
        metrics={"accuracy": tuple(accuracy_at(loss) for loss in losses[::-1])},
    )
    run = Branch(batch_size=8, learning_rate=0.1, curve=curve, outcome="finished", seed=0)
    return replace(forecast_of(LAW), metrics=fit_metric_curves([run], 1_000_000), population=1_000)


FORECAST = _forecast()
CURVE = MetricReading.of_curve(METRIC, FORECAST.metrics[0])


def study_of(goal: Goal, *, direction: str = "minimize", pruner: bool = True, **given: Any) -> optuna.Study:
    sampler = TradeoffSampler(goal=goal, seed=0, **{**NAMES, **given})
    return optuna.create_study(sampler=sampler, pruner=TradeoffPruner() if pruner else None, direction=direction)


def objective(told: Callable[[float], float]) -> Callable[[optuna.Trial], float]:
    """Trains to the end of the budget; `told` is what it reports and returns of a loss between 0 and 1."""

    def trained(trial: optuna.Trial) -> float:
        size = trial.suggest_int("batch_size", 8, 2048, log=True)
        rate = trial.suggest_float("lr", 1e-4, 10.0, log=True)
        check(trial)
        examples = math.floor(BUDGET.within / PRICE(size)) * size
        points = [n for n in milestones(examples) if size <= n < examples][2::3]
        for n, loss in zip(points, losses_of(size, rate, points, trial.number), strict=True):
            trial.report(told(loss), n)
            if trial.should_prune():
                raise optuna.TrialPruned
        return told(losses_of(size, rate, [examples], trial.number)[0])

    return trained


def of(study: optuna.Study) -> list[tuple[dict[str, Any], TrialState, int]]:
    return [(trial.params, trial.state, len(trial.intermediate_values)) for trial in study.trials]


@given(st.floats(-5.0, 1.0), st.floats(-5.0, 1.0), st.sampled_from([ERROR, CURVE]))
def test_better_values_are_lower_losses(one: float, other: float, reading: MetricReading) -> None:
    losses = reading.loss_of(one), reading.loss_of(other)
    assert min(losses) > 0
    assert losses[0] < losses[1] or one < other + 1e-9
    assert reading.value_at(reading.loss_of(one)) == pytest.approx(one, abs=1e-9)


def test_without_a_forecast_an_accuracy_is_an_error() -> None:
    assert ERROR.loss_of(0.9) == pytest.approx(0.1, rel=0.01)
    assert ERROR.loss_of(1.0) == pytest.approx(0.5 / 1001)
    assert MetricReading(METRIC, rises=False).loss_of(0.25) == 0.25
    assert math.isinf(ERROR.loss_of(math.nan))
    assert math.isinf(CURVE.loss_of(math.inf))


def test_by_a_forecast_an_accuracy_is_the_loss_that_goes_with_it() -> None:
    for loss in (0.4, 1.0, 2.0):
        assert CURVE.loss_of(accuracy_at(loss)) == pytest.approx(loss, rel=0.02)
    assert 3.5 < CURVE.loss_of(0.1) < CURVE.loss_of(0.0) < 4.5, "beyond 3.0, the highest that was evaluated"
    error = replace(FORECAST.metrics[0], scale="to zero", rises=False)
    falling = MetricReading.of_curve(replace(METRIC, metric="error"), error)
    assert falling.loss_of(1.0 - accuracy_at(1.0)) == pytest.approx(1.0, rel=0.02)


def test_values_beyond_what_was_evaluated_keep_their_order_and_are_told_as_they_are() -> None:
    losses = np.geomspace(0.3, 1.0, 6)
    told = LossCurve(tuple(range(100, 700, 100)), tuple(map(float, losses[::-1])))
    told = replace(told, metrics={"accuracy": tuple(accuracy_at(loss) for loss in told.losses)})
    run = Branch(batch_size=8, learning_rate=0.1, curve=told, outcome="finished", seed=0)
    forecast = replace(FORECAST, metrics=fit_metric_curves([run], 1_000_000))
    reading = MetricReading.of_curve(METRIC, forecast.metrics[0])
    seen = [reading.loss_of(value) for value in (1.0, 0.999, 0.995, 0.74, 0.6, 0.5, 0.05, 0.0)]
    assert all(one < other for one, other in pairwise(seen))
    study = study_of(METRIC, direction="maximize", pruner=False, forecast=forecast)
    for value in (0.5, 0.6, 0.4):
        study.tell(study.ask(SPACE), value)
    assert any(line.startswith("Best: trial 1,") and line.endswith(": accuracy 0.6.") for line in explain(study))


@pytest.mark.parametrize("rises", [True, False])
def test_a_study_of_a_metric_goes_as_one_of_its_errors_does(rises: bool) -> None:
    reading = MetricReading(METRIC, rises)
    by_loss = study_of(BUDGET)
    by_loss.optimize(objective(lambda loss: reading.loss_of(reading.value_at(0.25 * loss))), n_trials=8)
    by_metric = study_of(METRIC, direction=reading.direction)
    by_metric.optimize(objective(lambda loss: reading.value_at(0.25 * loss)), n_trials=8)
    assert of(by_metric) == of(by_loss)
    assert by_metric.best_trial.number == by_loss.best_trial.number
    assert {state for _, state, _ in of(by_metric)} == {TrialState.COMPLETE, TrialState.PRUNED}
    told = explain(by_metric)
    assert told[0].startswith("batchopt reads the objective as the accuracy after")
    assert told[0].endswith("maximised." if rises else "minimised.")
    best = f"accuracy {by_metric.best_value:.4g}."
    assert any(line.startswith(f"Best: trial {by_metric.best_trial.number}") and best in line for line in told)
    data = study_data(by_metric)
    assert (data.quantity, data.minimised) == ("accuracy", not rises)


def test_a_study_that_maximises_begins_with_the_forecast_of_the_loss() -> None:
    study = study_of(METRIC, direction="maximize", forecast=FORECAST)
    study.optimize(objective(accuracy_at), n_trials=4)
    by_loss = study_of(BUDGET, forecast=FORECAST)
    by_loss.optimize(objective(lambda loss: CURVE.loss_of(accuracy_at(loss))), n_trials=4)
    assert of(study) == of(by_loss)
    kept = find(study, Given())
    assert (kept.settings.asked, kept.settings.goal) == (METRIC, BUDGET)
    assert StudySettings.from_json(kept.settings.to_json()) == kept.settings


def test_a_metric_is_reached_at_the_loss_that_goes_with_it() -> None:
    goal = ReachMetric("accuracy", REACHED, least=PRICE)
    loss = CURVE.loss_of(REACHED)

    def reached(told: Callable[[float], float]) -> Callable[[optuna.Trial], float]:
        def trained(trial: optuna.Trial) -> float:
            size = trial.suggest_int("batch_size", 8, 2048, log=True)
            rate = trial.suggest_float("lr", 1e-4, 10.0, log=True)
            check(trial)
            steps = min(steps_needed(size, rate, loss=loss), 20.0 * BEST / PRICE(size))
            points = [n for n in milestones(math.ceil(steps * size)) if size <= n < steps * size][2::3]
            for n, seen in zip(points, losses_of(size, rate, points, trial.number), strict=True):
                trial.report(told(seen), n)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return steps * PRICE(size)

        return trained

    study = study_of(goal, forecast=FORECAST)
    study.optimize(reached(accuracy_at), n_trials=4)
    by_loss = study_of(ReachLoss(loss, least=PRICE), forecast=FORECAST)
    by_loss.optimize(reached(lambda seen: CURVE.loss_of(accuracy_at(seen))), n_trials=4)
    assert of(study) == of(by_loss)
    assert explain(study)[0].endswith("to reach accuracy 0.8, minimised.")


@pytest.mark.parametrize(
    ("goal", "direction", "match"),
    [
        (METRIC, "minimize", r'must maximise, got direction minimize: .*create_study\(direction="maximize"\)'),
        (
            ReachMetric("accuracy", REACHED),
            "maximize",
            r"must minimise, got .*batchopt.BestMetric\('accuracy', within=",
        ),
        (BUDGET, "maximize", r"must minimise, got direction maximize: .*batchopt.BestMetric\('accuracy', within="),
    ],
)
def test_the_wrong_direction_is_refused_after_the_trial(goal: Goal, direction: str, match: str) -> None:
    study = study_of(goal, direction=direction, forecast=FORECAST)
    for _ in range(2):
        trial = study.ask(SPACE)
        with pytest.raises(EvidenceError, match=match):
            study.tell(trial, 0.5)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize(
    ("goal", "direction", "match"),
    [
        (METRIC, "minimize", r'its accuracy rose as it trained, and the study minimises it.*direction="maximize"'),
        (BestMetric("error", 1e6, "examples"), "maximize", r"its error fell as it trained, and the study maximises it"),
        (BUDGET, "minimize", r"rose as it trained, as no loss does.*batchopt.BestMetric"),
    ],
)
def test_without_a_forecast_the_wrong_direction_is_told(
    goal: Goal, direction: str, match: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(goal, direction=direction)
    rise = direction == "minimize"
    for _ in range(3):
        trial = study.ask(SPACE)
        for n, share in ((10_000, 0.2), (20_000, 0.5), (30_000, 0.9)):
            trial.report(share if rise else 1.0 - share, n)
        study.tell(trial, 0.9 if rise else 0.1)
    with caplog.at_level("WARNING", "batchopt"):
        study.ask(SPACE)
    assert len([record for record in caplog.records if re.search(match, record.message)]) == 1


def said_of(goal: Goal, direction: str, curves: list[list[float]], caplog: Any, **given: Any) -> list[str]:
    """What is said of the way that the values of trials with these reports go."""
    study = study_of(goal, direction=direction, pruner=False, **given)
    for values in curves:
        trial = study.ask(SPACE)
        for i, value in enumerate(values):
            trial.report(value, 5_000 * (i + 1))
        study.tell(trial, values[-1])
    with caplog.at_level("WARNING", "batchopt"):
        study.ask(SPACE)
    return [record.message for record in caplog.records if "as it trained" in record.message]


@pytest.mark.parametrize(
    ("name", "direction", "first", "last"),
    [("accuracy", "minimize", 0.80, 0.95), ("error", "maximize", 0.30, 0.10)],
)
def test_a_metric_that_moves_the_wrong_way_a_little_is_told(
    name: str, direction: str, first: float, last: float, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    curves = [[float(last + (first - last) * 0.6**k + 0.002 * rng.normal()) for k in range(6)] for _ in range(8)]
    (told,) = said_of(BestMetric(name, 1e6, "examples"), direction, curves, caplog)
    assert f'direction="{"maximize" if direction == "minimize" else "minimize"}"' in told


@pytest.mark.parametrize(("floor", "worse"), [(0.03, 0.0), (0.03, 0.01), (0.3, 0.1)])
def test_metrics_that_saturate_or_overfit_after_they_improved_are_not_the_wrong_direction(
    floor: float, worse: float, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    curves = [
        [float(1.0 - floor - 0.2 * 0.3**k - worse * k / 9 + 0.005 * rng.normal()) for k in range(10)] for _ in range(12)
    ]
    assert said_of(BestMetric("accuracy", 1e6, "examples"), "maximize", curves, caplog) == []


def test_a_metric_that_gets_worse_in_a_study_with_a_forecast_is_no_reason_to_turn_it_round(
    caplog: pytest.LogCaptureFixture,
) -> None:
    curves = [[0.97, 0.95, 0.92, 0.88]] * 4
    (told,) = said_of(METRIC, "maximize", curves, caplog, forecast=FORECAST)
    assert "got worse as it trained" in told
    assert "smaller budget" in told
    assert "direction" not in told


def test_a_few_rates_that_are_too_high_are_not_the_wrong_direction(caplog: pytest.LogCaptureFixture) -> None:
    study = study_of(BUDGET)
    for last in (0.9, 0.9, 0.1, 0.1, 0.9, 0.1):
        trial = study.ask(SPACE)
        for n, loss in ((10_000, 0.3), (20_000, 0.5 * (0.3 + last)), (30_000, last)):
            trial.report(loss, n)
        study.tell(trial, last)
    study.ask(SPACE)
    assert not any("rose as it trained" in record.message for record in caplog.records)


def test_percent_are_left_out_and_the_remedy_is_told(caplog: pytest.LogCaptureFixture) -> None:
    study = study_of(METRIC, direction="maximize", pruner=False)
    study.optimize(objective(lambda loss: 100.0 * accuracy_at(loss)), n_trials=3)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert any("must not exceed 1, its ceiling, got" in line and "share" in line for line in explain(study))
    assert any("must not exceed 1" in record.message for record in caplog.records)


def test_to_reach_a_metric_needs_a_forecast_from_the_beginning() -> None:
    goal = ReachMetric("accuracy", REACHED)
    rule = r"forecast must be given for ReachMetric.*1 - accuracy"
    with pytest.raises(EvidenceError, match=rule):
        TradeoffSampler(goal=goal, **NAMES)  # type: ignore[arg-type]
    with pytest.raises(EvidenceError, match=rule):
        TradeoffPruner(goal=goal)
    trial = optuna.create_study().ask(SPACE)
    with pytest.raises(EvidenceError, match=rule):
        check(trial, goal=goal, **NAMES)  # type: ignore[arg-type]


def test_a_metric_that_the_forecast_does_not_know_is_refused_at_once() -> None:
    with pytest.raises(EvidenceError, match="no metric 'recall' is known"):
        TradeoffSampler(FORECAST, goal=BestMetric("recall", 1.0), **NAMES)  # type: ignore[arg-type]
    with pytest.raises(UnreachableGoalError, match="must lie below 1"):
        TradeoffSampler(FORECAST, goal=ReachMetric("accuracy", 93.0), **NAMES)  # type: ignore[arg-type]


def test_another_process_reads_all_of_it_from_the_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    sampler = TradeoffSampler(FORECAST, goal=METRIC, seed=0, **NAMES)  # type: ignore[arg-type]
    optuna.create_study(study_name="s", storage=storage, sampler=sampler, direction="maximize").optimize(
        objective(accuracy_at), n_trials=1
    )
    other = optuna.load_study(study_name="s", storage=storage, pruner=TradeoffPruner())
    other.enqueue_trial(other.best_params)
    trial = other.ask(SPACE)
    check(trial)
    check(trial, goal=METRIC)
    with pytest.raises(EvidenceError, match="goal must be the one that the study was started with"):
        check(trial, goal=BUDGET)
    other.tell(trial, 0.5)
    assert find(other, Given()).settings.metric == CURVE


def test_a_value_that_diverges_is_a_loss_that_does() -> None:
    trial = create_trial(state=TrialState.PRUNED, intermediate_values={10: 0.5, 20: math.nan})
    read = ERROR.in_losses(trial)
    assert not math.isfinite(read.intermediate_values[20])
    assert isinstance(read, FrozenTrial)
    assert math.isnan(trial.intermediate_values[20])


def test_a_study_of_a_metric_is_no_evidence_of_losses() -> None:
    study = study_of(METRIC)
    study.optimize(objective(lambda loss: 0.1 * loss), n_trials=1)
    with pytest.raises(EvidenceError, match="runs of a forecast are of losses, and the trials of this study report"):
        read_runs(study)


def test_an_error_of_none_counts_as_an_accuracy_of_one_does(caplog: pytest.LogCaptureFixture) -> None:
    study = study_of(BestMetric("error", 1e6, "examples"), pruner=False)
    for values in ([0.3, 0.2, 0.1], [0.3, 0.1, 0.0], [0.2, 0.1, 0.05]):
        trial = study.ask(SPACE)
        for i, value in enumerate(values):
            trial.report(value, 300_000 * (i + 1))
        study.tell(trial, values[-1])
    lines = explain(study)
    assert any(line.startswith("Best: trial 1,") and line.endswith(": error 0.") for line in lines)
    assert not any("left out" in line for line in lines)
    assert not any("does not count" in record.message for record in caplog.records)


def test_an_error_of_none_is_less_than_any_other_that_its_trial_told() -> None:
    falling = MetricReading(METRIC, rises=False)
    for told in ([0.3, 0.0], [0.3, 1e-4, 0.0], [0.0, 0.0, 0.0]):
        read = falling.in_losses(create_trial(value=told[-1], intermediate_values=dict(enumerate(told, start=10))))
        losses = list(read.intermediate_values.values())
        assert min(losses) > 0
        assert losses[-1] == read.value == min(losses)
        assert losses == pytest.approx(told, abs=6e-4)
    read = falling.in_losses(create_trial(value=0.0, intermediate_values={10: 3.0}))
    assert (read.value, read.intermediate_values) == (0.0, {10: 3.0})


def test_a_metric_that_is_no_error_and_comes_to_zero_is_told_without_words_about_losses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = study_of(BestMetric("distance", 1e6, "examples"), pruner=False)
    trial = study.ask(SPACE)
    trial.report(3.0, 500_000)
    study.tell(trial, 0.0)
    study.ask(SPACE)
    (told,) = [record.message for record in caplog.records if "does not count" in record.message]
    assert "the distance must be positive where it is minimised, got 0" in told
    assert "logarithm" not in told


def test_messages_of_a_study_of_a_metric_name_it() -> None:
    study = study_of(METRIC, direction="maximize")
    trial = study.ask(SPACE)
    check(trial)
    assert "no trial has reported the accuracy three times yet" in trial.user_attrs["batchopt:decision"]
    trial.report(math.nan, 10_000)
    assert trial.should_prune()
    assert "The accuracy is no longer finite." in study.trials[0].user_attrs["batchopt:ended"]
