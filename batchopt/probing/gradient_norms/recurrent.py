"""LSTM, GRU and plain recurrent layers, and their cells.

The fused kernels of torch give no gradients of the gates. So the forward pass is theirs, and the backward pass computes
the gates again, for all time steps at once, and goes back through time by the cell's own equations (`cells.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt.probing.gradient_norms.cells import GRU, LSTM, Cell, Elman
from batchopt.probing.gradient_norms.interception import Recorder, Rule
from batchopt.probing.gradient_norms.linear import linear
from batchopt.probing.gradient_norms.tape import Tape

Keys = tuple[int | None, ...]


def _layers(cell: Cell) -> Rule:
    """The rule of a stack of recurrent layers."""

    def rule(recorder: Recorder, input: Tensor, hx: Any, *settings: Any) -> Any:
        packed = isinstance(hx, Tensor) and cell.states == 2
        if packed or len(settings) != 7 or torch.is_autocast_enabled(input.device.type):
            return NotImplemented
        parameters, has_biases, num_layers, dropout, train, bidirectional, batch_first = settings
        per_direction = 4 if has_biases else 2
        directions = 2 if bidirectional else 1
        if len(parameters) != per_direction * directions * num_layers:  # projections
            return NotImplemented
        if not all(recorder.is_shared_constant(parameter) for parameter in parameters):
            return NotImplemented
        states = tuple(hx) if cell.states == 2 else (hx,)
        output = input.transpose(0, 1) if batch_first else input
        ends = []
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                weights = parameters[k * per_direction : (k + 1) * per_direction]
                steps = output.flip(0) if direction else output
                out, *end = _one_direction(recorder, cell, steps, [state[k] for state in states], weights)
                outputs.append(out.flip(0) if direction else out)
                ends.append(end)
            output = outputs[0] if directions == 1 else torch.cat(outputs, dim=2)
            if dropout and train and layer < num_layers - 1:
                output = F.dropout(output, dropout)
        final = (torch.stack(state) for state in zip(*ends, strict=True))
        return (output.transpose(0, 1) if batch_first else output, *final)

    return rule


def _one_direction(
    recorder: Recorder, cell: Cell, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """One layer in one direction; input (time, batch, features), states (batch, width)."""
    examples = recorder.examples
    with examples.together():
        inputs = examples.all_of(input).transpose(0, 1)
        steps, count, batch = inputs.shape[:3]
        starts = [examples.all_of(state).reshape(count * batch, -1) for state in states]
        proxies, keys = zip(*(recorder.parameter(weight) for weight in weights), strict=True)
        padded = (*proxies, *(None,) * (4 - len(proxies)))
        outputs = _Recurrent.apply(
            inputs.reshape(steps, count * batch, -1),
            starts[0],
            starts[1] if cell.states == 2 else None,
            *padded,
            recorder.tape,
            keys,
            cell,
            count,
        )
        output = outputs[0].view(steps, count, batch, -1).transpose(0, 1)
        ends = [end.view(count, batch, -1) for end in outputs[1:]]
    return [examples.one_of(output), *(examples.one_of(end) for end in ends)]


class _Recurrent(torch.autograd.Function):
    """One layer in one direction for all examples, time first: input (time, rows, features), states (rows, width)."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        hidden: Tensor,
        memory: Tensor | None,
        w_input: Tensor,
        w_hidden: Tensor,
        b_input: Tensor | None,
        b_hidden: Tensor | None,
        tape: Tape,
        keys: Keys,
        cell: Cell,
        count: int,
    ) -> tuple[Tensor, ...]:
        weights = [weight for weight in (w_input, w_hidden, b_input, b_hidden) if weight is not None]
        output, *ends = cell.run(input, hidden, memory, weights)
        ctx.save_for_backward(input, hidden, memory, w_input, w_hidden, b_input, b_hidden, output)
        ctx.tape, ctx.keys, ctx.cell, ctx.count = tape, keys, cell, count
        return output, *(end[0] for end in ends)

    @staticmethod
    def backward(ctx: Any, to_output: Tensor, *to_ends: Tensor) -> tuple[Tensor | None, ...]:
        input, hidden, memory, w_input, w_hidden, b_input, b_hidden, output = ctx.saved_tensors
        before = torch.cat((hidden[None], output[:-1]))
        by_input, by_hidden = F.linear(input, w_input, b_input), F.linear(before, w_hidden, b_hidden)
        back = ctx.cell.back(by_input, by_hidden, before, output, memory, w_hidden, to_output, to_ends)
        keys = (*ctx.keys, None, None)
        to_weights = [
            _to_weight(ctx.tape, keys[0], back.to_input_gates, input, ctx.count),
            _to_weight(ctx.tape, keys[1], back.to_hidden_gates, before, ctx.count),
            _to_bias(ctx.tape, keys[2], back.to_input_gates, ctx.count),
            _to_bias(ctx.tape, keys[3], back.to_hidden_gates, ctx.count),
        ]
        to_input = back.to_input_gates @ w_input if ctx.needs_input_grad[0] else None
        return to_input, back.to_hidden, back.to_memory, *to_weights, None, None, None, None


def _to_weight(tape: Tape, key: int | None, gates: Tensor, inputs: Tensor, count: int) -> Tensor | None:
    if key is None:
        return None
    left, right = _by_example(gates, count), _by_example(inputs, count)
    return tape.add_outer(
        key, left.mT[:, None], right.mT[:, None], lambda: gates.flatten(0, 1).mT @ inputs.flatten(0, 1)
    )


def _to_bias(tape: Tape, key: int | None, gates: Tensor, count: int) -> Tensor | None:
    return None if key is None else tape.add_sums(key, _by_example(gates, count))


def _by_example(steps: Tensor, count: int) -> Tensor:
    """(time, examples x batch, features) -> (examples, time x batch, features)."""
    return steps.unflatten(1, (count, -1)).transpose(0, 1).flatten(1, 2)


def _projected(
    recorder: Recorder,
    input: Tensor,
    hidden: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """The two linear maps of a cell; None where they are not the ones that we know."""
    by_input, by_hidden = linear(recorder, input, w_ih, b_ih), linear(recorder, hidden, w_hh, b_hh)
    return None if by_input is NotImplemented or by_hidden is NotImplemented else (by_input, by_hidden)


def lstm_cell(recorder: Recorder, input: Tensor, hx: Sequence[Tensor], *weights: Any) -> Any:
    """`torch.lstm_cell`."""
    gates = _projected(recorder, input, hx[0], *_four(weights))
    if gates is None:
        return NotImplemented
    i, f, g, o = (gates[0] + gates[1]).chunk(4, dim=-1)
    memory = f.sigmoid() * hx[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def gru_cell(recorder: Recorder, input: Tensor, hx: Tensor, *weights: Any) -> Any:
    """`torch.gru_cell`."""
    gates = _projected(recorder, input, hx, *_four(weights))
    if gates is None:
        return NotImplemented
    (r, z, n), (r_hidden, z_hidden, n_hidden) = (part.chunk(3, dim=-1) for part in gates)
    new = (n + (r + r_hidden).sigmoid() * n_hidden).tanh()
    return new + (z + z_hidden).sigmoid() * (hx - new)


def _elman_cell(activation: Callable[[Tensor], Tensor]) -> Rule:
    def rule(recorder: Recorder, input: Tensor, hx: Tensor, *weights: Any) -> Any:
        gates = _projected(recorder, input, hx, *_four(weights))
        return NotImplemented if gates is None else activation(gates[0] + gates[1])

    return rule


def _four(weights: Sequence[Tensor | None]) -> tuple[Any, Any, Any, Any]:
    w_ih, w_hh, b_ih, b_hh = (*weights, None, None)[:4]
    return w_ih, w_hh, b_ih, b_hh


RULES: dict[Any, Rule] = {
    torch.lstm_cell: lstm_cell,
    torch.gru_cell: gru_cell,
    torch.rnn_tanh_cell: _elman_cell(torch.tanh),
    torch.rnn_relu_cell: _elman_cell(torch.relu),
}
ALWAYS: dict[Any, Rule] = {  # frozen layers as well: torch.vmap can't follow them
    torch.lstm: _layers(LSTM()),
    torch.gru: _layers(GRU()),
    torch.rnn_tanh: _layers(Elman("tanh")),
    torch.rnn_relu: _layers(Elman("relu")),
}
