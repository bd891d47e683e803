"""Metrics are evaluated where the loss is, and kept beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import batchopt
from batchopt.errors import NonFiniteLossError, RecordError, TaskError
from batchopt.probing.data import evaluation_cost
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(600, 5, generator=GENERATOR)
Y = (X @ torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0]) > 0).long()
SEEN, HELD = slice(0, 512), slice(512, None)


def accuracy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0]).argmax(1) == batch[1]


def weighted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of the first class only."""
    return accuracy(model, batch), (batch[1] == 0).float()


def task_with(**changes: object) -> TrainingTask:
    settings = {
        "model": lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)),
        "data": (X[SEEN], Y[SEEN]),
        "eval_data": (X[HELD], Y[HELD]),
        "metrics": {"accuracy": accuracy, "of the first": weighted},
        "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        "optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        "device": "cpu",
    }
    return TrainingTask(**(settings | changes))  # type: ignore[arg-type]


def test_metrics_are_those_of_the_model_on_the_evaluation_data() -> None:
    run = TrainingRun(task_with(), learning_rate=0.1, seed=3)
    for _ in range(20):
        run.step(16)
    found = run.evaluation()
    with torch.no_grad():
        right = (run.model.eval()(X[HELD]).argmax(1) == Y[HELD]).double()
    first = Y[HELD] == 0
    assert found.metrics == pytest.approx({"accuracy": right.mean().item(), "of the first": right[first].mean().item()})
    assert found.loss == run.evaluate()


def test_metrics_change_nothing_else_of_a_run() -> None:
    with_metrics = TrainingRun(task_with(), learning_rate=0.1, seed=3)
    without = TrainingRun(task_with(metrics={}), learning_rate=0.1, seed=3)
    for run in (with_metrics, without):
        run.step(16)
        run.evaluation()
        run.step(16)
    pairs = zip(with_metrics.model.parameters(), without.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_every_forward_pass_counts() -> None:
    assert evaluation_cost(task_with(metrics={})) == pytest.approx(88 / 3)
    assert evaluation_cost(task_with()) == pytest.approx(3 * 88 / 3)


def test_a_probe_and_a_training_keep_them(tmp_path: Path) -> None:
    task = task_with()
    report = batchopt.probe(task, examples=40_000, seed=0)
    evaluated = [run for run in report.runs if run.curve.examples]
    assert evaluated
    for run in evaluated:
        assert {name: len(values) for name, values in run.curve.metrics.items()} == {
            "accuracy": len(run.curve.losses), "of the first": len(run.curve.losses)
        }  # fmt: skip
    assert batchopt.ProbeReport.from_json(report.to_json()) == report
    assert report.provenance.evaluated == 88
    forecast = batchopt.Forecast.fit(report)
    assert {curve.name for curve in forecast.metrics} == {"accuracy", "of the first"}
    schedule = batchopt.Schedule((batchopt.Segment(0, 16),), examples=1_600, learning_rate=0.3)
    result = batchopt.train(task, schedule, seed=1, metrics=tmp_path / "metrics.jsonl")
    assert len(result.curve.metrics["accuracy"]) == len(result.curve.losses)
    assert '"accuracy": ' in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert result.curve.metrics["accuracy"][-1] > 0.8


@pytest.mark.parametrize(
    ("metric", "got"),
    [
        (lambda model, batch: accuracy(model, batch).float().mean(), r"shape \(\)"),
        (lambda model, batch: 0.5, "float"),
        (lambda model, batch: (accuracy(model, batch), torch.ones(3)), r"shape \(3,\)"),
    ],
)
def test_a_metric_has_a_value_for_each_example(metric: object, got: str) -> None:
    run = TrainingRun(task_with(metrics={"accuracy": metric}), learning_rate=0.1, seed=3)
    with pytest.raises(TaskError, match=rf"metric 'accuracy' must return one (value|weight) per example, .* got {got}"):
        run.evaluation()


def test_a_metric_that_is_not_finite_is_named() -> None:
    broken = {"gain": lambda model, batch: torch.full((len(batch[1]),), float("nan"))}
    with pytest.raises(NonFiniteLossError, match="before any training, and the gain is nan or infinite"):
        TrainingRun(task_with(metrics=broken), learning_rate=0.1, seed=3).evaluation()
    with pytest.raises(TaskError, match="before any training, and the gain is nan or infinite"):
        batchopt.probe(task_with(metrics=broken), examples=40_000, seed=0)


def test_bad_metrics_are_refused() -> None:
    with pytest.raises(TypeError, match="metrics must map names to functions"):
        task_with(metrics=[accuracy])
    with pytest.raises(TypeError, match="metric 'accuracy' must be a function, got float"):
        task_with(metrics={"accuracy": 0.5})
    with pytest.raises(ValueError, match="not be named 'loss', which is reported at every evaluation: rename it"):
        task_with(metrics={"loss": accuracy})
    with pytest.raises(ValueError, match=r"one of the task's \('accuracy', 'of the first'\), got 'f1'"):
        batchopt.probe(task_with(), examples=40_000, goal=batchopt.ReachMetric("f1", 0.9))


def test_a_checkpoint_with_other_metrics_is_refused(tmp_path: Path) -> None:
    schedule = batchopt.Schedule((batchopt.Segment(0, 16),), examples=1_600, learning_rate=0.3)

    class StopError(Exception):
        pass

    def stop(examples: int, loss: float) -> None:
        if examples > 800:
            raise StopError

    with pytest.raises(StopError):
        batchopt.train(task_with(metrics={}), schedule, seed=1, checkpoint=tmp_path / "run", on_evaluation=stop)
    with pytest.raises(RecordError, match=r"with metrics \[\], and the task has \['accuracy', 'of the first'\]"):
        batchopt.train(task_with(), schedule, seed=1, checkpoint=tmp_path / "run")
    resumed = batchopt.train(task_with(metrics={}), schedule, seed=1, checkpoint=tmp_path / "run")
    assert resumed.resumed_at


def test_a_probe_may_know_a_goal_in_a_metric() -> None:
    goal = batchopt.ReachMetric("accuracy", 0.97, "examples")
    report = batchopt.probe(task_with(), examples=40_000, seed=0, goal=goal)
    assert sum("By the short runs the goal takes batch size" in decision for decision in report.decisions) == 1
