"""Every torch function that takes a trainable parameter, on its way through.

A layer family is a file with a table `RULES`: torch function -> rule. A rule gets the recorder and the function's own
arguments, and returns the function's output, or NotImplemented where the arguments are not what it is made for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from batchopt.probing.gradient_norms.branches import READS, Branches
from batchopt.probing.gradient_norms.examples import Examples
from batchopt.probing.gradient_norms.tape import Tape

Rule = Callable[..., Any]

_METADATA = frozenset(
    (
        "size",
        "dim",
        "numel",
        "nelement",
        "ndimension",
        "stride",
        "is_contiguous",
        "element_size",
        "is_floating_point",
        "is_complex",
        "data_ptr",
        "detach",
        "__len__",
        "__hash__",
        "__repr__",
        "__format__",
        "get_device",
        "storage_offset",
        "untyped_storage",
        "is_shared",
    )
)
_FRESH = frozenset(
    (
        torch.empty,
        torch.full,
        torch.ones,
        torch.tensor,
        torch.zeros,
        torch.empty_like,
        torch.full_like,
        torch.ones_like,
        torch.zeros_like,
        torch.clone,
        Tensor.clone,
        Tensor.new_empty,
        Tensor.new_full,
        Tensor.new_ones,
        Tensor.new_tensor,
        Tensor.new_zeros,
    )
)
"""Functions that make a tensor into which programs write."""
_DIFFERENTIABLE_ATTRIBUTES = frozenset(("T", "mT", "H", "mH", "real", "imag"))
_CASTS = frozenset(("to", "type_as", "float", "double", "half", "bfloat16", "contiguous", "cpu", "cuda"))


class Recorder(TorchFunctionMode):
    """While active, uses of trainable parameters go to a tape.

    Args:
        tape: where to.
        examples: the examples of the `torch.vmap` inside which this is active.
        given: tensors of the batch, as one example has them.
        own_buffers: whether every example gets new tensors of its own, also where all hold the same at first: so that
            what differs can be written into them.
        rules: torch function -> rule.
        always: the same for functions that are intercepted without a parameter as well.

    Attributes:
        branches: what the program reads of tensors.
    """

    def __init__(
        self,
        tape: Tape,
        examples: Examples,
        given: Iterable[Tensor],
        *,
        own_buffers: bool,
        rules: Mapping[Any, Rule],
        always: Mapping[Any, Rule],
    ) -> None:
        super().__init__()
        self.tape = tape
        self.examples = examples
        self._rules = rules
        self._always = always
        self._own_buffers = own_buffers
        self._expanded: dict[int, Tensor] = {}
        self.branches = Branches(examples, given, {proxy.device for proxy in tape.proxies})

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch instead of `func`."""
        del types
        kwargs = kwargs or {}
        if func in READS:
            return self.branches.read(func, args, kwargs)
        states = self.branches.before(args, kwargs)
        output = self._called(func, args, kwargs)
        if self._own_buffers and func in _FRESH:
            output = self.branches.owned(output)
        self.branches.after(states, output)
        return output

    def _called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in self._always:
            output = self._always[func](self, *args, **kwargs)
            if output is not NotImplemented:
                return output
        if not torch.is_grad_enabled() or not self._holds_parameter((*args, *kwargs.values())):
            return func(*args, **kwargs)
        if func in self._rules:
            output = self._rules[func](self, *args, **kwargs)
            if output is not NotImplemented:
                return output
        return self._with_expanded(func, args, kwargs)

    def is_shared_constant(self, value: Tensor | None) -> bool:
        """Whether a rule can take this as a parameter: one of ours, or the same for all examples and not trained."""
        if value is None or self.tape.key(value) is not None:
            return True
        return not value.requires_grad and not self.examples.differ_in(value)

    def parameter(self, value: Tensor | None) -> tuple[Tensor | None, int | None]:
        """What a rule computes with instead of a parameter, and the parameter's key (None where it is not ours)."""
        key = self.tape.key(value)
        return (value, None) if key is None else (self.tape.use(key), key)

    def expanded(self, parameter: Tensor, *, reason: str) -> Tensor:
        """A parameter as a value that every example has for itself, so that its gradients are single examples'."""
        key = self.tape.key(parameter)
        return parameter if key is None else self._expanded_key(key, reason)

    def _expanded_key(self, key: int, reason: str) -> Tensor:
        if key not in self._expanded:
            with self.examples.together():
                copies = _Expand.apply(self.tape.use(key), self.examples.count, self.tape, key, reason)
            self._expanded[key] = self.examples.one_of(copies)
        return self._expanded[key]

    def for_all(self, function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        """Apply a function to the tensor of all examples, (examples, ...), instead of one example's."""
        with self.examples.together():
            output = function(self.examples.all_of(tensor))
        return self.examples.one_of(output)

    def _holds_parameter(self, values: Iterable[Any]) -> bool:
        for value in values:
            if isinstance(value, Tensor):
                if self.tape.key(value) is not None or self.tape.transposed_key(value) is not None:
                    return True
            elif isinstance(value, (list, tuple)) and self._holds_parameter(value):
                return True
        return False

    def _with_expanded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            name = func.__self__.__name__
            if name not in _DIFFERENTIABLE_ATTRIBUTES:
                return func(*args, **kwargs)
        if name in _METADATA:
            return func(*args, **kwargs)
        if name in _CASTS:
            cast = func(*args, **kwargs)
            if cast is args[0]:
                return cast
        reason = f"used by {name}"
        return func(*(self.apart(arg, reason) for arg in args), **{k: self.apart(v, reason) for k, v in kwargs.items()})

    def apart(self, value: Any, reason: str) -> Any:
        """An argument with a copy per example of each parameter in it, for a function that no rule is made for."""
        if isinstance(value, Tensor):
            key = self.tape.transposed_key(value)
            return self.expanded(value, reason=reason) if key is None else self._expanded_key(key, reason).mT
        if type(value) in (list, tuple):
            return type(value)(self.apart(item, reason) for item in value)
        return value


class _Expand(torch.autograd.Function):
    """One copy of a parameter per example, in name only."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, count: int, tape: Tape, key: int, reason: str) -> Tensor:
        ctx.tape, ctx.key, ctx.reason = tape, key, reason
        tape.expanded_bytes += parameter.numel() * parameter.element_size()
        return parameter.expand(count, *parameter.shape)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        ctx.tape.add_dense(ctx.key, gradients, way=f"every example's gradient, by torch.vmap ({ctx.reason})")
        return (gradients.sum(0) if ctx.tape.sums else None), None, None, None, None
