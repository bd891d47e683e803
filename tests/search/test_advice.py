"""What a study's trials show that its user should look at."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from landscape import GOAL, LAW, LOSS, NAMES, PRICE, SETTINGS, forecast_of, steps_needed
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search import Log2, TradeoffSampler, explain
from batchopt.search.judgement import CHANCE, FILLS_SPACE, PROPOSAL_KEY, percent
from batchopt.search.naming import maybe_exponents
from batchopt.search.observations import MEMORY_CONSTRAINT
from batchopt.search.settings import StudySettings

optuna.logging.set_verbosity(optuna.logging.WARNING)
SIZES, RATES = IntDistribution(8, 256, log=True), FloatDistribution(1e-3, 1.0, log=True)


def study_of(name: str | None = None, **given: Any) -> optuna.Study:
    return optuna.create_study(study_name=name, sampler=TradeoffSampler(**{"goal": GOAL, "seed": 0, **NAMES, **given}))


def ran(
    study: optuna.Study,
    size: Any = 64,
    rate: float = 0.1,
    *,
    sizes: BaseDistribution = SIZES,
    rates: BaseDistribution = RATES,
    value: float | None = None,
    losses: tuple[float, ...] = (),
    **attributes: str,
) -> None:
    study.enqueue_trial({"batch_size": size, "lr": rate})
    trial = study.ask({"batch_size": sizes, "lr": rates})
    for place, loss in enumerate(losses, 1):
        trial.report(loss, place * 10_000)
    for key, text in attributes.items():
        trial.set_user_attr(f"batchopt:{key}", text)
    study.tell(trial, value, state=None if value is not None else TrialState.PRUNED)


def told(study: optuna.Study, *what: str) -> list[str]:
    return [line for line in explain(study) if any(part in line for part in what)]


def best_at(size: Any, rate: float, *, before: int = 0, **ranges: Any) -> list[str]:
    """What is said of a study's best trial, after others in the middle."""
    study = study_of()
    for _ in range(before):
        ran(study, value=2.0 * steps_needed(64, 0.1) * PRICE(64))
    cost = steps_needed(64, 0.1) * PRICE(64)
    ran(study, size, rate, value=cost, **ranges)
    return told(study, "widen")


@pytest.mark.parametrize("before", [0, 2])
def test_a_best_trial_at_the_end_of_a_range_says_which(before: int) -> None:
    assert best_at(256, 0.1, before=before) == [
        "The best batch size, 256, is at the upper end of its range 8 to 256: widen it."
    ]
    assert best_at(8, 0.1) == ["The best batch size, 8, is at the lower end of its range 8 to 256: widen it."]
    assert best_at(64, 0.96, before=before) == [
        "The best learning rate, 0.96, is at the upper end of its range 0.001 to 1: widen it."
    ]
    assert len(best_at(256, 1e-3)) == 2
    assert best_at(64, 0.1, before=before) == []


def test_an_end_that_cannot_be_widened_is_not_told() -> None:
    assert best_at(64, 0.1, sizes=IntDistribution(64, 64), rates=FloatDistribution(0.1, 0.1)) == []
    assert best_at(1, 0.1, sizes=IntDistribution(1, 64, log=True)) == []
    assert best_at(64, 1e-6, rates=FloatDistribution(0.0, 1.0)) == []


def test_ends_of_choices_and_of_the_latest_range() -> None:
    choices = CategoricalDistribution([32, 256, 64])
    assert best_at(256, 0.1, sizes=choices) == [
        "The best batch size, 256, is at the upper end of its range 32 to 256: widen it."
    ]
    study = study_of()
    ran(study, 256, value=steps_needed(64, 0.1) * PRICE(64))
    ran(study, 256, value=2.0 * steps_needed(64, 0.1) * PRICE(64), sizes=IntDistribution(8, 2048, log=True))
    assert told(study, "widen") == []


def test_a_range_that_ends_where_memory_does_is_not_told() -> None:
    study = study_of()
    ran(study, 256, value=steps_needed(64, 0.1) * PRICE(64))
    trial = study.ask({"batch_size": IntDistribution(257, 257, log=True), "lr": RATES})
    trial.set_constraint(MEMORY_CONSTRAINT, 1.0)
    study.tell(trial, state=TrialState.PRUNED)
    ran(study, 64, value=2.0 * steps_needed(64, 0.1) * PRICE(64))
    assert told(study, "widen") == []


def test_a_goal_that_none_of_several_trials_has_reached_may_be_beyond_reach() -> None:
    study = study_of(forecast=forecast_of(LAW))
    ended = '{"schema": "batchopt.decision/1", "decision": "pruned while running", "reason": "x", "predicted": 9e4, '
    ended += (
        '"optimistic": null, "limit": 9e4, "incumbent": null, "excess": 0.0, "spent": 1.0, "unit": "example times"}'
    )
    for number in range(3):
        ran(study, losses=(2.5, 2.0 - 0.1 * number), ended=ended)
        assert len(told(study, "beyond reach")) == (number == 2)
    assert "The lowest loss that was reported is 1.8, by trial 2; the goal is 0.9." in explain(study)
    assert told(study, "beyond reach", "saved") == [
        "None of 3 trials that ran has reached the goal: it may be beyond reach in these ranges, or within what a "
        "trial may spend."
    ]
    ran(study, value=steps_needed(64, 0.1) * PRICE(64))
    assert len(told(study, "beyond reach", "saved")) == len(told(study, "saved")) == 1


def test_a_goal_that_was_reported_but_not_returned() -> None:
    study = study_of()
    for _ in range(3):
        ran(study, losses=(2.5, 0.8))
    assert told(study, "beyond reach") == []
    assert told(study, "no trial has completed") == [
        "It was reached, and yet no trial has completed: the objective must return its cost there."
    ]


def test_a_budget_that_no_trial_has_completed() -> None:
    study = study_of(goal=LowestLoss(30_000.0, of=PRICE))
    for _ in range(3):
        ran(study, losses=(2.5, 2.0))
    assert told(study, "None of 3 trials that ran has completed: with this goal a trial that is not pruned returns")


def test_a_goal_above_where_trials_begin_is_told_in_explain_and_once_at_the_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = study_of("at once")
    for number in range(4):
        ran(study, losses=(LOSS - 0.01 * number,), value=10_000 / 64 * PRICE(64))
        explain(study)
        messages = [r.message for r in caplog.records if "first report" in r.message]
        assert len(messages) == min(number, 1)
    assert messages[0].startswith("Study at once: trial 1, as one before, was at the goal's loss at its first report.")
    (line,) = told(study, "first report")
    assert line.startswith("4 of 4 completed trials were at the goal's loss at their first report. The goal is reached")
    assert "take a lower loss" in line
    for _ in range(5):
        ran(study, losses=(2.0, LOSS), value=20_000 / 64 * PRICE(64))
    assert told(study, "first report") == []


def test_where_little_is_left_to_gain_one_can_stop() -> None:
    study = study_of()
    ran(
        study,
        value=steps_needed(64, 0.1) * PRICE(64),
        proposal=f"{percent(0.001)} {CHANCE}, for 3 seconds.",
    )
    assert told(study, "you can stop") == [
        "The latest proposal had under 1% chance of success: further trials are predicted to gain next to nothing, and "
        "you can stop."
    ]
    ran(study, proposal=FILLS_SPACE)
    assert len(told(study, "you can stop")) == 1
    ran(study, proposal=f"{percent(0.2)} {CHANCE}, for 3 seconds.")
    assert told(study, "you can stop") == []
    assert PROPOSAL_KEY == "batchopt:proposal"


@pytest.mark.parametrize(
    ("sizes", "ends"),
    [
        (IntDistribution(3, 12), "3 to 12"),
        (IntDistribution(0, 20), "1 to 20"),
        (CategoricalDistribution([5, 7, 6]), "5 to 7"),
        (IntDistribution(3, 21), None),
        (IntDistribution(4, 16, log=True), None),
        (IntDistribution(8, 8), None),
        (IntDistribution(0, 0), None),
        (CategoricalDistribution([4, 8, 16]), None),
        (CategoricalDistribution([4, "big"]), None),
        (FloatDistribution(3.0, 12.0), None),
    ],
)
def test_small_batch_sizes_may_be_exponents(sizes: BaseDistribution, ends: str | None) -> None:
    said = f"values from {ends} are read as batch sizes; if they are exponents, name it Log2('batch_size'), in another"
    assert (maybe_exponents(SETTINGS, sizes) or "None").startswith(said if ends else "None")
    assert maybe_exponents(StudySettings(GOAL, "k", True, "lr"), sizes) is None


def test_exponents_under_a_plain_name_are_told_once_and_in_explain(caplog: pytest.LogCaptureFixture) -> None:
    study = study_of("exponents")
    for _ in range(2):
        ran(study, 6, sizes=IntDistribution(3, 12), value=5_000.0)
    study.ask()
    line = "alues from 3 to 12 are read as batch sizes; if they are exponents, name it Log2('batch_size'), in another "
    line += "study."
    assert told(study, "exponents") == [f"V{line}"]
    assert [r.message for r in caplog.records if "exponents, name" in r.message] == [f"Study exponents: v{line}"]
    named = study_of(batch_size=Log2("batch_size"))
    ran(named, 6, sizes=IntDistribution(3, 12), value=5_000.0)
    assert told(named, "are read as") == []


def test_names_that_differ_are_told_in_explain() -> None:
    study = study_of()
    trial = study.ask({"bs": SIZES, "lr": RATES})
    study.tell(trial, 5.0)
    (line,) = told(study, "expects the parameters")
    assert line.startswith("The study expects the parameters 'batch_size' and 'lr', but its trials have 'bs', 'lr'")
    assert math.isfinite(trial.params["lr"])


def test_two_objectives_have_no_single_best_trial_at_an_end() -> None:
    study = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=TradeoffSampler(goal=ReachLoss(LOSS, least=("steps", "examples")), seed=0, **NAMES),  # type: ignore[arg-type]
    )
    study.enqueue_trial({"batch_size": 256, "lr": 0.1})
    trial = study.ask({"batch_size": SIZES, "lr": RATES})
    study.tell(trial, (1_000.0, 256_000.0))
    assert told(study, "widen") == []
