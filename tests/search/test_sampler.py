"""The sampler's contract with Optuna: its own suites, and what they leave out."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from landscape import BEST, GOAL, LAW, LOSS, NAMES, PRICE, Objective, forecast_of, steps_needed
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase, RelativeSamplerTestCase
from optuna.trial import TrialState

from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import ReachLoss
from batchopt.search import Log2, TradeoffPruner, TradeoffSampler
from batchopt.search.observations import MEMORY_CONSTRAINT

FORECAST = forecast_of(LAW)
optuna.logging.set_verbosity(optuna.logging.WARNING)


def sampler_of(forecast: Forecast | None = FORECAST, *, seed: int | None = 0, **given: object) -> TradeoffSampler:
    return TradeoffSampler(forecast, seed=seed, **{"goal": GOAL, **NAMES, **given})  # type: ignore[arg-type]


class TestSuiteWithTPE(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: sampler_of(base=TPESampler(n_startup_trials=0, seed=0))


class TestSuiteWithoutSeedOrForecast(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: sampler_of(None, seed=None)


class TestSuiteOverOtherBase(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: sampler_of(base=RandomSampler(seed=1))


def cost(params: dict[str, float]) -> float:
    return steps_needed(params["batch_size"], params["lr"]) * PRICE(params["batch_size"])


def suggested(study: optuna.Study, n: int = 4) -> list[dict[str, float]]:
    study.optimize(Objective(report=False, use_check=False), n_trials=n)
    return [trial.params for trial in study.trials]


def test_the_first_trial_is_already_by_the_forecast() -> None:
    costs = [cost(suggested(optuna.create_study(sampler=sampler_of(seed=seed)), 1)[0]) for seed in range(6)]
    assert sorted(costs)[3] < 1.5 * BEST


def test_the_order_of_suggestions_does_not_matter() -> None:
    study = optuna.create_study(sampler=sampler_of())
    costs = []
    for _ in range(6):
        trial = study.ask()
        trial.suggest_float("lr", 1e-4, 10.0, log=True)
        trial.suggest_int("batch_size", 8, 2048, log=True)
        costs.append(cost(trial.params))
        study.tell(trial, state=TrialState.FAIL)
    assert sorted(costs)[3] < 1.5 * BEST


def test_the_same_seed_gives_the_same_trials() -> None:
    runs = [suggested(optuna.create_study(sampler=sampler_of(seed=seed)), 5) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_no_seed_and_a_reseed_differ() -> None:
    first, second = (suggested(optuna.create_study(sampler=sampler_of(seed=None)), 2) for _ in range(2))
    assert first != second
    sampler = sampler_of(seed=3)
    sampler.reseed_rng()
    assert suggested(optuna.create_study(sampler=sampler), 2) != suggested(
        optuna.create_study(sampler=sampler_of(seed=3)), 2
    )


def test_another_process_gives_the_same_trials() -> None:
    """Nothing depends on hashes of strings, which differ by process."""
    script = (
        "import optuna; from search.test_sampler import sampler_of, suggested\n"
        "print(suggested(optuna.create_study(sampler=sampler_of(seed=5)), 3))"
    )
    tests = Path(__file__).parents[1]
    path = f"{tests}:{tests.parent}"
    other = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": path, "PYTHONHASHSEED": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout == f"{suggested(optuna.create_study(sampler=sampler_of(seed=5)), 3)}\n"


def test_it_pickles_in_mid_study() -> None:
    study = optuna.create_study(sampler=sampler_of(seed=3))
    suggested(study, 2)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    assert suggested(study, 3) == suggested(optuna.create_study(sampler=sampler_of(seed=3)), 5)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_workers_share_what_the_study_holds(kind: str, tmp_path: Path) -> None:
    def storage() -> str | JournalStorage:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/study.db"
        return JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))

    first = optuna.create_study(storage=storage(), study_name="s", sampler=sampler_of(), pruner=TradeoffPruner())
    first.optimize(Objective(every=4), n_trials=2)
    second = optuna.load_study(storage=storage(), study_name="s", sampler=sampler_of(None), pruner=TradeoffPruner())
    second.optimize(Objective(every=4), n_trials=1)
    assert [trial.state.is_finished() for trial in second.trials] == [True] * 3
    assert min(cost(trial.params) for trial in second.trials) < 1.5 * BEST
    assert all("batchopt:decision" in trial.user_attrs for trial in second.trials)


def test_two_threads() -> None:
    study = optuna.create_study(sampler=sampler_of(), pruner=TradeoffPruner())
    study.optimize(Objective(every=4), n_trials=8, n_jobs=2)
    assert len(study.trials) == 8
    assert all(trial.state.is_finished() for trial in study.trials)
    assert len({(trial.params["batch_size"], trial.params["lr"]) for trial in study.trials}) == 8
    assert study.best_value < 1.5 * BEST


def test_under_hyperband() -> None:
    study = optuna.create_study(sampler=sampler_of(), pruner=HyperbandPruner(min_resource=64, max_resource=100_000))
    study.optimize(Objective(every=4), n_trials=6)
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_an_enqueued_batch_size_is_met_by_its_learning_rate() -> None:
    study = optuna.create_study(sampler=sampler_of())
    suggested(study, 1)
    for _ in range(5):
        study.enqueue_trial({"batch_size": 8})
    rates = sorted(params["lr"] for params in suggested(study, 5)[1:])
    best = LAW.best_steps([8.0], LOSS)[1][0, 0]
    assert 0.5 < rates[2] / best < 2.0


def test_beside_a_fixed_parameter() -> None:
    study = optuna.create_study(sampler=sampler_of())
    suggested(study, 1)
    study.sampler = PartialFixedSampler({"batch_size": 8}, study.sampler)
    params = suggested(study, 5)[1:]
    assert {p["batch_size"] for p in params} == {8}
    best = LAW.best_steps([8.0], LOSS)[1][0, 0]
    assert 0.5 < sorted(p["lr"] for p in params)[2] / best < 2.0


def test_ask_and_tell_with_fixed_distributions() -> None:
    study = optuna.create_study(sampler=sampler_of())
    space = {
        "batch_size": CategoricalDistribution([16, 64, 256]),
        "lr": FloatDistribution(1e-3, 1.0, log=True),
        "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
    }
    for _ in range(6):
        trial = study.ask(space)
        assert set(trial.params) == set(space)
        assert type(trial.params["lr"]) is float
        assert type(trial.params["batch_size"]) is int
        study.tell(trial, cost(trial.params))
    assert study.best_value < 1.3 * BEST


@pytest.mark.parametrize(("name", "parameter"), [("log2_batch", "log2_batch"), ("k", Log2("k"))])
def test_exponents(name: str, parameter: str | Log2) -> None:
    study = optuna.create_study(sampler=sampler_of(batch_size=parameter))
    for _ in range(5):
        trial = study.ask({name: IntDistribution(3, 11), "lr": FloatDistribution(1e-4, 10.0, log=True)})
        study.tell(trial, cost({"batch_size": 2 ** trial.params[name], "lr": trial.params["lr"]}))
    assert study.best_value < 1.5 * BEST


def test_ranges_that_change() -> None:
    study = optuna.create_study(sampler=sampler_of())
    for low, high in ((8, 2048), (512, 1024), (8, 16)):
        for _ in range(2):
            trial = study.ask()
            size = trial.suggest_int("batch_size", low, high, log=True)
            rate = trial.suggest_float("lr", 1e-3, 1.0, log=True)
            assert low <= size <= high
            study.tell(trial, cost({"batch_size": size, "lr": rate}))


def test_memory_is_kept_with_a_law_and_without() -> None:
    limited = forecast_of(LAW, step_cost=replace(PRICE, largest_batch_size=32))
    study = optuna.create_study(sampler=sampler_of(limited))
    assert max(params["batch_size"] for params in suggested(study, 5)) <= 32
    study = optuna.create_study(sampler=sampler_of(None))
    trial = study.ask()
    trial.suggest_int("batch_size", 64, 64)
    trial.suggest_float("lr", 0.1, 0.1)
    trial.set_constraint(MEMORY_CONSTRAINT, 1.0)
    study.tell(trial, state=TrialState.PRUNED)
    for _ in range(12):
        trial = study.ask()
        assert trial.suggest_int("batch_size", 8, 2048) < 64
        study.tell(trial, state=TrialState.FAIL)


def test_other_parameters_are_the_base_samplers() -> None:
    """The base sees the space without batch size and learning rate, and every hook is passed on."""
    calls: list[str] = []

    class Marked(RandomSampler):
        def infer_relative_search_space(self, study: object, trial: object) -> dict[str, BaseDistribution]:
            return {**space, "batch_size": IntDistribution(8, 2048, log=True)}

        def sample_relative(
            self, study: object, trial: object, search_space: dict[str, BaseDistribution]
        ) -> dict[str, float]:
            calls.append(",".join(search_space))
            return {name: 0.25 for name in search_space if name == "weight_decay"}

        def reseed_rng(self) -> None:
            calls.append("reseed")

        def before_trial(self, study: object, trial: object) -> None:
            calls.append("before")

        def after_trial(self, study: object, trial: object, state: object, values: object) -> None:
            calls.append("after")

    space = {"weight_decay": FloatDistribution(0.0, 1.0)}
    study = optuna.create_study(sampler=sampler_of(base=Marked()))
    suggested(study, 1)
    calls.clear()
    whole = {"batch_size": IntDistribution(8, 2048, log=True), "lr": FloatDistribution(1e-4, 10.0, log=True), **space}
    trial = study.ask(whole)
    study.tell(trial, cost(trial.params))
    study.sampler.reseed_rng()
    assert calls == ["before", "weight_decay", "after", "reseed"]
    assert trial.params["weight_decay"] == 0.25


def test_two_objectives() -> None:
    goal = ReachLoss(LOSS, least=("steps", "examples"))
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler_of(goal=goal))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        size = trial.suggest_int("batch_size", 8, 2048, log=True)
        steps = steps_needed(size, trial.suggest_float("lr", 1e-3, 10.0, log=True))
        return steps, steps * size

    study.optimize(objective, n_trials=12)
    assert len({trial.params["batch_size"] for trial in study.best_trials}) >= 4


def test_the_objective_is_told_once_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="batchopt.search"):
        suggested(optuna.create_study(sampler=sampler_of(), study_name="told"), 3)
    lines = [record.getMessage() for record in caplog.records if "reads the objective" in record.getMessage()]
    assert lines == [
        "Study told: batchopt reads the objective as the cost (example times) to reach loss 0.9, minimised."
    ]


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"goal must be one of batchopt\.ReachLoss"):
        sampler_of(goal="seconds")
    with pytest.raises(TypeError, match="base must be an Optuna sampler or None"):
        sampler_of(base="tpe")
    with pytest.raises(TypeError, match="goal, batch_size and learning_rate must be given"):
        sampler_of(goal=None)
