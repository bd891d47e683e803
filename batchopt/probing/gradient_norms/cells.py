"""Going back through time in LSTM, GRU and Elman layers.

Notation (as in torch's documentation of the layers)
    T, M     time steps, rows
    i f g o  gates of an LSTM; r z n of a GRU
    h, c     hidden state and memory
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Back:
    """What comes back through a layer.

    Attributes:
        to_input_gates: gradient of what the inputs put into the gates, (T, M, gates).
        to_hidden_gates: of what the hidden states put into them, (T, M, gates).
        to_hidden: gradient of the first hidden state, (M, width).
        to_memory: of the first memory, (M, width); None without one.
    """

    to_input_gates: Tensor
    to_hidden_gates: Tensor
    to_hidden: Tensor
    to_memory: Tensor | None


class Cell(Protocol):
    """A kind of recurrent layer."""

    @property
    def states(self) -> int:
        """1: hidden state; 2: hidden state and memory."""

    def run(self, input: Tensor, hidden: Tensor, memory: Tensor | None, weights: list[Tensor]) -> Sequence[Tensor]:
        """Outputs (T, M, width) and the last states (1, M, width), by torch's kernel."""

    def back(
        self,
        by_input: Tensor,
        by_hidden: Tensor,
        before: Tensor,
        output: Tensor,
        memory: Tensor | None,
        w_hidden: Tensor,
        to_output: Tensor,
        to_ends: Sequence[Tensor],
    ) -> Back:
        """The backward pass.

        Args:
            by_input: what the inputs put into the gates, biases included, (T, M, gates).
            by_hidden: what the hidden states before put into them, (T, M, gates); both may be overwritten.
            before: hidden states before each step, (T, M, width).
            output: hidden states after it.
            memory: first memory, (M, width).
            w_hidden: (gates, width).
            to_output: gradient of the outputs, (T, M, width).
            to_ends: gradients of the last states, each (M, width).
        """


class LSTM:
    """Long short-term memory."""

    states = 2

    def run(self, input: Tensor, hidden: Tensor, memory: Tensor | None, weights: list[Tensor]) -> Sequence[Tensor]:
        """By `torch.lstm`."""
        assert memory is not None
        states = [hidden[None], memory[None]]
        return torch.lstm(input, states, weights, len(weights) == 4, 1, 0.0, False, False, False)

    def back(
        self,
        by_input: Tensor,
        by_hidden: Tensor,
        before: Tensor,
        output: Tensor,
        memory: Tensor | None,
        w_hidden: Tensor,
        to_output: Tensor,
        to_ends: Sequence[Tensor],
    ) -> Back:
        """As `Cell.back`."""
        del before, output
        assert memory is not None
        steps, rows, width = to_output.shape
        gates = by_input.add_(by_hidden).view(steps, rows, 4, width)
        gates[:, :, :2].sigmoid_()
        gates[:, :, 2].tanh_()
        gates[:, :, 3].sigmoid_()
        i, f, g, o = gates.unbind(2)
        memories = torch.empty(steps + 1, rows, width, dtype=to_output.dtype, device=to_output.device)
        memories[0] = memory
        entering = i * g
        for t in range(steps):
            torch.addcmul(entering[t], f[t], memories[t], out=memories[t + 1])
        bounded = memories[1:].tanh()
        # Slopes of the gates by the memory (i, f, g) and by the hidden state (o), for all steps at once.
        slopes = torch.empty_like(gates)
        torch.mul(g * i, 1 - i, out=slopes[:, :, 0])
        torch.mul(memories[:-1] * f, 1 - f, out=slopes[:, :, 1])
        torch.mul(i, 1 - g * g, out=slopes[:, :, 2])
        torch.mul(bounded * o, 1 - o, out=slopes[:, :, 3])
        through = o * (1 - bounded * bounded)
        to_gates = slopes
        to_hidden, to_memory = to_ends
        for t in range(steps - 1, -1, -1):
            to_hidden = to_hidden + to_output[t]
            to_memory = torch.addcmul(to_memory, to_hidden, through[t])
            to_gates[t, :, :3] *= to_memory[:, None]
            to_gates[t, :, 3] *= to_hidden
            to_hidden = to_gates[t].view(rows, -1) @ w_hidden
            to_memory = to_memory * f[t]
        flat = to_gates.view(steps, rows, -1)
        return Back(flat, flat, to_hidden, to_memory)


class GRU:
    """Gated recurrent unit."""

    states = 1

    def run(self, input: Tensor, hidden: Tensor, memory: Tensor | None, weights: list[Tensor]) -> Sequence[Tensor]:
        """By `torch.gru`."""
        del memory
        return torch.gru(input, hidden[None], weights, len(weights) == 4, 1, 0.0, False, False, False)

    def back(
        self,
        by_input: Tensor,
        by_hidden: Tensor,
        before: Tensor,
        output: Tensor,
        memory: Tensor | None,
        w_hidden: Tensor,
        to_output: Tensor,
        to_ends: Sequence[Tensor],
    ) -> Back:
        """As `Cell.back`."""
        del output, memory
        steps, rows, width = to_output.shape
        inputs, hiddens = (part.view(steps, rows, 3, width) for part in (by_input, by_hidden))
        r, z = (inputs[:, :, :2] + hiddens[:, :, :2]).sigmoid_().unbind(2)
        n = torch.addcmul(inputs[:, :, 2], r, hiddens[:, :, 2]).tanh_()
        to_new = (1 - z) * (1 - n * n)
        slopes = torch.stack((to_new * hiddens[:, :, 2] * r * (1 - r), (before - n) * z * (1 - z), to_new * r), dim=2)
        (to_hidden,) = to_ends
        to_state = torch.empty_like(to_output)
        for t in range(steps - 1, -1, -1):
            to_state[t] = to_hidden + to_output[t]
            slopes[t] *= to_state[t][:, None]
            to_hidden = torch.addmm(to_state[t] * z[t], slopes[t].view(rows, -1), w_hidden)
        to_inputs = slopes.clone()
        torch.mul(to_new, to_state, out=to_inputs[:, :, 2])
        return Back(to_inputs.view(steps, rows, -1), slopes.view(steps, rows, -1), to_hidden, None)


class Elman:
    """h = activation(gates).

    Args:
        activation: "tanh" or "relu".
    """

    states = 1

    def __init__(self, activation: str) -> None:
        self._activation = activation

    def run(self, input: Tensor, hidden: Tensor, memory: Tensor | None, weights: list[Tensor]) -> Sequence[Tensor]:
        """By `torch.rnn_tanh` or `torch.rnn_relu`."""
        del memory
        layer = torch.rnn_tanh if self._activation == "tanh" else torch.rnn_relu
        return layer(input, hidden[None], weights, len(weights) == 4, 1, 0.0, False, False, False)

    def back(
        self,
        by_input: Tensor,
        by_hidden: Tensor,
        before: Tensor,
        output: Tensor,
        memory: Tensor | None,
        w_hidden: Tensor,
        to_output: Tensor,
        to_ends: Sequence[Tensor],
    ) -> Back:
        """As `Cell.back`."""
        del by_input, by_hidden, before, memory
        to_gates = 1 - output * output if self._activation == "tanh" else (output > 0).to(output.dtype)
        (to_hidden,) = to_ends
        for t in range(len(output) - 1, -1, -1):
            to_gates[t] *= to_hidden + to_output[t]
            to_hidden = to_gates[t] @ w_hidden
        return Back(to_gates, to_gates, to_hidden, None)
