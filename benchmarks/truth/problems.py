"""The problems that are swept: what to train, over which batch sizes, down to which losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchopt import TrainingTask
from truth import data, models, quadratic
from truth.curves import Run

CONTEXT = 32
DECAYING_SEEDS = 2
"""Of runs that decay: the first of the problem's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem and its sweep.

    Attributes:
        about: model, data and optimizer in a line.
        make: makes the task and its held-out data.
        batch_sizes: powers of two, over at least 2^7.
        learning_rate: where the grid of learning rates begins, at the middle batch size.
        rates_per_octave: of that grid; 2 where runs are cheap, and where the best rate lies just below one that fails.
        losses: losses at which the trade-off is read, falling; a run ends at the last.
        most_examples: a run at a tiny batch stops after this many examples.
        most_steps: a run at a huge batch stops after this many steps.
        seeds: of initialisation and data order.
        decaying_from: the smallest batch size of runs that decay, where those of smaller ones are dear; None for all.
        closed_form: gives a run without training, where there is a formula.
    """

    about: str
    make: Callable[[], tuple[TrainingTask, data.Split]]
    batch_sizes: tuple[int, ...]
    learning_rate: float
    losses: tuple[float, ...]
    most_examples: int
    most_steps: int
    rates_per_octave: int = 1
    seeds: tuple[int, ...] = (0, 1)
    decaying_from: int | None = None
    closed_form: Callable[..., Run] | None = None

    @property
    def decaying_batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes of runs that decay."""
        return tuple(size for size in self.batch_sizes if size >= (self.decaying_from or 0))

    @property
    def decaying_seeds(self) -> tuple[int, ...]:
        """The seeds of runs that decay."""
        return self.seeds[:DECAYING_SEEDS]

    @property
    def middle_batch_size(self) -> int:
        """The batch size at which the search for learning rates begins."""
        return self.batch_sizes[4]


def powers_of_two(first: int, last: int) -> tuple[int, ...]:
    """All powers of two from `first` to `last`."""
    return tuple(2**k for k in range(first.bit_length() - 1, last.bit_length()))


def _cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _reconstruction(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[0].flatten(1)).square().mean(1)


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def _next_character(model: nn.Module, batch: Any) -> Tensor:
    codes = batch[0]
    logits = model(codes[:, :-1])
    return functional.cross_entropy(logits.transpose(1, 2), codes[:, 1:], reduction="none").mean(1)


def _clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def _task(
    split: tuple[data.Split, data.Split],
    model: Callable[[], nn.Module],
    loss: Callable[..., Tensor],
    optimizer: Callable[..., torch.optim.Optimizer],
    before_step: Callable[[nn.Module], object] | None = None,
) -> tuple[TrainingTask, data.Split]:
    train, held_out = split
    task = TrainingTask(model=model, data=train, loss=loss, optimizer=optimizer, before_step=before_step, device="cpu")
    return task, held_out


def _sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


def _momentum(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def _adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr)


def _adamw(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)


PROBLEMS: dict[str, Problem] = {
    "quadratic": Problem(
        about="noisy quadratic model in 64 dimensions, SGD; in closed form",
        make=quadratic.make,
        batch_sizes=powers_of_two(4, 4096),
        learning_rate=0.5,
        losses=(1.0, 0.4, 0.15, 0.06, 0.03),
        most_examples=100_000,
        most_steps=3_000,
        rates_per_octave=2,
        seeds=(0,),
        closed_form=quadratic.run,
    ),
    "digits_softmax": Problem(
        about="softmax regression on 8x8 digits, SGD",
        make=lambda: _task(data.digits(), models.softmax_regression, _cross_entropy, _sgd),
        batch_sizes=powers_of_two(2, 512),
        learning_rate=0.5,
        losses=(1.0, 0.5, 0.25, 0.15, 0.1),
        most_examples=100_000,
        most_steps=2_000,
        rates_per_octave=2,
        seeds=(0, 1, 2),
    ),
    "digits_mlp": Problem(
        about="multilayer perceptron on 8x8 digits, SGD",
        make=lambda: _task(data.digits(), models.digits_mlp, _cross_entropy, _sgd),
        batch_sizes=powers_of_two(2, 512),
        learning_rate=0.5,
        losses=(1.0, 0.3, 0.1, 0.03, 0.01),
        most_examples=100_000,
        most_steps=2_000,
        rates_per_octave=2,
        seeds=(0, 1, 2),
    ),
    "mnist_cnn_sgd": Problem(
        about="CNN on MNIST, SGD",
        make=lambda: _task(data.mnist(), models.mnist_cnn, _cross_entropy, _sgd),
        batch_sizes=powers_of_two(8, 2048),
        learning_rate=0.2,
        losses=(1.0, 0.5, 0.25, 0.13, 0.08),
        most_examples=300_000,
        most_steps=2_000,
        rates_per_octave=2,
    ),
    "mnist_cnn_adam": Problem(
        about="CNN on MNIST, Adam",
        make=lambda: _task(data.mnist(), models.mnist_cnn, _cross_entropy, _adam),
        batch_sizes=powers_of_two(8, 4096),
        learning_rate=0.002,
        losses=(1.0, 0.5, 0.25, 0.13, 0.08),
        most_examples=300_000,
        most_steps=2_000,
    ),
    "cifar_cnn": Problem(
        about="CNN with BatchNorm on CIFAR-10, SGD with momentum",
        make=lambda: _task(data.cifar10(), models.cifar_cnn, _cross_entropy, _momentum),
        batch_sizes=powers_of_two(8, 1024),
        learning_rate=0.05,
        losses=(2.0, 1.8, 1.6, 1.4, 1.25),
        most_examples=300_000,
        most_steps=2_000,
    ),
    "imagenette_cnn": Problem(
        about="CNN with augmentation and dropout on ten ImageNet classes, 64x64, AdamW",
        make=lambda: _task(data.imagenette(), models.imagenette_cnn, _cross_entropy, _adamw),
        batch_sizes=powers_of_two(4, 512),
        learning_rate=0.003,
        losses=(2.2, 2.1, 1.9, 1.7, 1.55),
        most_examples=200_000,
        most_steps=2_000,
        decaying_from=8,
    ),
    "autoencoder": Problem(
        about="autoencoder on MNIST, Adam",
        make=lambda: _task(data.mnist(), models.autoencoder, _reconstruction, _adam),
        batch_sizes=powers_of_two(8, 1024),
        learning_rate=0.002,
        losses=(0.065, 0.05, 0.035, 0.026, 0.021),
        most_examples=300_000,
        most_steps=3_000,
        rates_per_octave=2,
    ),
    "vae": Problem(
        about="variational autoencoder on MNIST, Adam",
        make=lambda: _task(data.mnist(), models.VariationalAutoencoder, _own_loss, _adam),
        batch_sizes=powers_of_two(8, 1024),
        learning_rate=0.002,
        losses=(0.4, 0.3, 0.25, 0.21, 0.19),
        most_examples=300_000,
        most_steps=3_000,
    ),
    "lstm": Problem(
        about="character LSTM on Shakespeare, Adam with gradient clipping",
        make=lambda: _task(data.shakespeare(CONTEXT), models.CharacterLSTM, _next_character, _adam, _clip),
        batch_sizes=powers_of_two(4, 512),
        learning_rate=0.008,
        losses=(3.0, 2.7, 2.4, 2.1, 1.9),
        most_examples=60_000,
        most_steps=1_000,
    ),
    "transformer": Problem(
        about="character transformer on Shakespeare, AdamW",
        make=lambda: _task(data.shakespeare(CONTEXT), models.CharacterTransformer, _next_character, _adamw),
        batch_sizes=powers_of_two(4, 512),
        learning_rate=0.004,
        losses=(3.3, 3.0, 2.7, 2.4, 2.2),
        most_examples=60_000,
        most_steps=1_000,
    ),
}


@cache
def make(name: str) -> tuple[TrainingTask, data.Split]:
    """The task of a problem and its held-out data, made once in each process."""
    return PROBLEMS[name].make()
