"""Tasks whose model makes its data by acting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchopt import Forecast, ReachLoss, Rollout, Rollouts, Schedule, TrainingTask, measure_noise_scale, probe, train
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing.measure import measure_run
from batchopt.probing.run import TrainingRun
from batchopt.probing.snapshot import load_snapshot, save_snapshot

TRUTH = torch.linspace(-1.0, 1.0, 8)
NOISE = 0.5
FLOOR = 0.01


class Slopes:
    """Examples of a linear regression; the score is the square by which the model's slopes miss the true ones, below 0.

    The labels are off by what the model itself says for another example: so the data do depend on it, and the gradient
    is what it would be without.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def collect(self, model: nn.Module, count: int) -> Rollout:
        x, other = (torch.from_numpy(self.rng.standard_normal((count, 8))).float() for _ in range(2))
        noise = NOISE * torch.from_numpy(self.rng.standard_normal(count)).float()
        y = x @ TRUTH + noise + 0.1 * model(other)[:, 0] * torch.randn(count).sign()
        return Rollout((x, y), self.play(model, 1))

    def play(self, model: nn.Module, episodes: int) -> list[float]:
        return [-float((model.weight[0] - TRUTH).square().sum())] * episodes


class GoingOn(Slopes):
    """Likewise, with a random walk of the inputs that goes on from batch to batch."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.at = torch.zeros(8)

    def collect(self, model: nn.Module, count: int) -> Rollout:
        self.at = 0.9 * self.at + torch.randn(8)
        (x, y), scores = super().collect(model, count)
        return Rollout((x + 0.1 * self.at, y), scores)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "draws": self.rng.bit_generator.state["state"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.at = state["at"]
        self.rng.bit_generator.state = self.rng.bit_generator.state | {"state": state["draws"]}


def task_of(environments: Any = Slopes, **changes: Any) -> TrainingTask:
    rollouts = {"environments": environments, "best_score": FLOOR, "episodes": 4} | {
        name: changes.pop(name) for name in ("best_score", "passes", "episodes") if name in changes
    }
    settings: dict[str, Any] = {
        "model": lambda: nn.Linear(8, 1, bias=False),
        "data": Rollouts(**rollouts),
        "loss": lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        "optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        "device": "cpu",
    }
    return TrainingTask(**settings | changes)


def weights_of(run: TrainingRun) -> Tensor:
    return run.model.weight.detach().clone()


class Recorded(Slopes):
    """Keeps what it gave."""

    batches: list[Any] = []  # noqa: RUF012  (of the test that asks)

    def collect(self, model: nn.Module, count: int) -> Rollout:
        rollout = super().collect(model, count)
        self.batches.append(rollout.batch)
        return rollout


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_the_optimizers_on_what_the_model_did(passes: int, micro_batch: int | None, weighted: bool) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        losses = (model(batch[0])[:, 0] - batch[1]).square()
        return (losses, 1.0 + batch[0][:, 0].abs()) if weighted else losses

    Recorded.batches = []
    run = TrainingRun(task_of(Recorded, passes=passes, loss=loss), learning_rate=0.05, seed=3)
    weight = weights_of(run).double().requires_grad_()
    told = run.step(16, micro_batch=micro_batch)
    (batch,) = Recorded.batches
    assert told == pytest.approx(FLOOR + float((weight.detach()[0] - TRUTH).square().sum()), rel=1e-5)
    for _ in range(passes):
        x, y = (part.double() for part in batch)
        losses = (x @ weight[0] - y).square()
        counts = 1.0 + x[:, 0].abs() if weighted else torch.ones(16).double()
        (gradient,) = torch.autograd.grad((counts * losses).sum() / counts.sum(), weight)
        weight = (weight - 0.05 * gradient).detach().requires_grad_()
    torch.testing.assert_close(weights_of(run).double(), weight.detach(), rtol=5e-5, atol=5e-6)
    assert (run.steps, run.examples_seen) == (1, 16)


@pytest.mark.parametrize("environments", [Slopes, GoingOn])
def test_a_run_goes_on_from_a_snapshot_bit_for_bit(environments: Any, tmp_path: Path) -> None:
    task = task_of(environments)
    whole = TrainingRun(task, learning_rate=0.02, seed=1)
    for _ in range(5):
        whole.step(8)
    save_snapshot(whole, tmp_path / "state")
    for _ in range(5):
        last = whole.step(8)
    again = TrainingRun(task, learning_rate=0.02, seed=1)
    load_snapshot(again, tmp_path / "state")
    for _ in range(5):
        same = again.step(8)
    assert same == last
    assert torch.equal(weights_of(again), weights_of(whole))


def test_environments_are_opened_once_where_they_go_on_and_for_every_batch_where_not() -> None:
    seeds: list[int] = []

    def opened(kind: Any) -> Any:
        def environments(seed: int) -> Any:
            seeds.append(seed)
            return kind(seed)

        return environments

    for kind, expected in ((Slopes, 4), (GoingOn, 1)):
        seeds.clear()
        run = TrainingRun(task_of(opened(kind)), learning_rate=0.02, seed=1)
        for _ in range(4):
            run.step(8)
        assert len(set(seeds)) == len(seeds) == expected


def test_the_noise_scale_is_of_what_the_model_does_now() -> None:
    run = TrainingRun(task_of(), learning_rate=0.05, seed=0)
    with torch.no_grad():
        run.model.weight.fill_(0.5)
    before = run.state_dict()
    found = measure_run(run, relative_width=0.01, max_examples=40_000)
    assert (found.population, found.examples, found.group_size) == (None, 40_000, 1)
    # g = 2 (x.d + e) x for d = w - truth, with x of unit covariance and e of variance s, by the noise and by 0.1 times
    # what the model says for another example: |G|^2 = 4 |d|^2, E |g|^2 = 4 ((8 + 2) |d|^2 + 8 s).
    missed = float((0.5 - TRUTH).square().sum())
    variance = NOISE**2 + 0.01 * 8 * 0.5**2
    expected = (10.0 * missed + 8.0 * variance - missed) / missed
    assert found.batch_size.low < expected < found.batch_size.high
    assert found.batch_size.high < 1.1 * found.batch_size.low
    after = run.state_dict()
    assert torch.equal(before["model"]["weight"], after["model"]["weight"])
    assert torch.equal(before["randomness"]["torch_cpu"], after["randomness"]["torch_cpu"])


def test_noise_is_measured_in_environments_of_no_run() -> None:
    seeds: list[int] = []

    def environments(seed: int) -> Slopes:
        seeds.append(seed)
        return Slopes(seed)

    run = TrainingRun(task_of(environments), learning_rate=0.05, seed=5)
    for _ in range(3):
        run.step(8)
    measure_run(run, max_examples=400, seed=5)
    assert len(set(seeds)) == len(seeds) > 3


class Timid(Slopes):
    """Notes the modes in which the model acts, and whether gradients are followed."""

    seen: set[tuple[bool, bool]] = set()  # noqa: RUF012  (of the test that asks)

    def play(self, model: nn.Module, episodes: int) -> list[float]:
        self.seen.add((model.training, torch.is_grad_enabled()))
        return super().play(model, episodes)


def test_the_model_acts_in_evaluation_mode_and_an_evaluation_leaves_no_trace() -> None:
    Timid.seen = set()
    with_evaluation, without = (TrainingRun(task_of(Timid), learning_rate=0.02, seed=2) for _ in range(2))
    for run in (with_evaluation, without):
        run.step(8)
    loss = with_evaluation.evaluate()
    assert loss == pytest.approx(FLOOR + float((weights_of(without)[0] - TRUTH).square().sum()), rel=1e-5)
    assert with_evaluation.step(8) == without.step(8)
    assert torch.equal(weights_of(with_evaluation), weights_of(without))
    assert with_evaluation.model.training
    assert Timid.seen == {(False, False)}


class Long(Slopes):
    """Whose episodes end in every third batch only."""

    batches = 0

    def collect(self, model: nn.Module, count: int) -> Rollout:
        batch, scores = super().collect(model, count)
        Long.batches += 1
        return Rollout(batch, scores if Long.batches % 3 == 0 else [])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def test_a_batch_in_which_no_episode_ended_has_the_loss_of_the_last_one() -> None:
    run = TrainingRun(task_of(Long), learning_rate=0.02, seed=2)
    first = run.evaluate()
    losses = [run.step(8) for _ in range(5)]
    assert losses[0] == losses[1] == pytest.approx(first)
    assert losses[2] < losses[0]
    assert losses[3] == losses[4] == losses[2]


def test_probe_plan_and_training_go_on_it(tmp_path: Path) -> None:
    task = task_of()
    report = probe(task, examples=6_000, seed=0, journal=tmp_path / "journal")
    assert report.stopped is None
    assert report.provenance.population is None
    assert probe(task, examples=6_000, seed=0, journal=tmp_path / "journal").to_json() == report.to_json()
    plan = Forecast.fit(report).plan(ReachLoss(0.05, "examples"))
    result = train(task, plan.schedule, seed=1)
    assert result.curve.losses[0] > 2.0
    assert result.curve.losses[-1] < 0.06
    assert task.data.score_of(result.curve.losses[-1]) > -0.05


@pytest.mark.parametrize(
    ("optimizer", "kind"), [(torch.optim.SGD, "simple"), (torch.optim.Adam, "preconditioned")], ids=["SGD", "Adam"]
)
def test_a_probe_measures_noise_in_the_metric_of_an_adaptive_optimizer(optimizer: Any, kind: str) -> None:
    task = task_of(optimizer=lambda parameters, lr: optimizer(parameters, lr=lr))
    report = probe(task, examples=3_000, seed=0)
    assert {scale.kind for scale in report.noise_scales} == {kind}
    assert report.noise_scales[-1].metric.startswith("identity" if kind == "simple" else "Adam's 1 / (sqrt(v) + eps)")
    assert any("in the optimizer's metric" in each for each in report.decisions) == (kind == "preconditioned")


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(seen: int, _: float) -> None:
        if seen > 700:
            raise KilledError

    task, schedule = task_of(GoingOn), Schedule.constant(16, examples=1_600, learning_rate=0.02)
    whole = train(task, schedule, seed=2)
    with pytest.raises(KilledError):
        train(task, schedule, seed=2, checkpoint=tmp_path / "run", on_evaluation=kill)
    resumed = train(task, schedule, seed=2, checkpoint=tmp_path / "run")
    assert resumed.resumed_at is not None
    assert resumed.curve == whole.curve
    assert torch.equal(resumed.model.weight, whole.model.weight)


class Fewer(Slopes):
    def collect(self, model: nn.Module, count: int) -> Rollout:
        (x, y), scores = super().collect(model, count)
        return Rollout((x[1:], y[1:]), scores)


class Uneven(Slopes):
    def collect(self, model: nn.Module, count: int) -> Rollout:
        (x, y), scores = super().collect(model, count)
        return Rollout((x, y[1:]), scores)


class Bare(Slopes):
    def collect(self, model: nn.Module, count: int) -> Any:
        return super().collect(model, count).batch[0]


class NaNScore(Slopes):
    def play(self, model: nn.Module, episodes: int) -> list[float]:
        return [math.nan] * episodes


class NoScore(Slopes):
    def play(self, model: nn.Module, episodes: int) -> list[float]:
        return []


@pytest.mark.parametrize(
    ("environments", "changes", "message"),
    [
        (Fewer, {}, "one row for each of the 8 examples that it was asked for, in every tensor, got 7"),
        (Uneven, {}, "in every tensor, got 7 and 8"),
        (Bare, {}, r"collect must return a batchopt.Rollout\(batch, scores\), got Tensor"),
        (NoScore, {}, "play must give the scores of 4 episodes, got none"),
        (Slopes, {"best_score": -100.0}, "best_score must lie above every score, and .* raise it"),
        (lambda seed: 5, {}, r"the methods collect\(model, count\) and play\(model, episodes\), got int"),
    ],
)
def test_wrong_environments_say_what_is_wrong(environments: Any, changes: dict[str, Any], message: str) -> None:
    run = TrainingRun(task_of(environments, **changes), learning_rate=0.02, seed=0)
    with pytest.raises(TaskError, match=message):
        run.step(8)


def test_a_score_that_is_not_finite_is_a_run_that_diverged() -> None:
    with pytest.raises(NonFiniteLossError, match="a score is nan: lower the learning rate, or look at the rewards"):
        TrainingRun(task_of(NaNScore), learning_rate=0.02, seed=0).step(8)
    with pytest.raises(
        NonFiniteLossError,
        match=r"any training, and a score is nan: look for .* values in the env",
    ):
        probe(task_of(NaNScore), examples=6_000)


def test_a_state_that_needs_code_to_be_read_is_refused() -> None:
    class Numpy(GoingOn):
        def state_dict(self) -> dict[str, Any]:
            return {"at": [self.at.numpy()]}

    class Float(GoingOn):
        def state_dict(self) -> dict[str, Any]:
            return {"at": np.float64(1.0)}  # a float, of which torch writes what it does not read again

    for environments, kind in ((Numpy, "ndarray"), (Float, "float64")):
        run = TrainingRun(task_of(environments), learning_rate=0.02, seed=0)
        run.step(8)
        with pytest.raises(TaskError, match=f"tensors, numbers, strings, and lists and dicts of these, got {kind}"):
            run.state_dict()


def test_weights_of_zero_are_refused() -> None:
    task = task_of(loss=lambda model, batch: (model(batch[0])[:, 0], torch.zeros(len(batch[1]))))
    with pytest.raises(TaskError, match="the weights of a batch must add up to more than 0"):
        TrainingRun(task, learning_rate=0.02, seed=0).step(8)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="environments must be a function from a seed to environments, got int"):
        Rollouts(environments=3, best_score=1.0)
    with pytest.raises(ValueError, match="best_score must be finite"):
        Rollouts(environments=Slopes, best_score=math.inf)
    with pytest.raises(ValueError, match="passes must be at least 1"):
        Rollouts(environments=Slopes, best_score=1.0, passes=0)
    with pytest.raises(ValueError, match="eval_data must be left out with Rollouts"):
        task_of(eval_data=(torch.ones(3, 8), torch.ones(3)))
    with pytest.raises(TypeError, match="eval_data must be a tuple of tensors or a map-style data set"):
        TrainingTask(
            model=lambda: nn.Linear(1, 1),
            data=(torch.ones(4, 1),),
            eval_data=Rollouts(environments=Slopes, best_score=1.0),
            loss=lambda model, batch: model(batch[0])[:, 0],
            optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        )


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchopt.probing.measure.process_group", lambda *_, **__: object())
    task = task_of()
    with pytest.raises(TaskError, match="the noise scale of roll-outs is measured by one process"):
        measure_noise_scale(task.make_model(), task.loss, task.data)
    group: Any = object()
    with pytest.raises(TaskError, match="roll-outs are trained on by one process"):
        TrainingRun(task, learning_rate=0.1, seed=0, group=group)
