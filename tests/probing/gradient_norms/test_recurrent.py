"""Recurrent layers and cells against one example at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probing.gradient_norms.twin import assert_like_twin
from torch import Tensor, nn

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}
CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "tanh": nn.RNNCell,
    "relu": lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k),
}
SETTINGS = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "no biases": {"bias": False},
    "time first": {"batch_first": False, "num_layers": 2},
}


class Layer(nn.Module):
    """A recurrent layer on (batch, time, features), read at every step and at the end."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        steps = x if self.layer.batch_first else x.transpose(0, 1)
        output, end = self.layer(steps, state) if state is not None else self.layer(steps)
        output = output if self.layer.batch_first else output.transpose(0, 1)
        ends = end if isinstance(end, tuple) else (end,)
        return output.square().sum((1, 2)) + sum(e.transpose(0, 1).flatten(1).sin().sum(1) for e in ends)


class Cells(nn.Module):
    """A cell in a loop: its parameters are used at every step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        total = x.new_zeros(len(x))
        for step in x.unbind(1):
            state = self.cell(step, state)
            total = total + (state[0] if isinstance(state, tuple) else state).square().sum(1)
        return total


def of_model(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return model(*batch)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind: str, settings: str) -> None:
    torch.manual_seed(0)
    model = Layer(LAYERS[kind](3, 5, **{"batch_first": True, **SETTINGS[settings]}))
    ways = assert_like_twin(model, of_model, (torch.randn(6, 7, 3),))
    assert all("used by" not in way for way in ways.values())


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_that_learn_from_a_state_of_their_own(kind: str) -> None:
    class Learnt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer(LAYERS[kind](3, 5, batch_first=True))
            self.first = nn.Linear(3, 5)
            self.memory = nn.Parameter(torch.randn(1, 1, 5))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x[:, 0])[None]
            memory = self.memory.expand(1, len(x), 5).contiguous()
            return self.layer(self.first.weight.sum() * x, (hidden, memory) if kind == "lstm" else hidden + memory)

    torch.manual_seed(1)
    assert_like_twin(Learnt(), of_model, (torch.randn(6, 4, 3),))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_called_twice(kind: str) -> None:
    torch.manual_seed(2)
    layer = LAYERS[kind](4, 4, batch_first=True)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x)[0])[0].square().sum((1, 2))

    assert_like_twin(Twice(), of_model, (torch.randn(5, 3, 4),))


def test_half_a_layer_frozen() -> None:
    torch.manual_seed(3)
    model = Layer(nn.LSTM(3, 5, batch_first=True))
    model.layer.weight_ih_l0.requires_grad_(False)
    model.layer.bias_hh_l0.requires_grad_(False)
    assert_like_twin(model, of_model, (torch.randn(6, 4, 3),))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_frozen_layer_between_others(kind: str) -> None:
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(3, 3), Layer(LAYERS[kind](3, 5, batch_first=True)).requires_grad_(False))
    assert_like_twin(model, lambda model, batch: model(batch[0]), (torch.randn(6, 4, 3),))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, bias: bool) -> None:
    torch.manual_seed(4)
    ways = assert_like_twin(Cells(CELLS[kind](3, 5, bias=bias)), of_model, (torch.randn(6, 4, 3),))
    assert ways["cell.weight_hh"] == "all positions of a shared layer at once"


def test_projections_and_packed_sequences() -> None:
    torch.manual_seed(5)
    projected = Layer(nn.LSTM(3, 5, proj_size=2, batch_first=True))
    assert_like_twin(projected, of_model, (torch.randn(6, 4, 3),), method="one backward pass each")

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(3, 5, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.layer(packed)[1][0].square().sum(1)

    batch = (torch.randn(6, 4, 3), torch.tensor([4, 2, 3, 1, 4, 2]))
    assert_like_twin(Packed(), of_model, batch, method="one backward pass each")
