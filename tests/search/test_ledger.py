"""A study is read once, and read right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from landscape import SETTINGS
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from batchopt.search.ledger import EVERY_TRIAL_UNTIL, seen_in
from batchopt.search.observations import MEMORY_CONSTRAINT, MOST_CURVES, diverged, rank

RANGES = {"batch_size": IntDistribution(1, 4096), "lr": FloatDistribution(1e-6, 10.0)}


def trial(
    size: int = 64,
    rate: float = 0.1,
    *,
    value: float | None = None,
    reports: dict[int, float] | None = None,
    constraints: dict[str, float] | None = None,
    others: dict[str, float] | None = None,
) -> FrozenTrial:
    others = others or {}
    return create_trial(
        state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
        value=value,
        params={"batch_size": size, "lr": rate, **others},
        distributions={**RANGES, **{name: FloatDistribution(0.0, 1.0) for name in others}},
        intermediate_values=reports or {},
        constraints=constraints,
    )


def numbers(seen: Any) -> list[int]:
    return [observation.number for observation in seen]


def test_the_best_and_the_longest_stay_and_the_diverged() -> None:
    study = optuna.create_study()
    study.add_trials([trial(value=1_000.0 + i, reports={100: 1.0}) for i in range(100)])
    study.add_trials([trial(reports={10_000 - i: 1.0}) for i in range(100)])
    study.add_trial(trial(rate=3.0, reports={10: math.inf}))
    told = set(numbers(seen_in(study, SETTINGS).told))
    assert {0, 1, 2, 100, 101, 102, 200} <= told
    assert 99 not in told
    assert len(numbers(seen_in(study, SETTINGS).fitted)) <= MOST_CURVES + 1


def slow(study: optuna.Study, until: float = math.inf) -> list[int]:
    """The twin: all trials are read and sorted anew."""
    having = [t for t in study.get_trials() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    having = [t for t in having if t.number < until and {"batch_size", "lr"} <= t.params.keys()]
    best = sorted(having, key=lambda t: (rank(t), t.number))
    longest = sorted(having, key=lambda t: (-(t.last_step or 0), t.number))
    chosen: list[int] = []
    for pair in zip(best, longest, strict=True):
        for candidate in pair:
            if candidate.number not in chosen and len(chosen) < MOST_CURVES:
                chosen.append(candidate.number)
    return sorted({*chosen, *[t.number for t in having if diverged(t)][-MOST_CURVES:]})


def test_a_study_that_grows_is_read_as_if_anew() -> None:
    rng = np.random.default_rng(3)
    study = optuna.create_study()
    for count in range(150):
        loss = math.inf if rng.uniform() < 0.1 else 1.0
        kind = int(rng.integers(4))
        if kind == 0:
            study.add_trial(trial(value=float(rng.integers(5, 9)), reports={int(rng.integers(1, 9)): loss}))
        elif kind == 1:
            study.add_trial(create_trial(state=TrialState.FAIL))
        elif kind == 2:
            study.add_trial(create_trial(state=TrialState.PRUNED, params={}, distributions={}))
        else:
            study.add_trial(trial(reports={int(rng.integers(1, 9)): loss}))
        seen = seen_in(study, SETTINGS)
        having = [t.number for t in study.get_trials() if t.params and t.state != TrialState.FAIL]
        assert seen.count == len(having)
        if seen.count <= EVERY_TRIAL_UNTIL:
            assert numbers(seen.told) == numbers(seen.fitted) == slow(study)
        elif count % 10 == 0:
            assert set(slow(study)) <= set(numbers(seen.told))
            # A fit is renewed after a tenth more trials at the latest.
            assert any(numbers(seen.fitted) == slow(study, until + 1) for until in having[-1 - len(having) // 10 :])


def test_running_trials_are_read_every_time() -> None:
    study = optuna.create_study()
    running = study.ask(fixed_distributions=RANGES)
    assert numbers(seen_in(study, SETTINGS).told) == [0]
    assert seen_in(study, SETTINGS, without=0).count == 0
    running.report(1.5, 640)
    assert seen_in(study, SETTINGS).told[0].curve.examples == (640,)
    assert seen_in(study, SETTINGS).told[0].running
    study.tell(running, 1_000.0)
    seen = seen_in(study, SETTINGS)
    assert not seen.told[0].running
    assert seen.told[0].values == (1_000.0,)


def test_what_all_trials_share() -> None:
    study = optuna.create_study()
    study.add_trial(trial(others={"decay": 0.5, "momentum": 0.9}, value=3.0))
    study.add_trial(trial(others={"momentum": 0.8}, reports={64: 1.0}))
    study.add_trial(trial())  # pruned before compute, and before it suggested the others
    study.ask(fixed_distributions=RANGES)
    seen = seen_in(study, SETTINGS)
    assert seen.shared == {"batch_size", "lr", "momentum"}
    assert seen.latest is not None
    assert seen.latest.number == 1


def test_memory_is_learned_from_trials_that_ran_out() -> None:
    study = optuna.create_study()
    study.add_trials(
        [trial(size, constraints={MEMORY_CONSTRAINT: sign}) for size, sign in ((1024, 1), (512, 1), (8, -1))]
    )
    assert seen_in(study, SETTINGS).largest_batch_size == 511


@pytest.mark.parametrize("shorter", [True, False])
def test_a_study_under_the_number_of_a_deleted_one_is_not_taken_for_it(tmp_path: Path, shorter: bool) -> None:
    storage = optuna.storages.get_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(study_name="first", storage=storage)
    study.add_trials([trial(value=1.0), trial(value=2.0)])
    assert seen_in(study, SETTINGS).told[0].values == (1.0,)
    optuna.delete_study(study_name="first", storage=storage)
    again = optuna.create_study(study_name="second", storage=storage)
    again.add_trials([trial(value=7.0)] if shorter else [trial(value=7.0), trial(value=9.0)])
    assert again._study_id == study._study_id
    assert seen_in(again, SETTINGS).told[0].values == (7.0,)
    assert seen_in(again, SETTINGS).count == (1 if shorter else 2)
