"""Every kind of layer against one example at a time, alone and in the middle of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probing.gradient_norms.twin import assert_like_twin
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)
from torch.nn.modules.batchnorm import _BatchNorm

from batchopt import per_example_squared_norms

BATCH = 5


class InTheMiddle(nn.Module):
    """A layer between something that is trained and something that is not linear."""

    def __init__(self, layer: nn.Module, features: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.randn(features))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        scale = self.before.view(-1, *(1,) * (x.ndim - 2)) if x.ndim > 2 else self.before
        return self.layer(x * scale)


def energy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """A loss that is not linear in the model's output."""
    output = model(*batch)
    output = output[0] if isinstance(output, tuple) else output
    return (output.sin() + 0.3 * output.square()).flatten(1).sum(1)


def assert_layer(layer: nn.Module, *shape: int, way: str = "", without: str = "used by") -> None:
    """A layer on inputs of a shape, of which the first dimension holds the channels."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    ways = assert_like_twin(InTheMiddle(layer, shape[0]), energy, (torch.randn(BATCH, *shape),))
    of_layer = {name: how for name, how in ways.items() if name.startswith("layer")}
    assert all(way in how for name, how in of_layer.items() if name.endswith("weight"))
    assert not any(without in how for how in of_layer.values())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 2, 3)])
def test_linear(leading: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias))
    assert_like_twin(model, energy, (torch.randn(BATCH, *leading, 4),))


@pytest.mark.parametrize(
    ("positions", "way"), [(1, "norms of inputs"), (4, "Gram"), (200, "every example's 8 x 6 gradient")]
)
def test_every_way_of_a_linear_layer_is_exact(positions: int, way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(BATCH, positions, 6) if positions > 1 else torch.randn(BATCH, 6)
    ways = assert_like_twin(nn.Linear(6, 8), energy, (x,))
    assert way in ways["weight"]


CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": 2},
    "padded": {"padding": 1},
    "same": {"padding": "same", "dilation": 2},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4},
    "no bias": {"bias": False, "stride": 2, "padding": 1},
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions(dimensions: int, kind: str) -> None:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](4, 8, 3, **CONVOLUTIONS[kind])
    assert_layer(layer, 4, *(7, 6, 5)[:dimensions])


TRANSPOSED = {
    "plain": {},
    "strided": {"stride": 2, "output_padding": 1},
    "padded": {"padding": 1},
    "dilated": {"dilation": 2},
    "grouped": {"groups": 2, "stride": 2, "padding": 1},
}


@pytest.mark.parametrize("kind", TRANSPOSED)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_convolutions(dimensions: int, kind: str) -> None:
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1]
    assert_layer(layer(4, 6, 3, **TRANSPOSED[kind]), 4, *(5, 4, 3)[:dimensions])


def test_uneven_kernels_and_strides() -> None:
    assert_layer(nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), 2, 7, 6)
    assert_layer(nn.ConvTranspose2d(2, 3, (3, 2), stride=(1, 3), padding=(1, 0), output_padding=(0, 1)), 2, 5, 4)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_any_convolution(data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, 2))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    each = st.integers(1, 3)
    stride, dilation = data.draw(each), data.draw(st.integers(1, 2))
    arguments: dict[str, Any] = {
        "kernel_size": data.draw(each),
        "stride": stride,
        "dilation": dilation,
        "padding": data.draw(st.integers(0, 2)),
        "groups": groups,
        "bias": data.draw(st.booleans()),
    }
    transposed = data.draw(st.booleans())
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d) if transposed else (nn.Conv1d, nn.Conv2d)
    if transposed:
        arguments["padding"] = min(arguments["padding"], arguments["kernel_size"] - 1)
        arguments["output_padding"] = data.draw(st.integers(0, max(stride, dilation) - 1))
    sides = [data.draw(st.integers(5, 8)) for _ in range(dimensions)]
    assert_layer(kinds[dimensions - 1](4, 4 * data.draw(st.integers(1, 2)), **arguments), 4, *sides)


class Tokens(nn.Module):
    """An embedding, and a layer behind it."""

    def __init__(self, embedding: nn.Module, features: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.out = nn.Linear(features, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embedding(ids).tanh())


@pytest.mark.parametrize("shape", [(), (7,), (3, 4)])
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_embeddings(shape: tuple[int, ...], padding_idx: int | None) -> None:
    torch.manual_seed(0)
    model = Tokens(nn.Embedding(6, 3, padding_idx=padding_idx), 3)
    ways = assert_like_twin(model, energy, (torch.randint(6, (BATCH, *shape)),))
    assert ways["embedding.weight"] == "sums over the equal rows of an embedding"


def test_a_large_vocabulary_takes_no_buffer_of_its_size_for_an_example() -> None:
    torch.manual_seed(0)
    model = Tokens(nn.Embedding(300_000, 4), 4)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            output = func(*args, **(kwargs or {}))
            if isinstance(output, Tensor):
                largest = max(largest, output.untyped_storage().nbytes())
            return output

    ids = torch.randint(300_000, (64, 16))
    with Largest():
        got = per_example_squared_norms(model, energy, (ids,))
    assert got.shape == (64,)
    assert largest <= 2 * 300_000 * 4 * 4


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_embeddings(mode: str) -> None:
    torch.manual_seed(0)
    bags = nn.EmbeddingBag(6, 3, mode=mode)
    assert_like_twin(Tokens(bags, 3), energy, (torch.randint(6, (BATCH, 4)),), method="per-example gradients")


NORMALISATIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer, two dimensions": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer, scale only": (lambda: nn.LayerNorm(4, bias=False), (4,)),
    "root mean square": (lambda: nn.RMSNorm(4), (3, 4)),
    "root mean square, two dimensions": (lambda: nn.RMSNorm((3, 4), eps=1e-3), (3, 4)),
    "group": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "group, no positions": (lambda: nn.GroupNorm(2, 4), (4,)),
    "instance, 1-D": (lambda: nn.InstanceNorm1d(4, affine=True), (4, 5)),
    "instance, 2-D": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
    "instance, 3-D": (lambda: nn.InstanceNorm3d(4, affine=True), (4, 2, 3, 2)),
    "batch, evaluating": (lambda: nn.BatchNorm2d(4).eval(), (4, 3, 3)),
    "batch, evaluating, no positions": (lambda: nn.BatchNorm1d(4).eval(), (4,)),
}


class Normalised(nn.Module):
    def __init__(self, layer: nn.Module, features: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.randn(features))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.before.sin().sum() * x.square())


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalisations(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NORMALISATIONS[name]
    layer = make()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    ways = assert_like_twin(Normalised(layer, 4), energy, (torch.randn(BATCH, *shape),))
    expected = "every example's gradient" if isinstance(layer, (nn.RMSNorm, _BatchNorm)) else "sums over positions"
    assert all(expected in how for key, how in ways.items() if key.startswith("layer"))


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"kdim": 3, "vdim": 5}, {"add_bias_kv": True}])
@pytest.mark.parametrize("weights", [True, False])
def test_multi_head_attention(settings: dict[str, Any], weights: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **settings)

        def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self.attention(x, key, value, need_weights=weights)[0]

    torch.manual_seed(0)
    sizes = settings.get("kdim", 4), settings.get("vdim", 4)
    batch = (torch.randn(BATCH, 6, 4), torch.randn(BATCH, 7, sizes[0]), torch.randn(BATCH, 7, sizes[1]))
    assert_like_twin(Attention(), energy, batch)


def test_attention_to_oneself_under_a_mask() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
            return self.attention(x, x, x, attn_mask=causal, key_padding_mask=padding.to(x.dtype))[0]

    torch.manual_seed(0)
    padding = torch.zeros(BATCH, 6)
    padding[:3, 4:] = float("-inf")
    assert_like_twin(Attention(), energy, (torch.randn(BATCH, 6, 4), padding))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("evaluating", [True, False])
def test_transformer_layers(norm_first: bool, evaluating: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = model.eval() if evaluating else model
    assert_like_twin(model, energy, (torch.randn(BATCH, 5, 8),))


def test_biases_and_scales_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.PReLU(6), nn.Conv1d(1, 3, 2))
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model[3].weight.requires_grad_(False)

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return model[3](model[2](model[1](model[0](batch[0])))[:, None]).square().sum((1, 2))

    ways = assert_like_twin(model, loss, (torch.randn(BATCH, 4),))
    assert set(ways) == {"0.bias", "1.weight", "2.weight", "3.bias"}


def test_bilinear_layers_and_functions_of_weights() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bilinear = nn.Bilinear(3, 4, 2)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
            self.mixing = nn.Parameter(torch.randn(3, 3))
            self.scale = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            hidden = self.normed(self.bilinear(x, y).tanh())
            hidden = hidden @ self.mixing.softmax(1) + torch.einsum("bi,ij->bj", hidden, self.mixing)
            return F.relu(hidden) * self.scale.exp() + self.mixing[0]

    torch.manual_seed(0)
    ways = assert_like_twin(Model(), energy, (torch.randn(BATCH, 3), torch.randn(BATCH, 4)))
    assert "used by softmax" in ways["mixing"]
