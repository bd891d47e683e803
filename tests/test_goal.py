"""What goals cost, and as records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.errors import EvidenceError
from batchopt.planning.goal import BestMetric, LowestLoss, ReachLoss, ReachMetric, check_goal
from batchopt.step_cost import StepCost
from batchopt.tradeoff import TradeoffLaw

MEASURED = StepCost(per_step=2e-3, per_example=1e-5, largest_batch_size=512)
DOLLARS = StepCost(per_step=0.01, per_example=1e-4, unit="dollars")


def test_prices_of_a_step() -> None:
    assert ReachLoss(0.25).price(MEASURED) is MEASURED
    assert LowestLoss(60.0).price(MEASURED) is MEASURED
    assert ReachLoss(0.25, least="examples").price(MEASURED)(512) == 512.0
    assert LowestLoss(60.0, of="examples").price()(512) == 512.0
    assert ReachLoss(0.25, least="steps").price(MEASURED)(512) == 1.0
    assert LowestLoss(60.0, of="steps").price()(512) == 1.0
    assert ReachLoss(0.25, least=DOLLARS).price(MEASURED) is DOLLARS
    assert LowestLoss(60.0, of=DOLLARS).price(MEASURED) is DOLLARS


@given(steps_min=st.floats(1.0, 1e6), examples_min=st.floats(1.0, 1e9), ratio=st.floats(0.01, 100.0))
def test_balanced_is_steps_and_examples_in_their_least(steps_min: float, examples_min: float, ratio: float) -> None:
    law = TradeoffLaw(steps_min, examples_min)
    price = ReachLoss(0.25, least="balanced").price(steps_min=steps_min, examples_min=examples_min)
    size = ratio * law.critical_batch_size
    steps = law.steps(size)
    assert price.of_run(batch_size=size, steps=steps) == pytest.approx(
        steps / steps_min + law.examples(size) / examples_min
    )
    assert price.of_run(batch_size=size, steps=steps) >= 4.0 * (1 - 1e-12)


def test_what_a_price_needs() -> None:
    with pytest.raises(EvidenceError, match="need a measured step cost and there is none"):
        ReachLoss(0.25).price()
    with pytest.raises(EvidenceError, match="need a measured step cost and there is none"):
        LowestLoss(60.0).price()
    with pytest.raises(EvidenceError, match="needs S_min and E_min"):
        ReachLoss(0.25, least="balanced").price(MEASURED, steps_min=10.0)
    with pytest.raises(EvidenceError, match="has two objectives and no single cost"):
        ReachLoss(0.25, least=("steps", "examples")).price(MEASURED)


@pytest.mark.parametrize(
    "goal",
    [
        ReachLoss(0.25),
        ReachLoss(0.25, least="balanced"),
        ReachLoss(0.25, least=("steps", "examples")),
        ReachLoss(0.25, least=DOLLARS),
        LowestLoss(60.0),
        LowestLoss(1e6, of="examples"),
        LowestLoss(5.0, of=DOLLARS),
    ],
)
def test_round_trip(goal: ReachLoss | LowestLoss) -> None:
    assert type(goal).from_json(goal.to_json()) == goal


def test_refusals() -> None:
    with pytest.raises(ValueError, match="loss must be positive and finite, got 0"):
        ReachLoss(0.0)
    with pytest.raises(ValueError, match="least must be one of 'seconds', 'examples', 'steps', 'balanced', got 'time'"):
        ReachLoss(0.25, least="time")  # type: ignore[arg-type]
    other = r"any other cost of a step is a StepCost\(per_step=\.\.\., per_example=\.\.\.\)"
    with pytest.raises(
        ValueError, match=rf"got <function .*: {other}, and \('steps', 'examples'\) is for a study of two"
    ):
        ReachLoss(0.25, lambda size: size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"got \('examples', 'steps'\): {other}"):
        ReachLoss(0.25, least=("examples", "steps"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="within must be positive and finite, got inf"):
        LowestLoss(float("inf"))
    units = "'seconds', 'hours', 'examples', 'epochs', 'steps'"
    for kind in (LowestLoss, lambda within, of: BestMetric("accuracy", within, of)):
        with pytest.raises(ValueError, match=rf"of must be one of {units}, got 'balanced': {other}"):
            kind(1.0, of="balanced")
    with pytest.raises(ValueError, match="value must be finite, got nan"):
        ReachMetric("accuracy", float("nan"))
    with pytest.raises(TypeError, match=r"goal must be one of batchopt\.ReachLoss, .*, got 0\.93"):
        check_goal(0.93)
    with pytest.raises(ValueError, match=r"one of the task's \('f1'\), got 'accuracy': give the task metrics="):
        check_goal(ReachMetric("accuracy", 0.9), {"f1": None})


def test_budgets_in_hours_and_epochs() -> None:
    cost = StepCost(per_step=3.6, per_example=0.36)
    assert LowestLoss(2.0, of="hours").price(cost)(100) == pytest.approx(cost(100) / 3_600)
    assert LowestLoss(2.0, of="hours").resolved(None) == LowestLoss(7_200.0, of="seconds")
    assert LowestLoss(2.0, of="epochs").resolved(500) == LowestLoss(1_000.0, of="examples")
    assert LowestLoss(5.0).resolved(None) == LowestLoss(5.0)
    with pytest.raises(EvidenceError, match=r'needs the size of the data set.*of="examples"'):
        LowestLoss(2.0, of="epochs").resolved(None)
    with pytest.raises(EvidenceError, match="needs the size of the data set"):
        LowestLoss(2.0, of="epochs").price()
