"""Loss curves and when they reach a loss; what a report adds up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batchopt.errors import RecordError
from batchopt.evidence import Branch, LossCurve, ProbeReport, Provenance, Spending, TrainingLosses
from batchopt.learning_rate_schedule import LearningRateSchedule

losses_lists = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30)


def curve_of(losses: list[float]) -> LossCurve:
    return LossCurve(tuple(100 * k for k in range(len(losses))), tuple(losses))


def slow_examples_to(curve: LossCurve, loss: float) -> float | None:
    """Twin: walk finely along the log-linear interpolation of the running median."""
    smooth = np.array(
        [curve.losses[0], *[np.median(curve.losses[k - 1 : k + 2]) for k in range(1, len(curve.losses) - 1)]]
    )
    examples = np.array(curve.examples[: len(smooth)], float)
    fine = np.unique(np.concatenate([np.linspace(examples[0], examples[-1], 20_001), examples]))
    there = np.interp(fine, examples, np.log(smooth)) <= math.log(loss) + 1e-12
    return float(fine[np.argmax(there)]) if there.any() else None


@given(losses=losses_lists, loss=st.floats(1e-3, 1e3))
def test_twin_examples_to(losses: list[float], loss: float) -> None:
    # Losses closer to the threshold than the walk's rounding are told apart by one of the two only.
    assume(all(x == loss or abs(math.log(x / loss)) > 1e-9 for x in losses))
    curve = curve_of(losses)
    fast, slow = curve.examples_to(loss), slow_examples_to(curve, loss)
    assert (fast is None) == (slow is None)
    if fast is not None:
        # One cell of the walk.
        assert fast == pytest.approx(slow, abs=100 * len(losses) / 20_000 + 1e-6)


@given(losses=losses_lists, loss=st.floats(1e-3, 1e3), factor=st.floats(0.1, 1.0))
def test_a_lower_loss_is_reached_no_earlier(losses: list[float], loss: float, factor: float) -> None:
    curve = curve_of(losses)
    early, late = curve.examples_to(loss), curve.examples_to(loss * factor)
    assert late is None or (early is not None and early <= late)


def test_one_lucky_evaluation_reaches_nothing() -> None:
    assert curve_of([4.0, 3.0, 0.5, 3.0, 2.5, 2.4]).examples_to(1.0) is None
    assert curve_of([4.0, 3.0, 2.0, 0.5]).examples_to(1.0) is None


def test_interpolation_is_on_the_log_scale() -> None:
    curve = curve_of([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    assert curve.examples_to(2.0 * math.sqrt(2.0)) == pytest.approx(150.0)
    assert curve.examples_to(8.0) == 0.0


def test_jitter_is_the_noise_of_single_evaluations() -> None:
    rng = np.random.default_rng(0)
    noisy = curve_of((np.exp(0.1 * rng.standard_normal(400))).tolist())
    assert 0.03 < noisy.jitter() < 0.1
    assert curve_of([4.0, 3.0, 2.0, 1.0]).jitter() == pytest.approx(0.0)
    assert curve_of([4.0, 1.0, 4.0]).jitter() == 0.0


def test_bad_curves() -> None:
    with pytest.raises(ValueError, match="as many losses as examples"):
        LossCurve((0, 1), (1.0,))
    with pytest.raises(ValueError, match="examples must rise strictly, got 5 before 5"):
        LossCurve((5, 5), (1.0, 1.0))
    with pytest.raises(ValueError, match="every loss must be positive and finite, got inf"):
        LossCurve((0, 1), (1.0, math.inf))
    with pytest.raises(ValueError, match="loss must be positive"):
        curve_of([2.0, 1.0]).examples_to(0.0)


def test_bad_branches() -> None:
    curve = curve_of([2.0, 1.0])
    with pytest.raises(TypeError, match="batch_size must be a whole number"):
        Branch(32.0, 0.1, curve)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        Branch(32, 0.0, curve)
    with pytest.raises(ValueError, match="seconds must be zero or more"):
        Spending("noise", 1.0, 1, -1.0)


def test_a_report_adds_up() -> None:
    reference, branch = Branch(32, 0.1, curve_of([2.0, 1.0])), Branch(64, 0.1, curve_of([2.0, 0.5]))
    spending = (Spending("reference run", 100.5, 3, 0.25), Spending("branches", 50.0, 2, 0.5))
    provenance = Provenance({"batchopt": "0"}, "cpu", 0, None, 10)
    report = ProbeReport(reference, (branch,), (), None, spending, 1_000, None, provenance)
    assert (report.examples_spent, report.steps_spent, report.seconds_spent) == (150.5, 5, 0.75)
    assert report.runs == (reference, branch)
    assert ProbeReport(None, (branch,), (), None, (), 1_000, "out of budget", provenance).runs == (branch,)


@pytest.mark.parametrize(
    ("examples", "multipliers", "falls"),
    [
        ((0,), (1.0,), None),
        ((0, 100), (0.0, 1.0), None),
        ((0, 100, 200), (0.0, 1.0, 1.0), None),
        ((0, 800, 1_000), (1.0, 1.0, 0.0), (800, 1_000)),
        ((0, 100, 800, 1_000), (0.0, 1.0, 1.0, 0.0), (800, 1_000)),
        ((0, 100, 400, 1_000), (0.0, 1.0, 0.5, 0.0), (100, 1_000)),
        ((0, 100, 200, 300), (1.0, 0.5, 1.0, 0.9), (0, 300)),
    ],
)
def test_where_a_rate_falls(
    examples: tuple[int, ...], multipliers: tuple[float, ...], falls: tuple[int, int] | None
) -> None:
    schedule = LearningRateSchedule(examples, multipliers)
    branch = Branch(32, 0.1, curve_of([2.0, 1.0]), learning_rate_schedule=schedule)
    assert branch.falls == falls
    assert branch.is_constant == (falls is None)
    assert Branch(32, 0.1, curve_of([2.0, 1.0])).is_constant


def test_the_last_loss_of_a_cooldown_is_of_its_own_last_fifth() -> None:
    """Of examples since initialisation the last fifth would be all of it."""
    training = TrainingLosses((1_000.0, 1_025.0, 1_050.0, 1_075.0, 1_100.0), (9.0, 8.0, 7.0, 6.0, 5.0), (0.1,) * 5)
    assert Branch(32, 0.1, LossCurve((), ()), training=training).last_loss == 5.0
    evaluated = Branch(32, 0.1, LossCurve((1_100,), (4.0,)), training=training)
    assert evaluated.last_loss == 4.0
    from_the_start = TrainingLosses((0.0, 50.0, 85.0, 100.0), (9.0, 8.0, 7.0, 5.0), (0.1,) * 4)
    assert Branch(32, 0.1, LossCurve((), ()), training=from_the_start).last_loss == 6.0


def test_a_report_of_an_older_version_is_refused_with_what_to_do() -> None:
    provenance = Provenance({"batchopt": "0"}, "cpu", 0, None, 10)
    report = ProbeReport(None, (Branch(64, 0.1, curve_of([2.0, 0.5])),), (), None, (), 1_000, None, provenance)
    older = report.to_json().replace(ProbeReport.SCHEMA, "batchopt.probe/1")
    with pytest.raises(RecordError, match=r"an older batchopt \(batchopt.probe/1; .* no decays .*: probe again$"):
        ProbeReport.from_json(older)


def test_spending_adds_up_in_what_it_counts_for() -> None:
    free, dear = Spending("a", 10.0, 2, 0.5), Spending("b", 20.0, 3, 1.5, 50.0)
    assert free + free == Spending("a", 20.0, 4, 1.0)
    assert free + dear == Spending("a", 30.0, 5, 2.0, 60.0)
    assert (free.of_budget, dear.of_budget) == (10.0, 50.0)
    with pytest.raises(ValueError, match="counted"):
        Spending("a", 10.0, 2, 0.5, -1.0)
