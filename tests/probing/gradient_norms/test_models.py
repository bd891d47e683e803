"""Models that are put together at random, against one example at a time."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from probing.gradient_norms.twin import assert_like_twin
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

BATCH, WIDTH, POSITIONS = 4, 4, 6


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Channels(nn.Module):
    """A layer that takes (batch, channels, positions) on (batch, positions, channels)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class First(nn.Module):
    """The first output of a layer, called with its input as often as it wants it."""

    def __init__(self, inner: nn.Module, *, inputs: int = 1) -> None:
        super().__init__()
        self.inner, self.inputs = inner, inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(*[x] * self.inputs)[0]


class Bare(nn.Module):
    """Parameters of the module's own, in the forms in which people use them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.matrix, self.scale = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.mixing = nn.Parameter(torch.randn(POSITIONS, POSITIONS))

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "einsum":
            return torch.einsum("btd,de,ts->bse", x, self.matrix, self.mixing)
        if self.form == "positions":
            return self.mixing @ x + self.scale * x.mean((1, 2), keepdim=True)
        if self.form == "scaled":
            return x * self.scale.exp() + (x @ self.matrix) * self.matrix.diagonal() + self.mixing.sum()
        return torch.cat([x[:, :1] + self.scale, x[:, 1:] @ self.matrix.T.softmax(0)], 1) * self.mixing[0, :, None]


def layers() -> st.SearchStrategy[nn.Module]:
    """Layers from (batch, positions, width) to the same."""
    simple: dict[str, Any] = {
        "linear": lambda: nn.Linear(WIDTH, WIDTH),
        "no bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
        "layer norm": lambda: nn.LayerNorm(WIDTH),
        "rms norm": lambda: nn.RMSNorm(WIDTH),
        "convolution": lambda: Channels(nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
        "depthwise": lambda: Channels(nn.Conv1d(WIDTH, WIDTH, 3, padding="same", groups=WIDTH)),
        "transposed": lambda: Channels(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1)),
        "group norm": lambda: Channels(nn.GroupNorm(2, WIDTH)),
        "instance norm": lambda: Channels(nn.InstanceNorm1d(WIDTH, affine=True)),
        "batch norm": lambda: Channels(nn.BatchNorm1d(WIDTH).eval()),
        "lstm": lambda: First(nn.LSTM(WIDTH, WIDTH, batch_first=True)),
        "gru": lambda: First(nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)),
        "attention": lambda: First(nn.MultiheadAttention(WIDTH, 2, batch_first=True), inputs=3),
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
        **{form: lambda form=form: Bare(form) for form in ("einsum", "positions", "scaled", "sliced")},
    }
    return st.sampled_from(sorted(simple)).map(lambda name: simple[name]())


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """A stack of layers, some frozen, some called twice, some around a residual connection."""
    torch.manual_seed(draw(st.integers(0, 5)))
    chosen: list[nn.Module] = [nn.Linear(WIDTH, WIDTH)]
    for _ in range(draw(st.integers(1, 4))):
        layer = draw(layers())
        if draw(st.booleans()):
            layer.requires_grad_(draw(st.integers(0, 3)) > 0)
        chosen += [Residual(layer) if draw(st.booleans()) else layer]
        if draw(st.integers(0, 3)) == 0:
            chosen.append(draw(st.sampled_from(chosen)))
    return nn.Sequential(*chosen, nn.Linear(WIDTH, 3))


def weighted(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    x, weights = batch
    return model(x).sin().square().sum((1, 2)), weights


@settings(deadline=None, max_examples=120, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(model=models())
def test_any_stack_of_layers(model: nn.Module) -> None:
    torch.manual_seed(1)
    x, weights = torch.randn(BATCH, POSITIONS, WIDTH), torch.rand(BATCH) + 0.5
    # Layers that are called twice may cancel: errors are relative to what rounding of the uses allows.
    assert_like_twin(model, weighted, (x, weights), dtypes=(torch.float64,))


@st.composite
def language_models(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 5)))

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(9, WIDTH, padding_idx=draw(st.sampled_from([None, 0])))
            self.positions = nn.Embedding(POSITIONS, WIDTH)
            self.stack = nn.Sequential(*(draw(layers()) for _ in range(draw(st.integers(0, 2)))))
            self.head = nn.Linear(WIDTH, 9, bias=False)
            if draw(st.booleans()):
                self.head.weight = self.tokens.weight

        def forward(self, ids: Tensor) -> Tensor:
            positions = self.positions(torch.arange(ids.shape[1], device=ids.device))
            return self.head(self.stack(self.tokens(ids) + positions))

    return Language()


def next_token(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, targets = batch
    return F.cross_entropy(model(ids).transpose(1, 2), targets, reduction="none", ignore_index=0).sum(1)


@settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(model=language_models())
def test_any_language_model(model: nn.Module) -> None:
    torch.manual_seed(1)
    batch = (torch.randint(9, (BATCH, POSITIONS)), torch.randint(9, (BATCH, POSITIONS)))
    assert_like_twin(model, next_token, batch, dtypes=(torch.float64,))
