"""Studies whose trials decay: what they are told, and how a trial in the middle of its schedule is judged."""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import optuna
import pytest
from forecasting.known_law import INITIAL_LOSS, known_forecast, known_law, losses_at
from optuna.trial import TrialState

from batchopt.errors import EvidenceError
from batchopt.forecasting.decayed_law import DecayedLaw
from batchopt.forecasting.decaying import DecayingForecast
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search import TradeoffPruner, TradeoffSampler, check, explain, judgement
from batchopt.search.advice import none_completed
from batchopt.search.build import build_surrogate
from batchopt.search.decay import Decay, decay_of
from batchopt.search.judgement import DECISION_KEY, ENDED_KEY, Decision
from batchopt.search.misreading import misread
from batchopt.search.settings import SETTINGS_KEY, Given, StudySettings, find, remember
from batchopt.search.surrogate import Surrogate, Target

pytestmark = pytest.mark.optuna

LAW = known_law()
HORIZON = 32_000
GOAL = LowestLoss(HORIZON, of="examples")
NAMES = {"batch_size": "batch_size", "learning_rate": "lr"}
HOT, MILD, COLD = 0.8, 0.1, 0.02
"""Rates at batch size 16: the first is behind the second until it decays, and ahead at the end; the last is behind."""


def study_of(schedule: str = "wsd", **given: object) -> optuna.Study:
    sampler = TradeoffSampler(
        **{"goal": GOAL, **NAMES, "seed": 0, "learning_rate_schedule": schedule, **given}  # type: ignore[arg-type]
    )
    return optuna.create_study(sampler=sampler, pruner=TradeoffPruner())


def started(study: optuna.Study, size: int, rate: float) -> optuna.Trial:
    study.enqueue_trial({"batch_size": size, "lr": rate})
    trial = study.ask()
    trial.suggest_int("batch_size", 16, 256, log=True)
    trial.suggest_float("lr", 0.005, 3.0, log=True)
    return trial


def milestones(horizon: int, size: int) -> list[int]:
    early = {horizon * 2.0**-k for k in range(7)}
    return sorted({max(size, round(n)) for n in early} | {round(0.75 * horizon), round(0.9 * horizon)})


def curve(size: int, rate: float, horizon: int = HORIZON) -> list[tuple[int, float]]:
    """What a wsd trial of the known law reports, from initialisation on."""
    schedule = Decay("wsd", None).over(horizon)
    points = milestones(horizon, size)
    losses = losses_at(LAW, size, rate, points, schedule)
    return [(0, INITIAL_LOSS), *((n, float(loss)) for n, loss in zip(points, losses, strict=True))]


def play(study: optuna.Study, trial: optuna.Trial, reports: Sequence[tuple[int, float]]) -> float | None:
    """Report until the pruner ends the trial: the share of its schedule then; None where it completes."""
    for n, loss in reports:
        trial.report(loss, n)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return n / reports[-1][0]
    study.tell(trial, reports[-1][1])
    return None


def finish(study: optuna.Study, size: int, rate: float) -> None:
    """A whole trial."""
    trial = started(study, size, rate)
    for n, loss in curve(size, rate):
        trial.report(loss, n)
    study.tell(trial, curve(size, rate)[-1][1])


def test_the_hot_trial_is_behind_before_its_decay_and_ahead_after_it() -> None:
    hot, mild = dict(curve(16, HOT)), dict(curve(16, MILD))
    assert all(hot[n] > 1.3 * mild[n] for n in milestones(HORIZON, 16) if 0.3 * HORIZON < n < 0.8 * HORIZON)
    assert hot[HORIZON] < 0.8 * mild[HORIZON]


def judged(**given: object) -> tuple[optuna.Study, float | None, float | None]:
    """After three whole trials, where the pruner ends the hot one and the cold one, beside another sampler."""
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), pruner=TradeoffPruner(goal=GOAL, **NAMES, **given)  # type: ignore[arg-type]
    )  # fmt: skip
    for size, rate in ((16, MILD), (32, 2 * MILD), (64, 3 * MILD)):
        finish(study, size, rate)
    return study, *(play(study, started(study, 16, rate), curve(16, rate)) for rate in (HOT, COLD))


def test_a_trial_is_not_pruned_for_what_it_has_before_its_decay() -> None:
    study, hot, cold = judged(learning_rate_schedule="wsd")
    assert hot is None
    assert cold is not None
    assert cold < 0.8
    decision = Decision.from_json(study.trials[-1].user_attrs[ENDED_KEY])
    assert decision.decision == "pruned while running"
    assert " predicted at the end: " in decision.reason


def test_it_would_be_where_nobody_told_that_the_rate_decays() -> None:
    _, hot, _ = judged()
    assert hot is not None


def test_running_trials_are_judged_by_their_ends() -> None:
    off = []
    for hot in (0.6, 0.7, HOT):
        study = study_of()
        for rate in (MILD, 4 * MILD):
            finish(study, 16, rate)
        trial = started(study, 16, hot)
        before = [(n, loss) for n, loss in curve(16, hot) if n <= 0.75 * HORIZON]
        for n, loss in before:
            trial.report(loss, n)
        surrogate = build_surrogate(study, find(study, Given()), asking=trial.number)
        assert isinstance(surrogate, Surrogate)
        assert isinstance(surrogate.law, DecayedLaw)
        run = next(o for o in surrogate.observations if o.number == trial.number)
        predicted = math.exp(float(sorted(surrogate.log_scores_of_run(run))[12]))
        assert predicted < 0.6 * before[-1][1]
        off.append(abs(math.log(predicted / curve(16, hot)[-1][1])))
    assert max(off) < math.log(1.3)


def objective(trial: optuna.Trial) -> float:
    size = trial.suggest_int("batch_size", 16, 256, log=True)
    rate = trial.suggest_float("lr", 0.005, 3.0, log=True)
    check(trial)
    reports = curve(size, rate)
    for n, loss in reports:
        trial.report(loss, n)
        if trial.should_prune():
            raise optuna.TrialPruned
    return reports[-1][1]


def test_a_study_of_decaying_trials_comes_near_the_best() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = study_of()
    study.optimize(objective, n_trials=8)
    best = min(curve(size, rate)[-1][1] for size in (16, 32, 64, 128) for rate in (0.1, 0.2, 0.4, 0.8, 1.2, 2.0))
    assert study.best_value < 1.25 * best
    lines = explain(study)
    assert (
        "The learning rate of trials is taken to decay by 'wsd' over the goal's budget, after a warm-up of 5% of that."
        in lines
    )
    assert any("Best: trial" in line for line in lines)


def test_a_forecast_starts_it_and_survives_the_study(tmp_path: object) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=storage, study_name="s")
    remember(study, Given(known_forecast(), GOAL, "batch_size", "lr", "wsd"))
    again = optuna.load_study(storage=storage, study_name="s")
    known = find(again, Given())
    assert isinstance(known.forecast, DecayingForecast)
    assert known.forecast == known_forecast().decaying
    assert all(len(str(value)) < 2_045 for value in again.user_attrs.values())
    assert sum(len(str(value)) for value in again.user_attrs.values()) < 20_000
    surrogate = build_surrogate(again, known)
    assert isinstance(surrogate, Surrogate)
    assert surrogate.informed
    best = surrogate.best_predicted()
    assert best is not None
    assert curve(round(best[0]), best[1])[-1][1] < 1.5 * curve(64, 0.8)[-1][1]


@pytest.mark.parametrize("held", ["parameter", "attribute"])
def test_horizons_may_differ_between_trials(held: str) -> None:
    study = study_of(goal=ReachLoss(0.1, least="examples"), horizon="length")
    for size, rate, horizon in ((64, 0.4, 8_000), (64, 0.8, 32_000), (32, 0.4, 64_000)):
        trial = started(study, size, rate)
        if held == "parameter":
            study.sampler.reseed_rng()
            trial.suggest_int("length", horizon, horizon)
        else:
            trial.set_user_attr("length", horizon)
        reports = curve(size, rate, horizon)
        for n, loss in reports:
            trial.report(loss, n)
        reached = reports[-1][1] <= 0.1
        study.tell(trial, horizon if reached else None, state=TrialState.COMPLETE if reached else TrialState.PRUNED)
    surrogate = build_surrogate(study, find(study, Given()))
    assert isinstance(surrogate, Surrogate)
    assert [o.horizon for o in surrogate.observations] == [8_000, 32_000, 64_000]
    assert surrogate.usual_horizon == pytest.approx((8_000 * 32_000 * 64_000) ** (1 / 3))
    short, long = (surrogate.one(64, 0.8, {}, horizon=horizon) for horizon in (1_000.0, 64_000.0))
    costs = [surrogate.costs(setting, 0.1)[0, 0] for setting in (short, long)]
    assert costs[0] > 1_000 * 2  # too short: it would take a longer one
    assert costs[1] == pytest.approx(64_000, rel=1e-6)  # a trial costs its horizon, though less might do


def of_lengths(*runs: tuple[int, float, int], loss: float = 0.1) -> optuna.Study:
    """A study whose trials (batch size, rate, horizon) hold their horizons in an attribute."""
    study = study_of(goal=ReachLoss(loss, least="examples"), horizon="length")
    for size, rate, horizon in runs:
        trial = started(study, size, rate)
        trial.set_user_attr("length", horizon)
        reports = curve(size, rate, horizon)
        for n, loss_then in reports:
            trial.report(loss_then, n)
        reached = reports[-1][1] <= loss
        study.tell(trial, horizon if reached else None, state=TrialState.COMPLETE if reached else TrialState.PRUNED)
    return study


LENGTHS = ((64, 0.4, 8_000), (64, 0.8, 32_000), (32, 0.4, 64_000))


def test_a_setting_is_weighed_beside_others_with_its_own_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    study = of_lengths(*LENGTHS)
    surrogate = build_surrogate(study, find(study, Given()))
    assert isinstance(surrogate, Surrogate)
    weighed = []
    monkeypatch.setattr(judgement, "prospects_of", lambda _, candidates: weighed.append(candidates))
    judgement._is_worth_a_try(surrogate, surrogate.one(64, 0.8, {}, horizon=1_000.0))
    (both,) = weighed
    assert [len(both.horizons), len(both.batch_sizes)] == [1 + len(surrogate.grid().batch_sizes)] * 2
    assert both.horizons[-1] == 1_000.0
    assert both.horizons[0] == pytest.approx(surrogate.usual_horizon)


def test_a_trial_is_checked_with_the_horizon_that_its_attribute_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "bar_of", lambda surrogate: judgement.Bar(Target(0.1, 32_000.0, 1)))
    study = of_lengths(*LENGTHS)
    predicted = []
    for length in (64_000, 256_000):
        trial = started(study, 64, 0.8)
        trial.set_user_attr("length", length)
        with contextlib.suppress(optuna.TrialPruned):
            check(trial)
        decision = Decision.from_json(study.trials[-1].user_attrs[DECISION_KEY])
        predicted.append(decision.predicted)
        study.tell(trial, state=TrialState.PRUNED)
    assert predicted == pytest.approx([64_000, 256_000], rel=1e-6)
    assert decision.rejected


def test_what_is_said_of_trials_that_do_not_complete() -> None:
    study = of_lengths(*LENGTHS)
    assert none_completed(study, StudySettings(GOAL, "batch_size", False, "lr", Decay("wsd", "length")))[0].endswith(
        "returns its loss at the end of its horizon."
    )
    assert none_completed(study, StudySettings(GOAL, "batch_size", False, "lr", Decay("wsd", None)))[0].endswith(
        "returns its loss at the end of the budget."
    )
    short = of_lengths(*[(64, 0.4, 8_000)] * 3, loss=0.01)
    assert any(line.endswith("may be beyond reach in these ranges, or over these horizons.") for line in explain(short))
    ends = none_completed(study, StudySettings(ReachLoss(0.1), "batch_size", False, "lr", Decay("wsd", "length")))[-1]
    assert ends.endswith("must return the cost of the horizon of a trial that ends there or below.")


def test_a_horizon_beside_a_budget_is_not_taken_for_misread() -> None:
    trial = optuna.trial.create_trial(value=0.1, intermediate_values={10 * HORIZON * n: 0.3 / n for n in (1, 2, 3)})
    assert misread(trial, 64, GOAL) is not None
    assert misread(trial, 64, GOAL, Decay("wsd", None)) is not None
    assert misread(trial, 64, GOAL, Decay("wsd", "length")) is None


def test_what_is_missing_or_contradicts_is_said() -> None:
    with pytest.raises(ValueError, match="horizon must be given where the trials' learning rate decays"):
        TradeoffSampler(goal=ReachLoss(0.1), **NAMES, learning_rate_schedule="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learning_rate_schedule must be one of"):
        TradeoffSampler(goal=GOAL, **NAMES, learning_rate_schedule="step")  # type: ignore[arg-type]
    study = study_of()
    remember(study, study.sampler._given)  # type: ignore[attr-defined]
    with pytest.raises(EvidenceError, match="learning_rate_schedule must be the one that the study was started with"):
        find(study, Given(learning_rate_schedule="cosine"))
    with pytest.raises(EvidenceError, match="horizon must be the one"):
        find(study, Given(horizon=1_000))
    constant = optuna.create_study()
    remember(constant, Given(None, GOAL, "batch_size", "lr"))
    with pytest.raises(EvidenceError, match=r"horizon must be the one .* got 1000, the study holds None"):
        find(constant, Given(horizon=1_000))


def test_a_function_of_progress_is_kept_by_its_values() -> None:
    decay = decay_of(lambda progress: (1.0 - progress) ** 2, None, GOAL, None)
    assert decay is not None
    assert decay.over(1_000)(500) == pytest.approx(0.25, abs=0.01)
    assert decay_of("constant", None, GOAL, None) is None
    assert decay_of(lambda progress: min(1.0, 0.1 + progress), None, GOAL, None) is None


def test_a_horizon_without_a_decay_is_refused() -> None:
    told = r"horizon must be left out .* does not decay, got 1000: say how it decays"
    with pytest.raises(ValueError, match=told):
        decay_of("constant", 1_000, GOAL, None)
    for part in (TradeoffSampler, TradeoffPruner):
        with pytest.raises(ValueError, match=told):
            part(goal=ReachLoss(0.1), **NAMES, horizon=1_000)  # type: ignore[arg-type]
    TradeoffPruner(horizon=1_000)  # the study says how its trials decay


def test_a_function_that_stays_is_a_constant_rate() -> None:
    study = optuna.create_study()
    flat = Given(None, GOAL, "batch_size", "lr", lambda progress: 1.0)
    remember(study, flat)
    assert find(study, flat).settings.decay is None
    assert find(study, Given(learning_rate_schedule="constant")).settings.decay is None
    with pytest.raises(EvidenceError, match="got 'wsd', the study holds 'constant': pass the study's"):
        find(study, Given(learning_rate_schedule="wsd"))


def test_a_message_shows_a_few_values_of_a_function() -> None:
    study = study_of()
    remember(study, study.sampler._given)  # type: ignore[attr-defined]
    told = r"got a function of progress that goes 1, 0\.75, 0\.5, 0\.25, 0, the study holds 'wsd'"
    with pytest.raises(EvidenceError, match=told):
        find(study, Given(learning_rate_schedule=lambda progress: 1.0 - progress))


def test_what_was_given_can_be_replaced() -> None:
    given = Given(None, GOAL, "batch_size", "lr", lambda progress: 1.0 - progress)
    again = replace(given, learning_rate="rate")
    assert again.learning_rate_schedule == given.learning_rate_schedule
    for wrong in ((), (0.0, 0.0), (1.0, -1.0), ("cosine",)):
        with pytest.raises(ValueError, match="learning_rate_schedule must be one of"):
            Given(learning_rate_schedule=wrong)  # type: ignore[arg-type]


def test_trials_are_read_with_the_warm_up_that_they_have() -> None:
    forecast = replace(known_forecast(), warmup_examples=500)
    for given, wanted in (({}, None), ({"forecast": forecast}, 500), ({"forecast": forecast, "warmup_examples": 0}, 0)):
        study = study_of(**given)
        remember(study, study.sampler._given)  # type: ignore[attr-defined]
        decay = find(study, Given()).settings.decay
        assert decay is not None
        assert decay.warmup_examples == wanted
        assert decay.over(HORIZON)(0) == (1.0 if wanted == 0 else 0.0)
        assert decay.over(HORIZON).warmup_examples == (HORIZON // 20 if wanted is None else wanted)
        assert find(study, Given(warmup_examples=wanted)).settings.decay == decay
        with pytest.raises(EvidenceError, match="warmup_examples must be the one that the study was started with"):
            find(study, Given(warmup_examples=700))
    with pytest.raises(ValueError, match="warmup_examples must be"):
        study_of(warmup_examples=-1)
    assert Decay("wsd", 1_000, 0).told.endswith("over 1,000 examples, without a warm-up.")
    assert Decay("wsd", 1_000, 50).told.endswith("after a warm-up of 50 examples.")


def test_a_sampler_that_was_given_a_function_goes_to_other_processes() -> None:
    sampler = TradeoffSampler(goal=GOAL, **NAMES, learning_rate_schedule=lambda progress: 1.0 - progress)  # type: ignore[arg-type]
    study = optuna.create_study()
    remember(study, pickle.loads(pickle.dumps(sampler))._given)
    decay = find(study, Given()).settings.decay
    assert decay is not None
    assert decay.over(1_000)(250) == pytest.approx(0.75, abs=0.01)


def test_a_horizon_is_looked_up_in_the_trial() -> None:
    decay = Decay("cosine", "epochs")
    assert decay.held_by({"epochs": 500}, {}) == 500
    assert decay.held_by({}, {"epochs": 500.0}) == 500
    assert decay.held_by({}, {"epochs": "many"}) is None
    assert decay.held_by({}, {}) is None
    assert Decay("cosine", 700).held_by({}, {}) == 700


def test_settings_of_the_earlier_version_are_read_as_constant() -> None:
    settings = StudySettings(GOAL, "batch_size", False, "lr")
    older = (
        settings.to_json()
        .replace("batchopt.study/3", "batchopt.study/1")
        .replace(', "decay": null, "metric": null', "")
    )
    assert '"decay"' not in older
    study = optuna.create_study()
    study.set_user_attr(SETTINGS_KEY, older)
    assert find(study, Given()).settings == settings
