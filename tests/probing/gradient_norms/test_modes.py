"""What users wrap around a model: mixed precision, checkpoints, compilation, masks, adapters, frozen layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probing.gradient_norms.twin import CPU, assert_like_twin, one_at_a_time
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)
from torch.utils.checkpoint import checkpoint

from batchopt import per_example_squared_norms
from batchopt.probing.gradient_norms.wrappers import checkpoints_of_one_kind, without_checkpoints
from batchopt.probing.gradients import make_reader
from batchopt.probing.reading import Reading

BATCH = 6


def squared_output(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return model(*batch).square().flatten(1).sum(1)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


def transformer() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 2)
    )


MIXED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 4)), (8,)),
    "convolutional": (convolutional, (3, 8, 8)),
    "transformer": (transformer, (7, 3)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(2, 4, 3, stride=2), nn.Tanh(), nn.Conv1d(4, 2, 3)), (2, 9)),
    "recurrent": (lambda: Last(nn.GRU(3, 8, batch_first=True)), (5, 3)),
}


class Last(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@pytest.mark.parametrize("name", MIXED)
def test_autocast_agrees_with_one_at_a_time_under_the_same_autocast(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MIXED[name]
    model, x = make(), torch.randn(BATCH, *shape)
    twin = one_at_a_time(model, squared_output, (x,), autocast=torch.bfloat16).gradients.square().sum(1)
    exact = one_at_a_time(model, squared_output, (x,)).gradients.square().sum(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = per_example_squared_norms(model, squared_output, (x,))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), twin, rtol=0.02, atol=0.0)
    assert not torch.allclose(mixed.double(), exact, rtol=1e-5), "autocast was on"
    given = make_reader(Reading(model, squared_output, CPU, torch.bfloat16), group_size=None).read((x,), BATCH)
    assert given.squares == pytest.approx(float(mixed.double().sum()), rel=1e-6)


def test_sums_of_many_squares_are_not_rounded_to_half_precision() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 2048, bias=False).bfloat16(), torch.randn(3, 50, 64).bfloat16()
    got = per_example_squared_norms(model, lambda model, batch: model(batch[0]).float().sum((1, 2)), (x,))
    exact = 2048 * x.double().sum(1).square().sum(1)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=0.0)


class Checkpointed(nn.Module):
    def __init__(self, *, use_reentrant: bool, by_keyword: bool = False) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 2)
        self.use_reentrant, self.calls = use_reentrant, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self._block, self.first(x), use_reentrant=self.use_reentrant))

    def _block(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.block(x)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpoints(use_reentrant: bool) -> None:
    torch.manual_seed(0)
    model = Checkpointed(use_reentrant=use_reentrant)
    ways = assert_like_twin(model, squared_output, (torch.randn(BATCH, 3, 4),))
    assert all("vmap" not in way for way in ways.values())
    model.calls = 0
    model(torch.randn(2, 4)).sum().backward()
    assert model.calls == 2, "the user's own steps recompute as before"


def test_checkpoints_are_as_before_after_threads_that_overlap() -> None:
    before = (torch.utils.checkpoint.CheckpointFunction, torch.utils.checkpoint._checkpoint_without_reentrant_generator)
    first, second = without_checkpoints(), without_checkpoints()
    with checkpoints_of_one_kind():
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.utils.checkpoint._checkpoint_without_reentrant_generator is not before[1], "the second is inside"
        second.__exit__(None, None, None)
    after = (torch.utils.checkpoint.CheckpointFunction, torch.utils.checkpoint._checkpoint_without_reentrant_generator)
    assert after == before


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_stays_compiled(in_place: bool) -> None:
    graphs = 0
    runs = 0

    def backend(module: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1

        def compiled(*args: Any) -> Any:
            nonlocal runs
            runs += 1
            return module.forward(*args)

        return compiled

    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Compiled()
    x = torch.randn(BATCH, 4)
    twin = one_at_a_time(model, squared_output, (x,)).gradients.square().sum(1)
    if in_place:
        model.compile(backend=backend)
        compiled = model
    else:
        compiled = torch.compile(model, backend=backend)
    compiled(x)
    before = (graphs, runs)
    assert before == (1, 1)
    got = per_example_squared_norms(compiled, squared_output, (x,))
    assert (graphs, runs) == before, "measured through the model as it was written"
    torch.testing.assert_close(got.double(), twin.double(), rtol=5e-5, atol=0.0)
    compiled(x)
    assert (graphs, runs) == (1, 2), "still compiled, and not compiled anew"


def test_weighted_and_masked_tokens() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, targets, mask = batch
        losses = F.cross_entropy(model(x).transpose(1, 2), targets, reduction="none")
        counts = mask.sum(1)
        return (losses * mask).sum(1) / counts, counts

    torch.manual_seed(0)
    mask = (torch.arange(7) < torch.tensor([7, 3, 1, 5, 2, 6])[:, None]).float()
    batch = (torch.randn(BATCH, 7, 4), torch.randint(5, (BATCH, 7)), mask)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5))
    assert_like_twin(model, loss, batch)


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter."""

    def __init__(self, inner: int, out: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(inner, out).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(rank, inner)), nn.Parameter(torch.randn(out, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


def test_adapters_of_a_frozen_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Adapted(4, 6), nn.Tanh(), Adapted(6, 3), nn.LayerNorm(3).requires_grad_(False))
    x, targets = torch.randn(BATCH, 5, 4), torch.randn(BATCH, 5, 3)
    # Not the squared output: that of a LayerNorm is the same for all weights.
    ways = assert_like_twin(model, lambda model, batch: (model(batch[0]) * batch[1]).sum((1, 2)), (x, targets))
    assert sorted(ways) == ["0.down", "0.up", "2.down", "2.up"]
    assert "used by" not in str(ways)


def test_a_loss_with_next_to_no_gradient() -> None:
    """Of a LayerNorm over three features the squares add up to three, but for its epsilon."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.LayerNorm(3).requires_grad_(False))
    assert_like_twin(model, squared_output, (torch.randn(BATCH, 5, 4),))


def test_adapters_merged_into_the_weight() -> None:
    class Merged(Adapted):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)

    torch.manual_seed(0)
    model = nn.Sequential(Merged(4, 6), nn.Tanh(), Merged(6, 3))
    assert_like_twin(model, squared_output, (torch.randn(BATCH, 5, 4),))


def test_nothing_of_the_model_is_touched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6).eval(), nn.Dropout(0.5), nn.Linear(6, 2))
    x = torch.randn(BATCH, 4)
    squared_output(model, (x,)).sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    got = per_example_squared_norms(model, squared_output, (x,))
    assert not got.requires_grad
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
