"""What a sampler and a pruner owe to every study: storages, bases, both lines of Optuna."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from landscape import BEST, GOAL, LAW, NAMES, Objective, forecast_of
from optuna.samplers import BruteForceSampler, GridSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from batchopt.search import TradeoffPruner, TradeoffSampler, check
from batchopt.search.judgement import CHANCE, DECISION_KEY, ENDED_KEY, PROPOSAL_KEY

optuna.logging.set_verbosity(optuna.logging.WARNING)
HAS_CONSTRAINTS = hasattr(optuna.Trial, "set_constraint")


def sampler_of(**given: Any) -> TradeoffSampler:
    return TradeoffSampler(**{"forecast": forecast_of(LAW), "goal": GOAL, "seed": 0, **NAMES, **given})


def ran(storage: Any, n: int = 3) -> optuna.Study:
    study = optuna.create_study(
        study_name="one", storage=storage, sampler=sampler_of(), pruner=TradeoffPruner(), load_if_exists=True
    )  # fmt: skip
    study.optimize(Objective(every=4), n_trials=n)
    return study


def told(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.state.name, t.params, t.value, t.user_attrs) for t in study.trials]


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    """In memory, and only read."""
    return ran(None, 9)


@pytest.fixture(scope="module")
def expected(study: optuna.Study) -> list[tuple[Any, ...]]:
    """The first three trials, of which one at least ended early."""
    assert any(ENDED_KEY in trial.user_attrs for trial in study.trials[:3])
    return told(study)[:3]


def _sqlite(folder: Path) -> Any:
    return optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")


def _journal(folder: Path) -> Any:
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "journal.log")))


def _redis(folder: Path) -> Any:
    fakeredis = pytest.importorskip("fakeredis")
    pytest.importorskip("lupa")
    backend = optuna.storages.journal.JournalRedisBackend("redis://localhost")
    backend._redis = fakeredis.FakeStrictRedis()
    return optuna.storages.JournalStorage(backend)


@pytest.mark.parametrize("make", [_sqlite, _journal, _redis], ids=["sqlite", "journal", "journal redis"])
@pytest.mark.optuna
def test_every_storage_sees_the_same_decisions(make: Any, tmp_path: Path, expected: list[tuple[Any, ...]]) -> None:
    assert told(ran(make(tmp_path))) == expected


@pytest.mark.optuna
def test_a_url_is_cached_and_sees_the_same(tmp_path: Path, expected: list[tuple[Any, ...]]) -> None:
    assert told(ran(f"sqlite:///{tmp_path / 'cached.db'}")) == expected


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Any]:
    """A gRPC proxy in front of an SQLite file."""
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("google.protobuf")
    from concurrent.futures import ThreadPoolExecutor

    from optuna.storages._grpc.auto_generated import api_pb2_grpc
    from optuna.storages._grpc.servicer import OptunaStorageProxyService

    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    api_pb2_grpc.add_StorageServiceServicer_to_server(OptunaStorageProxyService(_sqlite(tmp_path)), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    storage = optuna.storages.GrpcStorageProxy(host="localhost", port=port)
    storage.wait_server_ready(timeout=30)
    yield storage
    storage.close()
    server.stop(0)


@pytest.mark.optuna
def test_behind_a_proxy_it_sees_the_same(proxy: Any, expected: list[tuple[Any, ...]]) -> None:
    assert told(ran(proxy)) == expected


@pytest.mark.optuna
def test_attributes_are_small_ours_and_json(study: optuna.Study) -> None:
    for holder in (study, *study.trials):
        for key, value in holder.user_attrs.items():
            assert key.startswith("batchopt:")
            assert len(json.dumps(value)) < 2_045
    assert any(f"% {CHANCE}, for " in trial.user_attrs.get(PROPOSAL_KEY, "") for trial in study.trials)
    assert all(trial.user_attrs.keys() <= {PROPOSAL_KEY, DECISION_KEY, ENDED_KEY} for trial in study.trials)


@pytest.mark.optuna
def test_it_goes_on_with_what_another_process_left(tmp_path: Path, study: optuna.Study) -> None:
    ran(f"sqlite:///{tmp_path / 'study.db'}", 2)
    assert told(ran(f"sqlite:///{tmp_path / 'study.db'}", 3)) == told(study)[:5]


@pytest.mark.parametrize("base", [TPESampler(seed=0), RandomSampler(seed=0), QMCSampler(seed=0)])
def test_bases_propose_what_only_some_trials_have(base: optuna.samplers.BaseSampler) -> None:
    study = optuna.create_study(sampler=sampler_of(base=base), pruner=TradeoffPruner())
    inner = Objective(every=4)

    def objective(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("kind", ["plain", "rich"]) == "rich":
            trial.suggest_float("richness", 0.0, 1.0)
        return inner(trial)

    study.optimize(objective, n_trials=7)
    values = [t.value for t in study.trials if t.state == TrialState.COMPLETE]
    assert min(v for v in values if v is not None) < 1.3 * BEST
    assert any("richness" in t.params for t in study.trials)


def test_a_gaussian_process_as_base() -> None:
    pytest.importorskip("greenlet")
    study = optuna.create_study(sampler=sampler_of(base=optuna.samplers.GPSampler(seed=0)), pruner=TradeoffPruner())
    study.optimize(Objective(every=4), n_trials=4)
    assert not study.get_trials(states=(TrialState.FAIL, TrialState.RUNNING))


@pytest.mark.optuna
def test_bases_that_run_through_a_list_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="base must not be a GridSampler, which runs through a list of its own"):
        sampler_of(base=GridSampler({"lr": [0.1]}))
    with pytest.raises(ValueError, match="base must not be a BruteForceSampler"):
        sampler_of(base=BruteForceSampler())


@pytest.mark.optuna
def test_nothing_is_left_running_and_nothing_fails(study: optuna.Study) -> None:
    assert {t.state for t in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.optuna
def test_constraints_are_on_every_trial_or_on_none(study: optuna.Study) -> None:
    having = [bool(getattr(t, "constraints", {})) for t in study.trials]
    assert set(having) == {HAS_CONSTRAINTS}


@pytest.mark.optuna
def test_reports_that_go_back_and_are_not_finite() -> None:
    """Optuna warns of a step that was reported before; a loss that is not finite ends the trial; the study goes on."""
    study = optuna.create_study(sampler=sampler_of(), pruner=TradeoffPruner())
    sizes = optuna.distributions.IntDistribution(8, 2048, log=True)
    trial = study.ask({"batch_size": sizes, "lr": optuna.distributions.FloatDistribution(1e-4, 10.0, log=True)})
    check(trial)
    for step, loss in ((640, 2.0), (320, 2.1), (640, 1.9), (6_400, float("nan"))):
        trial.report(loss, step)
    assert trial.should_prune()
    study.tell(trial, state=TrialState.PRUNED)
    study.optimize(Objective(every=4), n_trials=3)
    assert not study.get_trials(states=(TrialState.FAIL,))
