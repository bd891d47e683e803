"""What has no gradients of single examples, or can't be followed: refused by name, or read one example at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probing.gradient_norms.twin import assert_like_twin
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt import gradient_coverage, measure_noise_scale, per_example_squared_norms
from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.probing.task import whole_parameters

BATCH = 6


def squared_output(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return model(*batch).square().flatten(1).sum(1)


def test_batch_norm_in_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(4, 2))
    batch = (torch.randn(BATCH, 3, 3, 3),)
    with pytest.raises(TaskError, match=r"BatchNorm2d '1\.0' couples the examples .* call model\.eval\(\) first"):
        per_example_squared_norms(model, squared_output, batch)
    coverage = gradient_coverage(model, squared_output, batch)
    assert coverage.method.startswith("mean gradients of groups of 32 examples (BatchNorm2d '1.0' in training mode")
    assert coverage.ways == {}
    assert len(per_example_squared_norms(model.eval(), squared_output, batch)) == BATCH


def test_an_embedding_scaled_by_the_frequency_in_the_batch() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(6, 1))
    with pytest.raises(TaskError, match="scale_grad_by_freq=True divides gradients by how often a row occurs"):
        per_example_squared_norms(model, squared_output, (torch.randint(5, (BATCH, 2)),))


def test_sparse_gradients_are_taken_as_dense_ones() -> None:
    class Sparse(nn.Module):
        def __init__(self, *, followed: bool) -> None:
            super().__init__()
            self.embedding, self.head, self.followed = nn.Embedding(9, 3, sparse=True), nn.Linear(3, 2), followed

        def forward(self, ids: Tensor) -> Tensor:
            hidden = self.embedding(ids).sum(1)
            return self.head(hidden if self.followed or float(hidden.sum()) < 1e9 else -hidden)

    torch.manual_seed(0)
    ids = torch.randint(9, (BATCH, 4))
    dense = Sparse(followed=True)
    expected = per_example_squared_norms(dense, squared_output, (ids,))
    dense.followed = False
    torch.testing.assert_close(per_example_squared_norms(dense, squared_output, (ids,)), expected)
    dense.embedding.sparse = False
    torch.testing.assert_close(per_example_squared_norms(dense, squared_output, (ids,)), expected)


def test_complex_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(TaskError, match=r"parameter '1\.weight' is complex, which is not supported: hold its real"):
        per_example_squared_norms(model, squared_output, (torch.randn(BATCH, 3),))


def test_parameters_on_several_devices() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(TaskError, match=r"on one device, and '0\.weight' is on cpu, '1\.weight' on meta"):
        per_example_squared_norms(model, squared_output, (torch.randn(BATCH, 3),))


def test_lazy_parameters() -> None:
    with pytest.raises(TaskError, match="parameter 'weight' has no values yet: run one batch through the model first"):
        per_example_squared_norms(nn.LazyLinear(2), squared_output, (torch.randn(BATCH, 3),))


def test_sharded_parameters() -> None:
    model = nn.Linear(3, 2)
    model.weight.device_mesh = object()  # what a DTensor has
    with pytest.raises(TaskError, match="parameter 'weight' is sharded over processes"):
        whole_parameters(model)


@pytest.mark.parametrize("reduce", [lambda losses: 0.5 * (losses + losses.mean()), lambda losses: losses / len(losses)])
def test_a_loss_with_the_wrong_reduction(reduce: Any) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return reduce(F.cross_entropy(model(batch[0]), batch[1], reduction="none"))

    torch.manual_seed(0)
    model, batch = nn.Linear(3, 4), (torch.randn(40, 3), torch.randint(4, (40,)))
    for measure in (per_example_squared_norms, measure_noise_scale):
        with pytest.raises(
            TaskError, match=r"must not depend on the batch it is in, .* in a batch of [24] and .* alone"
        ):
            measure(model, loss, batch)


def test_layers_that_mix_examples() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x - x.mean(0))

    torch.manual_seed(0)
    with pytest.raises(TaskError, match="look for layers that mix the examples of a batch"):
        per_example_squared_norms(Centred(), squared_output, (torch.randn(BATCH, 3),))


def test_a_random_loss_is_not_taken_for_one_that_depends_on_the_batch() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    assert len(per_example_squared_norms(model, squared_output, (torch.randn(BATCH, 3),))) == BATCH


def test_compiled_scripts_hide_their_parameters() -> None:
    torch.manual_seed(0)
    traced = torch.jit.trace(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(2, 3))
    model = nn.Sequential(traced, nn.Linear(4, 2))
    assert_like_twin(model, squared_output, (torch.randn(BATCH, 3),), method="one backward pass each")


def test_a_loss_that_is_detached() -> None:
    with pytest.raises(TaskError, match="and it is detached from them"):
        per_example_squared_norms(nn.Linear(3, 2), lambda model, x: model(x).detach().sum(1), torch.randn(BATCH, 3))


def test_a_gradient_that_is_not_finite_names_its_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return squared_output(model, batch) + (0.0 * model[1].bias.sum()).sqrt()

    with pytest.raises(NonFiniteLossError, match=r"gradient of parameter '1\.bias' is NaN or infinite"):
        per_example_squared_norms(model, loss, (torch.randn(BATCH, 3),))


def test_coverage_says_why() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.unused = nn.Linear(6, 8), nn.Linear(2, 2)
            self.mixing = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) @ self.mixing.softmax(0)

    torch.manual_seed(0)
    coverage = gradient_coverage(Model(), squared_output, (torch.randn(200, 4, 6),))
    assert coverage.method == "per-example gradients, all examples in one pass"
    assert coverage.ways["layer.weight"] == "Gram matrices of 4 positions, cheaper than every example's 8 x 6 gradient"
    assert coverage.ways["layer.bias"] == "sums over positions"
    assert coverage.ways["mixing"] == "every example's gradient, by torch.vmap (used by softmax)"
    assert coverage.ways["unused.bias"] == "no gradient: the loss does not depend on it"
    assert f"  layer.weight   {coverage.ways['layer.weight']}" in str(coverage).splitlines()
