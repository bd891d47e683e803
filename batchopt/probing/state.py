"""Keeping what is not ours: a model's state, its modes, and the process-wide random generators."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from batchopt.probing.sharding import own_part

# torch's default generator is one per process, and joblib's threading backend runs several runs in one process: who
# swaps its state must be alone until it is swapped back, or one run would draw another's numbers. Reentrant, because a
# measurement on a run swaps within a swap.
_GENERATORS_LOCK = threading.RLock()


@dataclass(frozen=True, slots=True)
class GlobalRandomness:
    """States of the process-wide generators of torch (CPU and every CUDA device in use), numpy and python."""

    torch_cpu: Tensor
    torch_cuda: tuple[Tensor, ...]
    numpy: dict[str, Any]
    python: tuple[Any, ...]

    @classmethod
    def capture(cls) -> GlobalRandomness:
        """The states now."""
        return cls(
            torch_cpu=torch.get_rng_state(),
            torch_cuda=tuple(torch.cuda.get_rng_state_all()) if _cuda_in_use() else (),
            numpy=np.random.get_state(legacy=False),  # noqa: NPY002  (users draw from it)
            python=random.getstate(),
        )

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda:
            torch.cuda.set_rng_state_all(self.torch_cuda)
        np.random.set_state(self.numpy)  # noqa: NPY002  (users draw from it)
        random.setstate(self.python)


def seed_generators(seed: int) -> None:
    """Seed all process-wide generators; inside `preserved`, or the caller's are lost."""
    torch.default_generator.manual_seed(seed)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (users draw from it)
    random.seed(seed)


def _cuda_in_use() -> bool:
    # Asking CUDA for its generators would start it, in every worker process, for runs on the CPU.
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


class OwnRandomness:
    """Random generators that belong to one run: while `active`, the process-wide ones are in this run's state.

    Args:
        seed: torch's generators start as after `torch.manual_seed(seed)`.
        device: of the run; its generator is swapped too where it is a CUDA device.
        host: whether numpy's and python's generators belong to the run as well. Swapping them costs a third of a
            millisecond a step, so it is for data that may draw from them (data sets and collate functions).
    """

    def __init__(self, seed: int, *, device: torch.device, host: bool) -> None:
        self._device = device if device.type == "cuda" else None
        self._host = host
        self._torch_cpu = torch.Generator().manual_seed(seed).get_state()
        self._torch_cuda = torch.Generator(device).manual_seed(seed).get_state() if self._device else None
        self._python = random.Random(seed).getstate()
        self._numpy = np.random.RandomState(seed % 2**32).get_state(legacy=False)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Draw from this run's generators inside the block; the caller's are afterwards as they were."""
        with _GENERATORS_LOCK:
            caller = self._read()
            self._write((self._torch_cpu, self._torch_cuda, self._numpy, self._python))
            try:
                yield
            finally:
                self._torch_cpu, self._torch_cuda, self._numpy, self._python = self._read()
                self._write(caller)

    def state_dict(self) -> dict[str, Any]:
        """The states as tensors and plain values."""
        version, words, gauss = self._python
        return {
            "torch_cpu": self._torch_cpu,
            "torch_cuda": self._torch_cuda,
            "numpy_key": torch.from_numpy(self._numpy["state"]["key"].astype(np.int64)),
            "numpy_rest": (self._numpy["state"]["pos"], self._numpy["has_gauss"], self._numpy["gauss"]),
            "python": (version, tuple(words), gauss),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave. A CUDA state is ignored by a run on the CPU and the other way round."""
        self._torch_cpu = state["torch_cpu"].cpu()
        if self._device is not None and state["torch_cuda"] is not None:
            self._torch_cuda = state["torch_cuda"].cpu()
        position, has_gauss, gauss = state["numpy_rest"]
        key = state["numpy_key"].cpu().numpy().astype(np.uint32)
        self._numpy = {
            "bit_generator": "MT19937",
            "state": {"key": key, "pos": position},
            "has_gauss": has_gauss,
            "gauss": gauss,
        }
        version, words, cached = state["python"]
        self._python = (version, tuple(words), cached)

    def _read(self) -> tuple[Tensor, Tensor | None, Any, Any]:
        cuda = None if self._device is None else torch.cuda.get_rng_state(self._device)
        if not self._host:
            return torch.get_rng_state(), cuda, self._numpy, self._python
        numpy = np.random.get_state(legacy=False)  # noqa: NPY002  (users draw from it)
        return torch.get_rng_state(), cuda, numpy, random.getstate()

    def _write(self, states: tuple[Tensor, Tensor | None, Any, Any]) -> None:
        cpu, cuda, numpy, python = states
        torch.set_rng_state(cpu)
        if self._device is not None and cuda is not None:
            torch.cuda.set_rng_state(cuda, self._device)
        if self._host:
            np.random.set_state(numpy)  # noqa: NPY002  (users draw from it)
            random.setstate(python)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode and no gradients inside the block; each in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def preserved(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """Whatever happens in the block, or is raised by it, afterwards all is bit for bit as before.

    That is: parameters, buffers, `.grad` (None stays None, a tensor stays the same tensor), `requires_grad`, the mode
    of every submodule, the optimizer's state and settings, and the process-wide generators of torch, numpy and python.
    The generators are the block's alone: other threads that want them wait.
    """
    with _GENERATORS_LOCK:
        randomness = GlobalRandomness.capture()
        kept_model = _ModelState.capture(model)
        kept_optimizer = None if optimizer is None else _OptimizerState.capture(optimizer)
        try:
            yield
        finally:
            kept_model.restore()
            if kept_optimizer is not None:
                kept_optimizer.restore()
            randomness.restore()


@dataclass(frozen=True, slots=True)
class _Kept:
    """A value with what it was, tensors by copy."""

    held: Any
    value: Any
    version: int

    @classmethod
    def of(cls, held: Any) -> _Kept:
        if isinstance(held, Tensor):
            return cls(held, held.detach().clone(), held._version)
        return cls(held, copy.deepcopy(held), 0)

    def restored(self) -> Any:
        """The same tensor with its old content; any other value by copy."""
        if not isinstance(self.held, Tensor):
            return self.value
        # An untouched tensor is left alone: a write would invalidate a graph that the caller still wants to go back
        # through. The version alone does not see writes through `.data`.
        if self.held._version != self.version or not torch.equal(own_part(self.held.detach()), own_part(self.value)):
            with torch.no_grad():
                self.held.copy_(self.value)
        return self.held


@dataclass(frozen=True, slots=True)
class _ModelState:
    """Parameters with their gradients, buffers and modes of a model."""

    modes: tuple[tuple[nn.Module, bool], ...]
    parameters: tuple[tuple[nn.Parameter, bool, _Kept, _Kept], ...]
    buffers: tuple[tuple[nn.Module, dict[str, _Kept]], ...]

    @classmethod
    def capture(cls, model: nn.Module) -> _ModelState:
        modules = tuple(model.modules())
        return cls(
            modes=tuple((module, module.training) for module in modules),
            parameters=tuple((p, p.requires_grad, _Kept.of(p), _Kept.of(p.grad)) for p in model.parameters()),
            buffers=tuple((m, {name: _Kept.of(buffer) for name, buffer in m._buffers.items()}) for m in modules),
        )

    def restore(self) -> None:
        for module, training in self.modes:
            module.training = training
        for parameter, requires_grad, content, grad in self.parameters:
            content.restored()
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad.restored()
        for module, buffers in self.buffers:
            module._buffers.clear()
            module._buffers.update({name: kept.restored() for name, kept in buffers.items()})


@dataclass(frozen=True, slots=True)
class _OptimizerState:
    """An optimizer's state and settings."""

    optimizer: torch.optim.Optimizer
    state: tuple[tuple[Any, dict[str, _Kept]], ...]
    settings: tuple[dict[str, Any], ...]

    @classmethod
    def capture(cls, optimizer: torch.optim.Optimizer) -> _OptimizerState:
        return cls(
            optimizer=optimizer,
            state=tuple((p, {name: _Kept.of(entry) for name, entry in s.items()}) for p, s in optimizer.state.items()),
            settings=tuple(
                {name: value if name == "params" else copy.deepcopy(value) for name, value in group.items()}
                for group in optimizer.param_groups
            ),
        )

    def restore(self) -> None:
        self.optimizer.state.clear()
        for parameter, entries in self.state:
            self.optimizer.state[parameter] = {name: kept.restored() for name, kept in entries.items()}
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=True):
            group.clear()
            group.update(settings)
