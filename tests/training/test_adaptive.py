"""A run that decides when its rate decays: against runs of a known law, and in the training loop."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forecasting.known_law import known_forecast, known_law, known_plan, losses_at
from torch import nn

from batchopt.errors import NonFiniteLossError
from batchopt.forecasting.own_decision import LATER
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.probing.data import shuffled_indices
from batchopt.probing.evaluation import Evaluation, evaluation_points
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule
from batchopt.training.adapted import Adapted
from batchopt.training.adaptive import LONGEST, AdaptiveSchedule
from batchopt.training.loader import scheduled_loader
from batchopt.training.result import TrainingResult
from batchopt.training.train import TrainingDivergedError, train

LAW = known_law()
FORECAST = known_forecast()
LOSS = 0.1
PLAN = known_plan(LOSS)


def loss_at(schedule: Schedule, examples: int, *, worse: float = 1.0) -> float:
    """The true loss of a run by a schedule, times a factor that grows from one in the first thousand examples."""
    true = losses_at(LAW, PLAN.batch_size, PLAN.learning_rate, [examples], schedule.learning_rate_schedule)[0]
    return float(true) * worse ** min(1.0, examples / 1_000)


def run(adaptive: AdaptiveSchedule, *, worse: float = 1.0) -> float:
    """Follow it to its end with an evaluation at every factor of 1.2, and give the loss there."""
    seen = 0
    while seen < adaptive.examples:
        points = evaluation_points(adaptive.examples, first=10 * PLAN.batch_size)
        seen = min(next(point for point in points if point > seen), adaptive.examples)
        if seen <= adaptive.decay_begins:
            adaptive.update(seen, loss_at(adaptive.schedule, seen, worse=worse))
    return loss_at(adaptive.schedule, adaptive.examples, worse=worse)


def test_a_run_of_the_law_that_was_fitted_arrives_as_planned() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    assert run(adaptive) <= LOSS
    assert PLAN.examples.low <= adaptive.examples <= PLAN.examples.high
    rates = adaptive.schedule.learning_rate_schedule
    assert rates is not None
    assert rates.examples[-1] == adaptive.examples
    assert rates.multipliers[-1] == 0.0
    assert adaptive.decay_begins == pytest.approx(0.8 * adaptive.examples, abs=PLAN.batch_size)


@pytest.mark.parametrize("worse", [0.8, 1.25])
def test_a_run_that_differs_from_the_forecast_arrives_all_the_same(worse: float) -> None:
    as_forecast, other = AdaptiveSchedule(PLAN, FORECAST), AdaptiveSchedule(PLAN, FORECAST)
    run(as_forecast)
    assert run(other, worse=worse) <= LOSS
    assert (other.examples > as_forecast.examples) == (worse > 1.0)


def test_less_certainty_begins_sooner() -> None:
    sure, bold = AdaptiveSchedule(PLAN, FORECAST, chance=0.97), AdaptiveSchedule(PLAN, FORECAST, chance=0.5)
    run(sure)
    run(bold)
    assert bold.examples < sure.examples


def test_a_decay_that_misses_is_gone_back_on_and_the_next_one_is_later() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST, chance=0.5)
    end = run(adaptive)
    before, ended = adaptive.decay_begins, adaptive.examples
    assert adaptive.may_go_on
    assert adaptive.miss(1.2 * end) == before
    assert adaptive.decay_begins >= math.floor(LATER * before)
    (decay,) = adaptive.missed
    assert (decay.begin, decay.end, decay.loss) == (before, ended, 1.2 * end)
    assert decay.predicted == pytest.approx(end, rel=0.3)
    # What was learned of the miss stays: a run that goes on as before begins later than one that saw none.
    again = AdaptiveSchedule(PLAN, FORECAST, chance=0.5)
    again.load_state(adaptive.state())
    seen = adaptive.decay_begins
    assert not again.update(seen + 1, 1.0), "the decay has begun"


def test_a_run_that_never_comes_near_ends_at_three_times_the_plan() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    assert run(adaptive, worse=20.0) > LOSS
    assert adaptive.examples == pytest.approx(LONGEST * PLAN.schedule.examples, abs=2 * PLAN.batch_size)
    assert not adaptive.may_go_on


WORSE = 1.4
"""What decays end at, over the loss."""


def test_what_misses_have_taught_adds_up_and_the_end_is_told() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST, chance=0.5)
    shifts = []
    while adaptive.may_go_on and len(shifts) < 3:
        adaptive.miss(WORSE * LOSS)
        shifts.append(math.log(adaptive.missed[-1].loss / adaptive.missed[-1].predicted))
    assert shifts[0] > 1.3 * math.log(WORSE), "the first decay was to end well below the loss, with a chance of a half"
    assert len(shifts) > 1
    assert shifts[1:] == pytest.approx([math.log(WORSE)] * (len(shifts) - 1), abs=0.05), "the next ones at the loss"
    while adaptive.may_go_on:
        adaptive.miss(WORSE * LOSS)
    with pytest.raises(ValueError, match="may have no more: end it here"):
        adaptive.miss(WORSE * LOSS)


def test_another_rate_or_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts runs at the plan's learning rate"):
        train(task(), AdaptiveSchedule(PLAN, FORECAST), learning_rate=0.5 * PLAN.learning_rate)
    with pytest.raises(ValueError, match=r"decays towards the plan's loss 0\.1, got until_loss=0\.2"):
        train(task(), AdaptiveSchedule(PLAN, FORECAST), until_loss=0.2)


def test_nothing_moves_once_the_decay_has_begun() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    begins, schedule = adaptive.decay_begins, adaptive.schedule
    assert not adaptive.update(begins + PLAN.batch_size, 2.0)
    assert adaptive.schedule == schedule


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_goes_on_to_the_end_as_it_is_by_then(workers: int) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    seen, batches = 0, 0
    for (batch,) in scheduled_loader((torch.arange(1_000),), adaptive, num_workers=workers):
        seen, batches = seen + len(batch), batches + 1
        if batches == 10:
            assert adaptive.update(seen, 3.0 * loss_at(adaptive.schedule, seen))
    assert seen == adaptive.examples > PLAN.horizon


def test_an_iterable_data_set_cannot_follow_it() -> None:
    class Numbers(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(10))

    with pytest.raises(TypeError, match="an AdaptiveSchedule needs a map-style data set"):
        scheduled_loader(Numbers(), AdaptiveSchedule(PLAN, FORECAST))


def test_the_realised_schedule_and_the_state_round_trip(tmp_path: Path) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    adaptive.miss(0.2)
    adaptive.schedule.save(tmp_path / "realised.json")
    assert Schedule.load(tmp_path / "realised.json") == adaptive.schedule
    again = AdaptiveSchedule(PLAN, FORECAST)
    again.load_state(Adapted.from_json(adaptive.state().to_json()))
    assert again.state() == adaptive.state()
    assert again.begin() == PLAN.schedule
    assert again.missed == ()


def test_what_cannot_be_followed_is_refused() -> None:
    cosine = FORECAST.plan(ReachLoss(LOSS, "examples"), learning_rate_schedule="cosine")
    with pytest.raises(ValueError, match="got ReachLoss with 'cosine': plan anew"):
        AdaptiveSchedule(cosine, FORECAST)
    budget = FORECAST.plan(LowestLoss(100_000, "examples"), learning_rate_schedule="wsd")
    with pytest.raises(ValueError, match="got LowestLoss with 'wsd'"):
        AdaptiveSchedule(budget, FORECAST)
    with pytest.raises(ValueError, match=r"chance must be below 1, got 1\.0"):
        AdaptiveSchedule(PLAN, FORECAST, chance=1.0)
    other = replace(FORECAST, law=known_law(noise=5.0))
    with pytest.raises(ValueError, match="forecast must be the one that the plan was made from"):
        AdaptiveSchedule(PLAN, other)
    with pytest.raises(TypeError, match="got dict and Forecast"):
        AdaptiveSchedule({}, FORECAST)  # type: ignore[arg-type]


def test_a_run_that_diverged_begins_again_at_half_the_rate() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    adaptive.miss(1.5 * LOSS)
    (decay,) = adaptive.missed
    again = adaptive.diverge(decay.begin + 1_000)
    assert again == adaptive.schedule == replace(PLAN.schedule, learning_rate=0.5 * PLAN.learning_rate)
    (lost,) = adaptive.diverged
    assert (lost.learning_rate, lost.at) == (PLAN.learning_rate, decay.begin + 1_000)
    assert adaptive.gone_back == lost.examples == decay.end + 1_000
    assert adaptive.steps_gone_back == lost.steps == pytest.approx(lost.examples / PLAN.batch_size, abs=2)
    assert adaptive.missed == (), "what decays taught is of another rate"
    adaptive.update(1_280, 1.0)
    assert adaptive.schedule.learning_rate == 0.5 * PLAN.learning_rate
    again_as_it_was = AdaptiveSchedule(PLAN, FORECAST)
    again_as_it_was.load_state(Adapted.from_json(adaptive.state().to_json()))
    assert again_as_it_was.learning_rate == adaptive.learning_rate


def test_a_run_begins_again_three_times_and_not_where_the_rate_is_not_at_fault() -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    assert not adaptive.may_begin_again(0), "the initial loss is no matter of the rate"
    for _ in range(3):
        assert adaptive.may_begin_again(768)
        adaptive.diverge(768)
    assert not adaptive.may_begin_again(768)
    assert adaptive.learning_rate == PLAN.learning_rate / 8
    with pytest.raises(ValueError, match=r"diverged at 5000 examples at .* may not begin again"):
        adaptive.diverge(5_000)


def test_its_decay_is_decided_by_the_law_at_the_lower_rate() -> None:
    lower, higher, seen = AdaptiveSchedule(PLAN, FORECAST), AdaptiveSchedule(PLAN, FORECAST), 12_800
    rates = lower.diverge(640).learning_rate_schedule
    (loss,) = losses_at(LAW, PLAN.batch_size, 0.5 * PLAN.learning_rate, [seen], rates)
    above = []
    for adaptive in (lower, higher):
        adaptive.update(seen, float(loss))
        above.append(abs(adaptive._above()[0]))
    assert above[0] < 0.05, "the run is as the law has it at that rate"
    assert above[1] > 4 * above[0]


def task() -> TrainingTask:
    """A regression that bears any rate of the plan, and whose own losses nobody looks at."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000, 8, generator=generator)
    return TrainingTask(
        model=lambda: nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.1), nn.Linear(4, 1)),
        data=(x, x.sum(1) + torch.randn(2_000, generator=generator)),
        loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=1e-3 * lr),
        device="cpu",
    )


def show_the_laws_loss(
    monkeypatch: pytest.MonkeyPatch, adaptive: AdaptiveSchedule, *, first_decay: float = 1.0
) -> None:
    """Evaluations give the known law's loss, times a factor in the first decay."""

    def evaluated(run: TrainingRun) -> Evaluation:
        seen = max(1, run.examples_seen)
        spoilt = seen > adaptive.decay_begins and not adaptive.missed
        return Evaluation(loss_at(adaptive.schedule, seen) * (first_decay if spoilt else 1.0), {})

    monkeypatch.setattr(TrainingRun, "evaluation", evaluated)


def test_training_follows_it_and_stops_at_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    show_the_laws_loss(monkeypatch, adaptive)
    result = train(task(), adaptive, seed=3)
    assert result.outcome == "reached"
    assert result.reached is not None
    assert adaptive.decay_begins <= result.reached <= adaptive.examples
    assert result.schedule == replace(adaptive.schedule, learning_rate=PLAN.learning_rate)
    assert adaptive.decay_begins in result.curve.examples, "what comes next is decided where the decay begins"


def test_a_training_goes_back_to_where_a_decay_began_that_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    show_the_laws_loss(monkeypatch, adaptive, first_decay=1.5)
    result = train(task(), adaptive, seed=3)
    (decay,) = adaptive.missed
    assert result.outcome == "reached"
    assert decay.loss > LOSS
    assert adaptive.decay_begins >= LATER * decay.begin
    # The run itself is by the schedule that was followed in the end, as if there had been no other decay.
    plain = TrainingRun(task(), learning_rate=PLAN.learning_rate, seed=3)
    for seen, size in result.schedule.batches():
        if seen < result.examples:
            plain.step(size, multiplier=result.schedule.multiplier_of(seen, size), warmup=False)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])


@pytest.mark.parametrize("first_decay", [1.0, 1.5])
def test_a_killed_training_goes_on_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first_decay: float
) -> None:
    class KilledError(Exception):
        pass

    calls = {"made": 0, "last": 0}

    def count(examples: int, loss: float) -> None:
        calls["made"] += 1
        if calls["made"] == calls["last"]:
            raise KilledError

    def follow(**given: Any) -> tuple[AdaptiveSchedule, TrainingResult]:
        adaptive = AdaptiveSchedule(PLAN, FORECAST)
        show_the_laws_loss(monkeypatch, adaptive, first_decay=first_decay)
        return adaptive, train(task(), adaptive, seed=3, **given)

    adaptive, whole = follow(on_evaluation=count)
    evaluations = calls["made"]
    for k in (evaluations // 2, evaluations - 3, evaluations - 1):
        checkpoint = tmp_path / f"killed-{k}"
        calls.update(made=0, last=k)
        with pytest.raises(KilledError):
            follow(checkpoint=checkpoint, on_evaluation=count)
        again, result = follow(checkpoint=checkpoint)
        assert again.state() == adaptive.state()
        assert result.curve == whole.curve
        assert all(
            torch.equal(tensor, result.model.state_dict()[name]) for name, tensor in whole.model.state_dict().items()
        )
        assert not list(tmp_path.glob("*decay.state")), "nothing is left beside the checkpoint"


def test_a_decision_that_fails_leaves_the_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    show_the_laws_loss(monkeypatch, adaptive)

    def broken(*_: object) -> bool:
        raise RuntimeError("no forecast")

    monkeypatch.setattr(AdaptiveSchedule, "update", broken)
    with pytest.warns(RuntimeWarning, match=r"no longer changed, from 0 examples on; .*no forecast"):
        result = train(task(), adaptive, seed=3)
    assert result.schedule.learning_rate_schedule == PLAN.schedule.learning_rate_schedule


def fragile() -> TrainingTask:
    """The regression by a rate that diverges within ten steps, and does not at half of that."""
    return replace(task(), optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=0.2 * lr))


def test_a_training_that_diverges_begins_again_at_half_the_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    adaptive, metrics = AdaptiveSchedule(PLAN, FORECAST), tmp_path / "metrics.jsonl"
    show_the_laws_loss(monkeypatch, adaptive)
    with pytest.warns(RuntimeWarning, match=r"became (inf|nan) after .*The run begins again at half that rate"):
        result = train(fragile(), adaptive, seed=3, metrics=metrics)
    (lost,) = adaptive.diverged
    assert result.outcome == "reached"
    assert result.gone_back == lost.examples > 0
    assert result.schedule.learning_rate == 0.5 * PLAN.learning_rate
    told = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert max(line["learning_rate"] for line in told) == 0.5 * PLAN.learning_rate
    # As a run that began at that rate.
    plain = TrainingRun(fragile(), learning_rate=0.5 * PLAN.learning_rate, seed=3)
    for seen, size in result.schedule.batches():
        if seen < result.examples:
            plain.step(size, multiplier=result.schedule.multiplier_of(seen, size), warmup=False)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])


def grouped(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Weights at a multiple of the rate, biases at a rate of their own."""
    parameters = list(parameters)
    weights, biases = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim == 1]
    return torch.optim.SGD([{"params": weights, "lr": 0.2 * lr}, {"params": biases, "lr": 1e-3}], lr=lr)


class KilledError(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize("optimizer", [None, grouped], ids=["one rate", "groups"])
def test_a_training_that_is_killed_after_it_diverged_goes_on_at_the_lower_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str, optimizer: Any
) -> None:
    made = fragile() if optimizer is None else replace(fragile(), optimizer=optimizer)
    killed_at = 0 if when == "at once" else PLAN.horizon / 4

    def follow(*, is_killed: bool = False, **given: Any) -> TrainingResult:
        adaptive = AdaptiveSchedule(PLAN, FORECAST)
        show_the_laws_loss(monkeypatch, adaptive)
        evaluated = TrainingRun.evaluation

        def evaluate(run: TrainingRun) -> Evaluation:
            if is_killed and adaptive.diverged and run.examples_seen > killed_at:
                raise KilledError
            return evaluated(run)

        monkeypatch.setattr(TrainingRun, "evaluation", evaluate)
        return train(made, adaptive, seed=3, **given)

    with pytest.warns(RuntimeWarning, match="begins again"):
        whole = follow()
    with pytest.warns(RuntimeWarning, match="begins again"), pytest.raises(KilledError):
        follow(is_killed=True, checkpoint=tmp_path / "run")
    resumed = follow(checkpoint=tmp_path / "run")
    assert resumed.resumed_at == 0 if when == "at once" else resumed.resumed_at
    assert resumed.gone_back == whole.gone_back > 0
    assert resumed.schedule == whole.schedule
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])
    assert not list(tmp_path.glob("*decay.state"))


def test_a_training_that_diverges_in_its_decay_does_not_go_back_to_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    show_the_laws_loss(monkeypatch, adaptive)
    evaluated = TrainingRun.evaluation

    def evaluate(run: TrainingRun) -> Evaluation:
        if not adaptive.diverged and run.examples_seen > adaptive.decay_begins:
            raise NonFiniteLossError("the evaluated loss became nan")
        return evaluated(run)

    monkeypatch.setattr(TrainingRun, "evaluation", evaluate)
    with pytest.warns(RuntimeWarning, match="the evaluated loss became nan. The run begins again"):
        result = train(task(), adaptive, seed=3)
    (lost,) = adaptive.diverged
    assert lost.at > PLAN.horizon / 2
    assert result.outcome == "reached"
    plain = TrainingRun(task(), learning_rate=0.5 * PLAN.learning_rate, seed=3)
    for seen, size in result.schedule.batches():
        if seen < result.examples:
            plain.step(size, multiplier=result.schedule.multiplier_of(seen, size), warmup=False)
    assert all(torch.equal(t, result.model.state_dict()[name]) for name, t in plain.model.state_dict().items())


def test_a_loss_far_above_the_initial_one_counts_as_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    show_the_laws_loss(monkeypatch, adaptive)
    evaluated = TrainingRun.evaluation

    def evaluate(run: TrainingRun) -> Evaluation:
        return Evaluation(evaluated(run).loss * (50.0 if run.examples_seen and not adaptive.diverged else 1.0), {})

    monkeypatch.setattr(TrainingRun, "evaluation", evaluate)
    with pytest.warns(RuntimeWarning, match=r"more than 3 times the initial .*The run begins again"):
        result = train(task(), adaptive, seed=3)
    assert len(adaptive.diverged) == 1
    assert result.outcome == "reached"
    fixed = train(task(), PLAN.schedule, seed=3)
    assert fixed.outcome == "finished", "a fixed schedule is followed to its end"


def test_a_training_that_always_diverges_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = task()
    x, y = (tensor.clone() for tensor in spoilt.data)  # type: ignore[union-attr]
    x[shuffled_indices(2_000, seed=3, start=1_000, count=1)] = math.nan
    adaptive = AdaptiveSchedule(PLAN, FORECAST)
    show_the_laws_loss(monkeypatch, adaptive)
    with pytest.warns(RuntimeWarning, match="begins again"), pytest.raises(TrainingDivergedError):
        train(replace(spoilt, data=(x, y)), adaptive, seed=3)
    assert len(adaptive.diverged) == 3
