"""The task: what is refused, when, and in which words."""

from __future__ import annotations

from typing import Any

import cloudpickle
import pytest
import torch
from probing.problems import classification, cross_entropy, make_task, mlp, weighted_cross_entropy
from torch import nn

from batchopt.errors import TaskError
from batchopt.probing.losses import batch_loss, is_mean
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import trainable_parameters


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": mlp()}, TypeError, "model must be a function that makes a new model"),
        ({"loss": 3}, TypeError, "loss must be a function, got int"),
        ({"optimizer": None}, TypeError, "optimizer must be a function, got NoneType"),
        ({"before_step": 1.0}, TypeError, "before_step must be a function, got float"),
        ({"data": (torch.zeros(1, 2),)}, TaskError, "data must hold at least 2 examples, got 1"),
        ({"eval_data": iter([])}, TypeError, "eval_data must be a tuple of tensors or a map-style data set, got"),
        ({"eval_data": (torch.zeros(0),)}, TaskError, "eval_data must hold at least 1 example, got 0"),
        ({"autocast": torch.float32}, ValueError, "autocast must be None, torch.bfloat16 or torch.float16"),
        ({"device": "gpu"}, ValueError, "device must name a torch device, got 'gpu'"),
        (
            {"learning_rate_schedule": "triangle"},
            ValueError,
            "must be one of 'constant', .* or a function of progress from 0 to 1, got 'triangle'",
        ),
        ({"learning_rate_schedule": 0.1}, ValueError, r"learning_rate_schedule must be one of .* got 0\.1"),
        ({"warmup_examples": -1}, ValueError, "warmup_examples must be at least 0, got -1"),
        ({"search": ["weight_decay"]}, TypeError, "search must map names"),
        (
            {"search": {"weight decay": (0.1, 1.0, "log")}},
            ValueError,
            "keyword of the optimizer factory, got 'weight decay'",
        ),
        ({"search": {"a": (0.1, 1.0)}}, ValueError, r"search\['a'\] must be"),
        ({"search": {"a": (0.1, 1.0, "cubic")}}, ValueError, "scale must be one of 'log', 'linear', got 'cubic'"),
        ({"search": {"a": (0.0, 1.0, "log")}}, ValueError, "lowest must be positive"),
        ({"search": {"a": (1.0, 1.0, "linear")}}, ValueError, "highest must exceed its lowest, got 1.0 and 1.0"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_task(**changes)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"one that torch sees, got 'cuda' and no CUDA device: leave device"):
        make_task(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert make_task(device="cuda:1").torch_device.index == 1
    with pytest.raises(ValueError, match=r"got 'cuda:2' and 2 CUDA devices, counted from cuda:0"):
        make_task(device="cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="got 'mps' and no MPS device"):
        make_task(device=torch.device("mps"))


def test_search_may_begin_at_zero_on_a_linear_scale() -> None:
    assert make_task(search={"momentum": (0.0, 0.9, "linear")}).search["momentum"][0] == 0.0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: (cross_entropy(model, batch).mean(), torch.ones(3)), r"like the losses, got \(3,\)"),
        (lambda model, batch: cross_entropy(model, batch)[:, None], r"got shape \(8, 1\)"),
        (lambda model, batch: cross_entropy(model, batch).repeat(3), "8 for this batch, got 24"),
        (lambda model, batch: model(batch[0]).argmax(1), "floating-point values, got torch.int64"),
        (lambda model, batch: 1.0, "a tensor of one value per example, got float"),
        (
            lambda model, batch: (cross_entropy(model, batch), torch.ones(3)),
            r"shape \(8,\) like the losses, got \(3,\)",
        ),
        (lambda model, batch: (cross_entropy(model, batch), 1.0), "like the losses, got float"),
    ],
)
def test_bad_losses(loss: Any, message: str) -> None:
    task = make_task(loss=loss)
    x, y = task.data
    with pytest.raises(TaskError, match=message):
        task.losses(task.make_model(), (x[:8], y[:8]))


def test_a_criterion_alone_is_no_loss() -> None:
    with pytest.raises(TypeError, match=r"called with \(model, batch\), got CrossEntropyLoss: write lambda"):
        make_task(loss=torch.nn.CrossEntropyLoss())


def test_a_mean_is_the_loss_of_every_example() -> None:
    task = make_task(loss=lambda model, batch: cross_entropy(model, batch).mean())
    x, y = task.data
    model = task.make_model()
    losses, weights = task.losses(model, (x[:8], y[:8]))
    assert weights is None
    assert losses.tolist() == [float(cross_entropy(model, (x[:8], y[:8])).mean().detach())] * 8
    assert is_mean(losses)
    weighted = make_task(loss=lambda model, batch: (cross_entropy(model, batch).mean(), torch.arange(8.0)))
    assert weighted.losses(model, (x[:8], y[:8]))[1].tolist() == list(range(8))
    assert not is_mean(cross_entropy(model, (x[:8], y[:8])))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters, lr: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters, lr: torch.optim.SGD([{"params": [p], "lr": 0.1 * k} for k, p in enumerate(parameters, 1)]),
    ],
)
def test_an_optimizer_must_take_the_learning_rate(optimizer: Any) -> None:
    task = make_task(optimizer=optimizer)
    model = task.make_model()
    with pytest.raises(
        TaskError, match=r"must take the learning rate .* asked for 0\.7, and for 1\.4, it has 0\.1.* both times"
    ):
        task.make_optimizer(model, learning_rate=0.7)
    with pytest.raises(TaskError, match="must take the learning rate"):
        TrainingRun(task, learning_rate=0.7, seed=0)
    without = make_task(optimizer=lambda parameters, lr: torch.optim.Optimizer(parameters, {}))
    with pytest.raises(TaskError, match="a group of Optimizer has none"):
        without.make_optimizer(model, learning_rate=0.7)


def test_groups_may_multiply_the_learning_rate_or_keep_one_of_their_own() -> None:
    def multiplied(parameters: list[Any], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [p], "lr": lr * 0.1**k} for k, p in enumerate(parameters, 1)], lr=lr)

    def one_fixed(parameters: list[Any], lr: float) -> torch.optim.Optimizer:
        first, *rest = parameters
        return torch.optim.SGD([{"params": [first], "lr": 0.01}, {"params": rest}], lr=lr)

    for optimizer, rates in ((multiplied, [0.03, 0.003]), (one_fixed, [0.01, 0.3])):
        task = make_task(optimizer=optimizer)
        made = task.make_optimizer(task.make_model(), learning_rate=0.3)
        assert [group["lr"] for group in made.param_groups][:2] == pytest.approx(rates)


def test_losses_and_weights() -> None:
    task = make_task(loss=weighted_cross_entropy)
    model, batch = task.make_model(), task.data
    losses, weights = task.losses(model, batch)
    assert weights is not None
    assert torch.equal(losses, cross_entropy(model, batch))
    assert torch.equal(weights, 0.5 + batch[0][:, 0].abs())
    assert batch_loss(losses, weights).item() == pytest.approx((losses * weights).sum().item() / weights.sum().item())
    assert batch_loss(losses, None).item() == pytest.approx(losses.mean().item())


def test_losses_come_in_float32_under_autocast() -> None:
    task = make_task(autocast=torch.bfloat16, loss=lambda model, batch: model(batch[0])[:, 0])
    model = task.make_model()
    losses, _ = task.losses(model, task.data)
    exact = model(task.data[0])[:, 0]
    assert losses.dtype == torch.float32
    assert not torch.equal(losses, exact)
    assert torch.allclose(losses, exact, atol=0.05)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: nn.Tanh(), "at least one trainable parameter, and Tanh has none"),
        (lambda: mlp().requires_grad_(False), "at least one trainable parameter, and Sequential has none"),
        (lambda: None, "must make an nn.Module, got NoneType"),
    ],
)
def test_bad_models(factory: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make_task(model=factory).make_model()


def test_an_optimizer_that_is_none() -> None:
    task = make_task(optimizer=lambda parameters, lr: None)
    with pytest.raises(TaskError, match=r"must make a torch\.optim\.Optimizer, got NoneType"):
        task.make_optimizer(task.make_model(), learning_rate=0.1)


def test_frozen_and_tied_parameters_are_counted_right() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight.requires_grad_(False)
    model[2].weight = model[1].weight
    assert list(trainable_parameters(model)) == ["0.bias", "1.weight", "1.bias", "2.bias"]


def test_hyperparameters_reach_the_optimizer() -> None:
    task = make_task(
        optimizer=lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)
    )
    optimizer = task.make_optimizer(task.make_model(), learning_rate=0.1, hyperparameters={"weight_decay": 0.25})
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


def test_population_and_streams() -> None:
    assert make_task(data=classification(30)).population == 30
    stream = make_task(data=iter([classification(8)]))
    assert stream.is_stream
    assert stream.population is None


def test_a_task_of_closures_pickles_by_value() -> None:
    x, y = classification(20)
    task = make_task(
        data=(x, y), model=lambda: mlp(x.shape[1]), loss=lambda model, batch: cross_entropy(model, batch) + y[0]
    )
    copy = cloudpickle.loads(cloudpickle.dumps(task))
    model = task.make_model()
    assert torch.equal(copy.losses(model, copy.data)[0], task.losses(model, task.data)[0])
