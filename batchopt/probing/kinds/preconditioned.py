"""The metric of the optimizer: what it multiplies a gradient with, coordinate by coordinate.

An optimizer that moves along P g sees the noise scale tr(P Sigma) / G'PG. P is that of the optimizer's latest step,
with its learning rates, bias corrections and eps where it puts them; momentum is not in it. Names of the state are
torch's.

Second moments of coordinates that hardly ever receive a gradient, as of a rare token's row, are nearly zero. They do
not say what the optimizer does with a gradient that arrives: it enters the moment first. So where none came at all, or
none to a whole row for many steps, the moment counts as no less than what one gradient of the tensor's typical size
adds.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from batchopt.probing.kinds.metric import Metric
from batchopt.probing.sharding import own_part, shard_like, whole

SHORTEST_ROW = 4
"""Elements of a row that tell by their mean whether it gets gradients."""
FORGOTTEN = 0.01
"""Of the squared first moments that a row with gradients in every step has."""

Group = Mapping[str, Any]
State = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Scaling:
    """How an optimizer scales a parameter's coordinates.

    Attributes:
        factor: (group, state, parameter) -> P with the learning rate, broadcastable to the parameter.
        words: P in a formula.
    """

    factor: Callable[[Group, State, nn.Parameter], Tensor]
    words: str


def _adam(group: Group, state: State, parameter: nn.Parameter) -> Tensor:
    del parameter
    corrected = 1.0 - group["betas"][1] ** float(state["step"])
    moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    root = _remembered(moment, group, state).sqrt() / math.sqrt(corrected)
    return float(group["lr"]) / (root + group["eps"])


def _radam(group: Group, state: State, parameter: nn.Parameter) -> Tensor:
    beta2, step = group["betas"][1], float(state["step"])
    corrected = 1.0 - beta2**step
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * beta2**step / corrected
    if length <= 5.0:  # the variance is not rectified yet: a plain step
        return torch.as_tensor(float(group["lr"]), dtype=torch.float64, device=parameter.device)
    rectified = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    root = _remembered(state["exp_avg_sq"], group, state).sqrt() + group["eps"]
    return float(group["lr"]) * math.sqrt(rectified * corrected) / root


def _adamax(group: Group, state: State, parameter: nn.Parameter) -> Tensor:
    del parameter
    largest = _remembered(state["exp_inf"].square(), group, state).sqrt()
    return float(group["lr"]) / largest.clamp_min(group["eps"])


def _rmsprop(group: Group, state: State, parameter: nn.Parameter) -> Tensor:
    del parameter
    moment = state["square_avg"]
    if group["centered"]:
        moment = (moment - state["grad_avg"].square()).clamp_min(0.0)
    return float(group["lr"]) / (
        _with_typical(moment.double(), moment == 0, 1.0 - group["alpha"]).sqrt() + group["eps"]
    )


def _adagrad(group: Group, state: State, parameter: nn.Parameter) -> Tensor:
    del parameter
    step = float(state["step"])
    rate = float(group["lr"]) / (1.0 + (step - 1.0) * group["lr_decay"])
    return rate / (_with_typical(state["sum"].double(), state["sum"] == 0, 1.0 / step).sqrt() + group["eps"])


def _adadelta(group: Group, state: State, parameter: nn.Parameter) -> Tensor:
    del parameter
    moment = _with_typical(state["square_avg"].double(), state["square_avg"] == 0, 1.0 - group["rho"])
    updates: Tensor = state["acc_delta"] + group["eps"]
    return float(group["lr"]) * (updates / (moment + group["eps"])).sqrt()


def _adafactor(group: Group, state: State, parameter: nn.Parameter) -> Tensor:
    """Without the clipping of an update's size, which is one number that the next gradient decides."""
    step = float(state["step"])
    eps1, eps2 = group["eps"]
    eps1 = torch.finfo(parameter.dtype).eps if eps1 is None else eps1
    if "variance" in state:
        moment = state["variance"]
    else:
        row, column = state["row_var"], state["col_var"]
        moment = (row @ column) / row.mean(dim=-2, keepdim=True).clamp_min(eps1)
    size = float(parameter.detach().norm()) / math.sqrt(parameter.numel())
    rate = max(eps2, size) * min(float(group["lr"]), 1.0 / math.sqrt(step))
    return (
        rate * _with_typical(moment.double(), moment == 0, step ** group["beta2_decay"]).clamp_min(eps1 * eps1).rsqrt()
    )


def _remembered(moment: Tensor, group: Group, state: State) -> Tensor:
    """Second moments of the Adam family, where rows show by their first moment whether gradients still come.

    Over a row that gets gradients in every step, the sum of squared first moments is (1 - beta1) / (1 + beta1) times
    that of second moments, and above; some tens of steps without any make it less than a hundredth of that.
    """
    beta1, beta2 = group["betas"]
    wide, first = moment.detach().double(), state["exp_avg"].detach().double()
    forgotten = wide == 0
    if wide.ndim > 1 and wide[0].numel() >= SHORTEST_ROW:
        trailing = tuple(range(1, wide.ndim))
        steady = (1.0 - beta1) / (1.0 + beta1) * wide.sum(trailing, keepdim=True)
        forgotten |= first.square().sum(trailing, keepdim=True) < FORGOTTEN * steady
    return _with_typical(wide, forgotten, 1.0 - beta2)


def _with_typical(moment: Tensor, forgotten: Tensor, share: float) -> Tensor:
    """Moments that are no less, where forgotten, than `share` of the mean of the others."""
    if not bool(forgotten.any()) or bool(forgotten.all()):
        return moment
    typical = float(moment[~forgotten].mean()) * min(1.0, share)
    return torch.where(forgotten, moment.clamp_min(typical), moment)


SCALINGS: dict[type[Optimizer], _Scaling] = {
    torch.optim.Adam: _Scaling(_adam, "1 / (sqrt(v) + eps)"),
    torch.optim.NAdam: _Scaling(_adam, "1 / (sqrt(v) + eps)"),
    torch.optim.RAdam: _Scaling(_radam, "rectified 1 / (sqrt(v) + eps)"),
    torch.optim.Adamax: _Scaling(_adamax, "1 / largest |g|"),
    torch.optim.RMSprop: _Scaling(_rmsprop, "1 / (sqrt(v) + eps)"),
    torch.optim.Adagrad: _Scaling(_adagrad, "1 / (sqrt(sum of squares) + eps)"),
    torch.optim.Adadelta: _Scaling(_adadelta, "rms of updates / rms of gradients"),
    torch.optim.Adafactor: _Scaling(_adafactor, "size of the parameter / sqrt(factored v)"),
    torch.optim.SparseAdam: _Scaling(_adam, "1 / (sqrt(v) + eps)"),
}
"""Optimizers, and those derived from them, that scale coordinates."""

UNSCALED = (torch.optim.SGD, torch.optim.ASGD)
"""Optimizers that move along the gradient as it is."""

ADDS_DECAY = (
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.SGD,
)
"""Optimizers whose weight decay is added to the gradient, unless it is decoupled."""


def preconditioned(parameters: Sequence[nn.Parameter], optimizer: Optimizer | None) -> Metric:
    """The optimizer's metric in its present state.

    Learning rates of parameter groups enter as their ratio. Parameters that the optimizer does not train, or has never
    had a gradient of, do not count. The identity where the optimizer scales no coordinates, is not known or has taken
    no step; the words say which.
    """
    if optimizer is None:
        return Metric(None, "identity: no optimizer was given")
    name = type(optimizer).__name__
    scaling = next((found for kind, found in SCALINGS.items() if _steps_as(optimizer, kind)), None)
    if scaling is not None and not any(_has_stepped(state) for state in optimizer.state.values()):
        return _by_rates(parameters, optimizer, f"identity: {name} has taken no step yet")
    if scaling is not None:
        return _scaled(parameters, optimizer, scaling)
    if any(_steps_as(optimizer, kind) for kind in UNSCALED):
        return _by_rates(parameters, optimizer, f"identity, as {name} moves along the gradient")
    if isinstance(optimizer, torch.optim.Rprop):
        return Metric(None, 'identity: Rprop steps by the sign of the gradient, see kind="sign"')
    return Metric(None, f"identity: the optimizer {name} is not known")


def is_adaptive(optimizer: Optimizer) -> bool | None:
    """Whether an optimizer scales coordinates by the gradients that they had; None where it is not known."""
    if any(_steps_as(optimizer, kind) for kind in SCALINGS):
        return True
    return False if any(_steps_as(optimizer, kind) for kind in UNSCALED) else None


def momentum_delay(optimizer: Optimizer) -> float:
    """Steps that an optimizer lags behind once its velocity has built up: m / (1 - m) for plain momentum m.

    Adam and its like correct for the beginning, and their groups hold no "momentum".
    """
    return max((_delay_of(group) for group in optimizer.param_groups), default=0.0)


def _delay_of(group: Group) -> float:
    momentum = float(group.get("momentum") or 0.0)
    if not 0.0 < momentum < 1.0:
        return 0.0
    # The velocity begins at one gradient and ends at `full` of them, the rest falling by m a step.
    full = (1.0 - float(group.get("dampening") or 0.0)) / (1.0 - momentum)
    delay = max(0.0, (full - 1.0) / (full * (1.0 - momentum)))
    return momentum * delay if group.get("nesterov") else delay


def _scaled(parameters: Sequence[nn.Parameter], optimizer: Optimizer, scaling: _Scaling) -> Metric:
    groups, left_out, steps, largest = _groups(optimizer), 0, 0.0, 0.0
    squares = []
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        if id(parameter) not in groups or not _has_stepped(state):
            squares.append(torch.zeros((), dtype=torch.float64, device=parameter.device))
            left_out += 1
            continue
        steps = max(steps, float(state["step"]))
        square = scaling.factor(groups[id(parameter)], whole(dict(state)), parameter).to(parameter.device)
        largest = max(largest, float(square.max()))
        squares.append(own_part(shard_like(square, parameter)))
    if largest <= 0:  # every learning rate is zero
        return Metric(None, f"identity: the learning rate of {type(optimizer).__name__} is zero")
    words = f"{type(optimizer).__name__}'s {scaling.words} after {steps:.0f} steps{_rates_in_words(groups)}"
    if left_out:
        words += f"; without {left_out} parameters that it has not trained"
    factors = [
        (square / largest).sqrt().to(torch.promote_types(parameter.dtype, torch.float32))
        for square, parameter in zip(squares, parameters, strict=True)
    ]
    return Metric(factors, words)


def _has_stepped(state: State) -> bool:
    """Whether a parameter was ever stepped: Adagrad has a state before its first step."""
    return bool(state) and float(state["step"]) > 0


def _by_rates(parameters: Sequence[nn.Parameter], optimizer: Optimizer, words: str) -> Metric:
    """The identity, times the ratio of learning rates where they differ or parameters are not trained."""
    groups = _groups(optimizer)
    rates = [float(groups[id(p)]["lr"]) if id(p) in groups else 0.0 for p in parameters]
    if len(set(rates)) == 1:
        return Metric(None, words)
    factors = [
        torch.as_tensor(math.sqrt(rate / max(rates)), device=parameter.device)
        for rate, parameter in zip(rates, parameters, strict=True)
    ]
    return Metric(factors, f"{words}{_rates_in_words(groups) or '; without parameters that it does not train'}")


def _rates_in_words(groups: Mapping[int, Group]) -> str:
    rates = {float(group["lr"]) for group in groups.values()}
    return f", {len(rates)} learning rates as their ratio" if len(rates) > 1 else ""


def _steps_as(optimizer: Optimizer, kind: type[Optimizer]) -> bool:
    """Whether it is of that kind and takes its steps, not some of its own."""
    return isinstance(optimizer, kind) and inspect.unwrap(type(optimizer).step) is inspect.unwrap(kind.step)


def _groups(optimizer: Optimizer) -> dict[int, Group]:
    """Parameter (by identity) -> its group."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def added_decay(parameters: Sequence[nn.Parameter], optimizer: Optimizer | None) -> list[float] | None:
    """Coefficient of the L2 decay that the optimizer adds to each parameter's gradient; None where it adds none.

    Negative where the optimizer maximizes: it turns the gradient round before it adds the decay.

    Decay that is applied to the weights beside the step (AdamW, Adafactor, `decoupled_weight_decay`) is none.
    """
    if not isinstance(optimizer, ADDS_DECAY):
        return None
    groups = _groups(optimizer)
    decay = [_decay_of(groups.get(id(parameter), {})) for parameter in parameters]
    return decay if any(decay) else None


def _decay_of(group: Group) -> float:
    if group.get("decoupled_weight_decay"):
        return 0.0
    decay = float(group.get("weight_decay", 0.0))
    return -decay if group.get("maximize") and decay else decay
