"""Readers of gradients: each against one backward pass per example (or group), in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from probing.problems import classification, cross_entropy, mlp, seeded, weighted_cross_entropy
from torch import Tensor, nn

from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing import per_example
from batchopt.probing.gradient_norms.one_pass import ExampleGradients, read_examples
from batchopt.probing.gradients import GroupGradients, make_reader, per_example_squared_norms
from batchopt.probing.losses import rows_of
from batchopt.probing.moments import GradientSums
from batchopt.probing.per_example import PerExampleGradients
from batchopt.probing.reading import Reading, rows

CPU = torch.device("cpu")
COUNT = 23
EXACT = 1e-10


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)
        self.outer.weight = self.inner.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))[:, :3]


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.net[0].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x.view(-1, 2, 3))).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.view(-1, 3, 2))[0][:, -1])


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(row) if row[0, 0].item() > 0 else self.right(row) for row in x.split(1)])


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (mlp, "all examples in one pass"),
    "tied and unused": (Tied, "all examples in one pass"),
    "frozen": (Frozen, "all examples in one pass"),
    "convolution": (Conv, "all examples in one pass"),
    "recurrent": (Recurrent, "all examples in one pass"),
    "branching": (Branching, "one backward pass each (control flow that depends on data takes 23 ways"),
}


def problem(make: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return seeded(make).double(), classification(COUNT, dtype=torch.float64)


def one_by_one(model: nn.Module, loss: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The slow and obvious twin: gradients (batch, parameters) and weights (batch,)."""
    gradients, weights = [], []
    for k in range(len(batch[0])):
        model.zero_grad()
        result = loss(model, tuple(part[k : k + 1] for part in batch))
        value, weight = result if isinstance(result, tuple) else (result, torch.ones(1))
        value.sum().backward()
        trainable = [p for p in model.parameters() if p.requires_grad]
        gradients.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trainable]))
        weights.append(weight.detach()[0])
    model.zero_grad()
    return torch.stack(gradients), torch.stack(weights).to(gradients[0].dtype)


def check_sums(sums: GradientSums, units: Tensor, weights: Tensor, *, weighted: bool, rtol: float = EXACT) -> None:
    assert sums.units == len(units)
    assert sums.weights == pytest.approx(weights.sum().item(), rel=rtol)
    assert sums.weights_squared == pytest.approx(weights.square().sum().item(), rel=rtol)
    assert sums.squares == pytest.approx((weights[:, None] * units).square().sum().item(), rel=rtol)
    torch.testing.assert_close(sums.total, weights @ units, rtol=rtol, atol=1e-12)
    if weighted:
        assert sums.total_squared is not None
        torch.testing.assert_close(sums.total_squared, weights.square() @ units, rtol=rtol, atol=1e-12)
    else:
        assert sums.total_squared is None


@pytest.mark.parametrize("loss", [cross_entropy, weighted_cross_entropy])
@pytest.mark.parametrize("name", MODELS)
def test_twin_of_one_backward_per_example(name: str, loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_example, "LARGEST_CHUNK", 7)  # several chunks, the last one ragged
    make, method = MODELS[name]
    model, batch = problem(make)
    reader = make_reader(Reading(model, loss, CPU), group_size=None)
    sums = reader.read(batch, COUNT)
    check_sums(sums, *one_by_one(model, loss, batch), weighted=loss is weighted_cross_entropy)
    assert method in reader.method
    assert reader.group_size == 1


def test_float32_is_added_up_in_float32() -> None:
    model, batch = seeded(mlp), classification(COUNT)
    sums = PerExampleGradients(Reading(model, cross_entropy, CPU)).read(batch, COUNT)
    units, weights = one_by_one(model, cross_entropy, batch)
    assert sums.total.dtype == torch.float32
    assert sums.squares == pytest.approx(units.double().square().sum().item(), rel=5e-5)
    torch.testing.assert_close(sums.total, weights @ units, rtol=5e-5, atol=1e-6)


def test_half_precision_gradients_are_added_up_in_float32() -> None:
    model, (x, y) = seeded(mlp).bfloat16(), classification(COUNT)
    sums = PerExampleGradients(Reading(model, cross_entropy, CPU)).read((x.bfloat16(), y), COUNT)
    units, weights = one_by_one(model, cross_entropy, (x.bfloat16(), y))
    assert sums.total.dtype == torch.float32
    torch.testing.assert_close(sums.total, weights.float() @ units.float(), rtol=0.02, atol=0.02)


def test_autocast_gives_the_gradients_of_float32_roughly() -> None:
    model, batch = seeded(mlp), classification(COUNT)
    mixed = PerExampleGradients(Reading(model, cross_entropy, CPU, torch.bfloat16)).read(batch, COUNT)
    exact = PerExampleGradients(Reading(model, cross_entropy, CPU)).read(batch, COUNT)
    assert mixed.squares == pytest.approx(exact.squares, rel=0.05)
    assert mixed.squares != exact.squares


@pytest.mark.parametrize("loss", [cross_entropy, weighted_cross_entropy])
def test_twin_of_groups_of_batch_norm(loss: Any) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

    model, batch = problem(make)
    reader = make_reader(Reading(model, loss, CPU), group_size=None, default_group=5)
    sums = reader.read(batch, COUNT)  # 4 groups of 5, 3 examples left out
    units, weights = [], []
    for k in range(4):
        part = tuple(tensor[5 * k : 5 * k + 5] for tensor in batch)
        result = loss(model, part)
        each, w = result if isinstance(result, tuple) else (result, None)
        mean = each.mean() if w is None else (w * each).sum() / w.sum()
        units.append(torch.cat([g.flatten() for g in torch.autograd.grad(mean, list(model.parameters()))]))
        weights.append(torch.ones((), dtype=torch.float64) if w is None else w.sum())
    check_sums(sums, torch.stack(units), torch.stack(weights), weighted=loss is weighted_cross_entropy)
    assert (
        reader.method
        == "mean gradients of groups of 5 examples (BatchNorm1d '1' in training mode couples the examples "
        "of a batch)"
    )
    assert reader.group_size == 5


@pytest.mark.parametrize(
    ("norm", "evaluating", "groups"),
    [
        (nn.BatchNorm1d(6), False, True),
        (nn.BatchNorm1d(6), True, False),
        (nn.BatchNorm1d(6, track_running_stats=False), True, True),
        (nn.LayerNorm(6), False, False),
    ],
)
def test_which_models_are_read_in_groups(norm: nn.Module, evaluating: bool, groups: bool) -> None:
    model = nn.Sequential(norm, nn.Linear(6, 3)).train(not evaluating)
    reader = make_reader(Reading(model, cross_entropy, CPU), group_size=None)
    assert isinstance(reader, GroupGradients) is groups


def test_groups_can_be_asked_for() -> None:
    model, batch = problem(mlp)
    reader = make_reader(Reading(model, cross_entropy, CPU), group_size=4)
    units, _ = one_by_one(model, cross_entropy, batch)
    sums = reader.read((batch[0][:20], batch[1][:20]), 20)
    means = units[:20].view(5, 4, -1).mean(1)
    check_sums(sums, means, torch.ones(5, dtype=torch.float64), weighted=False)
    assert "as asked" in reader.method


def test_a_batch_norm_has_no_groups_of_one() -> None:
    reading = Reading(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), cross_entropy, CPU)
    with pytest.raises(ValueError, match=r"group_size must be at least 2 with BatchNorm1d '0' in training mode, got 1"):
        make_reader(reading, group_size=1)


def test_a_batch_smaller_than_a_group() -> None:
    model, batch = problem(mlp)
    with pytest.raises(TaskError, match="at least one group of 64 examples, got 23"):
        make_reader(Reading(model, cross_entropy, CPU), group_size=64).read(batch, COUNT)


def test_dropout_is_drawn_for_every_example() -> None:
    model = seeded(mlp, dropout=0.5)
    x = torch.ones(50, 6)
    norms = torch.stack([per_example_squared_norms(model, cross_entropy, (x[:1], torch.zeros(1, dtype=torch.long)))])
    together = per_example_squared_norms(model, cross_entropy, (x, torch.zeros(50, dtype=torch.long)))
    assert len(together.unique()) > 10
    assert len(norms) == 1
    model.eval()
    still = per_example_squared_norms(model, cross_entropy, (x, torch.zeros(50, dtype=torch.long)))
    assert still.max() - still.min() <= 1e-5 * still.max()


def test_batches_may_be_nested_and_hold_what_is_not_per_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_example, "LARGEST_CHUNK", 7)  # the last chunk has two rows, as `scale` has
    model, (x, y) = problem(mlp)
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64)

    def loss(model: Any, batch: Any) -> Tensor:
        return cross_entropy(model, (batch["in"]["x"], batch["y"][0])) * batch["scale"].sum() * batch["factor"]

    batch = {"in": {"x": x}, "y": [y], "scale": scale, "factor": 0.5, "name": "digits"}
    sums = PerExampleGradients(Reading(model, loss, CPU)).read(batch, COUNT)
    units, weights = one_by_one(model, cross_entropy, (x, y))
    check_sums(sums, 2.5 * units, weights, weighted=False)


def test_factors_of_a_metric_are_applied_to_single_examples_and_groups() -> None:
    model, batch = problem(mlp)
    factors = [torch.rand_like(p) for p in model.parameters()]
    flat = torch.cat([factor.flatten() for factor in factors])
    units, weights = one_by_one(model, cross_entropy, batch)
    reading = Reading(model, cross_entropy, CPU, factors=factors)
    check_sums(PerExampleGradients(reading).read(batch, COUNT), units * flat, weights, weighted=False)
    group = make_reader(reading, group_size=COUNT).read(batch, COUNT)
    check_sums(group, (units * flat).mean(0)[None], torch.ones(1, dtype=torch.float64), weighted=False)


def chunks(monkeypatch: pytest.MonkeyPatch, *, fitting: int = COUNT) -> list[int]:
    """Sizes of the passes that are tried; those that are larger than what fits run out of memory."""
    tried: list[int] = []

    def limited(*args: Any, **settings: Any) -> ExampleGradients:
        tried.append(settings["count"])
        if settings["count"] > fitting:
            raise torch.cuda.OutOfMemoryError("planted")
        return read_examples(*args, **settings)

    monkeypatch.setattr(per_example, "read_examples", limited)
    return tried


def test_chunks_shrink_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = chunks(monkeypatch, fitting=5)
    model, batch = problem(mlp)
    reader = PerExampleGradients(Reading(model, cross_entropy, CPU))
    check_sums(reader.read(batch, COUNT), *one_by_one(model, cross_entropy, batch), weighted=False)
    assert tried == [23, 8, 4, 4, 4, 4, 4, 3], "what ran out of memory is not tried again"
    assert "all examples in one pass" in reader.method
    check_sums(reader.read(batch, COUNT), *one_by_one(model, cross_entropy, batch), weighted=False)
    assert tried[8:] == [4, 4, 4, 4, 4, 3], "nor with the next batch"


def test_memory_that_holds_not_even_one_example(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks(monkeypatch, fitting=0)
    model, batch = problem(mlp)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="planted"):
        PerExampleGradients(Reading(model, cross_entropy, CPU)).read(batch, COUNT)


def test_the_first_pass_is_small_and_the_others_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = chunks(monkeypatch, fitting=10**6)
    monkeypatch.setattr(per_example, "FIRST_CHUNK", 4)
    model, batch = seeded(mlp), classification(6000)
    reader = PerExampleGradients(Reading(model, cross_entropy, CPU))
    reader.read(batch, 6000)
    assert tried == [4, 2998, 2998], "passes of equal size"
    tried.clear()
    monkeypatch.setattr(per_example, "CHUNK_BYTES", 50_000)
    reader = PerExampleGradients(Reading(model, cross_entropy, CPU))
    reader.read(batch, 6000)
    assert tried[0] == 4
    assert max(tried[1:]) - min(tried[1:]) <= 1
    assert 20 < tried[1] < 1000, "some hundred bytes an example"


def test_a_gradient_that_is_not_finite_names_its_parameter() -> None:
    model, (x, y) = problem(mlp)

    def loss(model: Any, batch: Any) -> Tensor:
        return cross_entropy(model, batch) + (model[3].bias.sum() - model[3].bias.sum()).sqrt()

    with pytest.raises(NonFiniteLossError, match=r"the gradient of parameter '3\.bias' is NaN or infinite"):
        PerExampleGradients(Reading(model, loss, CPU)).read((x, y), COUNT)


@pytest.mark.parametrize("make", [mlp, Recurrent])
def test_an_error_of_the_loss_is_not_hidden(make: Callable[[], nn.Module]) -> None:
    model, batch = problem(make)

    def loss(model: Any, batch: Any) -> Tensor:
        raise LookupError("of the user's own")

    with pytest.raises(LookupError, match="of the user's own"):
        PerExampleGradients(Reading(model, loss, CPU)).read(batch, COUNT)


def test_a_loss_of_the_wrong_shape_is_said_at_once() -> None:
    model, batch = problem(mlp)
    with pytest.raises(TaskError, match=r"got shape \(\d+, 1\): use reduction='none'"):
        PerExampleGradients(Reading(model, lambda m, b: cross_entropy(m, b)[:, None], CPU)).read(batch, COUNT)


@pytest.mark.parametrize("make", [mlp, Recurrent])
def test_of_a_mean_the_gradients_are_those_of_single_examples(make: Callable[[], nn.Module]) -> None:
    model, batch = problem(make)
    mean = per_example_squared_norms(model, lambda m, b: cross_entropy(m, b).mean(), batch)
    torch.testing.assert_close(mean, per_example_squared_norms(model, cross_entropy, batch))


def test_a_weighted_mean_is_read_by_its_weights() -> None:
    model, batch = problem(mlp)

    def mean(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        losses, weights = weighted_cross_entropy(model, batch)
        return (losses * weights).sum() / weights.sum(), weights

    own, other = (
        PerExampleGradients(Reading(model, loss, CPU)).read(batch, COUNT) for loss in (mean, weighted_cross_entropy)
    )
    torch.testing.assert_close(own.total, other.total)
    assert own.squares == pytest.approx(other.squares, rel=5e-5)


def test_one_number_that_is_not_the_mean_is_refused() -> None:
    model, batch = problem(mlp)
    for loss in (
        lambda m, b: cross_entropy(m, b).sum(),
        lambda m, b: (cross_entropy(m, b) * b[0][:, 0].abs()).sum() / b[0][:, 0].abs().sum(),
    ):
        with pytest.raises(TaskError, match="one number must be the mean over the batch's examples, and it is"):
            per_example_squared_norms(model, loss, batch)


def test_batches_that_cannot_be_taken_apart() -> None:
    with pytest.raises(TaskError, match="got dict without a tensor of 4 rows"):
        rows({"n": torch.tensor(3)}, 4, 0, 2)
    with pytest.raises(TaskError, match="got list without one"):
        rows_of(["text"])
    assert rows_of({"n": torch.tensor(3), "x": torch.zeros(5, 2)}) == 5


@pytest.mark.parametrize("loss", [cross_entropy, weighted_cross_entropy])
@pytest.mark.parametrize("name", MODELS)
def test_squared_norms_are_of_the_examples_own_losses(name: str, loss: Any) -> None:
    model, batch = problem(MODELS[name][0])
    model.zero_grad()
    with torch.no_grad():
        norms = per_example_squared_norms(model, loss, batch)
    assert all(p.grad is None for p in model.parameters())
    units, _ = one_by_one(model, loss, batch)
    torch.testing.assert_close(norms, units.square().sum(1), rtol=EXACT, atol=0.0)


def test_squared_norms_refuse_batch_norm_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    with pytest.raises(TaskError, match=r"BatchNorm1d '1' couples the examples .* call model\.eval\(\) first"):
        per_example_squared_norms(model, cross_entropy, classification(8))
    assert len(per_example_squared_norms(model.eval(), cross_entropy, classification(8))) == 8
